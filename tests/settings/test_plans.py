"""What a pre-training takes from nnU-Net's plans."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nnunetv2_pgl.errors import PGLError
from pretraining.settings.checks import check_config
from pretraining.settings.config import PretrainConfig
from pretraining.settings.options import OptionParser, add_pretraining_options, with_options

MODULE = "dynamic_network_architectures.architectures.unet"
CLASSES = {"plain": "PlainConvUNet", "residual": "ResidualEncoderUNet"}


def configuration(kind: str, dimensions: int = 3) -> dict[str, Any]:
    """As nnU-Net writes it."""
    kwargs: dict[str, Any] = {
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "conv_op": f"torch.nn.modules.conv.Conv{dimensions}d",
        "kernel_sizes": [[3] * dimensions] * 3,
        "strides": [[1] * dimensions, [2] * dimensions, [2] * dimensions],
        "n_conv_per_stage_decoder": [1, 1],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dimensions}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    kwargs["n_conv_per_stage" if kind == "plain" else "n_blocks_per_stage"] = [1, 1, 1]
    return {
        "data_identifier": "x",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [24, 32, 32][-dimensions:],
        "spacing": [2.0, 0.8, 0.9][-dimensions:],
        "normalization_schemes": ["CTNormalization"],
        "use_mask_for_norm": [False],
        "resampling_fn_data": "resample_data_or_seg_to_shape",
        "resampling_fn_seg": "resample_data_or_seg_to_shape",
        "resampling_fn_data_kwargs": {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None},
        "resampling_fn_seg_kwargs": {"is_seg": True, "order": 1, "order_z": 0, "force_separate_z": None},
        "architecture": {
            "network_class_name": f"{MODULE}.{CLASSES[kind]}",
            "arch_kwargs": kwargs,
            "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
        },
    }


@pytest.fixture(autouse=True)
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A dataset with a plain and a residual plan."""
    for name in ("raw", "preprocessed", "results"):
        (tmp_path / name / "Dataset017_BCV").mkdir(parents=True)
        monkeypatch.setenv(f"nnUNet_{name}", str(tmp_path / name))
    folder = tmp_path / "preprocessed" / "Dataset017_BCV"
    for plans, kind in (("nnUNetPlans", "plain"), ("nnUNetResEncUNetLPlans", "residual")):
        content = {
            "dataset_name": "Dataset017_BCV",
            "plans_name": plans,
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "image_reader_writer": "SimpleITKIO",
            "foreground_intensity_properties_per_channel": {
                "0": {"mean": 40.0, "std": 90.0, "percentile_00_5": -800.0, "percentile_99_5": 250.0}
            },
            "configurations": {"3d_fullres": configuration(kind), "2d": configuration(kind, 2)},
        }
        (folder / f"{plans}.json").write_text(json.dumps(content))
    return folder


def settings(*options: str) -> PretrainConfig:
    parser = OptionParser()
    add_pretraining_options(parser)
    return with_options(parser.parse_args(options), PretrainConfig(datasets=()))


def test_the_plans_network_patch_and_preprocessing_are_taken() -> None:
    config = settings("-plans_from", "17", "-p", "nnUNetResEncUNetLPlans")
    check_config(config)
    assert config.architecture == "resenc_l"
    assert config.plans == "Dataset017_BCV/nnUNetResEncUNetLPlans/3d_fullres"
    assert config.views.size == (24, 32, 32)
    assert config.encoder_strides == (4, 4, 4)
    assert config.stages == (2,)
    assert config.planned_network is not None
    assert config.planned_network.kwargs["n_blocks_per_stage"] == [1, 1, 1]
    assert config.preprocessing is not None
    assert config.preprocessing["spacing"] == [2.0, 0.8, 0.9]
    assert config.preprocessing["normalization_schemes"] == ["CTNormalization"]
    assert PretrainConfig.from_dict(config.to_dict()).differences(config) == []


def test_options_come_before_the_plan() -> None:
    config = settings("-plans_from", "Dataset017_BCV", "-patch", "16", "32", "32", "-a", "plain")
    check_config(config)
    assert config.views.size == (16, 32, 32)
    assert config.architecture == "plain"


def test_the_papers_encoder_takes_all_but_the_network() -> None:
    config = settings("-plans_from", "17", "-a", "resnet50")
    check_config(config)
    assert config.architecture == "resnet50"
    assert config.planned_network is None
    assert config.strides == (4, 4, 4)  # what the plan pools to, which is what nnUNetTrainerPGL will use
    assert config.preprocessing is not None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["-plans_from", "17", "-p", "Nothing"],
            r"there is no .*Nothing\.json; -p may name one of nnUNetPlans, nnUNet",
        ),
        (["-plans_from", "18"], "-plans_from 18: "),
        (["-plans_from", "BCV"], "-plans_from BCV: "),
        (["-plans_from", "17", "-configuration", "2d"], "2d is 2D, PGL is 3D; use 3d_fullres"),
        (["-plans_from", "17", "-configuration", "3d_lowres"], "no configuration 3d_lowres, only 3d_fullres, 2d"),
        (["-plans_from", "17", "-a", "resenc_l"], "-a resenc_l: .* is a plan of plain; leave -a out"),
        (["-plans_from", "17", "-p", "nnUNetResEncUNetLPlans", "-a", "resenc_m"], "is a plan of resenc_l"),
        (["-plans_from", "17", "-spacing", "1", "1", "1"], "-spacing: the plan of -plans_from decides it"),
        (["-p", "nnUNetPlans"], "-p is for -plans_from, which is missing"),
    ],
)
def test_what_does_not_match_is_one_line(options: list[str], message: str) -> None:
    with pytest.raises(PGLError, match=message) as error:
        settings(*options)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-a", "plain", "-norm", "instance"], "-norm: -a plain has that of its plan"),
        (["-a", "plain", "-patch", "15", "96", "96"], r"-patch 15 96 96: -a plain needs multiples of"),
        (["-a", "resnet50", "-align_stages", "4"], "-align_stages 4: this encoder has the stages 0 to 3"),
        (["-m", "byol", "-align_stages", "1"], "-align_stages 1: only pgl, pgl_nce and pgl_mae align"),
    ],
)
def test_settings_that_no_run_can_have(options: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_config(settings(*options))


def test_stages_are_the_deepest_whose_cells_are_fine_enough() -> None:
    assert PretrainConfig(datasets=()).stages == (3,)
    config = settings("-a", "resenc_m", "-patch", "128", "128", "128")
    assert config.stage_strides[-1] == (32, 32, 32)
    assert config.stage_strides[config.stages[-1]] == (16, 16, 16)
    check_config(config)  # the rule for -strides is the ResNet-50's
    assert settings("-align_stages", "3", "1", "3").stages == (1, 3)
