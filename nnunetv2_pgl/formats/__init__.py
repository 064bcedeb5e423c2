"""The file formats of checkpoints: what they hold, read without running code; which encoder that is."""
