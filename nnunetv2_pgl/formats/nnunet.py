"""Models that nnU-Net has trained with labels, and the weights of such a model alone, as a start."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import Tensor

from nnunetv2_pgl.adaptation import canonical
from nnunetv2_pgl.errors import PGLError, counted
from nnunetv2_pgl.formats.unet_weights import (
    BATCH_NORM,
    EncoderShape,
    first_convolution,
    has_batch_norm,
    network_of_weights,
    split,
)
from nnunetv2_pgl.networks.planned import PLAIN, PLANNERS, RESIDUAL, PlannedNetwork, network_strides

NNUNET = "nnU-Net"  # pgl["framework"] of what is read here
Weights = dict[str, Tensor]
_CLASSES = {name.rsplit(".", 1)[-1]: name for name in (PLAIN, RESIDUAL)}
_RESENC = "resenc_l"  # where nothing names the size; the sizes differ in patch and batch alone
_CT = "CTNormalization"
_PREPROCESSING = ("preprocessor_name", "resampling_fn_data", "resampling_fn_data_kwargs")


def is_nnunet_model(content: Mapping[str, Any]) -> bool:
    """Whether a file has what nnU-Net's trainers save: weights, and the trainer's arguments with the plans."""
    arguments = content.get("init_args")
    return "network_weights" in content and isinstance(arguments, dict) and "plans" in arguments


def read_nnunet(content: Mapping[str, Any], weights: Mapping[str, Tensor]) -> tuple[Weights, dict[str, Any], Weights]:
    """Reads the ``checkpoint_final.pth`` or ``checkpoint_best.pth`` of a trained model.

    Args:
        content: The file, see `is_nnunet_model`.
        weights: Its ``network_weights`` without the prefixes of wrappers.

    Returns:
        State dict of the encoder, which sees images alone; what is known of it, as in `EncoderCheckpoint.pgl`; and the
        decoder without its segmentation heads.

    Raises:
        PGLError: It is 2D, for another kind of network, or incomplete; the caller adds the file's name.
    """
    trainer = str(content.get("trainer_name"))[:100]
    origin = f"a model of nnU-Net ({trainer})"
    try:
        arguments = content["init_args"]
        plans, dataset, name = arguments["plans"], arguments["dataset_json"], str(arguments["configuration"])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nnU-Net's, of plans of its earlier versions, which it converts
            configuration = PlansManager(plans).get_configuration(name)
        encoder, decoder = split(weights)
        described = _resnet(plans, configuration, encoder) or _planned(plans, configuration, encoder, origin)
        images = len(dataset.get("channel_names") or dataset["modality"])
        inputs, notes = first_convolution(encoder).shape[1], _notes(plans, name, arguments, content)
        if configuration.configuration.get("previous_stage") and inputs > images:
            encoder = _of_images(encoder, images)
            others = counted(inputs - images, "input channel")
            notes.append(f"Of a cascade: its {others} for the previous stage's segmentation left out")
        spacing, patch = configuration.spacing, configuration.patch_size
        pgl = {
            "framework": NNUNET,
            "method": f"{NNUNET}: {trainer}",
            "architecture": {**described, "in_channels": first_convolution(encoder).shape[1]},
            "config": {"preprocessing": _preprocessing(plans, configuration)},
            "datasets": [str(plans["dataset_name"])],
            "epochs": int(content["current_epoch"]),
            "intensity": _intensity(plans, configuration),
            "spacing": [float(value) for value in spacing],
            "view_size": [int(size) for size in patch],
            "notes": notes,
        }
    except PGLError:
        raise
    except Exception as error:  # whatever is in the plans
        raise PGLError(
            f"{origin} whose plans or description are incomplete ({type(error).__name__}: {str(error)[:80]}); copy it "
            "again from its fold's folder"
        ) from error
    return encoder, pgl, decoder


def read_weights(weights: Mapping[str, Tensor]) -> tuple[Weights, dict[str, Any], Weights]:
    """The same for the weights alone; names and shapes tell the network, all else is unknown.

    Args:
        weights: With keys ``encoder.stages...``, without the prefixes of wrappers.
    """
    encoder, decoder = split(weights)
    network, strides_known = network_of_weights(encoder, decoder)
    described = PlannedNetwork.from_dict(network, NNUNET) if strides_known else None
    architecture = {
        "name": _RESENC if network["class_name"] == RESIDUAL else "plain",
        "norm": "batch" if has_batch_norm(encoder) else "instance",
        "centred": False,
        "strides": list(described.strides[-1]) if described else None,
        "in_channels": first_convolution(encoder).shape[1],
        "network": network,
    }
    pgl = {
        "framework": NNUNET,
        "method": "weights of a nnU-Net",
        "architecture": architecture,
        "notes": ["The file holds weights alone: data, labels, spacing and intensities of their training are unknown"],
    }
    return encoder, pgl, decoder


def _planned(
    plans: Mapping[str, Any], configuration: ConfigurationManager, encoder: Weights, origin: str
) -> dict[str, Any]:
    """``pgl["architecture"]`` of one of nnU-Net's networks; a PGLError unless the weights are those of its plans."""
    try:
        found = EncoderShape.of_weights(encoder)
    except PGLError as error:
        raise PGLError(f"{origin}: {error}") from error
    kwargs = dict(configuration.network_arch_init_kwargs)
    if has_batch_norm(encoder):  # trainers such as nnUNetTrainerBN replace the plan's
        kwargs["norm_op"] = BATCH_NORM
    class_name = str(configuration.network_arch_class_name)
    values = {
        "class_name": _CLASSES.get(class_name.rsplit(".", 1)[-1], class_name),  # its module was another one once
        "kwargs": kwargs,
        "requires_import": configuration.network_arch_init_kwargs_req_import,
    }
    network = PlannedNetwork.from_dict(values, origin)
    if found != EncoderShape.of_network(network):
        raise PGLError(
            f"{origin} whose weights are not those of the {network.short_name} that its plans describe, but of a "
            f"{found.name} with channels {list(found.channels)} and blocks {list(found.blocks)}; use a model whose "
            "trainer keeps the plan's network"
        )
    plans_name = str(plans.get("plans_name"))  # others begin with those of the size that they are made from
    sizes = (name for name, planner in PLANNERS.items() if name != "plain" and plans_name.startswith(planner.plans))
    return {
        "name": next(sizes, _RESENC) if network.is_residual else "plain",
        "norm": network.norm_name,
        "centred": False,
        "padding": "zeros",
        "strides": list(network.strides[-1]),
        "network": network.to_dict(),
    }


