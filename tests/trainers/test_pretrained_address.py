"""A training from an encoder that is named by its address."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nnunetv2_pgl.addresses import locate
from nnunetv2_pgl.networks import ResNet50Encoder
from nnunetv2_pgl.trainers import nnUNetTrainerPGL
from tests.trainers.conftest import Workplace
from tests.web_server import COMMIT, served


def test_the_log_and_the_record_have_the_address(
    workplace: Workplace,
    save_encoder: Callable[..., ResNet50Encoder],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kernel = save_encoder(tmp_path / "encoder.pth").state_dict()["conv.weight"]
    address = f"hf://me/encoder@{COMMIT}/checkpoint_final.pth"
    with served(tmp_path / "cache", monkeypatch) as server:
        server.put_on_hub("me/encoder", "checkpoint_final.pth", (tmp_path / "encoder.pth").read_bytes())
        monkeypatch.setenv("PGL_CHECKPOINT", "hf://me/encoder")
        trainer = workplace.make(nnUNetTrainerPGL)
        trainer.initialize()
        path = locate(address).path
    assert torch.equal(trainer.network.encoder.conv.weight, kernel)
    log = Path(trainer.log_file).read_text()
    assert f"Downloading {address}" in log
    assert f"Starting from the encoder {path} (from {address}, named by PGL_CHECKPOINT" in log
    record = json.loads(Path(trainer.output_folder, "pgl_checkpoint.json").read_text())
    assert (record["path"], record["address"]) == (str(path), address)
    assert len(record["sha256"]) == 64
