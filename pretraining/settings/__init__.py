"""Settings of a pre-training run: one table of options, presets, checks, and what a plan of nnU-Net decides."""