def _resnet(plans: Mapping[str, Any], configuration: ConfigurationManager, encoder: Weights) -> dict[str, Any] | None:
    """The same for the paper's ResNet-50, which our trainers name in the plans; None for other networks."""
    network = plans.get("pgl_network") or {}
    if network.get("architecture") != "resnet50":
        return None
    norm = "batch" if has_batch_norm(encoder) else "instance"
    centred = {"centred": bool(network.get("centred", True)), "padding": "zeros"}
    return {"name": "resnet50", "norm": norm, **centred, "strides": list(network_strides(configuration))}


def _of_images(encoder: Weights, images: int) -> Weights:
    """A cascade's encoder without the input channels that come after those of the image."""
    first = next(key for key, value in encoder.items() if value.ndim == 5)
    copies: dict[int, Tensor] = {}  # its two names share their values
    return {
        key: copies.setdefault(value.data_ptr(), value[:, :images].clone())
        if canonical(key) == canonical(first)
        else value
        for key, value in encoder.items()
    }


def _intensity(plans: Mapping[str, Any], configuration: ConfigurationManager) -> dict[str, Any]:
    """How the plan normalises, by channel; the intensities of the foreground where that uses them."""
    schemes = [str(scheme) for scheme in configuration.normalization_schemes]
    properties = plans.get("foreground_intensity_properties_per_channel") or {}
    return {
        "modality": "ct" if set(schemes) == {_CT} else "other",
        "normalization_schemes": schemes,
        "use_mask_for_norm": list(configuration.use_mask_for_norm),
        "foreground_intensity_properties_per_channel": {
            str(channel): {key: float(value) for key, value in properties[str(channel)].items()}
            for channel, scheme in enumerate(schemes)
            if scheme == _CT
        },
    }


def _preprocessing(plans: Mapping[str, Any], configuration: ConfigurationManager) -> dict[str, Any]:
    """Axes, preprocessor and resampling; plans without the last two have nnU-Net's default."""
    known = {key: configuration.configuration[key] for key in _PREPROCESSING if key in configuration.configuration}
    return {"transpose_forward": [int(axis) for axis in plans["transpose_forward"]], **known}


def _notes(
    plans: Mapping[str, Any], configuration: str, arguments: Mapping[str, Any], content: Mapping[str, Any]
) -> list[str]:
    """What one should know before one starts from it."""
    cases = arguments["dataset_json"].get("numTraining")
    of = f" of {counted(cases, 'case')}" if isinstance(cases, int) else ""
    mirrored: Sequence[int] | None = content.get("inference_allowed_mirroring_axes")
    return [
        f"It was trained with labels: {plans['dataset_name']}, {configuration}, fold {arguments['fold']}{of}"
        + ("" if mirrored else ", without mirroring")
    ]
