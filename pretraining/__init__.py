"""Standalone PGL pre-training, in the order in which a scan passes through it.

scans -> data (find, preprocess, store) -> views (geometry, rendering, intensity) -> encoder, online and target
-> alignment -> objectives -> training -> checkpoint. A part knows the parts before it, never those after it.

Conventions, once and everywhere: arrays are (channel, z, y, x). A box is ``[start, end)`` in source voxels, in real
numbers, with voxel *edges* at the integers: voxel ``i`` covers ``[i, i + 1)`` and its value belongs to its centre
``i + 0.5``. Geometry is drawn first (all randomness), applied second (none).

Paper: Xie, Zhang, Liao, Xia, Shen. PGL: Prior-Guided Local Self-supervised Learning for 3D Medical Image
Segmentation. arXiv:2011.12640, 2020. ``docs/method.md`` puts each equation beside its function.
"""
