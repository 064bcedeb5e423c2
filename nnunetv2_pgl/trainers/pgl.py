"""``nnUNetTrainerPGL``: nnU-Net's training of the paper's segmenter, started from a PGL encoder, and its control."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_pgl.checkpoint import CheckpointError, EncoderCheckpoint, load_checkpoint, sha256_of
from nnunetv2_pgl.networks import PAPER_STRIDES, PGLSegmenter
from nnunetv2_pgl.precision import has_bfloat16
from nnunetv2_pgl.trainers.planned_run import PlannedRun, PlannedRunError
from nnunetv2_pgl.trainers.schedule import WarmupPolyLRScheduler
from nnunetv2_pgl.trainers.source import decoder_is_wanted, find_encoder_checkpoint
from nnunetv2_pgl.transfer import load_decoder, load_encoder

PLANS_KEY = "pgl_network"
_DEFAULT_NETWORK = {"architecture": "resnet50", "norm": "batch", "centred": True}
_WARMUP_FRACTION = 0.05


class nnUNetTrainerPGL(nnUNetTrainer):
    """Fine-tunes ResNet-50 + ASPP + light decoder from the encoder that ``pgl_pretrain`` wrote.

    Loss, optimiser, augmentation and length are nnU-Net's; the learning rate warms up linearly during the first 5 % of
    the epochs. There is no deep supervision. Which checkpoint is used is said in the log and recorded in the fold's
    ``pgl_checkpoint.json``; without one the training does not start. Continuing (``--c``), validation and prediction do
    not need it. Plans with the key ``pgl_run`` set cases, seed and start of a training (see `PlannedRun`).
    """

    starts_from_checkpoint = True

    def __init__(
        self,
        plans: dict[str, Any],
        configuration: str,
        fold: int,
        dataset_json: dict[str, Any],
        device: torch.device = torch.device("cuda"),  # noqa: B008 - nnU-Net's signature
    ):
        _require_3d(plans, configuration)
        super().__init__(plans, configuration, fold, dataset_json, device)
        self.enable_deep_supervision = False
        self._restoring = False
        try:
            self._planned_run = PlannedRun.of(plans, fold)
        except PlannedRunError as error:
            raise self._stop(error) from error

    @property
    def warmup_epochs(self) -> int:
        """Epochs of linear warm-up."""
        return max(1, round(_WARMUP_FRACTION * self.num_epochs))

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The paper's segmenter with random weights; also called for prediction, where no checkpoint is at hand."""
        network = {**_DEFAULT_NETWORK, **plans_manager.plans.get(PLANS_KEY, {})}
        return PGLSegmenter(
            num_input_channels,
            num_output_channels,
            strides=network_strides(configuration_manager),
            norm=network["norm"],
            centred=network["centred"],
            cpu_bfloat16=has_bfloat16(torch.device("cpu")),
        )

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """There is none to switch."""

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolyLRScheduler]:
        """nnU-Net's SGD with a linear warm-up before its polynomial decay."""
        optimizer, _ = super().configure_optimizers()
        if self.device.type == "cpu":
            optimizer = _fused(optimizer, self.network)
        return optimizer, WarmupPolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, self.warmup_epochs)

    def initialize(self) -> None:
        """Builds the network and, unless a training is being restored, copies the pre-trained encoder into it."""
        run = self._planned_run
        if run is not None:
            run.seed_all(epoch=0, rank=self.local_rank)
            self.print_to_log_file(run)
        try:
            if self._restoring or not self.starts_from_checkpoint or (run is not None and run.is_random):
                self._keep_network(self._network_in_model_folder())
                super().initialize()
                return
            path, named_by = find_encoder_checkpoint(self.plans_manager.plans)
            checkpoint = load_checkpoint(path)
            self._keep_network({key: checkpoint.architecture[source] for key, source in _NETWORK_KEYS.items()})
            super().initialize()
            self._start_from(checkpoint, path, named_by)
        except CheckpointError as error:
            raise self._stop(error) from error

    def do_split(self) -> tuple[list[str], list[str]]:
        """The cases of ``pgl_run``, else nnU-Net's split."""
        run = self._planned_run
        if run is None:
            return super().do_split()
        self.dataset_class: Any = infer_dataset_class(self.preprocessed_dataset_folder)
        available = set(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        try:
            run.require_preprocessed(available, str(self.preprocessed_dataset_folder))
        except PlannedRunError as error:
            raise self._stop(error) from error
        return list(run.training_cases), list(run.validation_cases)

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """nnU-Net's, without loading the encoder first (the argument's name differs between nnU-Net's releases)."""
        self._restoring = True
        try:
            super().load_checkpoint(filename_or_checkpoint)
        finally:
            self._restoring = False
        if self._planned_run is not None:  # else the epochs to come would draw what the first ones drew
            self._planned_run.seed_all(self.current_epoch, self.local_rank)

    def _stop(self, error: Exception) -> SystemExit:
        """What to raise to end with one line, which is also in the log."""
        self.print_to_log_file(f"ERROR: {error}", also_print_to_console=False)
        return SystemExit(f"{type(self).__name__}: {error}")

    def _start_from(self, checkpoint: EncoderCheckpoint, path: Path, named_by: str) -> None:
        """Copies the encoder's weights and records where they come from."""
        segmenter = unwrapped(self.network)
        report = str(load_encoder(segmenter.encoder, checkpoint.encoder_weights, str(path)))
        if decoder_is_wanted(self.plans_manager.plans):
            report += f", and {load_decoder(segmenter, checkpoint, str(path))} of the decoder"
        digest = sha256_of(path)
        pgl = checkpoint.pgl
        self.print_to_log_file(
            f"Starting from the encoder {path} (named by {named_by}, sha256 {digest[:16]}...): {pgl.get('method')}, "
            f"{pgl.get('epochs')} epochs on {pgl.get('num_scans')} scans, spacing {pgl.get('spacing')} mm; {report}"
        )
        spacing = self.configuration_manager.spacing
        self.print_to_log_file(
            f"This configuration has spacing {[round(float(s), 4) for s in spacing]} mm and encoder strides "
            f"{list(segmenter.encoder.strides)}"
        )
        if self.local_rank == 0:
            record = {"path": str(path), "sha256": digest, "named_by": named_by} | {
                key: pgl.get(key) for key in ("method", "architecture", "epochs", "num_scans", "spacing", "datasets")
            }
            Path(self.output_folder, "pgl_checkpoint.json").write_text(json.dumps(record, indent=4) + "\n")

    def _keep_network(self, network: dict[str, Any]) -> None:
        """Puts what defines the network into the plans, which nnU-Net stores in the model folder for prediction."""
        stored = self._stored_network()
        if stored is not None and stored != network:
            raise CheckpointError(
                f"{self.output_folder_base} holds folds of the network {stored}, this encoder is {network}: all folds "
                "of a model need the same; give the plans another name for it"
            )
        self.plans_manager.plans[PLANS_KEY] = network

    def _network_in_model_folder(self) -> dict[str, Any]:
        planned = self.plans_manager.plans.get(PLANS_KEY) if self._planned_run is not None else None
        return self._stored_network() or planned or dict(_DEFAULT_NETWORK)

    def _stored_network(self) -> dict[str, Any] | None:
        """The network of the folds that are already there, if any."""
        plans_file = os.path.join(self.output_folder_base, "plans.json")
        if not os.path.isfile(plans_file):
            return None
        with open(plans_file) as file:
            stored = json.load(file).get(PLANS_KEY)
        return stored if isinstance(stored, dict) else None


_NETWORK_KEYS = {"architecture": "name", "norm": "norm", "centred": "centred"}


class nnUNetTrainerPGLScratch(nnUNetTrainerPGL):
    """The control: everything as in `nnUNetTrainerPGL`, but all weights are random (Kaiming uniform)."""

    starts_from_checkpoint = False


def network_strides(configuration_manager: ConfigurationManager) -> tuple[int, int, int]:
    """Total stride per axis: the paper's (8, 16, 16), or what the plan itself pools to where that is less.

    Small or isotropic patches so keep the resolution nnU-Net planned for them; the weights do not depend on it.
    """
    pooled = np.prod(np.array(configuration_manager.pool_op_kernel_sizes), axis=0)
    z, y, x = (min(paper, 1 << (int(plan).bit_length() - 1)) for paper, plan in zip(PAPER_STRIDES, pooled, strict=True))
    return (z, y, x)


def _fused(optimizer: torch.optim.Optimizer, network: nn.Module) -> torch.optim.Optimizer:
    """The same optimiser with one kernel for decay, momentum and step: a third of the time on a CPU.

    Not for CUDA: where nnU-Net's gradient scaler skips the very first step, which is usual, PyTorch's fused SGD is left
    with uninitialised momenta.
    """
    return type(optimizer)(network.parameters(), **{**optimizer.defaults, "fused": True})


def unwrapped(network: nn.Module) -> PGLSegmenter:
    """The segmenter inside DDP's and torch.compile's wrappers."""
    module = getattr(network, "module", network)
    segmenter = getattr(module, "_orig_mod", module)
    assert isinstance(segmenter, PGLSegmenter)
    return segmenter


def _require_3d(plans: dict[str, Any], configuration: str) -> None:
    patch_size = PlansManager(plans).get_configuration(configuration).patch_size
    if len(patch_size) != 3:
        raise SystemExit(
            f"PGL's encoder is 3D, the configuration {configuration} is {len(patch_size)}D: use 3d_fullres, 3d_lowres "
            "or 3d_cascade_fullres"
        )
