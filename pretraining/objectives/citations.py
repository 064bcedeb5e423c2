"""What to cite for each method, in nnssl's form."""

from __future__ import annotations

from typing import Any

from nnunetv2_pgl.checkpoint import CITATIONS
from pretraining.settings.table import Method


def _entry(name: str, *texts: str) -> dict[str, Any]:
    return {"type": "Pretraining", "name": name, "apa_citations": list(texts)}


_BYOL = _entry(
    "BYOL",
    "Grill, J.-B., Strub, F., Altche, F., Tallec, C., Richemond, P. H., ... Valko, M. (2020). Bootstrap your own "
    "latent: A new approach to self-supervised learning. Advances in Neural Information Processing Systems, 33.",
)
_MODELS_GENESIS = _entry(
    "Models Genesis",
    "Zhou, Z., Sodha, V., Pang, J., Gotway, M. B., & Liang, J. (2021). Models Genesis. Medical Image Analysis, 67, "
    "101840.",
)
_MAE = _entry(
    "MAE",
    "He, K., Chen, X., Xie, S., Li, Y., Dollar, P., & Girshick, R. (2022). Masked autoencoders are scalable vision "
    "learners. Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition.",
)
_MAE_3D = _entry(
    "MAE for 3D convolutional networks",
    "Wald, T., Ulrich, C., Lukyanenko, S., Goncharov, A., Paderno, A., Miller, M., ... Maier-Hein, K. (2025). "
    "Revisiting MAE pre-training for 3D medical image segmentation. Proceedings of the IEEE/CVF Conference on Computer "
    "Vision and Pattern Recognition.",
    "Wald, T., Ulrich, C., Suprijadi, J., Ziegler, S., Nohel, M., Peretzke, R., ... Maier-Hein, K. H. (2024). An "
    "OpenMind for 3D medical vision self-supervised learning. arXiv:2412.17041.",
)
_INFONCE = _entry(
    "InfoNCE",
    "van den Oord, A., Li, Y., & Vinyals, O. (2018). Representation learning with contrastive predictive coding. "
    "arXiv:1807.03748.",
)
_OF_METHOD: dict[Method, list[dict[str, Any]]] = {
    "pgl": CITATIONS,
    "pgl_nce": [*CITATIONS, _INFONCE],
    "byol": [_BYOL, *CITATIONS],
    "models_genesis": [_MODELS_GENESIS, *CITATIONS],
    "mae": [_MAE_3D, _MAE, *CITATIONS],
    "pgl_mae": [*CITATIONS, _MAE],
}


def citations_of(method: Method) -> list[dict[str, Any]]:
    """The method's paper, and PGL's, whose encoder, views and comparison all methods share here."""
    return [dict(entry) for entry in _OF_METHOD[method]]
