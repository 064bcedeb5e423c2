"""The paper's fine-tuning recipe: each of its numbers, measured, and which epoch is the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform

from nnunetv2_pgl.trainers import nnUNetTrainerPGL_paper
from nnunetv2_pgl.trainers.paper import NoiseOfVariance

Workplace = Any  # the fixture of conftest.py
SaveEncoder = Any
PATCH = (10, 12, 14)
AXES = range(3)


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture
def paper(workplace: Workplace, save_encoder: SaveEncoder) -> Callable[..., nnUNetTrainerPGL_paper]:
    """Makes the trainer, with an encoder to start from."""
    save_encoder(workplace.results / "PGL" / "run" / "checkpoint_final.pth")
    made: Callable[..., nnUNetTrainerPGL_paper] = lambda **attributes: workplace.make(  # noqa: E731
        nnUNetTrainerPGL_paper, **attributes
    )
    return made


def test_batch_length_and_rate(paper: Callable[..., nnUNetTrainerPGL_paper]) -> None:
    """The rate falls from the start: there is no warm-up."""
    trainer = paper()
    trainer.initialize()
    assert (trainer.batch_size, trainer.num_epochs, trainer.initial_lr) == (8, 100, 1e-2)
    rates = []
    for epoch in range(100):
        trainer.lr_scheduler.step(epoch)
        rates.append(trainer.optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([1e-2 * (1 - epoch / 100) ** 0.9 for epoch in range(100)])
    batch = next(trainer.get_dataloaders()[0])
    patch = trainer.configuration_manager.patch_size
    assert batch["data"].shape == (8, 1, *patch)
    assert batch["target"].shape == (8, 1, *patch)
    assert int(batch["target"].min()) >= 0
    assert trainer.inference_allowed_mirroring_axes == (0, 1, 2)


def augmentation() -> list[BasicTransform]:
    made: Any = nnUNetTrainerPGL_paper.get_training_transforms(PATCH, (0.0, 0.0), None, (0, 1, 2), False)
    transforms: list[BasicTransform] = made.transforms
    return transforms


def step(kind: type[BasicTransform]) -> Any:
    """The only one of its kind."""
    (found,) = (t for t in augmentation() if isinstance(t, kind))
    return found


def occasional(kind: type[BasicTransform]) -> RandomTransform:
    """The only one of its kind that is applied now and then."""
    (found,) = (t for t in augmentation() if isinstance(t, RandomTransform) and isinstance(t.transform, kind))
    return found


def ramps(size: Sequence[int]) -> torch.Tensor:
    """The coordinate along each axis: (3, D, H, W)."""
    return torch.stack(torch.meshgrid(*(torch.arange(float(n)) for n in size), indexing="ij"))


def test_nothing_else_is_done_to_images() -> None:
    kinds = [type(t.transform if isinstance(t, RandomTransform) else t).__name__ for t in augmentation()]
    assert kinds[:2] == ["SpatialTransform", "MirrorTransform"]
    assert kinds[2:6] == ["NoiseOfVariance", "GaussianBlurTransform", "ClippedBrightness", "GammaTransform"]
    assert [isinstance(t, RemoveLabelTansform) for t in augmentation()[6:]] == [True]


def test_crops_of_110_to_140_percent_are_scaled_to_the_patch(paper: Callable[..., nnUNetTrainerPGL_paper]) -> None:
    trainer = paper()
    *_, initial, mirrored = trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
    patch = trainer.configuration_manager.patch_size
    assert all(now >= 1.4 * planned for now, planned in zip(initial, patch, strict=True))
    assert mirrored == (0, 1, 2)
    scaling, found = step(SpatialTransform), []
    for _ in range(300):
        image = scaling(image=ramps([2 * size for size in PATCH]))["image"]
        assert image.shape == (3, *PATCH)
        inside = image[:, 2:-2, 2:-2, 2:-2]
        slopes = [[float(inside[of].diff(dim=axis).mean()) for axis in AXES] for of in AXES]
        found.append(np.diag(slopes))
        assert np.abs(np.array(slopes) - np.diag(found[-1])).max() < 1e-4, "turned or sheared"
    low, high = np.min(found, axis=0), np.max(found, axis=0)
    assert (low >= 1.1 - 1e-4).all()
    assert (low < 1.12).all()
    assert (high <= 1.4 + 1e-4).all()
    assert (high > 1.38).all()


def test_flips_along_each_axis_half_of_the_time() -> None:
    flip, found = step(MirrorTransform), []
    image = ramps(PATCH)
    for _ in range(400):
        flipped = flip(image=image.clone())["image"]
        found.append([bool(flipped[axis].flatten()[0] != 0) for axis in AXES])
        expected = image.flip([1 + axis for axis in AXES if found[-1][axis]])
        assert torch.equal(flipped, expected)
    assert np.mean(found, axis=0) == pytest.approx(0.5, abs=0.1)  # 4 standard errors
    assert len({tuple(f) for f in found}) == 8


@pytest.mark.parametrize(
    ("kind", "probability"),
    [
        (NoiseOfVariance, 0.1),
        (GaussianBlurTransform, 0.2),
        (MultiplicativeBrightnessTransform, 0.5),
        (GammaTransform, 0.5),
    ],
)
def test_how_often(kind: type[BasicTransform], probability: float) -> None:
    image, draws = torch.rand(1, 4, 4, 4), 4000
    transform = occasional(kind)
    changed = sum(not torch.equal(transform(image=image.clone())["image"], image) for _ in range(draws))
    assert changed / draws == pytest.approx(probability, abs=4 * np.sqrt(probability * (1 - probability) / draws))


def test_the_variance_of_the_noise_is_uniform_up_to_a_tenth() -> None:
    """The variance: nnU-Net's transform takes it for the standard deviation, whose square is a fifteenth on average."""
    noise = occasional(NoiseOfVariance).transform
    image = torch.full((2, 12, 12, 12), 3.0)
    drawn = [noise(image=image.clone())["image"] for _ in range(1500)]
    variances = np.array([float(image.var()) for image in drawn])
    assert variances.mean() == pytest.approx(0.05, abs=4 * 0.1 / np.sqrt(12 * 1500))
    assert variances.std() == pytest.approx(0.1 / np.sqrt(12), rel=0.05)
    assert variances.max() < 0.11
    assert np.mean(variances < 0.025) == pytest.approx(0.25, abs=0.05)
    means = np.array([float(image.mean()) for image in drawn])
    assert means.mean() == pytest.approx(3, abs=0.001)
    spread = [float(image[0].var() / image[1].var()) for image in drawn]
    assert np.median(spread) == pytest.approx(1, abs=0.02)
    assert np.std(np.log(spread)) < 0.1, "one variance for all channels"
    assert not torch.equal(drawn[0][0], drawn[0][1])


