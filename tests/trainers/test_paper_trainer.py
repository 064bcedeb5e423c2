"""The paper's fine-tuning recipe: batch, length and rate, and which epoch is the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from nnunetv2_pgl.trainers import nnUNetTrainerPGL_paper


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
