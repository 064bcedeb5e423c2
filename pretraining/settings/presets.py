"""Settings to start from: the recommended ones, and those published for a method; the paper's are the defaults."""

from __future__ import annotations

from pretraining.settings.config import PretrainConfig
from pretraining.views import ViewSettings


def recommended() -> PretrainConfig:
    """The settings chosen by how much anatomy they teach (docs/results/anatomy.md), but for the datasets.

    They differ from the paper's in what takes the place in the view away and in the rates of small batches.
    """
    return PretrainConfig(
        datasets=(),
        method="pgl_nce",
        norm="instance",
        padding="replicate",
        views=ViewSettings(no_flip="lateral_in_ct"),
        preset="recommended",
        batch_size=8,
        optimizer="adamw",
        target_decay=0.9,
    )


def published_for_mae() -> PretrainConfig:
    """The settings that nnssl's masked autoencoding was published with, but for the datasets; see docs/method.md.

    Its 8 patches are the views of 4 pairs.
    """
    return PretrainConfig(
        datasets=(),
        method="mae",
        norm="instance",
        views=ViewSettings(scale=(1.0, 1.0), min_overlap=0.0),
        preset="published",
        batch_size=4,
        optimizer="nnunet",
        weight_decay=3e-5,
        warmup_epochs=0,
        mask_ratio=0.75,
    )
