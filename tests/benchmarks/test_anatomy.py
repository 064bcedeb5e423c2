"""benchmarks.anatomy: encoders whose figures are known, and the command from a run's checkpoint to the JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn

from benchmarks import anatomy, anatomy_figures
from benchmarks.anatomy import table
from benchmarks.anatomy_figures import Pairs, measure, noise_match, smooth_noise
from benchmarks.held_out_labels import LabelledVolume
from benchmarks.plain_features import patches
from nnunetv2_pgl.checkpoint import EncoderCheckpoint, load_checkpoint, save_checkpoint
from nnunetv2_pgl.encoder import load_encoder_network
from nnunetv2_pgl.networks import FeatureGrid, PlannedEncoder, ResNet50Encoder
from pretraining.config import PretrainConfig
from pretraining.pretrain import RunOptions, prepare_volumes, pretrain
from pretraining.training import loop
from pretraining.views import IntensityRanges, ViewSettings
from tests.known_encoders import Constant, CoordinateScan, PlaceInScan, PlaceInView, RandomFeatures
from tests.planned_networks import small_architecture, small_network
from tests.test_foreign_checkpoints import nnssl_content

UNCHANGED = IntensityRanges(noise_probability=0, blur_probability=0, brightness_probability=0, gamma_probability=0)
KNOWN = PretrainConfig(
    datasets=("a",),
    views=ViewSettings(size=(16, 20, 16), intensity=UNCHANGED, channels="joint"),
    strides=(4, 4, 4),
    in_channels=4,
)
SIZE, CELLS = (18, 25, 18), 4 * 5 * 4
SCANS = [CoordinateScan(SIZE, sign) for sign in (1, -1) * 3]


def halves() -> list[LabelledVolume]:
    """Left and right of the scans, and what there is not."""
    shares = torch.zeros(3, *SIZE)
    shares[0, ..., : SIZE[2] // 2], shares[1, ..., SIZE[2] // 2 :] = 1, 1
    return [LabelledVolume(("left", "right", "none"), shares)] * len(SCANS)


@pytest.fixture(scope="module")
def known() -> dict[str, dict[str, Any]]:
    """Figures of encoders that know one thing each; labels where they tell something."""
    stride = (4, 4, 4)
    volumes: Any = SCANS
    perfect = measure(PlaceInScan(stride), RandomFeatures(stride), volumes, KNOWN, 16, halves())
    others = measure(Constant(stride), PlaceInView(stride), volumes, KNOWN, 16)
    return {"scan": perfect, "constant": others, "view": others["beside"]["random weights"]}


def test_the_perfect_code(known: dict[str, dict[str, Any]]) -> None:
    figures = known["scan"]
    assert (figures["flipped_right"], figures["unflipped_right"]) == pytest.approx((1, 1), abs=0.02)
    assert figures["flipped_right"] <= figures["ceiling"] + 0.02
    assert figures["decoy"] < 0.01
    assert figures["noise_match"] < 0.05
    for axis in "zyx":
        assert figures["axes"][axis]["right"] > 0.97
        assert figures["axes"][axis]["mirrored"] < 0.03
    for flips in ("flips", "no_flips"):
        for kind in ("knn5", "probe"):
            shares = figures[flips][kind]
            assert shares["left"] == pytest.approx(shares["right"], abs=0.05)
            assert shares["none"] is None
            assert shares["mean"] == pytest.approx((shares["left"] + shares["right"]) / 2)
    assert figures["flips"]["knn5"]["mean"] > 0.85


def test_the_place_in_the_view(known: dict[str, dict[str, Any]]) -> None:
    """Seen through by the decoys and by the noise; without flips it passes for knowledge, and by its labels."""
    figures = known["view"]
    assert figures["decoy"] > 0.98
    assert figures["noise_match"] == 1
    assert figures["flipped_right"] == pytest.approx(figures["position_code"], abs=0.02)
    assert figures["unflipped_right"] == pytest.approx(figures["unflipped_position_code"], abs=0.02)
    assert figures["unflipped_right"] > 0.8
    for axis in "zyx":
        assert figures["axes"][axis]["right"] < 0.03
        assert figures["axes"][axis]["mirrored"] > 0.97


def test_a_constant_is_at_chance(known: dict[str, dict[str, Any]]) -> None:
    figures = known["constant"]
    assert figures["chance"] == pytest.approx(1 / CELLS)
    assert (figures["flipped_right"], figures["noise_match"]) == pytest.approx((1 / CELLS, 1 / CELLS), abs=0.01)


def test_what_stands_beside(known: dict[str, dict[str, Any]]) -> None:
    beside = known["scan"]["beside"]
    assert beside.keys() == {"random weights", "raw patch", "code of the place in the view"}
    code, patch = beside["code of the place in the view"], beside["raw patch"]
    assert code["decoy"] > 0.95
    assert code["noise_match"] == 1
    assert code["flipped_right"] == pytest.approx(code["position_code"], abs=0.03)
    assert code["flips"]["knn20"]["mean"] < 0.4
    assert code["no_flips"]["knn20"]["mean"] > 0.8
    assert beside["random weights"]["flipped_right"] < 0.05
    assert patch["noise_match"] < 0.05
    for figures in (*beside.values(), known["view"]):
        for name in ("position_code", "unflipped_position_code", "ceiling", "unflipped_ceiling", "chance"):
            assert figures[name] == known["scan"][name]  # of the same pairs


def test_the_table_has_every_figure(known: dict[str, dict[str, Any]]) -> None:
    text = table(known["scan"])
    header, checkpoint = text.splitlines()[1:3]
    assert header.split()[:4] == ["flipped_right", "unflipped_right", "decoy", "noise_match"]
    assert checkpoint.split()[0] == "checkpoint"
    assert checkpoint.split()[1] == f"{known['scan']['flipped_right']:.3f}"
    for name in (
        "random weights",
        "raw patch",
        "code of the place in the view",
        "knn5 no_flips",
        "noise_match by chance",
    ):
        assert name in text
    assert text.count("mirrored") == 3
    assert f"perfect code of the place in the scan {known['scan']['unflipped_ceiling']:.3f}" in text


def test_noise_is_unrelated_smooth_and_the_same_everywhere() -> None:
    """Smoothing must not tell the border of a view, or noise would give the place away."""
    noise = smooth_noise(64, 1, (8, 20, 20), torch.Generator().manual_seed(0))
    assert tuple(noise.shape) == (64, 1, 8, 20, 20)
    assert float(noise.std()) == pytest.approx(1, abs=1e-3)
    spread = noise.std(dim=(0, 1))
    assert float(spread[:, 0].mean()) == pytest.approx(float(spread[:, 10].mean()), rel=0.1)
    neighbours = float((noise[..., 1:] * noise[..., :-1]).mean())
    assert 0.7 < neighbours < 0.95
    assert abs(float((noise[:32] * noise[32:]).mean())) < 0.05


@pytest.mark.parametrize(("padding", "low", "high"), [("zeros", 0.1, 1), ("replicate", 0, 0.08)])
def test_padding_with_zeros_tells_the_place(padding: Any, low: float, high: float) -> None:
    """The finding that all this is for, on random weights (27 and 0.9 % at full width)."""
    torch.manual_seed(0)
    encoder = PlannedEncoder(small_network("plain", (8, 16, 16, 16)), 1, padding).eval()
    config = replace(KNOWN, in_channels=1)
    found = noise_match(lambda views: encoder(views)[-1].detach(), config)["noise_match"]
    assert low <= found <= high


def test_a_patch_lies_where_the_cell_does() -> None:
    """Also where an encoder's cells lie at the edge: pairs of patches without intensity changes find each other."""
    volumes: Any = [CoordinateScan(SIZE, channels=1)]
    config = replace(KNOWN, in_channels=1)
    pairs = Pairs.of(volumes, config, 8)
    for offset in (2.0, 0.5):
        grid = FeatureGrid((16, 20, 16), (4.0, 4.0, 4.0), (offset,) * 3)
        (batch,) = pairs.batches
        middle = patches_mean(batch.render(grid.view_size, changes_intensity=False), grid)
        cells = torch.arange(4) * 4 + offset
        in_view = torch.where(batch.flips[:, :1], 16 - cells, cells)
        in_scan = batch.starts[:, :1] + in_view * batch.sizes[:, :1] / 16 - SIZE[0] / 2
        inner = slice(1, 3)
        assert torch.allclose(middle[:, 0, inner, 2, 2], in_scan[:, inner].float(), atol=0.8)


