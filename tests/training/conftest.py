from __future__ import annotations

import logging
import sys
from pathlib import Path

import pytest
import torch

from tests.conftest import Ended, Run
from tests.training.samples import packed_shards
from training.cli import main

torch.set_num_threads(1)  # models are tiny, and tests run side by side


@pytest.fixture
def training(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Call `python -m training` in this process."""
    log = logging.getLogger("training")

    def call(*arguments: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        for handler in list(log.handlers):
            log.removeHandler(handler)
            handler.close()
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        code = ended.value.code
        assert isinstance(code, int)
        return Ended(code, captured.out, captured.err)

    return call


@pytest.fixture
def shards(run: Run, tmp_path: Path) -> Path:
    return packed_shards(run, tmp_path)
