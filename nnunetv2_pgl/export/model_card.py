"""The model card of a published encoder: what its checkpoint says, in the form of the Hugging Face Hub."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from nnunetv2_pgl.checkpoint import EncoderCheckpoint
from nnunetv2_pgl.export.fine_tuning import fine_tuning
from nnunetv2_pgl.export.licence import Licence
from nnunetv2_pgl.methods import METHODS

_NETWORKS = {
    "resnet50": "3D ResNet-50",
    "plain": "PlainConvUNet",
    "resenc_m": "ResEnc-M",
    "resenc_l": "ResEnc-L",
    "resenc_xl": "ResEnc-XL",
}


def model_card(checkpoint: EncoderCheckpoint, licence: Licence, digest: str) -> str:
    """Markdown with the Hub's metadata on top. Tells what the checkpoint tells, and nothing that it does not.

    Args:
        checkpoint: To describe.
        licence: Of the weights.
        digest: SHA-256 of the published file, in hexadecimal.
    """
    parts = (
        _metadata(checkpoint, licence),
        _what_it_is(checkpoint),
        fine_tuning(checkpoint),
        _data(checkpoint.pgl),
        _training(checkpoint.pgl),
        _use(checkpoint.pgl),
        _licence(licence),
        _citations(checkpoint),
        _origin(checkpoint.pgl, digest),
    )
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def network_name(checkpoint: EncoderCheckpoint) -> str:
    """The encoder's name as people say it."""
    name = str(checkpoint.architecture.get("name"))
    return _NETWORKS.get(name, name)


def _method(pgl: Mapping[str, Any]) -> str:
    name = str(pgl.get("method"))
    return METHODS[name].title if name in METHODS else name


def _metadata(checkpoint: EncoderCheckpoint, licence: Licence) -> list[str]:
    """YAML; quoted as JSON, which YAML includes."""
    named = [] if licence.is_known else [f"license_name: {json.dumps(licence.short_name)}", "license_link: LICENSE"]
    tags = ["nnunet", "self-supervised-learning", "medical-imaging", "3d", str(checkpoint.pgl.get("method"))]
    return [
        "---",
        f"license: {licence.identifier}",
        *named,
        "library_name: nnunetv2-pgl",
        "pipeline_tag: image-feature-extraction",
        "tags:",
        *(f"- {json.dumps(tag)}" for tag in tags),
        "---",
    ]


def _what_it_is(checkpoint: EncoderCheckpoint) -> list[str]:
    pgl, architecture = checkpoint.pgl, checkpoint.architecture
    parameters = sum(
        size for size in {v.data_ptr(): v.numel() for v in checkpoint.encoder_weights.values() if v.ndim}.values()
    )
    lines = [
        f"# {network_name(checkpoint)} encoder, pre-trained with {_method(pgl)}",
        "",
        f"Encoder of a 3D segmentation network for [nnU-Net](https://github.com/MIC-DKFZ/nnUNet), pre-trained without "
        f"labels on {_count(pgl.get('num_scans'), 'scan')}. It is a starting point for training; it segments nothing "
        "by itself.",
        "",
        f"- Input: {_count(architecture.get('in_channels', 1), 'channel')}",
        f"- Norm: {architecture.get('norm')}",
        f"- Padding in the pre-training: {architecture.get('padding', 'zeros')} (the weights fit either)",
        f"- Total strides (z, y, x): {_times(architecture.get('strides'))}",
        f"- Weights: {parameters:,} values in `checkpoint_final.pth`",
    ]
    untrained = pgl.get("untrained_stages")
    if untrained:
        lines.append(
            f"- Not trained: stages {_listed(untrained)}. The loss did not reach them; they hold random weights."
        )
    return lines


