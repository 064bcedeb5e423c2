from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.experiment_planning.experiment_planners.residual_unets.residual_encoder_unet_planners import (
    ResEncUNetPlanner,
)
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_pgl.networks import (
    PlanError,
    PlannedNetwork,
)

KWARGS = {
    "n_stages": 4,
    "features_per_stage": [4, 8, 8, 8],
    "conv_op": "torch.nn.modules.conv.Conv3d",
    "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3], [3, 3, 3]],
    "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2], [2, 2, 2]],
    "conv_bias": True,
    "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
    "norm_op_kwargs": {"eps": 1e-5, "affine": True},
    "dropout_op": None,
    "dropout_op_kwargs": None,
    "nonlin": "torch.nn.LeakyReLU",
    "nonlin_kwargs": {"inplace": True},
}
REQUIRES_IMPORT = ("conv_op", "norm_op", "dropout_op", "nonlin")
MODULE = "dynamic_network_architectures.architectures.unet"
BLOCKS = {
    "PlainConvUNet": {"n_conv_per_stage": [2] * 4, "n_conv_per_stage_decoder": [1] * 3},
    "ResidualEncoderUNet": {"n_blocks_per_stage": [1, 2, 1, 1], "n_conv_per_stage_decoder": [1] * 3},
}


def network_of(kind: str) -> PlannedNetwork:
    return PlannedNetwork(f"{MODULE}.{kind}", {**KWARGS, **BLOCKS[kind]}, REQUIRES_IMPORT)


def plans_with(network: PlannedNetwork) -> dict[str, object]:
    architecture = {"network_class_name": network.class_name, "arch_kwargs": dict(network.kwargs)}
    full = {"architecture": {**architecture, "_kw_requires_import": list(network.requires_import)}}
    return {"configurations": {"3d_fullres": full, "3d_child": {"inherits_from": "3d_fullres"}}}


def read_from_plans(network: PlannedNetwork, configuration: str = "3d_fullres") -> PlannedNetwork:
    return PlannedNetwork.from_configuration(
        PlansManager(plans_with(network)).get_configuration(configuration), "plans.json"
    )


def test_plan_and_what_it_inherits() -> None:
    network = network_of("ResidualEncoderUNet")
    for configuration in ("3d_fullres", "3d_child"):
        read = read_from_plans(network, configuration)
        assert read.to_dict() == network.to_dict()
        assert PlannedNetwork.from_dict(read.to_dict(), "x").build(1, 2) is not None
    assert network.strides == ((1, 1, 1), (1, 2, 2), (2, 4, 4), (4, 8, 8))


def test_plans_that_cannot_be_used() -> None:
    network = network_of("PlainConvUNet")
    flat = PlannedNetwork(network.class_name, {**network.kwargs, "conv_op": "torch.nn.Conv2d"}, REQUIRES_IMPORT)
    with pytest.raises(PlanError, match="2D convolutions; use a 3D configuration"):
        read_from_plans(flat)
    other = PlannedNetwork("some.place.Primus", network.kwargs, REQUIRES_IMPORT)
    with pytest.raises(PlanError, match="the network Primus is not known here"):
        read_from_plans(other)


@pytest.fixture
def raw_dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As much of a data set as nnU-Net's planners look at before they plan."""
    raw, preprocessed = tmp_path / "raw" / "Dataset001_X", tmp_path / "preprocessed" / "Dataset001_X"
    for folder in (raw / "imagesTr", raw / "labelsTr", preprocessed):
        folder.mkdir(parents=True)
    (raw / "imagesTr" / "a_0000.nii.gz").touch()
    (raw / "labelsTr" / "a.nii.gz").touch()
    content = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "x": 1}, "numTraining": 1}
    (raw / "dataset.json").write_text(json.dumps({**content, "file_ending": ".nii.gz"}))
    (preprocessed / "dataset_fingerprint.json").write_text("{}")
    monkeypatch.setenv("nnUNet_raw", str(raw.parent))
    monkeypatch.setenv("nnUNet_preprocessed", str(preprocessed.parent))


@pytest.mark.usefixtures("raw_dataset")
@pytest.mark.parametrize(("name", "planner"), [("plain", ExperimentPlanner), ("resenc_l", ResEncUNetPlanner)])
@pytest.mark.parametrize(("shape", "spacing"), [((64, 96, 96), (1.0, 1.0, 1.0)), ((20, 96, 100), (5.0, 0.8, 0.8))])
def test_preset_is_what_nnunet_plans(
    name: str,
    planner: type[ExperimentPlanner],
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ExperimentPlanner, "static_estimate_VRAM_usage", staticmethod(lambda *_: 1.0))
    normalisation = (["CTNormalization"], [False])
    rule = "determine_normalization_scheme_and_whether_mask_is_used_for_norm"
    monkeypatch.setattr(ExperimentPlanner, rule, lambda self: normalisation)
    plan = planner(1).get_plans_for_configuration(np.array(spacing), np.array(shape), "x", 1e9, {})
    found = plan["architecture"]
    preset = PlannedNetwork.from_preset(name, [int(n) for n in plan["patch_size"]], spacing).to_dict()
    assert preset["class_name"] == found["network_class_name"]
    assert preset["requires_import"] == list(found["_kw_requires_import"])
    assert preset["kwargs"] == json.loads(json.dumps(found["arch_kwargs"]))
