"""What a pool's axes mean in the body: whether z, y, x are the same in all scans, and which one is lateral."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from nnunetv2_pgl.errors import size_text
from pretraining.data import DataError, Volume
from pretraining.data.reading.orientation import Orientation, body_axes
from pretraining.views import ViewSettings


def require_lateral(orientations: Iterable[Orientation | None], views: ViewSettings) -> None:
    """Refuses ``-no_flip lateral`` where no scan states which axis that is; looks no further than the first that does.

    For the default, "lateral_in_ct", which nobody asked for, the warning of `axis_warnings` will do.

    Raises:
        DataError: With what to do instead.
    """
    if views.no_flip == "lateral" and all(orientation is None for orientation in orientations):
        raise DataError(
            f"-no_flip {views.no_flip}: no scan states in its header how its axes lie in the body; leave the axis out "
            "by its place, as in -flip_probability 0.5 0.5 0 (z y x)"
        )


def axis_warnings(volumes: Sequence[Volume], views: ViewSettings) -> list[str]:
    """A line if scans have other axes than most, and one if the lateral axis of some is not known."""
    return [*_of_other_order(volumes, views), *_of_unknown_lateral(volumes, views)]


def _of_other_order(volumes: Sequence[Volume], views: ViewSettings) -> list[str]:
    """Along which axis of the body each axis runs; the direction does not matter."""
    known = [(volume, body_axes(volume.orientation)) for volume in volumes if volume.orientation is not None]
    counts = Counter(axes for _, axes in known)
    if len(counts) < 2:
        return []
    usual = counts.most_common(1)[0][0]
    others = [(volume, axes) for volume, axes in known if axes != usual]
    first, axes = others[0]
    size = size_text(views.size)
    return [
        f"z, y, x are {_listed(usual)} in most scans, but not in {len(others)} of {len(known)}, the first {first.name} "
        f"of {first.source}: {_listed(axes)}. Spacing, views of {size} voxels and a -flip_probability of three values "
        "mean other axes of the body there: store all scans with the same order of axes, or leave these out with "
        "-exclude"
    ]


def _of_unknown_lateral(volumes: Sequence[Volume], views: ViewSettings) -> list[str]:
    unknown = [volume for volume in volumes if volume.orientation is None and views.keeps_sides_of(volume)]
    if not unknown:
        return []
    return [
        f"-no_flip {views.no_flip}: {len(unknown)} of {len(volumes)} scans do not state in their headers how their "
        f"axes lie in the body, the first {unknown[0].name} of {unknown[0].source}: they are flipped along all axes; "
        "store them in a format with directions, or leave them out with -exclude"
    ]


def _listed(axes: tuple[str, str, str]) -> str:
    return ", ".join(axes)
