"""Initialisations made from another one: controls, and the start with the decoder.

- ``shuffled:NAME``: the encoder of NAME with the values of each tensor in another order. Sizes and distributions of the
  weights stay, what they have learned is lost. If a training from it is as good as one from NAME, what helped was not
  knowledge.
- ``longer:NAME``: random weights, trained longer by what the pre-training of NAME has computed. If that is as good, the
  time of the pre-training is better spent on training. One pre-training serves many trainings; here each is charged
  with all of it.
- ``decoder:NAME``: NAME with the decoder that its pre-training has trained, which otherwise starts random.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from torch import Tensor

from nnunetv2_pgl.adaptation import canonical
from nnunetv2_pgl.checkpoint import load_checkpoint, save_checkpoint
from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.trainers import nnUNetTrainerPGL
from pretraining.comparison.files import write_json
from pretraining.settings.config import PretrainConfig
from pretraining.training.footprint import flop, flop_of_pair
from pretraining.training.loop import steps_per_epoch

SHUFFLED, LONGER, DECODER = "shuffled", "longer", "decoder"
KINDS = (SHUFFLED, LONGER, DECODER)
_SEED = 20201128  # of the order of shuffled weights


def write_shuffled(checkpoint: Path, shuffled_checkpoint: Path) -> None:
    """Writes a checkpoint with shuffled weights, without a decoder."""
    loaded = load_checkpoint(checkpoint)
    shuffled_checkpoint.parent.mkdir(parents=True, exist_ok=True)
    pgl = {**loaded.pgl, "shuffled": _SEED}
    weights = shuffled(loaded.encoder_weights, _SEED)
    save_checkpoint(replace(loaded, encoder_weights=weights, decoder_weights={}, pgl=pgl), shuffled_checkpoint)


def shuffled(weights: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Each tensor with its values in another order; tensors that share memory still share it.

    The two names of a parameter in nnU-Net's networks get the same order, also where a file has two copies of it.
    """
    generator = torch.Generator().manual_seed(seed)
    done: dict[int, Tensor] = {}
    orders: dict[str, Tensor] = {}
    for key, value in weights.items():
        if value.data_ptr() not in done:
            name = canonical(key)
            if name not in orders:
                orders[name] = torch.randperm(value.numel(), generator=generator)
            done[value.data_ptr()] = value.flatten()[orders[name]].view(value.shape)
    return {key: done[value.data_ptr()] for key, value in weights.items()}


def require_decoder(checkpoint: Path, init: str) -> None:
    """A PGLError, which names the initialisation, if the pre-training of a checkpoint has trained no decoder."""
    loaded = load_checkpoint(checkpoint)
    if not loaded.decoder_weights:
        raise PGLError(f"{init}: {loaded.pgl.get('method')} has trained no decoder; leave it out")


def pretraining_length(checkpoint: Path) -> tuple[PretrainConfig, int]:
    """Settings of a pre-training, and its number of steps; a PGLError if the checkpoint does not record them."""
    pgl = load_checkpoint(checkpoint).pgl
    try:
        config = PretrainConfig.from_dict({**pgl["config"], "exclude": ()})
        return config, config.epochs * steps_per_epoch(config, int(pgl["num_scans"]))
    except (KeyError, TypeError, ValueError) as error:
        raise PGLError(
            f"{checkpoint}: does not record how it was pre-trained ({error!r}), so no training can be made as long"
        ) from error


def extra_epochs(checkpoint: Path, trainer: nnUNetTrainerPGL, record: Path) -> int:
    """Epochs of a trainer whose computation is that of a pre-training, rounded up.

    Compared are the operations of convolutions and matrix products, forward and backward, as PyTorch counts them: the
    same on every machine.

    Args:
        checkpoint: Of the pre-training; it must record how it was made.
        trainer: Of the random start; nothing is trained.
        record: File to write the numbers to.
    """
    config, steps = pretraining_length(checkpoint)
    of_pretraining = steps * config.batch_size * flop_of_pair(config)
    configuration = trainer.configuration_manager
    inputs = determine_num_input_channels(trainer.plans_manager, configuration, trainer.dataset_json)
    outputs = trainer.label_manager.num_segmentation_heads
    with torch.device("meta"):
        network = trainer.build_network_architecture(
            trainer.plans_manager, configuration, inputs, outputs, trainer.enable_deep_supervision
        )
    of_patch = flop(network, (1, inputs, *configuration.patch_size))
    of_epoch = trainer.num_iterations_per_epoch * configuration.batch_size * of_patch
    epochs = -(-of_pretraining // of_epoch)
    write_json(record, {"pretraining_flop": of_pretraining, "training_epoch_flop": of_epoch, "extra_epochs": epochs})
    return epochs
