"""Training: loop, optimiser and schedules, processes, resuming, progress, and the correspondence metric."""
