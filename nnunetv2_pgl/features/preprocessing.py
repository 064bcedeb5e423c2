"""The preprocessing of a pre-training for one image, by nnU-Net's preprocessor, and where its voxels came from."""

from __future__ import annotations

import inspect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from numpy.typing import NDArray
from torch import Tensor

from nnunetv2_pgl.checkpoint import EncoderCheckpoint
from nnunetv2_pgl.errors import PGLError, counted, one_line, size_text
from nnunetv2_pgl.features.reading import read_image, triple

_MAX_VOXELS = 2**32  # beyond any scan, 16 GB in float32
_HU_RANGE = (-1024, 325)  # what pgl_pretrain clips CT to without a plan
_RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}  # of nnU-Net's default plans


@dataclass(frozen=True)
class PreprocessedImage:
    """An image as the encoder saw images in its pre-training.

    Points are (z, y, x) in voxels with edges at the integers: the centre of the first voxel is (0.5, 0.5, 0.5).

    Attributes:
        values: (1, channels, z, y, x), float32, normalised.
        spacing: Size of a voxel (z, y, x) in mm.
        axes: For each axis, which axis of the original it is.
        start: First voxel of the original that was kept, per axis of ``values``.
        scale: Voxels of ``values`` per voxel of the original, per axis of ``values``.
        preprocessing: What made it.
    """

    values: Tensor
    spacing: tuple[float, float, float]
    axes: tuple[int, int, int]
    start: tuple[int, int, int]
    scale: tuple[float, float, float]
    preprocessing: Preprocessing

    def from_original(self, points: Any) -> Tensor:
        """Points (N, 3) of the original image in voxels of ``values``."""
        points = as_points(points)[:, list(self.axes)]
        return (points - torch.tensor(self.start)) * torch.tensor(self.scale, dtype=torch.float64)

    def to_original(self, points: Any) -> Tensor:
        """The inverse of `from_original`."""
        points = as_points(points)
        points = points / torch.tensor(self.scale, dtype=torch.float64) + torch.tensor(self.start)
        return points[:, [self.axes.index(axis) for axis in range(3)]]


