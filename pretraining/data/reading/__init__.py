"""From files to voxels: DICOM, NIfTI, MetaImage, NRRD, TIFF, their headers and their damage."""

from pretraining.data.reading.reader import read_geometry, read_scan

__all__ = ["read_geometry", "read_scan"]
