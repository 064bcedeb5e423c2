"""JSON files of other people's: whatever is in them, reading ends in a value or in ValueError."""

import json
from pathlib import Path
from typing import Any


def load_json(path: Path) -> Any:
    """Content of a JSON file in UTF-8.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is not JSON, or nested too deeply to be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