@dataclass(frozen=True)
class Preprocessing:
    """What a pre-training does to an image before the encoder sees it.

    A pre-training without a plan crops to nonzero, clips CT to its window, resamples and z-scores over the image; one
    that followed a plan (``-plans_from``) does what nnU-Net's preprocessor does by that plan.

    Attributes:
        channels: Image channels of the encoder.
        spacing: Voxel size (z, y, x) in mm to resample to; None keeps that of the image.
        clip: Window of the intensities of CT, in Hounsfield units; None for none.
        is_ct: Per channel, whether it is CT.
        plan: What nnU-Net's preprocessor reads from plans, if a plan was followed.
        view_size: Voxels (z, y, x) that the encoder saw at a time.
        stage: The deepest map that the pre-training has trained: -1, or further up.
    """

    channels: int
    spacing: tuple[float, float, float] | None
    clip: tuple[float, float] | None
    is_ct: tuple[bool, ...]
    plan: dict[str, Any] | None
    view_size: tuple[int, int, int]
    stage: int = -1

    @classmethod
    def from_checkpoint(cls, checkpoint: EncoderCheckpoint, path: str) -> Preprocessing:
        """The preprocessing that a checkpoint records.

        Raises:
            PGLError: It does not record how intensities were normalised, or how large views were, or its plan names
                what this nnU-Net does not have.
        """
        pgl, architecture = checkpoint.pgl, checkpoint.architecture
        config, intensity = pgl.get("config") or {}, pgl.get("intensity") or {}
        schemes, view_size = intensity.get("normalization_schemes"), pgl.get("view_size")
        properties = intensity.get("foreground_intensity_properties_per_channel")
        if not view_size or not ("normalisation" in intensity or schemes):
            raise PGLError(
                f"{path}: does not record how images were preprocessed; use the encoder alone, by "
                "nnunetv2_pgl.checkpoint.load_encoder_network"
            )
        plan = None
        if schemes:
            if properties is None and "CTNormalization" in schemes:
                raise PGLError(f"{path}: normalises CT but does not record with which mean and standard deviation")
            known = config.get("preprocessing") or {}
            plan = {
                "spacing": pgl.get("spacing"),
                "transpose_forward": [0, 1, 2],
                "normalization_schemes": schemes,
                "use_mask_for_norm": intensity.get("use_mask_for_norm") or [False] * len(schemes),
                "foreground_intensity_properties_per_channel": properties or {str(n): {} for n in range(len(schemes))},
                **known,
            }
        channels, recorded = int(architecture["in_channels"]), pgl.get("preprocessing") or {}
        spacing = None if config.get("spacing") == "native" and plan is None else pgl.get("spacing")
        if plan is None and spacing is not None:
            given = config.get("spacing")  # of files of earlier versions: numbers, or "median"
            spacing = recorded.get("target_spacing") or (given if isinstance(given, list | tuple) else spacing)
        is_ct = recorded.get("is_ct", [intensity.get("modality") == "ct"] * channels)
        if plan is None and is_ct is None:
            raise PGLError(
                f"{path}: was pre-trained on CT and on other scans, which were preprocessed differently; preprocess "
                "images with pretraining.data, and use nnunetv2_pgl.checkpoint.load_encoder_network"
            )
        is_ct = tuple(map(bool, is_ct or [])) if plan is None else (False,) * channels
        clip = (intensity.get("clip") or _HU_RANGE) if any(is_ct) else None
        # Stages that the loss did not reach are the last ones of nnU-Net's encoders.
        untrained = len([name for name in pgl.get("untrained_stages") or () if str(name).startswith("stages.")])
        made = cls(
            channels,
            None if spacing is None else triple(spacing),
            None if clip is None else (float(clip[0]), float(clip[1])),
            is_ct,
            plan,
            triple(view_size),
            -1 - untrained,
        )
        made._require_known(path)
        return made

    def __call__(
        self,
        image: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | NDArray[Any],
        spacing: Sequence[float] | None = None,
    ) -> PreprocessedImage:
        """Preprocesses one image.

        Args:
            image: A file that SimpleITK reads, such as ``.nii.gz``; one for each channel; or an array (z, y, x) or
                (channel, z, y, x) in Hounsfield units for CT, as ``pretraining.data.reading.read_scan`` returns it.
            spacing: Of an array: (z, y, x) in mm.

        Raises:
            PGLError: A file cannot be read, or the image does not suit the encoder.
        """
        array, spacing, name = read_image(image, spacing)
        if len(array) != self.channels:
            raise PGLError(
                f"{name}: has {counted(len(array), 'channel')}, the encoder takes {self.channels}; give one file for "
                "each channel"
            )
        if not np.isfinite(array).all():
            raise PGLError(f"{name}: holds NaN or infinite values")
        ct = [channel for channel, is_ct in enumerate(self.is_ct) if is_ct]
        if self.clip is not None:
            array[ct] = np.clip(array[ct], *self.clip)
        plans, configuration = self._managers(spacing)
        _require_size(array.shape[1:], spacing, configuration.spacing, plans.transpose_forward, name)
        preprocessor = configuration.preprocessor_class(verbose=False)
        properties: dict[str, Any] = {"spacing": list(spacing)}
        try:
            values, _, properties = preprocessor.run_case_npy(array, None, properties, plans, configuration, {})
        except (TypeError, ValueError) as error:  # of values in the plan that its functions do not take
            raise PGLError(f"{name}: nnU-Net cannot preprocess it as planned ({one_line(error)})") from error
        if self.plan is None:
            values[ct] = np.rint(values[ct])
            mean, std = (f(values, axis=(1, 2, 3), keepdims=True, dtype=np.float64) for f in (np.mean, np.std))
            if (std == 0).any():
                raise PGLError(f"{name}: a channel is constant once preprocessed; is it the modality of the encoder?")
            values = (values - mean) / std
        axes = triple(plans.transpose_forward)
        cropped = properties["shape_after_cropping_and_before_resampling"]
        scale = triple(int(new) / int(old) for new, old in zip(values.shape[1:], cropped, strict=True))
        voxel = triple(float(spacing[axis]) / factor for axis, factor in zip(axes, scale, strict=True))
        start = triple(int(begin) for begin, _ in properties["bbox_used_for_cropping"])
        tensor = torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32))[None]
        return PreprocessedImage(tensor, voxel, axes, start, scale, self)

    def _managers(self, spacing: Sequence[float]) -> tuple[PlansManager, ConfigurationManager]:
        """What nnU-Net's preprocessor takes."""
        values = {
            "spacing": list(self.spacing or spacing),
            "transpose_forward": [0, 1, 2],
            "normalization_schemes": ["NoNormalization"] * self.channels,
            "use_mask_for_norm": [False] * self.channels,
            "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(self.channels)},
            "resampling_fn_data": "resample_data_or_seg_to_shape",
            "resampling_fn_data_kwargs": _RESAMPLING,
            "preprocessor_name": "DefaultPreprocessor",
            **(self.plan or {}),
            # Only the mask of nonzero voxels, which is not needed.
            "resampling_fn_seg": "no_resampling_hack",
            "resampling_fn_seg_kwargs": {},
            "architecture": {},
        }
        if len(values["normalization_schemes"]) == 1 < self.channels:  # one scheme for all, as pgl_pretrain takes it
            values |= {key: list(values[key]) * self.channels for key in ("normalization_schemes", "use_mask_for_norm")}
            properties = values["foreground_intensity_properties_per_channel"]["0"]
            each = {str(channel): properties for channel in range(self.channels)}
            values["foreground_intensity_properties_per_channel"] = each
        return PlansManager(values), ConfigurationManager(values)

    def _require_known(self, path: str) -> None:
        """A PGLError if preprocessor or resampling are not nnU-Net's, which looks them up by the names in the plan."""
        configuration = self._managers((1.0, 1.0, 1.0))[1]
        try:
            known = issubclass(configuration.preprocessor_class, DefaultPreprocessor)
            function = configuration.resampling_fn_data
            inspect.signature(function.func).bind_partial(**function.keywords)
            known = known and function.func.__module__.startswith("nnunetv2.")
        except Exception:  # whatever the plan names
            known = False
        if not known:
            keys = ("preprocessor_name", "resampling_fn_data", "resampling_fn_data_kwargs")
            names = [configuration.configuration[key] for key in keys]
            raise PGLError(
                f"{path}: its plan preprocesses with {', '.join(map(one_line, names))}, which this nnU-Net "
                "does not have in this form; use the encoder alone, by nnunetv2_pgl.checkpoint.load_encoder_network"
            )


def _require_size(shape: Any, spacing: Any, target: Any, axes: Any, name: str) -> None:
    """Refuses images that resampling would leave nothing of, or make larger than memory."""
    sizes = [shape[axis] * spacing[axis] / wanted for axis, wanted in zip(axes, target, strict=True)]
    if min(sizes) < 1.5 or np.prod(sizes) > _MAX_VOXELS:
        shown = size_text(round(size, 1) for size in sizes)
        raise PGLError(f"{name}: would have {shown} voxels at the spacing of the pre-training; check its header")


def as_points(points: Any) -> Tensor:
    """Points (N, 3), or one point, as float64 on the CPU; a ValueError if they are something else."""
    if isinstance(points, Tensor):
        points = points.detach().to("cpu", torch.float64)
    found = np.ascontiguousarray(points, dtype=np.float64)
    if found.size % 3 or (found.size and found.shape[-1] != 3) or not np.isfinite(found).all():
        raise PGLError(f"points must be finite numbers (z, y, x), one row for each, got the shape {found.shape}")
    return torch.from_numpy(found).reshape(-1, 3)
