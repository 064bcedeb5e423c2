"""The command ``pgl_convert``: the datasets of the paper's experiment as nnU-Net raw datasets.

``datasets`` and ``msd`` find the files of a download and say what becomes of them (`DownloadedDataset`); ``writing``
writes any of them.
"""
