"""The model card of a published encoder: what its checkpoint says, in the form of the Hugging Face Hub.

The text is in ``model_card.md.jinja``. Its commands that need no nnunetv2-pgl are in nnU-Net's git version only:
``nnUNetv2_preprocess_like_nnssl``, ``nnUNetv2_plan_like_dynamic`` and ``nnUNetv2_train_pretrained`` (see its
``documentation/finetuning_from_nnssl_checkpoints.md``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from nnunetv2_pgl.checkpoint import EncoderCheckpoint
from nnunetv2_pgl.errors import counted, one_line
from nnunetv2_pgl.info.recorded import ANATOMY, NOT_STATED, number_text, sources_of, table
from nnunetv2_pgl.methods import MEASURES, METHODS
from nnunetv2_pgl.networks.planned import PLANNERS

_NETWORKS = {"resnet50": "3D ResNet-50", **{name: planner.title for name, planner in PLANNERS.items()}}
# The Hub's identifiers (huggingface.co/docs/hub/repositories-licenses, May 2024) except those of single models: SPDX's
# in lower case.
_IDENTIFIERS = (
    "afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc0-1.0 "
    "cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 "
    "cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cdla-permissive-1.0 "
    "cdla-permissive-2.0 cdla-sharing-1.0 ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 gpl-2.0 gpl-3.0 isc lgpl-2.1 "
    "lgpl-3.0 mit mpl-2.0 ms-pl ncsa odbl odc-by openrail osl-3.0 pddl postgresql unlicense zlib"
)
_KNOWN = frozenset(_IDENTIFIERS.split())


@dataclass(frozen=True)
class Licence:
    """A licence as given, and the Hub's identifier for it, "other" if it has none."""

    text: str
    identifier: str

    @classmethod
    def from_text(cls, text: str) -> Licence:
        """Licence from an SPDX identifier in any case, or from a text."""
        identifier = re.sub(r"-(only|or-later)$", "", text.lower())
        return cls(text, identifier if identifier in _KNOWN else "other")

    @property
    def is_known(self) -> bool:
        """Whether the Hub has a name for it."""
        return self.identifier != "other"

    @property
    def short_name(self) -> str:
        """The first words of its text, in the letters that the Hub allows in names."""
        return re.sub(r"[^a-z0-9.]+", "-", self.text.lower())[:40].strip("-.") or "custom"


def model_card(checkpoint: EncoderCheckpoint, licence: Licence, digests: Mapping[str, str]) -> str:
    """Markdown with the Hub's metadata on top; what the checkpoint does not say is "not recorded".

    Args:
        checkpoint: The encoder.
        licence: Of the weights.
        digests: SHA-256, in hexadecimal, of each published file of weights.
    """
    pgl, architecture = checkpoint.pgl, checkpoint.architecture
    name, channels = str(architecture.get("name")), architecture.get("in_channels", 1)
    _, planner, plans = PLANNERS.get(name, PLANNERS["plain"])
    method, metrics, sources = str(pgl.get("method")), table(pgl, "metrics"), sources_of(pgl)
    held_out = [source.held_out for source in sources if source.held_out is not None]
    stored = {tensor.data_ptr(): tensor.numel() for tensor in checkpoint.encoder_weights.values() if tensor.ndim}
    environment = Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=StrictUndefined, autoescape=False
    )
    environment.filters |= {
        "count": counted, "json": json.dumps, "recorded": _recorded, "sizes": _sizes, "listed": _listed,
        "share": _share, "cell": _cell,
    }  # fmt: skip
    template = environment.from_string(Path(__file__).with_name("model_card.md.jinja").read_text(encoding="utf-8"))
    return template.render(
        pgl=pgl,
        architecture=architecture,
        channels=channels,
        intensity=table(pgl, "intensity"),
        manifest=table(pgl, "manifest"),
        licence=licence,
        digests=digests,
        network=_NETWORKS.get(name, name),
        method=METHODS[method].title if method in METHODS else method,
        method_key=method,
        parameters=sum(stored.values()),
        planner=planner,
        plans=plans,
        followed_plans=list(table(table(pgl, "intensity"), "plans").values()),
        fitting_channels=(
            "one channel or more" if name != "plain" and channels == 1 else f"{channels}, as in the pre-training"
        ),
        sources=sources,
        licences_known=any(source.licence not in (None, NOT_STATED) for source in sources),
        held_out=sum(held_out) if held_out else None,
        anatomy={name: metrics[name] for name in ANATOMY if name in metrics},
        before=table(pgl, "metrics_before"),
        metrics={name: number_text(metrics[name]) for name in ("loss", *MEASURES) if name in metrics},
        settings=_settings(table(pgl, "config")),
        references=[text for entry in checkpoint.citations for text in entry["apa_citations"]],
        versions=", ".join(f"{package} {version}" for package, version in table(pgl, "versions").items()),
    )


def _settings(config: dict[str, Any]) -> str:
    """JSON with a line for each setting."""
    lines = [f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in config.items()]
    return "\n".join(["{", *(f"{line}," for line in lines[:-1]), *lines[-1:], "}"])


def _recorded(value: Any, unit: str = "") -> str:
    return "not recorded" if value in (None, "") else f"{value} {unit}".strip()


def _sizes(values: Any, separator: str = " x ") -> str | None:
    return separator.join(f"{value:g}" for value in values) if values else None


def _listed(values: Any) -> str:
    return ", ".join(map(str, values)) if isinstance(values, list | tuple) else str(values or "")


def _share(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, float) else "not recorded"


def _cell(value: Any) -> str:
    """A text in a cell of a Markdown table."""
    return one_line(value).replace("|", "\\|")
