"""Trainers of the comparisons in docs/results, for two CPU cores.

export nnUNet_extTrainer="$(pgl_extension):$PWD/benchmarks/trainers"
"""

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import nn

from nnunetv2_pgl.networks.strided import StridedConv
from nnunetv2_pgl.trainers import nnUNetTrainerPGL, nnUNetTrainerPGLScratch
from nnunetv2_pgl.trainers.variants import Sawtooth, TrainsWithAdamW, with_length

_SHORT = {"num_epochs": 10, "num_iterations_per_epoch": 16, "num_val_iterations_per_epoch": 2}
nnUNetTrainerPGL_short = with_length(nnUNetTrainerPGL, "short", **_SHORT)
nnUNetTrainerPGLScratch_short = with_length(nnUNetTrainerPGLScratch, "short", **_SHORT)


class nnUNetTrainerPGL_demo(TrainsWithAdamW):
    """AdamW, 10 epochs of 30 iterations: what the demo trained with when these results were measured."""

    training_settings: ClassVar[Mapping[str, Any]] = {
        "initial_lr": 1e-3,
        "num_epochs": 10,
        "num_iterations_per_epoch": 30,
        "num_val_iterations_per_epoch": 2,
    }


# With two patches per batch: minutes on one core.
nnUNetTrainerPGL_demo_two = with_length(nnUNetTrainerPGL_demo, "two", batch_size=2)
# Half of its length, for comparisons of many runs.
nnUNetTrainerPGL_demo_half = with_length(nnUNetTrainerPGL_demo, "half", num_epochs=5, batch_size=2)


class nnUNetTrainerPGL_demo_sawtooth(Sawtooth, nnUNetTrainerPGL_demo):
    """The demo's trainer with the encoder at rest during the warm-up."""


nnUNetTrainerPGL_demo_sawtooth_half = with_length(nnUNetTrainerPGL_demo_sawtooth, "half", num_epochs=5, batch_size=2)


class nnUNetTrainerPGL_demo_replicate(nnUNetTrainerPGL_demo):
    """The demo's trainer with replicate padding in the segmenter's encoder, in training and in prediction."""

    @staticmethod
    def build_network_architecture(
        plans_manager: Any,
        configuration_manager: Any,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """As `nnUNetTrainerPGL` builds it, but for the padding (nnU-Net looks at the names of the arguments)."""
        network = nnUNetTrainerPGL_demo.build_network_architecture(
            plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
        )
        for module in network.encoder.modules():
            if isinstance(module, StridedConv):
                module.mode = "replicate"
        return network


nnUNetTrainerPGL_demo_replicate_half = with_length(nnUNetTrainerPGL_demo_replicate, "half", num_epochs=5, batch_size=2)
nnUNetTrainerPGL_demo_replicate_two = with_length(nnUNetTrainerPGL_demo_replicate, "two", batch_size=2)


class nnUNetTrainerPGL_demo_tested(nnUNetTrainerPGL_demo):
    """The demo's trainer without nnU-Net's validation of whole scans at the end: `pgl_compare` predicts test scans."""

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """Says that there is none."""
        self.print_to_log_file("No validation of whole scans: the test scans are predicted after the training.")


class nnUNetTrainerPGL_demo_360(
    with_length(nnUNetTrainerPGL_demo_tested, "360", num_epochs=12, num_val_iterations_per_epoch=6, batch_size=2)
):
    """360 steps, for datasets on which 300 are too few."""


class nnUNetTrainerPGL_demo_60(
    with_length(nnUNetTrainerPGL_demo_tested, "60", num_epochs=3, num_iterations_per_epoch=20, batch_size=2)
):
    """60 steps, for comparisons in which two starts are expected to be equal (docs/performance.md)."""
