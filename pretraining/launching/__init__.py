"""Launching: the processes that train together, what they agree on, and how they end; it knows nothing of training."""
