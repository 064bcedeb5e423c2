"""What a pre-training takes from an existing nnU-Net plan, so that it sees the voxels that fine-tuning will see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.dataset_name_id_conversion import maybe_convert_to_dataset_name
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from nnunetv2_pgl.errors import PGLError
from nnunetv2_pgl.files import load_json
from nnunetv2_pgl.networks import PLANNERS, PlanError, PlannedNetwork
from nnunetv2_pgl.networks.planned import network_strides
from pretraining.data.planned_preprocessing import PlannedPreprocessing
from pretraining.option_fields import setting
from pretraining.settings.table import DEFAULT_PLANS, PLAN

_MAX_NAMES_SHOWN = 5


@dataclass(frozen=True)
class PlanOptions:
    """A plan of nnU-Net's to follow; `settings_of_plan` makes settings of it."""

    plans_from: str | None = setting(
        None, "dataset to fine-tune on, already planned by nnU-Net; its labels are not read", group=PLAN, metavar="ID"
    )
    plans_name: str = setting(DEFAULT_PLANS, "name of its plans", group=PLAN, name="p", metavar="PLANS")
    configuration: str = setting("3d_fullres", "configuration of the plans", group=PLAN, metavar="NAME")


def settings_of_plan(dataset: str, plans_name: str, configuration: str, architecture: str | None) -> dict[str, Any]:
    """Settings of `PretrainConfig` as a plan has them; those of the views are under ``views``.

    Args:
        dataset: Id or name of a dataset that is planned.
        plans_name: Such as nnUNetResEncUNetLPlans.
        configuration: Of the plan, 3D.
        architecture: As asked for; None for the plan's own network. With the paper's ResNet-50 the plan decides
            spacing, normalisation, patch size and strides, with nnU-Net's networks also the topology.

    Raises:
        PGLError: There is no such plan, it is of a 2D configuration, or has another network than asked for.
        DataError: Its preprocessing cannot be followed.
    """
    file = plans_file(dataset, plans_name)
    where = f"-plans_from {dataset} -p {plans_name}"
    try:
        return _settings(_read(file), plans_name, configuration, architecture, where)
    except PGLError:
        raise
    except Exception as error:  # nnU-Net checks little of what it reads
        raise PGLError(
            f"{file}: not a plan as nnU-Net writes it ({type(error).__name__}: {error}); plan the dataset again"
        ) from error


def _settings(
    plans: dict[str, Any], plans_name: str, configuration: str, architecture: str | None, where: str
) -> dict[str, Any]:
    available = plans.get("configurations") or {}
    if configuration not in available:
        raise PGLError(
            f"{where}: has no configuration {configuration}, only {', '.join(available)}; see -configuration"
        )
    manager = PlansManager(dict(plans)).get_configuration(configuration)
    patch = tuple(int(size) for size in manager.patch_size)
    if len(patch) != 3:
        raise PGLError(f"{where}: {configuration} is {len(patch)}D, PGL is 3D; use 3d_fullres or 3d_lowres")
    settings: dict[str, Any] = {
        "views": {"size": patch},
        "plans": f"{plans['dataset_name']}/{plans_name}/{configuration}",
        "preprocessing": PlannedPreprocessing.from_plans(plans, configuration).to_dict(),
    }
    if architecture == "resnet50":
        return settings | {"strides": network_strides(manager)}
    try:
        network = PlannedNetwork.from_configuration(manager, where)
    except PlanError as error:
        raise PGLError(f"{error}; or use its preprocessing alone with -a resnet50") from error
    return settings | {"architecture": _name(network, plans_name, architecture, where), "network": network.to_dict()}


def plans_file(dataset: str, plans_name: str) -> Path:
    """Where nnU-Net keeps the plan.

    Raises:
        PGLError: nnUNet_preprocessed is not set, or there is no such plan.
    """
    if not nnUNet_preprocessed.is_set():
        raise PGLError("nnUNet_preprocessed is not set: export nnUNet_preprocessed=/path/to/nnUNet_preprocessed")
    try:
        name = maybe_convert_to_dataset_name(dataset)
    except (RuntimeError, ValueError) as error:
        raise PGLError(f"-plans_from {dataset}: {str(error).splitlines()[0]}") from error
    folder = Path(nnUNet_preprocessed) / name
    file = folder / f"{plans_name}.json"
    if not file.is_file():
        found = sorted(path.stem for path in folder.glob("*lans*.json"))
        some = ", ".join(found[:_MAX_NAMES_SHOWN]) + (", ..." if len(found) > _MAX_NAMES_SHOWN else "")
        help_ = f"-p may name one of {some}" if found else f"run nnUNetv2_plan_and_preprocess -d {dataset} first"
        raise PGLError(f"-plans_from {dataset} -p {plans_name}: there is no {file}; {help_}")
    return file


def _read(file: Path) -> dict[str, Any]:
    try:
        plans = load_json(file)
    except (OSError, ValueError) as error:
        raise PGLError(f"{file}: cannot be read ({error}); plan the dataset again") from error
    if not isinstance(plans, dict):
        raise PGLError(f"{file}: holds no plans; plan the dataset again")
    return plans


def _name(network: PlannedNetwork, plans_name: str, asked: str | None, where: str) -> str:
    """Our name for the plan's network: sizes of residual encoders go by the names of nnU-Net's plans."""
    named = next((name for name, planner in PLANNERS.items() if planner.plans == plans_name), "plain")
    found = "plain" if not network.is_residual else asked or "resenc_m" if named == "plain" else named
    if asked is not None and asked != found:
        raise PGLError(f"-a {asked}: {where} is a plan of {found}; leave -a out, or name a plan of {asked} with -p")
    return found
