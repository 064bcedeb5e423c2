"""Preprocess one scan by a plan of nnU-Net, with nnU-Net's own preprocessor: the voxels that fine-tuning will see."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager

from nnunetv2_pgl.errors import counted
from pretraining.data.default_preprocessing import PreprocessedScan
from pretraining.data.resampling import resampled_shape
from pretraining.data.scan import BadScan, DataError, safe_name
from pretraining.option_fields import require_types

CT_SCHEME = "CTNormalization"
_MAX_IN_FLOAT16 = 2048.0  # whole numbers up to here are exact; only unnormalised values are larger
# nnU-Net resamples labels with the images. Here they are only the mask of nonzero voxels, no longer needed by then.
_NO_RESAMPLING_OF_LABELS = {"resampling_fn_seg": "no_resampling_hack", "resampling_fn_seg_kwargs": {}}


@dataclass(frozen=True)
class PlannedPreprocessing:
    """How a configuration of nnU-Net's plans preprocesses images. Fields have the plans' names.

    Axes are those after the plans' transposition, which the stored volumes have as well.

    Attributes:
        dataset_name, plans_name, configuration: Where it comes from.
        spacing: In mm, to resample to.
        transpose_forward: Which axis of the scan as read becomes the first, second and third.
        normalization_schemes: Names of nnU-Net's classes, one per channel.
        use_mask_for_norm: Per channel, whether only voxels inside the nonzero mask are normalised.
        foreground_intensity_properties_per_channel: By the channel's number as text; what CT is clipped to and scaled
            with.
        resampling_fn_data, resampling_fn_data_kwargs: Name and settings of nnU-Net's function.
        preprocessor_name: Name of nnU-Net's class.
    """

    dataset_name: str
    plans_name: str
    configuration: str
    spacing: tuple[float, float, float]
    transpose_forward: tuple[int, int, int]
    normalization_schemes: tuple[str, ...]
    use_mask_for_norm: tuple[bool, ...]
    foreground_intensity_properties_per_channel: Mapping[str, Mapping[str, float]]
    resampling_fn_data: str
    resampling_fn_data_kwargs: Mapping[str, Any]
    preprocessor_name: str = "DefaultPreprocessor"

    @classmethod
    def from_plans(cls, plans: Mapping[str, Any], configuration: str) -> PlannedPreprocessing:
        """The preprocessing of a 3D configuration.

        Args:
            plans: Content of a plans file.
            configuration: Such as 3d_fullres.

        Raises:
            DataError: There is no such configuration, it is not 3D, or it names what nnU-Net does not have.
        """
        name = str(plans.get("plans_name", "the plans"))
        try:
            manager = PlansManager(dict(plans))
            values = {**plans, **manager.get_configuration(configuration).configuration}
            values["configuration"] = configuration
            values["foreground_intensity_properties_per_channel"] = manager.foreground_intensity_properties_per_channel
            planned = cls.from_dict({field.name: values[field.name] for field in fields(cls)})
            _, resolved = planned.managers()
            _ = resolved.resampling_fn_data  # an error if nnU-Net does not have it
        except KeyError as error:
            raise DataError(f"{name}: lacks {error}; plan again with nnUNetv2_plan_experiment") from error
        except RuntimeError as error:
            raise DataError(f"{name}: {error}") from error
        if resolved.preprocessor_class is None:
            raise DataError(f"{name}: this nnU-Net has no preprocessor {planned.preprocessor_name}")
        return planned

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PlannedPreprocessing:
        """The inverse of `to_dict`.

        Raises:
            DataError: If a value is missing, unknown, or the configuration is not 3D.
        """
        sequences = ("spacing", "transpose_forward", "normalization_schemes", "use_mask_for_norm")
        content: dict[str, Any] = dict(values)
        try:
            planned = cls(**content | {key: tuple(content[key]) for key in sequences if key in content})
            require_types(planned)
        except TypeError as error:
            raise DataError(f"preprocessing of a plan, which must be 3D: {error}") from error
        return planned

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON keeps as they are."""
        values: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return values

    @property
    def channels(self) -> int:
        """Number of channels that the plan was made for."""
        return len(self.normalization_schemes)

    @property
    def folder_name(self) -> str:
        """Folder of the volumes, below that of their source."""
        return "PGL_" + safe_name(f"{self.dataset_name}_{self.plans_name}_{self.configuration}")

    def for_channels(self, count: int) -> PlannedPreprocessing:
        """The same for scans with a number of channels: the plan's own, or any where it has one scheme for all.

        Raises:
            BadScan: If it is another number, and there is a scheme for each channel.
        """
        if count == self.channels:
            return self
        if self.channels != 1:
            raise BadScan(f"has {counted(count, 'channel')}, {self.plans_name} is for {self.channels}")
        properties = self.foreground_intensity_properties_per_channel["0"]
        return replace(
            self,
            normalization_schemes=self.normalization_schemes * count,
            use_mask_for_norm=self.use_mask_for_norm * count,
            foreground_intensity_properties_per_channel={str(channel): properties for channel in range(count)},
        )

    def managers(self) -> tuple[PlansManager, ConfigurationManager]:
        """What nnU-Net's preprocessor takes."""
        values = self.to_dict() | _NO_RESAMPLING_OF_LABELS | {"architecture": {}}
        return PlansManager(values), ConfigurationManager(values)


def preprocess_as_planned(
    array: np.ndarray, spacing: tuple[float, float, float], planned: PlannedPreprocessing
) -> PreprocessedScan:
    """Preprocess one scan by nnU-Net's preprocessor: transpose, crop to nonzero, normalise, resample.

    Values are stored in float16, which is off by 0.05 % at most (0.001 at two standard deviations from the mean), or in
    float32 if any lies beyond 2048. With mean 0 and std 1 in the record, the z-score of the crops changes nothing.

    Args:
        array: float32 (channel, z, y, x).
        spacing: (z, y, x) in mm.
        planned: The plan, whose axes the result has.

    Raises:
        BadScan: If the plan is for another number of channels, nothing is left, or a channel is constant.
    """
    planned = planned.for_channels(len(array))
    axes = planned.transpose_forward
    old = [spacing[axis] for axis in axes]
    resampled_shape(tuple(array.shape[1 + axis] for axis in axes), tuple(old), planned.spacing)  # refuses thin scans
    plans, configuration = planned.managers()
    properties: dict[str, Any] = {"spacing": list(spacing)}
    preprocessor = configuration.preprocessor_class(verbose=False)
    values, _, properties = preprocessor.run_case_npy(array, None, properties, plans, configuration, {})
    for number, channel in enumerate(values):
        if not np.isfinite(channel).all() or channel.min() == channel.max():
            raise BadScan(f"channel {number} is constant or not finite once normalised as {planned.plans_name} says")
    dtype = np.float16 if float(np.abs(values).max()) <= _MAX_IN_FLOAT16 else np.float32
    cropped = properties["shape_after_cropping_and_before_resampling"]
    z, y, x = (s * int(n) / m for s, n, m in zip(old, cropped, values.shape[1:], strict=True))
    box = tuple((int(start), int(stop)) for start, stop in properties["bbox_used_for_cropping"])
    mean, std = (0.0,) * len(values), (1.0,) * len(values)
    return PreprocessedScan(values.astype(dtype), (z, y, x), mean, std, box, ())
