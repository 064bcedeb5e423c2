from __future__ import annotations

import re
from typing import Any

import pytest

from nnunetv2_pgl.trainers.preprocessing_check import intensity_difference, spacing_difference

CT, Z_SCORE = "CTNormalization", "ZScoreNormalization"
PAPER = {"modality": "ct", "clip": [-1024.0, 325.0], "normalisation": "z-score per scan"}
OTHER = {"modality": "other", "clip": None, "normalisation": "z-score per scan and channel"}


def foreground(mean: float = 80.0, std: float = 140.0) -> dict[str, dict[str, float]]:
    return {"0": {"mean": mean, "std": std, "percentile_00_5": -950.0, "percentile_99_5": 270.0}}


def planned(schemes: list[str], **properties: float) -> dict[str, Any]:
    return {
        "modality": "ct",
        "normalization_schemes": schemes,
        "foreground_intensity_properties_per_channel": foreground(**properties),
    }


def test_spacing() -> None:
    assert spacing_difference([3.0, 0.8, 0.8], [3, 0.8, 0.801]) is None
    line = spacing_difference([1.5, 1.5, 1.5], [3.0, 0.75, 0.75])
    assert line is not None
    assert "pre-trained at 1.5 x 1.5 x 1.5 mm, fine-tuning at 3 x 0.75 x 0.75 mm" in line
    assert "0.5 x 2 x 2 times as large" in line  # 3 mm are two voxels there and one here
    assert "\n" not in line
    assert "does not record the spacing" in str(spacing_difference(None, [1, 1, 1]))


@pytest.mark.parametrize(
    ("pretrained", "schemes"),
    [
        (OTHER, [Z_SCORE]),
        (OTHER, [Z_SCORE, Z_SCORE]),
        ({"modality": "unknown", "normalization_schemes": [Z_SCORE]}, [Z_SCORE, Z_SCORE]),
        (planned([CT]), [CT]),
        (planned([CT], mean=84.0, std=145.0), [CT]),  # within a twentieth
        (planned([CT, Z_SCORE]), [CT, Z_SCORE]),
    ],
)
def test_the_same_intensities(pretrained: dict[str, Any], schemes: list[str]) -> None:
    assert intensity_difference(pretrained, schemes, foreground()) is None


@pytest.mark.parametrize(
    ("pretrained", "schemes", "message"),
    [
        (PAPER, [CT], "CT clipped to [-1024, 325] HU with z-score per scan, fine-tuning on CT clipped to [-950, 270]"),
        (PAPER, [Z_SCORE], "fine-tuning on images with nnU-Net's ZScoreNormalization"),
        (OTHER, [CT], "pre-trained on other modalities than CT with z-score per scan and channel, fine-tuning on CT"),
        (OTHER, [Z_SCORE, CT], "fine-tuning on channel 1: images with nnU-Net's CTNormalization"),
        (planned([CT], mean=200.0), [CT], "less 200 and divided by 140 (nnU-Net's CTNormalization), fine-tuning on CT"),
        (planned([CT]), [Z_SCORE], "ZScoreNormalization"),
        (planned([CT, Z_SCORE]), [CT, CT], "fine-tuning on channel 1"),
        (
            {"modality": "ct", "normalization_schemes": [CT]},
            [CT],
            "pre-trained on images with nnU-Net's CTNormalization",
        ),
    ],
)
def test_other_intensities(pretrained: dict[str, Any], schemes: list[str], message: str) -> None:
    line = intensity_difference(pretrained, schemes, foreground())
    assert line is not None
    assert re.match(r"WARNING: pre-trained on .*: the same tissue has other values", line)
    assert message in line
    assert "\n" not in line


def test_unknown_intensities() -> None:
    assert "does not record how its intensities" in str(intensity_difference(None, [CT], foreground()))
