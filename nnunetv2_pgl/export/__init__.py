"""The command ``pgl_export``: an encoder checkpoint as a folder to publish."""
