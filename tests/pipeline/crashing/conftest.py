from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.crashing.jobs import Job, make_jobs


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Job]:
    monkeypatch.setattr("pipeline.reading.cache._SETTLED_SECONDS", -1e9)  # or the steps would depend on the time
    (tmp_path / "inputs").mkdir()
    return make_jobs(tmp_path / "inputs")
