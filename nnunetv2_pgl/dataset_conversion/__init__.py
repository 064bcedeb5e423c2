"""The data of the paper's experiment as nnU-Net raw datasets.

A module per data set finds its files and says what becomes of them (``Collection``); ``writing`` writes any of them.
"""
