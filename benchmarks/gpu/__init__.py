"""What is to be measured on the day a GPU is there: ``python -m benchmarks.gpu``."""
