"""The script of docs/reproduce.md that gives nnU-Net's plans the intensities of the pre-training."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from nnunetv2.preprocessing.normalization.default_normalization_schemes import CTNormalization

from pretraining.data.default_preprocessing import HU_RANGE

PAGE = Path(__file__).parents[1] / "docs" / "reproduce.md"
POOL = ("Dataset015_RibFrac", "Dataset006_Lung", "Dataset007_Pancreas", "Dataset008_HepaticVessel", "Dataset010_Colon")
LABELLED = ("Dataset003_Liver", "Dataset009_Spleen", "Dataset064_KiTS19", "Dataset017_BCV")


@pytest.fixture
def plans(tmp_path: Path) -> list[dict[str, Any]]:
    """What the script makes of planned datasets, beside a pool whose scans have means of -400 to -800."""
    for number, name in enumerate(POOL):
        folder = tmp_path / name / "PGL_spacing_2x1x1"
        folder.mkdir(parents=True)
        record = {"mean": [-400.0 - 100 * number], "std": [500.0 + number]}
        (folder / "scan.json").write_text(json.dumps(record))
    before = {"mean": 90.0, "std": 40.0, "median": 95.0, "percentile_00_5": -17.0, "percentile_99_5": 200.0}
    for name in LABELLED:
        (tmp_path / name).mkdir()
        properties = {"foreground_intensity_properties_per_channel": {"0": before}, "plans_name": "nnUNetPaperPlans"}
        (tmp_path / name / "nnUNetPaperPlans.json").write_text(json.dumps(properties))
    (script,) = re.findall(r"^python - <<'END'\n(.*?)^END$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    environment = {**os.environ, "nnUNet_preprocessed": str(tmp_path)}
    subprocess.run([sys.executable, "-c", script], env=environment, check=True)
    return [json.loads((tmp_path / name / "nnUNetPaperPlans.json").read_text()) for name in LABELLED]


def test_the_plans_have_the_intensities_of_the_pre_training(plans: list[dict[str, Any]]) -> None:
    for planned in plans:
        assert planned["plans_name"] == "nnUNetPaperPlans"
        properties = planned["foreground_intensity_properties_per_channel"]["0"]
        assert properties["median"] == 95
        image = np.array([-2000.0, -600.0, 0.0, 3000.0])
        expected = (np.clip(image, *HU_RANGE) + 600) / 502
        seen = CTNormalization(use_mask_for_norm=False, intensityproperties=properties).run(image.copy())
        np.testing.assert_allclose(seen, expected, rtol=1e-6)
