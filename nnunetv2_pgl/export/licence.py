"""The licence of published weights, in the words of the Hugging Face Hub."""

from __future__ import annotations

import re
from dataclasses import dataclass

# The Hub's identifiers (huggingface.co/docs/hub/repositories-licenses, May 2024) but for those of single models: those
# of SPDX in lower case.
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
    """A licence.

    Attributes:
        text: As given.
        identifier: As the Hub calls it, "other" if it has no name for it.
    """

    text: str
    identifier: str

    @classmethod
    def of(cls, text: str) -> Licence:
        """Of an SPDX identifier in any case, or of a text."""
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
