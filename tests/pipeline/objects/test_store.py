"""Large objects go in parts, and nothing is left of those that nobody finished."""

from __future__ import annotations

import os
from pathlib import Path

import fsspec
import pytest

from pipeline.base.digests import hash_file
from pipeline.base.errors import BusyError
from pipeline.base.objects.store import ObjectStore
from pipeline.base.storage import FileFacts
from tests.pipeline.objects.server import Proxy

pytestmark = [pytest.mark.needs("moto", "s3fs"), pytest.mark.usefixtures("quick")]

SIZE = (6 << 20) + 1


def test_parts(
    tmp_path: Path,
    proxy: Proxy,
    store: fsspec.AbstractFileSystem,
    bucket: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("pipeline.base.objects.store._PART_BYTES", 5 << 20)
    monkeypatch.setattr("pipeline.base.objects.store._MOST_COPIED", SIZE - 1)
    monkeypatch.setattr("pipeline.base.objects.store._COPIED_PART", 5 << 20)
    file, name = tmp_path / "large", "train/large.arrow"
    file.write_bytes(os.urandom(SIZE))
    facts = FileFacts(bytes=SIZE, xxh3_128=hash_file(file))
    target = ObjectStore.at(f"s3://{bucket}/out", "--output", is_output=True)

    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "2")
    proxy.fault = lambda request, _: "503" if "partNumber=2" in request else None
    with pytest.raises(BusyError, match="SlowDown"):
        target.upload(file, name, facts)
    assert (target.listed(), target.abort_uploads()) == ({}, 0), "a failed upload leaves no parts"
    proxy.fault = lambda request, _: "503" if "partNumber=2" in request or "DELETE" in request else None
    with pytest.raises(BusyError, match="SlowDown"):
        target.upload(file, name, facts)
    proxy.fault = lambda _, __: None
    assert [target.abort_uploads(), target.abort_uploads()] == [1, 0], "and where it does, the next run drops them"

    target.upload(file, name, facts)
    copied = target.inside("copied")
    copied.copy(target, name, SIZE)
    assert sum("partNumber" in request for request in proxy.seen if request.startswith("PUT")) >= 6
    for each in (target, copied):
        assert each.listed()[name].bytes == SIZE
        assert each.holds(name, facts)
        assert each.download(name, tmp_path / "back") == facts
