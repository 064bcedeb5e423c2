"""``nnUNetTrainerPGL_paper``: the paper's fine-tuning recipe (section 5.1)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import dropwhile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from batchgeneratorsv2.transforms.intensity.brightness import MultiplicativeBrightnessTransform
from batchgeneratorsv2.transforms.intensity.gamma import GammaTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.spatial.spatial import SpatialTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.nnunet_masking import MaskImageTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import distributed

from nnunetv2_pgl.networks.hardware import unwrapped
from nnunetv2_pgl.trainers.pgl import nnUNetTrainerPGL

_SCALING = (1.1, 1.4)


class NoiseOfVariance(ImageOnlyTransform):
    """White Gaussian noise whose variance is drawn uniformly, one for all channels (section 3.2, step 3).

    What batchgeneratorsv2's GaussianNoiseTransform calls ``noise_variance`` is a standard deviation.
    """

    def __init__(self, variance: tuple[float, float]):
        super().__init__()
        self.variance = variance

    def get_parameters(self, **data_dict: Any) -> dict[str, float]:
        """Draws the standard deviation."""
        return {"deviation": math.sqrt(np.random.uniform(*self.variance))}

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        return img.add_(torch.randn_like(img), alpha=params["deviation"])


class ClippedBrightness(MultiplicativeBrightnessTransform):
    """Multiplies the voxel values and clips them to each channel's former range (section 3.2, step 5)."""

    def _apply_to_image(self, img: torch.Tensor, **params: Any) -> torch.Tensor:
        low = img.amin(dim=tuple(range(1, img.ndim)), keepdim=True)
        high = img.amax(dim=tuple(range(1, img.ndim)), keepdim=True)
        return torch.clamp(super()._apply_to_image(img, **params), low, high)


class _StoppedRising(Exception):  # noqa: N818 - it ends the training as planned
    """The validation Dice has stopped rising."""


class nnUNetTrainerPGL_paper(nnUNetTrainerPGL):
    """Batch 8, at most 100 epochs, learning rate 0.01, the augmentation of the pre-training, stop on overfitting.

    The paper stops "when the network falls into overfitting"; here that is when the moving average of the pseudo Dice
    has not risen for 20 epochs (our choice). A stop or the last epoch, the result is the epoch that was best by that
    average: its weights go into ``checkpoint_final.pth``, nnU-Net's validation and prediction, and the log says which
    epoch it is. Momentum, weight decay and polynomial decay are nnU-Net's; there is no warm-up.
    """

    patience = 20
    training_settings: ClassVar[Mapping[str, Any]] = {"num_epochs": 100, "batch_size": 8}

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
        """nnU-Net's optimiser without warm-up."""
        optimizer, _ = super().configure_optimizers()
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(  # noqa: N802 - nnU-Net's name
        self,
    ) -> tuple[Any, bool, list[int], tuple[int, ...]]:
        """No rotation; patches large enough to be scaled by 140 %."""
        self.inference_allowed_mirroring_axes = (0, 1, 2)
        initial = [math.ceil(size * _SCALING[1]) for size in self.configuration_manager.patch_size]
        return (0.0, 0.0), False, initial, (0, 1, 2)

    @staticmethod
    def get_training_transforms(patch_size: np.ndarray | tuple[int, ...], *args: Any, **kwargs: Any) -> BasicTransform:
        """The six steps of section 3.2, then what nnU-Net does to labels, regions and cascades."""
        base = nnUNetTrainerPGL.get_training_transforms(patch_size, *args, **kwargs)
        after = dropwhile(lambda t: not isinstance(t, (MaskImageTransform, RemoveLabelTansform)), base.transforms)
        return ComposeTransforms([*_paper_augmentation(patch_size), *after])

    def on_epoch_start(self) -> None:
        """The decision to stop, also where a training that has stopped is continued; else nnU-Net's."""
        dice = self.logger.get_value("ema_fg_dice", step=None)
        if len(dice) - 1 - _best_epoch(dice) >= self.patience:
            self.print_to_log_file(f"The pseudo Dice has not risen for {self.patience} epochs: stopping.")
            raise _StoppedRising
        super().on_epoch_start()

    def run_training(self) -> None:
        """nnU-Net's, which ends normally when the Dice has stopped rising."""
        try:
            super().run_training()
        except _StoppedRising:
            self.on_train_end()

    def on_train_end(self) -> None:
        """nnU-Net's with the weights of the best epoch."""
        self._return_to_the_best_epoch()
        super().on_train_end()

    def _return_to_the_best_epoch(self) -> None:
        """Loads the weights that nnU-Net has saved when the moving average was highest, and says so."""
        if self.disable_checkpointing:
            self.print_to_log_file("The best epoch's weights are not saved: the result is the last epoch")
            return
        if self.is_ddp:
            distributed.barrier()  # the main process writes the file
        file = Path(self.output_folder, "checkpoint_best.pth")
        if not file.is_file():
            self.print_to_log_file(f"WARNING: {file} is not there: the result is what was trained or loaded last")
            return
        checkpoint = torch.load(file, map_location="cpu", weights_only=False)
        epoch, average = checkpoint["current_epoch"] - 1, checkpoint["_best_ema"]
        if not math.isfinite(average):
            self.print_to_log_file("WARNING: the pseudo Dice is not a number: the result is the last epoch")
            return
        unwrapped(self.network).load_state_dict(checkpoint["network_weights"])
        self.print_to_log_file(
            f"The result is epoch {epoch}, the best by the moving average of the pseudo Dice ({average:.4f}): "
            "checkpoint_final.pth, validation and prediction have its weights"
        )
        dice = self.logger.get_value("ema_fg_dice", step=None)
        if epoch != _best_epoch(dice):
            self.print_to_log_file(
                f"WARNING: of what the log holds epoch {_best_epoch(dice)} was best; the training was interrupted, and "
                "what was saved of the best epoch is from before"
            )


def _best_epoch(dice: Sequence[float]) -> int:
    """Where the moving average of the pseudo Dice was highest for the first time; the last epoch if it has no value."""
    if not np.isfinite(dice).any():
        return len(dice) - 1
    return int(np.nanargmax(dice))


def _paper_augmentation(patch_size: np.ndarray | tuple[int, ...]) -> list[BasicTransform]:
    """Cropping and scaling, flips, noise, blur, brightness, gamma."""
    scaling = SpatialTransform(
        tuple(patch_size),
        patch_center_dist_from_border=0,
        random_crop=False,
        p_scaling=1,
        scaling=_SCALING,
        border_mode_seg="constant",
        padding_value_seg=-1,
    )
    blur = GaussianBlurTransform(
        blur_sigma=(0.5, 1.0), synchronize_channels=True, synchronize_axes=True, p_per_channel=1
    )
    brightness = ClippedBrightness(multiplier_range=(0.75, 1.25), synchronize_channels=False, p_per_channel=1)
    gamma = GammaTransform(
        gamma=(0.7, 1.5), p_invert_image=0, synchronize_channels=False, p_per_channel=1, p_retain_stats=0
    )
    return [
        scaling,
        MirrorTransform(allowed_axes=(0, 1, 2)),
        RandomTransform(NoiseOfVariance((0, 0.1)), apply_probability=0.1),
        RandomTransform(blur, apply_probability=0.2),
        RandomTransform(brightness, apply_probability=0.5),
        RandomTransform(gamma, apply_probability=0.5),
    ]
