"""The settings of a pre-training run, one table: type, default, option, range and help of each."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any, Literal

from nnunetv2_pgl.methods import METHODS
from nnunetv2_pgl.networks import PLANNERS, NormName, PaddingName, Triple
from pretraining.data import resolve_source
from pretraining.option_fields import setting
from pretraining.settings.values import names_in, parse_spacing
from pretraining.views import ViewSettings

OptimizerName = Literal["lars", "sgd", "adamw", "nnunet"]
SpacingSetting = Literal["median", "native"] | tuple[float, float, float]

SCANS, PLAN, VIEWS = "scans", "plan of nnU-Net to follow (patch size, spacing, normalisation, network)", "views"
TRAINING, RUN = "network and training", "run"
DEFAULT_PLANS = "nnUNetPlans"
_ALIGNING = ", ".join(method.name for method in METHODS.values() if method.aligns)
GROUPS = (SCANS, PLAN, VIEWS, TRAINING, RUN)


@dataclass(frozen=True)
class PretrainSettings:
    """What defines a run. Defaults are those of ``--paper``; `recommended` has those of pgl_pretrain without it."""

    datasets: tuple[str, ...] = setting(
        MISSING,
        "nnU-Net dataset ids or names, or folders of scans (NIfTI, NRRD, MHA, DICOM series), which are pooled; "
        "imagesTr and imagesTs are used, labels are not needed",
        group=SCANS,
        name="d",
        metavar="ID",
        parse=lambda sources, _: tuple(resolve_source(source).full_name for source in sources),
    )
    modality: Literal["ct", "mr"] | None = setting(
        None,
        "overrides channel_names of datasets and what DICOM files say, for all sources",
        group=SCANS,
        default_text="what these say; files that do not say are ct",
    )
    use_masks: bool = setting(
        False, "take files of folders that look like segmentations by name or values, too", group=SCANS
    )
    spacing: SpacingSetting = setting(
        "median",
        "voxel spacing to resample to: median of the pool per axis, native, or three values z y x in mm",
        group=SCANS,
        metavar="MM",
        above=0,
        parse=parse_spacing,
    )
    exclude: tuple[str, ...] = setting(
        (),
        "text file (UTF-8, or UTF-16 as Windows saves it) with names of scans to leave out, one per line, such as "
        "those of a test set",
        group=SCANS,
        metavar="FILE",
        default_text="",
        one_text=True,
        parse=lambda file, option: names_in(Path(file), option),
    )
    weights: tuple[float, ...] | None = setting(
        None,
        "share of the draws for each source of -d, in any unit",
        group=SCANS,
        metavar="W",
        default_text="every scan is equally likely",
    )
    preprocessing: dict[str, Any] | None = setting(
        None, "`PlannedPreprocessing` as plain values, which decides the spacing as well; None: our own"
    )
    in_channels: int | None = setting(
        None, "with joint channels, image channels of the scans; known once these are found", least=1
    )
    method: str = setting(
        "pgl",
        "; ".join(f"{method.name}: {method.help}" for method in METHODS.values()),
        group=TRAINING,
        name="m",
        values=tuple(METHODS),
    )
    architecture: str = setting(
        "resnet50",
        "encoder: the paper's ResNet-50, or that of nnU-Net's networks",
        group=TRAINING,
        name="a",
        default_text="resnet50, or the plan's",
        values=("resnet50", *PLANNERS),
    )
    network: dict[str, Any] | None = setting(
        None, "`PlannedNetwork` as plain values; None: what nnU-Net plans for views of this size"
    )
    plans: str | None = setting(
        None, "dataset, plans and configuration that preprocessing, network and size of the views come from"
    )
    norm: NormName = setting("batch", "norm of the ResNet-50", group=TRAINING)
    padding: PaddingName = setting(
        "zeros",
        "what the encoder sees beyond the edge of a view: zeros, which give away the place in the view, or the "
        "outermost cells again; weights do not depend on it",
        group=TRAINING,
    )
    strides: Triple | None = setting(
        None,
        "total stride of the ResNet-50, powers of two; weights do not depend on it",
        group=TRAINING,
        metavar=("Z", "Y", "X"),
        default_text="8 16 16, less where a view would keep fewer than two cells",
    )
    align_stages: tuple[int, ...] | None = setting(
        None,
        f"stages of the encoder to align ({_ALIGNING}), 0 is the finest; several are averaged",
        group=TRAINING,
        metavar="N",
        least=0,
        default_text="the deepest with cells of at most 16 voxels",
    )
    views: ViewSettings = field(default_factory=ViewSettings)
    epochs: int = setting(
        500,
        "number of epochs; without -pairs, each draws one pair of views per training scan",
        group=TRAINING,
        metavar="N",
        least=1,
    )
    pairs_per_epoch: int | None = setting(
        None,
        "pairs per epoch",
        group=TRAINING,
        name="pairs",
        metavar="N",
        least=1,
        default_text="number of training scans, at least one batch",
    )
    batch_size: int = setting(128, "pairs per step, over all GPUs", group=TRAINING, name="b", metavar="N", least=1)
    accumulate: int = setting(
        1,
        "compute each step in N parts to save memory; batch norm then sees the parts",
        group=TRAINING,
        metavar="N",
        least=1,
    )
    optimizer: OptimizerName | None = setting(
        None,
        "nnunet: SGD with Nesterov momentum 0.99, polynomial decay and gradients clipped to a norm of 12",
        group=TRAINING,
        default_text="lars from 32 pairs per step on, else adamw",
    )
    learning_rate: float | None = setting(
        None,
        "peak learning rate",
        group=TRAINING,
        name="lr",
        above=0,
        default_text="0.2 per 128 pairs for lars, 0.3 per 256 for sgd, 2e-3 for adamw, 0.01 for nnunet",
    )
    weight_decay: float = setting(
        1.5e-6,
        "weight decay, not on biases and norms; mae's default holds with -optimizer nnunet only",
        group=TRAINING,
        name="wd",
        least=0,
    )
    warmup_epochs: int = setting(
        2,
        "epochs of linear warm-up, then cosine or polynomial decay; mae's default holds with -optimizer nnunet only",
        group=TRAINING,
        name="warmup",
        metavar="N",
        least=0,
    )
    target_decay: float = setting(
        0.996,
        "decay rate of the target path at the start; it rises to 1 on a cosine",
        group=TRAINING,
        metavar="TAU",
        least=0,
        most=1,
    )
    hidden_channels: int = setting(4096, "channels inside projector and predictor", least=1)
    out_channels: int = setting(256, "channels of the projection", least=1)
    temperature: float = setting(
        0.1, "temperature of the similarities in pgl_nce", group=TRAINING, metavar="T", above=0
    )
    interpolated_only: bool = setting(
        False, "only aligned points between cell centres count in the loss", group=TRAINING
    )
    mask_ratio: float = setting(
        0.6, "share of masked blocks in mae and pgl_mae", group=TRAINING, metavar="F", least=0, most=1
    )
    restoration_weight: float = setting(
        1.0, "weight of the reconstruction in pgl_mae", group=TRAINING, metavar="W", least=0
    )
    validation_scans: int | None = setting(
        None,
        "scans held out for the correspondence metric; 0 trains on all",
        group=TRAINING,
        name="val_scans",
        metavar="N",
        least=0,
        default_text="5 %, at most 16, none below 10 scans",
    )
    preset: Literal["paper", "recommended", "published"] = setting(
        "paper", "which settings those not given were: the paper's, `recommended`, or those published for the method"
    )
    seed: int = setting(12345, "seed of all randomness", group=SCANS, metavar="N", least=0)


@dataclass(frozen=True)
class RunOptions:
    """How to run, as opposed to what (`PretrainConfig`); may change when a run is continued."""

    name: str = setting(
        "", "name of the run", group=RUN, name="o", metavar="NAME", default_text="from method, encoder and datasets"
    )
    resume: bool = setting(
        False, "continue the run from its checkpoint_latest.pth, or start it where there is none", group=RUN, name="c"
    )
    device: Literal["cuda", "cpu", "mps"] = setting("cuda", "where to train", group=RUN)
    preprocessing_processes: int = setting(8, "preprocessing processes", group=SCANS, name="np", metavar="N", least=1)
    save_every: int | None = setting(
        None,
        "epochs between two saves of the state, with curves and correspondence",
        group=RUN,
        metavar="N",
        least=1,
        default_text="by time, the state every 10 minutes",
    )
    verify: bool = setting(
        False,
        "compare scans preprocessed before with their checksums, and preprocess those that are damaged again",
        group=SCANS,
        name="verify_dataset_integrity",
    )
    num_gpus: int = setting(1, "processes on this machine", group=RUN, metavar="N", least=1)
    tensorboard: bool = setting(
        False, "log the numbers of metrics.jsonl to TensorBoard too, in the folder tensorboard of the run", group=RUN
    )
    wandb: bool = setting(
        False,
        "log them to Weights & Biases too, as nnUNet_wandb_project and nnUNet_wandb_mode say",
        group=RUN,
    )