def patches_mean(views: Tensor, grid: FeatureGrid) -> Tensor:
    """Mean of each patch; patches come without it, so a channel of ones keeps them in place."""
    wide = torch.cat((views, torch.zeros_like(views)), dim=1)
    found = patches(grid)(wide)
    half = found.shape[1] // 2
    return 2 * found[:, :half].mean(dim=1, keepdim=True)


def test_each_view_belongs_to_the_scan_that_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a scan has views of one value only, and the next one is shown instead."""
    empty = replace(SCANS[0], channels=1)
    volumes: Any = [replace(SCANS[1], channels=1), empty, replace(SCANS[2], channels=1)]
    read = CoordinateScan.read

    def nothing(self: CoordinateScan, channel: int, start: Sequence[int], stop: Sequence[int]) -> Any:
        return read(self, channel, start, stop) * (self is not empty)

    monkeypatch.setattr(CoordinateScan, "read", nothing)
    (batch,) = Pairs.of(volumes, replace(KNOWN, in_channels=1), 8).scans
    assert batch.tolist() == [0, 0, 2, 2, 2, 2, 0, 0] * 2


def test_batch_norms_of_random_weights_have_seen_images() -> None:
    volumes: Any = [CoordinateScan(SIZE, channels=1)]
    untrained = nn.Sequential(nn.Conv3d(1, 4, 1), nn.BatchNorm3d(4))
    config = replace(KNOWN, in_channels=1)
    anatomy_figures._calibrate(untrained, Pairs.of(volumes, config, 8), (16, 20, 16))  # type: ignore[arg-type]
    views = torch.cat([b.render((16, 20, 16)) for b in Pairs.of(volumes, config, 8).batches])
    seen = untrained.eval()(views)
    assert torch.allclose(seen.mean(dim=(0, 2, 3, 4)), torch.zeros(4), atol=0.02)
    assert torch.allclose(seen.std(dim=(0, 2, 3, 4)), torch.ones(4), atol=0.02)


@pytest.mark.parametrize(
    ("kind", "padding"),
    [(kind, padding) for kind in ("plain", "resenc") for padding in ("zeros", "replicate", None)]
    + [("resnet50", "replicate")],
)
def test_the_encoder_of_a_checkpoint(kind: str, padding: Any, tmp_path: Path) -> None:
    """The same maps as the network whose weights were saved; version 0.1.0 names no padding."""
    network: Any
    if kind == "resnet50":
        network = ResNet50Encoder(1, (4, 4, 4), "instance", padding=padding or "zeros")
        architecture = {"name": kind, "norm": "instance", "centred": True, "strides": [4, 4, 4], "in_channels": 1}
    else:
        planned = small_network(kind)
        network, architecture = PlannedEncoder(planned, 1, padding or "zeros"), small_architecture(planned)
    described = architecture if padding is None else {**architecture, "padding": padding}
    pgl = {"method": "pgl", "architecture": described}
    save_checkpoint(EncoderCheckpoint(dict(network.state_dict()), pgl, {}), tmp_path / "a.pth")
    loaded, checkpoint = load_encoder_network(tmp_path / "a.pth")
    assert not loaded.training
    assert checkpoint.architecture["name"] == architecture["name"]
    views = torch.rand(1, 1, 8, 8, 8)
    with torch.no_grad():
        for one, other in zip(loaded(views), network.eval()(views), strict=True):
            assert torch.equal(one, other)


RUN = PretrainConfig(
    datasets=("Dataset031_Organs",),
    exclude=("organs_3", "organs_4", "organs_5"),
    views=ViewSettings(size=(8, 8, 8)),
    architecture="plain",
    network=small_network(features=(4, 8)).to_dict(),
    padding="replicate",
    epochs=1,
    batch_size=2,
    pairs_per_epoch=2,
    optimizer="adamw",
    warmup_epochs=0,
    hidden_channels=8,
    out_channels=8,
    validation_scans=0,
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A run on three of six scans with labels, whose voxels are not those of the others in the median."""
    root = tmp_path_factory.mktemp("nnunet")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
            patch.setenv(name, str(root / name))
        patch.setenv("nnUNet_n_proc_DA", "0")
        patch.setattr(loop, "validation_batches", lambda *args: [])
        patch.setattr(loop.Run, "measure_baseline", lambda self: None)
        patch.setattr(loop.Run, "_correspondence", lambda self: type("None_", (), {"to_record": lambda _: {}})())
        folder = root / "nnUNet_raw" / "Dataset031_Organs"
        for part in ("imagesTr", "labelsTr"):
            (folder / part).mkdir(parents=True)
        described = {"channel_names": {"0": "T1"}, "labels": {"background": 0, "a": 1, "b": 2}, "file_ending": ".nrrd"}
        (folder / "dataset.json").write_text(json.dumps({**described, "numTraining": 6}))
        for scan in range(6):
            noise = gaussian_filter(np.random.default_rng(scan).normal(size=(12, 14, 16)), 2)
            label = np.digitize(noise, np.quantile(noise, [0.5, 0.8])).astype(np.uint8)
            spacing = 1.0 if scan < 3 else 1.1
            for values, file in (
                (10 * noise + label, f"imagesTr/organs_{scan}_0000"),
                (label, f"labelsTr/organs_{scan}"),
            ):
                image = sitk.GetImageFromArray(values)
                image.SetSpacing((spacing,) * 3)
                sitk.WriteImage(image, str(folder / f"{file}.nrrd"))
        (root / "held_out.txt").write_text("organs_3\norgans_4\norgans_5\n")
        pretrain(RUN, RunOptions("run", False, "cpu", 1, 1))
        yield root


