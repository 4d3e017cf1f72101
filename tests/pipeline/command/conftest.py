from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.samples import random_rows, save

ROWS = random_rows(100)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenised dataset, which tests only read."""
    return save(ROWS, tmp_path_factory.mktemp("source") / "in")
