"""The trainer with the plan's own network, on real plans and data of nnU-Net; the network is as small as it gets."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_pgl.checkpoint import EncoderCheckpoint, save_checkpoint
from nnunetv2_pgl.networks import PGLSegmenter, PlannedEncoder, PlannedNetwork, PlannedSegmenter
from nnunetv2_pgl.networks.planned import network_strides
from nnunetv2_pgl.trainers import nnUNetTrainerPGL, nnUNetTrainerPGL_paper, nnUNetTrainerPGLScratch
from tests.planned_networks import small_architecture, small_network
from tests.precision import note_types

CPU = torch.device("cpu")
SHORT = {"num_epochs": 1, "num_iterations_per_epoch": 1, "num_val_iterations_per_epoch": 1}
Workplace = Any  # the fixture of conftest.py
SaveEncoder = Any


def plans_for(workplace: Workplace, network: PlannedNetwork, **changes: Any) -> dict[str, Any]:
    plans = workplace.plans()
    plans["configurations"]["3d_fullres"]["architecture"] = {
        "network_class_name": network.class_name,
        "arch_kwargs": dict(network.kwargs),
        "_kw_requires_import": list(network.requires_import),
    }
    return {**plans, **changes}


def make(
    workplace: Workplace,
    plans: dict[str, Any],
    trainer: type[nnUNetTrainerPGL] = nnUNetTrainerPGL,
    fold: int = 0,
    dataset_json: dict[str, Any] | None = None,
) -> nnUNetTrainerPGL:
    made = trainer(plans, "3d_fullres", fold, dataset_json or workplace.dataset_json(), CPU)
    for name, value in SHORT.items():
        setattr(made, name, value)
    return made


SavePlanned = Callable[..., PlannedEncoder]


def log_of(trainer: nnUNetTrainerPGL) -> str:
    return Path(trainer.log_file).read_text()


@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_the_plan_s_network_is_trained_and_predicts_in_stock_nnunet(
    workplace: Workplace, save_planned: SavePlanned, kind: str
) -> None:
    network = small_network(kind)
    encoder = save_planned(network)
    trainer = make(workplace, plans_for(workplace, network))
    trainer.initialize()
    assert type(trainer.network).__name__ == network.class_name.rsplit(".", 1)[-1]
    for key, value in trainer.network.encoder.state_dict().items():
        assert torch.equal(value, encoder.state_dict()[key]), key
    patch = trainer.configuration_manager.patch_size
    image = torch.randn(1, 1, *patch)
    for before, after in zip(encoder(image), trainer.network.encoder(image), strict=True):
        assert torch.equal(before, after)
    record = json.loads(Path(trainer.output_folder, "pgl_checkpoint.json").read_text())
    assert (record["share_loaded"], record["changes"]) == (1, [])

    trainer.run_training()
    assert "encoder tensors loaded, 100 % of its parameters" in log_of(trainer)
    trainer.set_deep_supervision_enabled(True)
    heads = trainer.label_manager.num_segmentation_heads
    outputs = trainer.network(image)
    assert [tuple(output.shape) for output in outputs] == [
        (1, heads, *(size // scale for size in patch)) for scale in (1, 2)
    ]
    trainer.set_deep_supervision_enabled(False)
    expected = trainer.network.eval()(image)
    assert expected.shape == (1, heads, *patch)

    # As nnUNetv2_predict does: the trainer by name, the network from the plans of the model folder.
    (workplace.results / "PGL" / "run" / "checkpoint_final.pth").unlink()
    predictor = nnUNetPredictor(device=CPU, verbose=False)
    with redirect_stdout(StringIO()):
        predictor.initialize_from_trained_model_folder(trainer.output_folder_base, (0,), "checkpoint_final.pth")
    predictor.network.load_state_dict(predictor.list_of_parameters[0])
    with torch.no_grad():
        assert torch.equal(predictor.network.eval()(image), expected)

    # And the same weights in a network that nnU-Net's own trainer builds.
    stored = PlansManager(json.loads(Path(trainer.output_folder_base, "plans.json").read_text()))
    assert stored.plans["pgl_network"] == {"architecture": "plan"}
    stock = nnUNetTrainer.build_network_architecture(stored, stored.get_configuration("3d_fullres"), 1, heads, False)
    stock.load_state_dict(trainer.network.state_dict())
    with torch.no_grad():
        assert torch.equal(stock.eval()(image), expected)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize("kind", ["plain", "resenc"])
def test_plans_ask_for_the_decoder_too(workplace: Workplace, kind: str, wanted: bool) -> None:
    """Under ``pretrain_info``, with an anisotropic network whose axes the plan has in another order."""
    strides, kernels = [[1, 1, 1], [1, 2, 2], [2, 2, 1]], [[1, 3, 3], [3, 3, 3], [3, 3, 1]]
    axes = (2, 0, 1)
    torch.manual_seed(7)
    segmenter = PlannedSegmenter(small_network(kind, strides=strides, kernel_sizes=kernels), 1, 1).eval()
    path = workplace.root / "mae.pth"
    described = {"method": "mae", "architecture": small_architecture(segmenter.encoder.network)}
    weights = dict(segmenter.encoder.state_dict())
    save_checkpoint(EncoderCheckpoint(weights, described, {}, [], segmenter.decoder_weights()), path)
    turned = small_network(
        kind,
        strides=[[stage[axis] for axis in axes] for stage in strides],
        kernel_sizes=[[stage[axis] for axis in axes] for stage in kernels],
    )
    info: dict[str, Any] = {"checkpoint_path": str(path), **({"transfer_decoder": True} if wanted else {})}
    plans = plans_for(workplace, turned, pretrain_info=info, transpose_forward=list(axes))
    plans["transpose_backward"] = [axes.index(axis) for axis in range(3)]
    trainer = make(workplace, plans)
    trainer.initialize()
    assert ("and 12 of the decoder" in log_of(trainer)) is wanted
    trainer.set_deep_supervision_enabled(False)
    network = trainer.network.eval()
    image = torch.randn(1, 1, 8, 16, 24)
    order = (0, 1, *(2 + axis for axis in axes))
    seen: list[torch.Tensor] = []
    for decoder in (segmenter.decoder, network.decoder):  # what the heads get, which are not transferred
        decoder.seg_layers[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        segmenter(image)
        network(image.permute(order))
    assert torch.allclose(seen[1], seen[0].permute(order), rtol=1e-3, atol=1e-3) is wanted
    trainer.set_deep_supervision_enabled(True)
    assert len(trainer.network(image.permute(order))) == 2


@pytest.mark.parametrize(
    ("device", "amx", "casts"), [("cpu", True, True), ("cpu", False, False), ("cuda", True, False)]
)
def test_only_training_on_a_cpu_with_bfloat16_gives_the_network_another_class(
    workplace: Workplace,
    save_planned: SavePlanned,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    amx: bool,
    casts: bool,
) -> None:
    """On CUDA, torch.compile and nnU-Net's autocast meet the class that they know, as prediction does anywhere."""
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(torch.nn.Module, "to", lambda self, *arguments, **names: self)  # there may be no such device
    network = small_network("resenc")
    save_planned(network)
    trainer = make(workplace, plans_for(workplace, network))
    trainer.device = torch.device(device)
    trainer.initialize()
    stock = nnUNetTrainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 2)
    assert (type(trainer.network) is not type(stock)) is casts
    assert isinstance(trainer.network, type(stock))
    predicts = trainer.build_network_architecture(trainer.plans_manager, trainer.configuration_manager, 1, 2)
    assert type(predicts) is type(stock)
    types = note_types(trainer.network)
    trainer.network.train()(torch.randn(1, 1, *trainer.configuration_manager.patch_size))
    assert types == {torch.bfloat16 if casts else torch.float32}