def test_the_sigma_of_the_blur() -> None:
    blur, found = occasional(GaussianBlurTransform).transform, []
    image = torch.zeros(1, 15, 15, 15)
    image[0, 7, 7, 7] = 1
    for _ in range(300):
        peak = blur(image=image.clone())["image"][0]
        assert float(peak.sum()) == pytest.approx(1, abs=1e-4)
        beside = [peak[8, 7, 7], peak[7, 8, 7], peak[7, 7, 8]]
        assert torch.allclose(torch.stack(beside), beside[0]), "one sigma for all axes"
        found.append(1 / np.sqrt(2 * np.log(float(peak[7, 7, 7] / beside[0]))))
    assert 0.5 - 1e-3 <= min(found) < 0.52
    assert 0.98 < max(found) <= 1 + 1e-3


def test_brightness_is_clipped_to_the_former_range() -> None:
    brightness, found = occasional(MultiplicativeBrightnessTransform).transform, []
    image = torch.linspace(-1, 2, 64).reshape(1, 4, 4, 4)
    for _ in range(300):
        changed = brightness(image=image.clone())["image"]
        factor = float(changed[0, 2, 2, 2] / image[0, 2, 2, 2])
        found.append(factor)
        torch.testing.assert_close(changed, (image * factor).clamp(-1, 2))
    assert 0.75 <= min(found) < 0.77
    assert 1.23 < max(found) <= 1.25


