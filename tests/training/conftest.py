from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.conftest import Run, in_process
from tests.training.samples import packed_shards
from training.command.main import main

torch.set_num_threads(1)  # models are tiny, and tests run side by side


@pytest.fixture
def training(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `python -m training`."""
    return in_process("training", main, capfd, monkeypatch)


@pytest.fixture
def shards(run: Run, tmp_path: Path) -> Path:
    return packed_shards(run, tmp_path)
