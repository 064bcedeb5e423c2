"""``nnUNetTrainerPGL``: nnU-Net's training started from a PGL encoder, and its control."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from functools import wraps
from inspect import signature
from typing import Any, ClassVar

import torch
from nnunetv2.training.dataloading.nnunet_dataset import infer_dataset_class
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from nnunetv2_pgl.environment import environment_variable, usable_cores
from nnunetv2_pgl.errors import PGLError, one_line
from nnunetv2_pgl.files import replacing
from nnunetv2_pgl.networks import PGLSegmenter
from nnunetv2_pgl.networks.hardware import autocast_type, train_in_cpu_bfloat16, unwrapped
from nnunetv2_pgl.trainers.optimisation import WarmupPolyLRScheduler, fused
from nnunetv2_pgl.trainers.plans import PLANS_KEY, ModelNetwork, PlannedRun, build_network, require_3d
from nnunetv2_pgl.trainers.pretrained import PretrainedEncoder, sums
from nnunetv2_pgl.trainers.seeded_batches import (
    TRAINING,
    VALIDATION,
    WORKERS,
    make_augmentation_deterministic,
    seeded_batches,
)

_WARMUP_FRACTION = 0.05
_REPLACED = (
    "the weights that it starts from were replaced before the training, as nnUNetv2_train -pretrained_weights does; "
    "leave that option out (PGL_CHECKPOINT takes trained models of nnU-Net too), or train with -tr nnUNetTrainer"
)


class nnUNetTrainerPGL(nnUNetTrainer):
    """Fine-tunes from an encoder of ``pgl_pretrain``, nnssl or nnU-Net, in the network that the encoder belongs to.

    A ResNet-50 gets the paper's ASPP and light decoder, without deep supervision. An encoder of nnU-Net's own networks
    goes into the plan's network, deep supervision and all. Loss, optimiser, augmentation and length are nnU-Net's; the
    learning rate warms up linearly during the first 5 % of the epochs.

    Which checkpoint is used, and what did not fit, is logged and recorded in the fold's
    ``pgl_checkpoint.json``; without one the training does not start. Continuing (``--c``), validation and prediction do
    not need it. Plans with the key ``pgl_run`` set cases, seed and start of a training (see `PlannedRun`).
    """

    starts_from_checkpoint = True
    # What a variant sets in place of nnU-Net's and the plan's: num_epochs, initial_lr, batch_size, ...
    training_settings: ClassVar[Mapping[str, Any]] = {}

    @wraps(nnUNetTrainer.__init__)  # type: ignore[misc]  # nnU-Net looks at the names of the arguments
    def __init__(self, *arguments: Any, **named: Any):
        given = signature(nnUNetTrainer.__init__).bind(self, *arguments, **named).arguments
        require_3d(given["plans"], given["configuration"])  # before nnU-Net makes a folder
        super().__init__(*arguments, **named)
        for name, value in self.training_settings.items():
            if name == "batch_size":  # nnU-Net reads it from the plan later
                self.configuration_manager.configuration[name] = value
            else:
                setattr(self, name, value)
        if self.device.type == "cpu":
            torch.set_num_threads(usable_cores())
        self._restoring = False
        self._start: tuple[float, ...] = ()
        try:
            self._planned_run = PlannedRun.from_plans(self.plans_manager.plans, self.fold)
        except PGLError as error:
            raise self._stop(error) from error

    @property
    def warmup_epochs(self) -> int:
        """Epochs of linear warm-up."""
        return max(1, round(_WARMUP_FRACTION * self.num_epochs))

    @property
    def image_channels(self) -> int:
        """How many of the network's input channels are images.

        They come first; in a cascade the previous stage's segmentation follows, a channel for each foreground label.
        Known once the network is built.
        """
        previous = len(self.label_manager.foreground_labels) if self.is_cascaded else 0
        return int(self.num_input_channels) - previous

    @staticmethod
    def build_network_architecture(
        plans_manager: PlansManager,
        configuration_manager: ConfigurationManager,
        num_input_channels: int,
        num_output_channels: int,
        enable_deep_supervision: bool = True,
    ) -> nn.Module:
        """The model's network with random weights; also called for prediction, where no checkpoint is at hand."""
        try:
            return build_network(
                plans_manager, configuration_manager, num_input_channels, num_output_channels, enable_deep_supervision
            )
        except PGLError as error:
            raise SystemExit(one_line(f"{PLANS_KEY} in the plans {plans_manager.plans_name}: {error}")) from error

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """nnU-Net's, where the network has it."""
        if not isinstance(unwrapped(self.network), PGLSegmenter):
            super().set_deep_supervision_enabled(enabled and self.enable_deep_supervision)

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, WarmupPolyLRScheduler]:
        """nnU-Net's SGD with a linear warm-up before its polynomial decay."""
        optimizer, _ = super().configure_optimizers()
        if self.device.type == "cpu":
            optimizer = fused(optimizer, self.network)
        return optimizer, self.learning_rates(optimizer)

    def learning_rates(self, optimizer: torch.optim.Optimizer) -> WarmupPolyLRScheduler:
        """The schedule of the learning rate."""
        return WarmupPolyLRScheduler(optimizer, self.initial_lr, self.num_epochs, self.warmup_epochs)

    def initialize(self) -> None:
        """Builds the network and, unless a training is being restored, copies the pre-trained encoder into it."""
        run = self._planned_run
        if run is not None:
            self.num_epochs += run.extra_epochs  # here, since subclasses set their length after construction
            run.seed_all(epoch=0, rank=self.local_rank)
            self.print_to_log_file(run)
        starts_at_random = not self.starts_from_checkpoint or (run is not None and run.is_random)
        try:
            encoder = None
            if self._restoring or starts_at_random:
                self._use_network(self._network_without_checkpoint(), "the random start")
            else:
                encoder = PretrainedEncoder.find(self.plans_manager.plans, self.print_to_log_file)
                network = ModelNetwork.from_dict(encoder.checkpoint.architecture)
                self._use_network(network, f"the encoder {encoder.path}")
            super().initialize()
            # The paper's network sees to bfloat16 on a CPU itself, and nnU-Net to autocast on CUDA.
            if self.device.type == "cpu" and autocast_type(self.device) and not isinstance(self.network, PGLSegmenter):
                train_in_cpu_bfloat16(self.network)
            if encoder is not None:
                self._start_from(encoder)
            self._start = sums(self.network)
        except PGLError as error:
            raise self._stop(error) from error

    def on_train_start(self) -> None:
        """nnU-Net's, unless something has replaced the weights of the start, as ``-pretrained_weights`` does."""
        if self._start and self._start != sums(self.network):
            raise self._stop(PGLError(_REPLACED))
        super().on_train_start()

    def do_split(self) -> tuple[list[str], list[str]]:
        """The cases of ``pgl_run``, else nnU-Net's split."""
        run = self._planned_run
        if run is None:
            return super().do_split()
        self.dataset_class: Any = infer_dataset_class(self.preprocessed_dataset_folder)
        available = set(self.dataset_class.get_identifiers(self.preprocessed_dataset_folder))
        try:
            run.require_preprocessed(available, str(self.preprocessed_dataset_folder))
        except PGLError as error:
            raise self._stop(error) from error
        return list(run.training_cases), list(run.validation_cases)

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's; with ``pgl_run`` their batches follow its seed, also where a training is continued."""
        run = self._planned_run
        if run is None:
            return super().get_dataloaders()
        with environment_variable(WORKERS, "0"):
            training, validation = (augmenter.data_loader for augmenter in super().get_dataloaders())
        make_augmentation_deterministic(training.transforms)
        # As many loading processes and batches in stock as nnU-Net has.
        processes = get_allowed_n_proc_DA()
        fewer = min(processes, max(1, processes // 2))
        steps, val_steps = self.num_iterations_per_epoch, self.num_val_iterations_per_epoch

        def seeded(loader: Any, part: int, iterations: int, processes: int, cached: int) -> Any:
            seed, first = (run.seed, self.local_rank, part), self.current_epoch * iterations
            return seeded_batches(loader, seed, first, processes, cached, pin_memory=self.device.type == "cuda")

        return (
            seeded(training, TRAINING, steps, processes, cached=max(6, processes // 2)),
            seeded(validation, VALIDATION, val_steps, fewer, cached=max(3, processes // 4)),
        )

    def load_checkpoint(self, filename_or_checkpoint: Any) -> None:
        """nnU-Net's, without loading the encoder first (the argument's name differs between nnU-Net's releases)."""
        self._restoring = True
        try:
            super().load_checkpoint(filename_or_checkpoint)
        finally:
            self._restoring, self._start = False, ()
        if self._planned_run is not None:  # else the epochs to come would draw what the first ones drew
            self._planned_run.seed_all(self.current_epoch, self.local_rank)

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's, but a training that is killed while it saves leaves the former checkpoint whole."""
        saves = self.local_rank == 0 and not self.disable_checkpointing
        with replacing(filename) if saves else nullcontext(filename) as target:
            super().save_checkpoint(str(target))

    def _stop(self, error: Exception) -> SystemExit:
        """What to raise to end with one line, which is also in the log."""
        self.print_to_log_file(f"ERROR: {error}", also_print_to_console=False)
        return SystemExit(one_line(f"{type(self).__name__}: {error}"))

    def _start_from(self, encoder: PretrainedEncoder) -> None:
        """Copies the encoder's weights and records where they come from."""
        network = unwrapped(self.network)
        report, summary = encoder.load(network, self.plans_manager.plans, self.image_channels)
        for line in encoder.lines(summary, network, self.plans_manager, self.configuration_manager):
            self.print_to_log_file(line)
        for line in report.lines():
            self.print_to_log_file(line, also_print_to_console=False)
        if self.local_rank == 0:
            encoder.record(report, self.output_folder)

    def _use_network(self, network: ModelNetwork, origin: str) -> None:
        """Puts what defines the network into the plans, which nnU-Net stores in the model folder for prediction."""
        network.require_plan(self.plans_manager, self.configuration_manager, origin)
        stored = ModelNetwork.of_model(self.output_folder_base)
        if stored is not None and stored.to_dict() != network.to_dict():
            raise PGLError(
                f"{self.output_folder_base} holds folds of the network {stored.to_dict()}, {origin} is for "
                f"{network.to_dict()}: all folds of a model need the same; give the plans another name for it"
            )
        self.plans_manager.plans[PLANS_KEY] = network.to_dict()
        if not network.is_planned:
            self.enable_deep_supervision = False

    def _network_without_checkpoint(self) -> ModelNetwork:
        """The plans' network, else that of existing folds, else the paper's; to continue a fold, that of the folds."""
        stored, planned = ModelNetwork.of_model(self.output_folder_base), self.plans_manager.plans.get(PLANS_KEY)
        if stored is not None and (self._restoring or planned is None):
            return stored
        return ModelNetwork.from_dict(planned or {})


class nnUNetTrainerPGLScratch(nnUNetTrainerPGL):
    """The control: everything as in `nnUNetTrainerPGL`, but all weights are random.

    It trains the paper's network (Kaiming uniform), or what ``pgl_network`` in the plans names:
    {"architecture": "plan"} is the plan's own, as nnU-Net initialises it.
    """

    starts_from_checkpoint = False
