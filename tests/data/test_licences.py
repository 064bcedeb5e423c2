from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from nnunetv2.dataset_conversion.generate_dataset_json import generate_dataset_json

from pretraining.data.licences import stated_terms


def terms_of(folder: Path, **content: Any) -> list[str | None]:
    (folder / "dataset.json").write_text(json.dumps(content))
    return list(stated_terms(folder).values())


@pytest.mark.parametrize(
    ("stated", "licence"),
    [
        ({"licence": "CC-BY-SA 4.0"}, "CC-BY-SA 4.0"),
        ({"license": "MIT"}, "MIT"),
        ({"licence": "", "license": ["MIT", " GPL-3.0 "]}, "MIT, GPL-3.0"),
        ({"licence": "free\n for all\x1b[2J"}, "free for all?[2J"),
        ({"licence": None}, None),
        ({"licence": {"name": "MIT"}}, None),
        ({}, None),
    ],
)
def test_the_licence_in_any_of_its_places(tmp_path: Path, stated: dict[str, Any], licence: str | None) -> None:
    assert terms_of(tmp_path, **stated) == [licence, None, None]


def test_reference_and_release(tmp_path: Path) -> None:
    assert terms_of(tmp_path, licence="MIT", reference="X et al.", release="1.0 2020") == [
        "MIT",
        "X et al.",
        "1.0 2020",
    ]


def test_what_nnunet_writes_for_those_who_give_none_is_no_licence(tmp_path: Path) -> None:
    generate_dataset_json(str(tmp_path), {0: "CT"}, {"background": 0, "x": 1}, 1, ".nii.gz")
    assert json.loads((tmp_path / "dataset.json").read_text())["licence"]
    assert stated_terms(tmp_path)["licence"] is None
    generate_dataset_json(str(tmp_path), {0: "CT"}, {"background": 0, "x": 1}, 1, ".nii.gz", license="MIT")
    assert stated_terms(tmp_path)["licence"] == "MIT"


@pytest.mark.parametrize("content", [None, "", "[]", "[" * 100_000, '{"licence": 3}'])
def test_a_folder_that_states_nothing(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    assert set(stated_terms(tmp_path).values()) == {None}


def test_no_text_is_too_long_for_a_checkpoint(tmp_path: Path) -> None:
    licence, *_ = terms_of(tmp_path, licence="x" * 1_000_000)
    assert licence is not None
    assert len(licence) < 10_000
