"""How the preprocessing of fine-tuning differs from that of the pre-training (spacing, intensities), for the log."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_CT, _Z_SCORE = "CTNormalization", "ZScoreNormalization"
_BOUNDS = ("percentile_00_5", "percentile_99_5")
_SAME_SIZE = 1.05  # headers round; less than a twentieth is the same spacing
_SAME_INTENSITY = 0.05  # of a standard deviation, or of the clipped range
_REMEDY = "pgl_pretrain with -plans_from and -p takes it from the plan"


def spacing_difference(pretrained: Sequence[float] | None, planned: Sequence[float]) -> str | None:
    """What the log says about the spacing; None if it is the same.

    Both are in mm, in the plan's order of axes; ``pretrained`` is None where the checkpoint does not record it.
    """
    if not pretrained or len(pretrained) != len(planned):
        return "The checkpoint does not record the spacing it was pre-trained at, so it is not compared with the plan's"
    scales = [float(before) / float(now) for before, now in zip(pretrained, planned, strict=True)]
    if all(1 / _SAME_SIZE <= scale <= _SAME_SIZE for scale in scales):
        return None
    return (
        f"WARNING: pre-trained at {_sizes(pretrained)} mm, fine-tuning at {_sizes(planned)} mm: in voxels, the same "
        f"structures are {_sizes(scales)} times as large as those the encoder has learned (the plan's axes), which can "
        f"cost part of the gain; {_REMEDY}"
    )


def intensity_difference(
    pretrained: Mapping[str, Any] | None, schemes: Sequence[str], properties: Mapping[str, Mapping[str, float]]
) -> str | None:
    """What the log says about the intensities; None if they are normalised alike.

    Args:
        pretrained: ``pgl["intensity"]``: ``modality``, ``clip`` and ``normalisation``; or ``normalization_schemes`` and
            ``foreground_intensity_properties_per_channel`` of the plan whose preprocessing it took. None where
            nothing is recorded.
        schemes: The plan's normalisation, one per image channel.
        properties: The plan's foreground intensities, by the number of the channel.
    """
    if not pretrained:
        return "The checkpoint does not record how its intensities were normalised, so they are not compared"
    if "normalization_schemes" in pretrained:
        alike = [_alike(_channel(pretrained, n), (s, properties.get(str(n)))) for n, s in enumerate(schemes)]
    else:  # clipping to fixed HU is not nnU-Net's
        alike = [pretrained.get("modality") == "other" and scheme == _Z_SCORE for scheme in schemes]
    if all(alike):
        return None
    channel = alike.index(False)
    which = "" if len(schemes) == 1 else f"channel {channel}" + (" and others" if alike.count(False) > 1 else "") + ": "
    return (
        f"WARNING: pre-trained on {_pretrained(pretrained, channel)}, fine-tuning on {which}"
        f"{_normalised(schemes[channel], properties.get(str(channel)))}: the same tissue has other values than the "
        f"encoder has learned, which can cost part of the gain; {_REMEDY}"
    )


def _channel(pretrained: Mapping[str, Any], number: int) -> tuple[str, Any]:
    """Scheme and foreground intensities of the checkpoint's channel of this number, or of its only one."""
    schemes = pretrained["normalization_schemes"]
    source = min(number, len(schemes) - 1)
    return schemes[source], (pretrained.get("foreground_intensity_properties_per_channel") or {}).get(str(source))


def _alike(before: tuple[str, Any], now: tuple[str, Any]) -> bool:
    """Whether the one scheme gives nearly the values of the other."""
    (scheme, first), (other, second) = before, now
    if scheme != other or scheme != _CT:
        return scheme == other
    if not first or not second:
        return False
    tolerance = {key: _SAME_INTENSITY * second["std"] for key in ("mean", "std")}
    tolerance |= {key: _SAME_INTENSITY * (second[_BOUNDS[1]] - second[_BOUNDS[0]]) for key in _BOUNDS}
    return all(abs(first[key] - second[key]) <= difference for key, difference in tolerance.items())


def _pretrained(intensity: Mapping[str, Any], channel: int) -> str:
    """The checkpoint's intensities, for a channel of the plan."""
    if "normalization_schemes" in intensity:
        return _normalised(*_channel(intensity, channel))
    kind = "CT" if intensity.get("modality") == "ct" else "other modalities than CT"
    clipped = " clipped to [{:g}, {:g}] HU".format(*intensity["clip"]) if intensity.get("clip") else ""
    return f"{kind}{clipped} with {intensity.get('normalisation', 'unknown normalisation')}"


def _normalised(scheme: str, properties: Mapping[str, float] | None) -> str:
    """A channel as nnU-Net normalises it."""
    if scheme != _CT or not properties:
        return f"images with nnU-Net's {scheme}"
    low, high = (properties[key] for key in _BOUNDS)
    return (
        f"CT clipped to [{low:g}, {high:g}] HU, less {properties['mean']:.4g} and divided by {properties['std']:.4g} "
        f"(nnU-Net's {scheme})"
    )


def _sizes(values: Sequence[float]) -> str:
    return " x ".join(f"{float(value):.3g}" for value in values)