def test_gamma_is_equation_2() -> None:
    gamma, found = occasional(GammaTransform).transform, []
    unit = torch.linspace(0, 1, 64).reshape(1, 4, 4, 4)
    for _ in range(300):
        changed = gamma(image=4 * unit - 1)["image"]
        exponent = float(torch.log((changed[0, 2, 2, 2] + 1) / 4) / torch.log(unit[0, 2, 2, 2]))
        found.append(exponent)
        torch.testing.assert_close(changed, 4 * unit**exponent - 1, rtol=1e-3, atol=1e-3)
    assert 0.7 - 1e-3 <= min(found) < 0.73
    assert 1.47 < max(found) <= 1.5 + 1e-3


DICE = (0.2, 0.8, 0.1, 0.1, 0.9, 0.9)  # its moving average: 0.2, 0.26, 0.244, 0.2296, 0.29664, 0.356976


def training(trainer: nnUNetTrainerPGL_paper, dice: Sequence[float] = DICE, killed_before: int = -1) -> None:
    """Trains with these values of the pseudo Dice; after each epoch the weights of the head are its number."""
    trainer.num_iterations_per_epoch = trainer.num_val_iterations_per_epoch = 0
    trainer.logger.plot_progress_png = lambda folder: None  # type: ignore[method-assign]
    start_epoch = trainer.on_epoch_start

    def start() -> None:
        if trainer.current_epoch == killed_before:
            raise KeyboardInterrupt
        start_epoch()

    def train(outputs: object) -> None:
        with torch.no_grad():
            trainer.network.head.weight.fill_(trainer.current_epoch)
        trainer.logger.log("train_losses", 1.0, trainer.current_epoch)

    def validate(outputs: object) -> None:
        value = dice[trainer.current_epoch]
        for key, entry in (("mean_fg_dice", value), ("dice_per_class_or_region", [value]), ("val_losses", 1.0)):
            trainer.logger.log(key, entry, trainer.current_epoch)

    trainer.on_epoch_start = start  # type: ignore[method-assign]
    trainer.on_train_epoch_end = train  # type: ignore[method-assign]
    trainer.on_validation_epoch_end = validate  # type: ignore[method-assign]
    trainer.run_training()


def epoch_of_the_weights(trainer: nnUNetTrainerPGL_paper, file: str = "checkpoint_final.pth") -> int:
    """In memory, with which nnU-Net validates, and in the file, with which it predicts."""
    stored = torch.load(Path(trainer.output_folder, file), weights_only=False)["network_weights"]["head.weight"]
    assert torch.equal(stored, trainer.network.head.weight)
    return int(stored.unique())


def log_of(trainer: nnUNetTrainerPGL_paper) -> str:
    return Path(trainer.log_file).read_text()


def epochs_of(trainer: nnUNetTrainerPGL_paper) -> int:
    return len(trainer.logger.get_value("ema_fg_dice", step=None))


def test_it_waits_for_20_epochs(paper: Callable[..., nnUNetTrainerPGL_paper]) -> None:
    assert nnUNetTrainerPGL_paper.patience == 20


def test_it_stops_when_the_dice_stops_rising_and_the_best_epoch_is_the_result(
    paper: Callable[..., nnUNetTrainerPGL_paper],
) -> None:
    trainer = paper(patience=2)
    training(trainer)
    assert epochs_of(trainer) == 4
    assert epoch_of_the_weights(trainer) == 1
    log = log_of(trainer)
    assert "has not risen for 2 epochs" in log
    assert "The result is epoch 1, the best by the moving average of the pseudo Dice (0.2600)" in log
    assert "WARNING: of what the log" not in log