@pytest.fixture
def command(folders: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def call(*arguments: object) -> None:
        given = (*arguments, "-d", "31", "-np", "1") if "-d" not in arguments else arguments
        monkeypatch.setattr(sys, "argv", ["anatomy", *map(str, given)])
        anatomy.main()

    return call


def final(folders: Path) -> Path:
    return folders / "nnUNet_results" / "PGL" / "run" / "checkpoint_final.pth"


SHARES = ("flipped_right", "unflipped_right", "decoy", "position_code", "ceiling", "noise_match")


def test_from_the_checkpoint_to_the_json(
    folders: Path, command: Callable[..., None], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared: list[Any] = []

    def spied(*arguments: Any) -> Any:
        found = prepare_volumes(*arguments)
        prepared.extend(found[0])
        return found

    monkeypatch.setattr(anatomy, "prepare_volumes", spied)
    file = folders / "anatomy.json"
    only = ("--only", folders / "held_out.txt")
    command(final(folders), *only, "--labels", "--pairs", "12", "--json", file)
    figures = json.loads(file.read_text())
    for row in (figures, *figures["beside"].values()):
        assert all(isinstance(row[name], float) and 0 <= row[name] <= 1 for name in SHARES)
        for flips in ("flips", "no_flips"):
            for kind in ("knn5", "knn20", "probe"):
                assert row[flips][kind].keys() == {"mean", "a", "b"}
                assert all(isinstance(share, float) and share < 1 for share in row[flips][kind].values())
        assert row["axes"].keys() == {"z", "y", "x"}
    assert figures["beside"]["code of the place in the view"]["noise_match"] == 1
    assert figures["flipped_right"] != figures["beside"]["random weights"]["flipped_right"]
    text = capsys.readouterr().out
    assert "3 scans, 12 pairs of views" in text
    assert f"{figures['flipped_right']:.3f}" in text
    assert [volume.name for volume in prepared] == ["organs_3", "organs_4", "organs_5"]
    assert {volume.path.parent.name for volume in prepared} == {"PGL_spacing_1.00x1.00x1.00"}  # of the pre-training


def test_flips_that_the_command_asks_for(folders: Path, command: Callable[..., None]) -> None:
    file = folders / "no_flips.json"
    command(final(folders), "--flip_probability", "0", "--pairs", "4", "--json", file)
    figures = json.loads(file.read_text())
    assert figures["flipped_right"] is figures["ceiling"] is figures["axes"]["z"] is None
    assert figures["unflipped_right"] >= 0
    command(final(folders), "--flip_probability", "0", "0", "0.5", "--pairs", "4", "--json", file)
    axes = json.loads(file.read_text())["axes"]
    assert axes["z"] is axes["y"] is None
    assert axes["x"] is not None


def refusal(call: Callable[[], None]) -> str:
    with pytest.raises(SystemExit) as stop:
        call()
    message = stop.value.code
    assert isinstance(message, str)  # which ends the process with 1
    assert message.startswith("benchmarks.anatomy: ")
    assert "\n" not in message
    return message


def test_wrong_input_is_one_line(folders: Path, command: Callable[..., None], tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("organs_3\nsomebody\n")
    (tmp_path / "one.txt").write_text("organs_3\n")
    path, held_out = final(folders), ("--only", folders / "held_out.txt")
    for given, told in (
        ((folders / "missing.pth",), "missing.pth: no such checkpoint"),
        ((path, "--only", tmp_path / "names.txt"), "-only names somebody, which is no scan of -d"),
        ((path, "--only", tmp_path / "nowhere.txt"), "nowhere.txt: cannot be read"),
        ((path, "-d", "999"), "999"),
        ((path, "--flip_probability", "0.5", "0.5"), "give one or three"),
        ((path, "--flip_probability", "2"), "give one or three"),
        ((path, "--json", tmp_path / "nowhere" / "a.json"), "there is no such folder"),
        ((path, "--labels", "--only", tmp_path / "one.txt"), "needs at least 3 scans"),
        ((path, *held_out, "--labels", "--pairs", "4"), "needs at least 3 scans"),
    ):
        assert told in refusal(lambda given=given: command(*given))  # type: ignore[misc]
    labels = folders / "nnUNet_raw" / "Dataset031_Organs" / "labelsTr"
    hidden = labels.rename(tmp_path / "labels")
    try:
        message = refusal(lambda: command(path, *held_out, "--labels"))
    finally:
        hidden.rename(labels)
    assert f"--labels: {labels / 'organs_3.nrrd'} is missing" in message


def changed(folders: Path, name: str, **pgl: Any) -> Path:
    checkpoint = load_checkpoint(final(folders))
    save_checkpoint(replace(checkpoint, pgl={**checkpoint.pgl, **pgl}), folders / name)
    return folders / name


def test_checkpoints_that_do_not_tell_their_views(folders: Path, command: Callable[..., None]) -> None:
    made = load_checkpoint(final(folders)).pgl["config"]
    without = changed(folders, "without.pth", config=None)
    assert "not of pgl_pretrain" in refusal(lambda: command(without))
    nnssl = folders / "nnssl.pth"
    torch.save(nnssl_content(small_network("resenc")), nnssl)
    assert "nnssl.pth: not of pgl_pretrain" in refusal(lambda: command(nnssl))
    for config in ({**made, "views": 5}, {**made, "epochs": "many"}, {**made, "unheard": 1}):
        damaged = changed(folders, "damaged.pth", config=config)
        assert "damaged.pth: not the settings of a pre-training" in refusal(lambda file=damaged: command(file))  # type: ignore[misc]
    joint = {**made, "views": {**made["views"], "channels": "joint"}, "in_channels": 2}
    two = changed(folders, "two.pth", config=joint)
    assert "the encoder takes 2 channels, the scans have 1" in refusal(lambda: command(two))
    other = load_checkpoint(final(folders)).pgl["architecture"] | {"network": small_network(features=(6, 8)).to_dict()}
    assert "do not fit its architecture" in refusal(lambda: command(changed(folders, "other.pth", architecture=other)))


@pytest.mark.slow
def test_as_a_process() -> None:
    """The exit code that a script sees."""
    line = [sys.executable, "-m", "benchmarks.anatomy", "missing.pth", "-d", "31"]
    done = subprocess.run(line, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("benchmarks.anatomy: missing.pth: no such checkpoint")
