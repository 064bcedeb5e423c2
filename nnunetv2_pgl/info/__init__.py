"""The command ``pgl_info``: what an encoder checkpoint says of itself, and what two of them differ in."""
