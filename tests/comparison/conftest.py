from pathlib import Path

import pytest

from pretraining.comparison.report import write_report
from tests.example_comparison import Compared, make_comparison
from tests.stand_in_commands import CompareCommand, make_compare_command


@pytest.fixture(scope="session")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Compared:
    return make_comparison(tmp_path_factory.mktemp("comparison"))


@pytest.fixture(scope="session")
def report(compared: Compared, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The files of its report."""
    return write_report(*compared, tmp_path_factory.mktemp("report"))


@pytest.fixture
def compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> CompareCommand:
    """Ten tiny labelled scans, three of which will be the test set, and the stand-ins."""
    return make_compare_command(tmp_path, monkeypatch, capsys)