def test_it_goes_on_without_the_checkpoint(workplace: Workplace, save_planned: SavePlanned) -> None:
    network = small_network("resenc")
    save_planned(network)
    first = make(workplace, plans_for(workplace, network))
    first.run_training()
    (workplace.results / "PGL" / "run" / "checkpoint_final.pth").unlink()
    again = make(workplace, plans_for(workplace, network))
    again.num_epochs = 2
    again.load_checkpoint(str(Path(again.output_folder, "checkpoint_final.pth")))
    assert all(torch.equal(v, first.network.state_dict()[k]) for k, v in again.network.state_dict().items())
    assert again.enable_deep_supervision
    again.run_training()
    assert again.current_epoch == 2


def test_the_control_of_the_plan_s_network(workplace: Workplace) -> None:
    """Random, with the plan's network where the plans say so; the names of encoders, as pgl_compare has them, too."""
    network = small_network("resenc")
    for entry in ({"architecture": "plan"}, {"architecture": "resenc_m", "norm": "batch", "centred": True}):
        plans = plans_for(workplace, network, pgl_network=entry, plans_name=f"of_{entry['architecture']}")
        trainer = make(workplace, plans, nnUNetTrainerPGLScratch)
        trainer.run_training()
        assert type(trainer.network).__name__ == "ResidualEncoderUNet"
        assert trainer.enable_deep_supervision
        stored = json.loads(Path(trainer.output_folder_base, "plans.json").read_text())
        assert stored["pgl_network"] == {"architecture": "plan"}
    wrong = plans_for(workplace, small_network("plain"), pgl_network={"architecture": "resenc_m"}, plans_name="wrong")
    with pytest.raises(SystemExit, match="has a PlainConvUNet, the random start is for a ResidualEncoderUNet"):
        make(workplace, wrong, nnUNetTrainerPGLScratch).initialize()
    plain = make(workplace, plans_for(workplace, small_network("plain")), nnUNetTrainerPGLScratch)
    plain.initialize()
    assert isinstance(plain.network, PGLSegmenter)
    assert not plain.enable_deep_supervision


