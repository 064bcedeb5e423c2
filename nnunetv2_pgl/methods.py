"""The pre-training methods, and what commands, reports and model cards say of each (to add one: CONTRIBUTING.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Citation = dict[str, Any]  # in nnssl's form: type, name and apa_citations


def _cite(name: str, *references: str) -> Citation:
    return {"type": "Pretraining", "name": name, "apa_citations": list(references)}


_PGL = _cite(
    "PGL",
    "Xie, Y., Zhang, J., Liao, Z., Xia, Y., & Shen, C. (2020). PGL: Prior-Guided Local Self-supervised Learning for 3D "
    "Medical Image Segmentation. arXiv:2011.12640.",
)
_INFONCE = _cite(
    "InfoNCE",
    "van den Oord, A., Li, Y., & Vinyals, O. (2018). Representation learning with contrastive predictive coding. "
    "arXiv:1807.03748.",
)
_BYOL = _cite(
    "BYOL",
    "Grill, J.-B., Strub, F., Altche, F., Tallec, C., Richemond, P. H., ... Valko, M. (2020). Bootstrap your own "
    "latent: A new approach to self-supervised learning. Advances in Neural Information Processing Systems, 33.",
)
_MODELS_GENESIS = _cite(
    "Models Genesis",
    "Zhou, Z., Sodha, V., Pang, J., Gotway, M. B., & Liang, J. (2021). Models Genesis. Medical Image Analysis, 67, "
    "101840.",
)
_MAE = _cite(
    "MAE",
    "He, K., Chen, X., Xie, S., Li, Y., Dollar, P., & Girshick, R. (2022). Masked autoencoders are scalable vision "
    "learners. Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition.",
)
_MAE_3D = _cite(
    "MAE for 3D convolutional networks",
    "Wald, T., Ulrich, C., Lukyanenko, S., Goncharov, A., Paderno, A., Miller, M., ... Maier-Hein, K. (2025). "
    "Revisiting MAE pre-training for 3D medical image segmentation. Proceedings of the IEEE/CVF Conference on Computer "
    "Vision and Pattern Recognition.",
    "Wald, T., Ulrich, C., Suprijadi, J., Ziegler, S., Nohel, M., Peretzke, R., ... Maier-Hein, K. H. (2024). An "
    "OpenMind for 3D medical vision self-supervised learning. arXiv:2412.17041.",
)

# What the log shows of an epoch besides the loss: fields of the objectives' outputs, in this order.
MEASURES = {
    "restoration": "reconstruction error of masked voxels {:.4f}",
    "mean_error": "error of each view's mean {:.4f}",
    "deformed": "the deformed views' own error {:.4f}",
    "feature_std": "feature_std {:.3f} (1: spread out, 0: collapsed)",
    "within_views": "share of it between positions within a view {:.0%}",
    "interpolated": "aligned points between cell centres {:.0%}",
}


@dataclass(frozen=True)
class Method:
    """A pre-training method.

    Attributes:
        name: As given to ``pgl_pretrain -m``.
        title: In the headings of reports and model cards.
        help: A phrase that says what it does.
        citations: What to cite: the method's papers, and PGL's, whose encoder, views and comparison all methods share.
        colour: In figures; of Okabe and Ito's palette, which the colour-blind can tell apart.
        comparison_options: Options of ``pgl_pretrain`` with which ``pgl_compare`` pre-trains it.
        own_settings: Settings in ``config.json`` that only some methods use, this one among them; a run of another
            method that sets them gets a warning.
        has_target: Whether a target path follows the online path, at the rate ``target_decay``.
        changes_intensity: Whether the views have the intensity changes of section 3.2.
        aligns: Whether it aligns feature maps, and so has stages to choose.
        has_decoder: Whether it trains a segmenter's decoder, not the encoder alone.
    """

    name: str
    title: str
    help: str
    citations: tuple[Citation, ...]
    colour: str
    comparison_options: str
    own_settings: tuple[str, ...] = ()
    has_target: bool = False
    changes_intensity: bool = True
    aligns: bool = False
    has_decoder: bool = False

    @property
    def used_settings(self) -> set[str]:
        """Of the settings that not every method uses, those that this one does."""
        shared = {"target_decay": self.has_target, "views.intensity": self.changes_intensity}
        return {*self.own_settings, *(name for name, is_used in shared.items() if is_used)}


METHODS = {
    method.name: method
    for method in (
        Method(
            "pgl",
            title="PGL (Prior-Guided Local self-supervised learning)",
            help="local consistency of two views (the paper)",
            citations=(_PGL,),
            colour="#d55e00",
            comparison_options="--paper -m pgl",
            own_settings=("interpolated_only",),
            has_target=True,
            aligns=True,
        ),
        Method(
            "pgl_nce",
            title="PGL with negatives",
            help="pgl, with the other places of the partner as negatives",
            citations=(_PGL, _INFONCE),
            colour="#cc79a7",
            comparison_options="-m pgl_nce",
            own_settings=("interpolated_only", "temperature"),
            has_target=True,
            aligns=True,
        ),
        Method(
            "byol",
            title="BYOL, the global comparison of PGL's paper",
            help="global, no alignment",
            citations=(_BYOL, _PGL),
            colour="#0072b2",
            comparison_options="--paper -m byol",
            has_target=True,
        ),
        Method(
            "models_genesis",
            title="Models Genesis",
            help="restores deformed views",
            citations=(_MODELS_GENESIS, _PGL),
            colour="#e69f00",
            comparison_options="--paper -m models_genesis",
            changes_intensity=False,
            has_decoder=True,
        ),
        Method(
            "mae",
            title="MAE (masked autoencoding, as in nnssl)",
            help="reconstructs masked blocks, with the settings published for it in everything that is not given",
            citations=(_MAE_3D, _MAE, _PGL),
            colour="#882255",
            comparison_options="-m mae",
            own_settings=("mask_ratio",),
            changes_intensity=False,
            has_decoder=True,
        ),
        Method(
            "pgl_mae",
            title="PGL with masked reconstruction",
            help="pgl, with masked blocks that are reconstructed",
            citations=(_PGL, _MAE),
            colour="#009e73",
            comparison_options="--paper -m pgl_mae",
            own_settings=("interpolated_only", "mask_ratio", "restoration_weight"),
            has_target=True,
            aligns=True,
            has_decoder=True,
        ),
    )
}