def test_without_a_stop_it_is_the_best_epoch_too(paper: Callable[..., nnUNetTrainerPGL_paper]) -> None:
    trainer = paper(patience=2, num_epochs=3)
    training(trainer)
    assert epochs_of(trainer) == 3
    assert epoch_of_the_weights(trainer) == 1
    assert "has not risen" not in log_of(trainer)
    assert "The result is epoch 1" in log_of(trainer)


def test_while_it_rises_it_goes_on(paper: Callable[..., nnUNetTrainerPGL_paper]) -> None:
    trainer = paper(patience=3, num_epochs=6)
    training(trainer)
    assert (epochs_of(trainer), epoch_of_the_weights(trainer)) == (6, 5)


def test_a_finished_training_that_is_continued_stays_as_it_is(paper: Callable[..., nnUNetTrainerPGL_paper]) -> None:
    """Also without the file of the best epoch, which users may have deleted."""
    training(paper(patience=2))
    for is_there in (True, False):
        again = paper(patience=2)
        again.load_checkpoint(str(Path(again.output_folder, "checkpoint_final.pth")))
        if not is_there:
            Path(again.output_folder, "checkpoint_best.pth").unlink()
        training(again)
        assert (epochs_of(again), again.current_epoch, epoch_of_the_weights(again)) == (4, 4, 1)
        assert ("checkpoint_best.pth is not there" in log_of(again)) == (not is_there)


def test_a_killed_training_that_is_continued_knows_the_best(paper: Callable[..., nnUNetTrainerPGL_paper]) -> None:
    with pytest.raises(KeyboardInterrupt):
        training(paper(patience=2, save_every=1), killed_before=3)
    again = paper(patience=2)
    again.load_checkpoint(str(Path(again.output_folder, "checkpoint_latest.pth")))
    assert again.current_epoch == 3
    training(again)
    assert (epochs_of(again), epoch_of_the_weights(again)) == (4, 1)


def test_a_best_epoch_that_was_trained_anew_is_told(paper: Callable[..., nnUNetTrainerPGL_paper]) -> None:
    """The epochs after the last save are trained anew and may come out otherwise than before."""
    with pytest.raises(KeyboardInterrupt):
        training(paper(save_every=2), killed_before=3, dice=(0.2, 0.3, 0.9))
    again = paper(num_epochs=4)
    again.load_checkpoint(str(Path(again.output_folder, "checkpoint_latest.pth")))
    assert again.current_epoch == 2
    training(again, dice=(0.2, 0.3, 0.1, 0.1))
    assert epoch_of_the_weights(again) == 2
    assert "WARNING: of what the log holds epoch 1 was best" in log_of(again)


def test_without_checkpoints_it_is_the_last_epoch(paper: Callable[..., nnUNetTrainerPGL_paper]) -> None:
    """Not what another training has left in the folder."""
    training(paper(num_epochs=2))
    trainer = paper(num_epochs=3, disable_checkpointing=True)
    training(trainer)
    assert int(trainer.network.head.weight.unique()) == 2
    assert "The best epoch's weights are not saved: the result is the last epoch" in log_of(trainer)


def test_a_dice_that_is_not_a_number_does_not_stop_it(paper: Callable[..., nnUNetTrainerPGL_paper]) -> None:
    trainer = paper(patience=1, num_epochs=3)
    training(trainer, dice=(np.nan, 0.5, 0.6))
    assert (epochs_of(trainer), epoch_of_the_weights(trainer)) == (3, 2)
    assert "WARNING: the pseudo Dice is not a number" in log_of(trainer)


def test_processes_that_train_together_wait_for_the_file(
    paper: Callable[..., nnUNetTrainerPGL_paper], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = paper()
    trainer.initialize()
    trainer.is_ddp = True

    def another_writes() -> None:
        trainer.is_ddp = False
        trainer._best_ema = 0.5
        trainer.save_checkpoint(str(Path(trainer.output_folder, "checkpoint_best.pth")))

    monkeypatch.setattr("torch.distributed.barrier", another_writes)
    trainer.logger.log("mean_fg_dice", 0.5, 0)
    trainer._return_to_the_best_epoch()
    assert "The result is epoch 0" in log_of(trainer)