def test_starts_of_one_seed_differ_in_the_encoder_alone(workplace: Workplace, save_planned: SavePlanned) -> None:
    network = small_network()
    encoder = save_planned(network)
    path = workplace.results / "PGL" / "run" / "checkpoint_final.pth"
    states = {}
    for name in ("random", "mine"):
        plans = plans_for(workplace, network, plans_name=name)
        cases = {"training_cases": ["a"], "validation_cases": ["b"]}
        plans["pgl_run"] = {"initialisation": name, "seed": 0, "folds": {"0": cases}}
        if name == "mine":
            plans["pretrain_info"] = {"checkpoint_path": str(path)}
        else:
            plans["pgl_network"] = {"architecture": "plain", "norm": "batch", "centred": True}
        trainer = make(workplace, plans)
        trainer.initialize()
        states[name] = trainer.network.state_dict()
    for key, value in states["mine"].items():
        if "encoder." in key:  # the decoder refers to it as well
            assert torch.equal(value, encoder.state_dict()[key.split("encoder.", 1)[1]])
        else:
            assert torch.equal(value, states["random"][key]), key
    first = "encoder.stages.0.0.convs.0.conv.weight"
    assert not torch.equal(states["random"][first], states["mine"][first])


def test_the_paper_s_recipe_takes_it_too(workplace: Workplace, save_planned: SavePlanned) -> None:
    network = small_network()
    save_planned(network)
    trainer = make(workplace, plans_for(workplace, network), nnUNetTrainerPGL_paper)
    trainer.on_train_start()
    batch = next(trainer.dataloader_train)
    assert [tuple(target.shape[2:]) for target in batch["target"]] == [
        tuple(size // scale for size in trainer.configuration_manager.patch_size) for scale in (1, 2)
    ]
    assert torch.isfinite(torch.as_tensor(trainer.train_step(batch)["loss"]))


def test_a_network_of_a_later_version_stops_prediction_in_one_line(workplace: Workplace) -> None:
    manager = PlansManager(plans_for(workplace, small_network(), pgl_network={"architecture": "vit"}))
    with pytest.raises(SystemExit, match=r"pgl_network in the plans .*: the network vit is not known"):
        nnUNetTrainerPGL.build_network_architecture(manager, manager.get_configuration("3d_fullres"), 1, 2, False)
    assert network_strides(manager.get_configuration("3d_fullres")) == (4, 4, 4)