def _data(pgl: Mapping[str, Any]) -> list[str]:
    intensity, manifest = _mapping(pgl.get("intensity")), _mapping(pgl.get("manifest"))
    scans = _mapping(manifest.get("scans_per_source"))
    sources = [
        f"`{name}`" + (f" ({_count(scans[name], 'scan')})" if name in scans else "") for name in _names(pgl, scans)
    ]
    facts = {
        "Data sets": ", ".join(sources) or None,
        "Scans trained on": pgl.get("num_scans"),
        "Spacing (z, y, x)": f"{_times(pgl.get('spacing'))} mm",
        "Views (z, y, x)": f"{_times(pgl.get('view_size'))} voxels",
        "Modality": intensity.get("modality"),
        "Normalisation": intensity.get("normalisation"),
    }
    if intensity.get("clip"):
        facts["Clipped to"] = "{:g} to {:g}".format(*intensity["clip"])
    if intensity.get("plans"):
        facts["Preprocessed as planned by"] = ", ".join(map(str, _mapping(intensity["plans"]).values()))
    if manifest:
        facts["SHA-256 of the run's list of scans"] = f"`{manifest.get('sha256')}`"
    return ["## Training data", "", *_bullets(facts), "", "No labels were used."]


def _names(pgl: Mapping[str, Any], scans: Mapping[str, Any]) -> list[str]:
    return list(scans) or [str(name) for name in pgl.get("datasets") or []]


def _training(pgl: Mapping[str, Any]) -> list[str]:
    metrics = pgl.get("metrics") or {}
    return [
        "## Training",
        "",
        *_bullets({"Method": _method(pgl), "Epochs": pgl.get("epochs")}),
        "",
        "Last epoch. These numbers watch the pre-training; they do not say how well a fine-tuned model segments.",
        "",
        *_bullets({f"`{key}`": f"{value:.6g}" for key, value in metrics.items()}),
        "",
        "All settings:",
        "",
        "```json",
        *_settings(pgl.get("config") or {}),
        "```",
    ]


def _settings(config: Mapping[str, Any]) -> list[str]:
    """JSON with a line for each setting."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in config.items()]
    return ["{", *(f"{line}," for line in lines[:-1]), *lines[-1:], "}"]


def _use(pgl: Mapping[str, Any]) -> list[str]:
    seen = "CT scans" if _mapping(pgl.get("intensity")).get("modality") == "ct" else "scans of the modality above"
    return [
        "## Intended use and limits",
        "",
        "- For research: to start the training of 3D segmentation networks from, on data with labels of your own.",
        f"- Pre-trained on {seen}, at the spacing and intensities above. The further your data are from these, the "
        "less the start may help; compare with a training from random weights.",
        "- Whom the scans show, and what that leaves out, is not recorded in the checkpoint. A model that was "
        "fine-tuned from it needs its own evaluation on the patients that it is meant for.",
        "- Not a medical device. No clinical decision may rest on it.",
    ]


def _licence(licence: Licence) -> list[str]:
    return [
        "## Licence",
        "",
        *(f"> {line}".rstrip() for line in licence.text.splitlines()),
        "",
        "Of the weights. The scans have licences of their own.",
    ]


def _citations(checkpoint: EncoderCheckpoint) -> list[str]:
    cited = [text for entry in checkpoint.citations for text in entry.get("apa_citations") or []]
    return ["## Citation", "", *(f"- {text}" for text in cited)] if cited else ["## Citation", "", "None recorded."]


def _origin(pgl: Mapping[str, Any], digest: str) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in (pgl.get("versions") or {}).items())
    facts = {"Made": pgl.get("created"), "With": versions, "SHA-256 of `checkpoint_final.pth`": f"`{digest}`"}
    return ["## Origin", "", *_bullets(facts)]


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _bullets(facts: Mapping[str, Any]) -> list[str]:
    return [f"- {name}: {'not recorded' if value is None else value}" for name, value in facts.items()]


def _count(number: Any, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _times(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values) if isinstance(values, (list, tuple)) else "not recorded"


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, (list, tuple)) else str(values)
