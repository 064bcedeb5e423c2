"""How to fine-tune from a published encoder: the section of its model card with the commands."""

from __future__ import annotations

from typing import NamedTuple

from nnunetv2_pgl.checkpoint import EncoderCheckpoint


class _Plan(NamedTuple):
    """How nnU-Net plans for an encoder.

    Attributes:
        planner: For ``nnUNetv2_plan_and_preprocess -pl``.
        plans: Name of the plans it writes.
    """

    planner: str
    plans: str


_DEFAULT = _Plan("ExperimentPlanner", "nnUNetPlans")
_PLANS = {
    f"resenc_{size.lower()}": _Plan(f"nnUNetPlannerResEnc{size}", f"nnUNetResEncUNet{size}Plans")
    for size in ("M", "L", "XL")
}


def fine_tuning(checkpoint: EncoderCheckpoint) -> list[str]:
    """The commands, with `nnUNetTrainerPGL` and, for nnU-Net's own networks, with nnU-Net's tools.

    The latter are in nnU-Net's git version only: ``nnUNetv2_preprocess_like_nnssl``, ``nnUNetv2_plan_like_dynamic`` and
    ``nnUNetv2_train_pretrained`` (its ``documentation/finetuning_from_nnssl_checkpoints.md``).
    """
    plan = _PLANS.get(str(checkpoint.architecture.get("name")), _DEFAULT)
    ours = [
        "## Fine-tune",
        "",
        "With nnunetv2-pgl. `DATASET` is the number of a data set with labels in nnU-Net's format:",
        "",
        "```bash",
        f"nnUNetv2_plan_and_preprocess -d DATASET -c 3d_fullres -pl {plan.planner}",
        'export nnUNet_extTrainer="$(pgl_extension)"',
        'export PGL_CHECKPOINT="$PWD/checkpoint_final.pth"',
        f"nnUNetv2_train DATASET 3d_fullres 0 -tr nnUNetTrainerPGL -p {plan.plans}",
        "```",
        "",
    ]
    if "network" not in checkpoint.architecture:
        only = (
            "Only nnUNetTrainerPGL reads this encoder: nnU-Net's own tools for pre-trained encoders know no ResNet-50."
        )
        return [*ours, only]
    return [*ours, *_with_nnunet(checkpoint, plan)]


def _with_nnunet(checkpoint: EncoderCheckpoint, plan: _Plan) -> list[str]:
    return [
        "With the tools of nnU-Net's git version alone, either the network of the pre-training:",
        "",
        "```bash",
        "nnUNetv2_extract_fingerprint -d DATASET",
        "nnUNetv2_plan_experiment -d DATASET",
        'nnUNetv2_preprocess_like_nnssl -d DATASET -n NAME -pc "$PWD/checkpoint_final.pth" -am like_pretrained',
        "nnUNetv2_train_pretrained DATASET 3d_fullres 0 -tr PretrainedTrainer -p PLANS  # the plans just written",
        "```",
        "",
        "or that of the data set's plans, which takes what fits:",
        "",
        "```bash",
        f"nnUNetv2_plan_and_preprocess -d DATASET -c 3d_fullres -pl {plan.planner}",
        f'nnUNetv2_plan_like_dynamic -d DATASET -n NAME -pc "$PWD/checkpoint_final.pth" -pl {plan.plans}',
        "nnUNetv2_train_pretrained DATASET 3d_fullres 0 -tr DynamicPretrainedTrainer -p ptPlans_dynamic__NAME",
        "```",
        "",
        "The plans keep the path as it is given, so it is a full one. `-pc` also takes the address of this repository, "
        "`https://huggingface.co/OWNER/NAME`; then set `nnssl_pretrained_models` to a folder for downloads.",
        "",
        *_cautions(checkpoint),
    ]


def _cautions(checkpoint: EncoderCheckpoint) -> list[str]:
    channels = checkpoint.architecture.get("in_channels", 1)
    residual = checkpoint.architecture.get("name") != "plain"
    adapts = "one channel or more" if residual and channels == 1 else f"{channels}, as in the pre-training"
    lines = [
        f"- Image channels: {adapts}. For other numbers use nnUNetTrainerPGL.",
        "- `nnUNetv2_preprocess_like_nnssl` skips the images if a folder of the same spacing and norm is there.",
        "- Check in the log that the weights arrive: the dynamic trainer says nothing of those that do not fit.",
        "- With nnU-Net of July 2026 (commit 0e49508) `nnUNetv2_predict` could not use the models of these two "
        "trainers; it can use those of nnUNetTrainerPGL.",
    ]
    intensity = checkpoint.pgl.get("intensity")
    if isinstance(intensity, dict) and intensity.get("clip"):
        low, high = intensity["clip"]
        lines.append(
            f"- `nnUNetv2_preprocess_like_nnssl` normalises by z-score alone; the pre-training clipped to [{low:g}, "
            f"{high:g}] first."
        )
    return lines
