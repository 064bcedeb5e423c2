"""``pgl_demo``: CT phantoms, and the whole way from unlabelled scans to segmented test scans on them."""

from pretraining.demo.run import demo_entry

__all__ = ["demo_entry"]
