from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest

from tests.pipeline.objects.datasets import FLAGS
from tests.pipeline.objects.server import CREDENTIALS, Proxy, serving
from tests.pipeline.samples import random_rows, write_jsonl

_buckets = itertools.count()


@pytest.fixture(scope="session")
def _server() -> Iterator[Proxy]:
    with serving() as proxy:
        yield proxy


@pytest.fixture
def proxy(_server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What is between a run and its store."""
    for name, value in {"AWS_ENDPOINT_URL": _server.url, **CREDENTIALS}.items():
        monkeypatch.setenv(name, value)
    yield _server
    _server.fault = lambda _, __: None


@pytest.fixture(scope="session")
def _system(_server: Proxy) -> fsspec.AbstractFileSystem:
    return fsspec.filesystem(
        "s3",
        key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
        secret=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        endpoint_url=_server.url,
        use_listings_cache=False,
        skip_instance_cache=True,
    )


@pytest.fixture
def store(proxy: Proxy, _system: fsspec.AbstractFileSystem) -> Iterator[fsspec.AbstractFileSystem]:
    """The store, as fsspec sees it; what is made of URLs knows no other."""
    kind = type(_system)
    kind.clear_instance_cache()
    yield _system
    kind.clear_instance_cache()


@pytest.fixture
def bucket(store: fsspec.AbstractFileSystem, proxy: Proxy) -> str:
    """A bucket of the test's own."""
    name = f"bucket-{os.getpid()}-{next(_buckets)}"
    store.mkdir(name)
    proxy.seen.clear()
    return name


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_jsonl(random_rows(120), tmp_path / "one.jsonl")


@pytest.fixture
def tokenizing(
    tmp_path: Path, tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[object], list[object]]:
    """`tokenize` of twelve texts and a last one that is given, several shards of them, but for its output."""
    monkeypatch.setattr("pipeline.tokenizing.shards.SHARD_BYTES", 1)
    monkeypatch.setattr("pipeline.reading.decoding.raw.BLOCK_BYTES", 1 << 7)

    def command(last: object) -> list[object]:
        texts = [f"a text of its own, number {number}" for number in range(12)]
        source = write_jsonl([{"text": text} for text in [*texts, last]], tmp_path / "texts.jsonl")
        return ["tokenize", source, "--tokenizer", tokenizer_dir, "--num-workers", 1]

    return command


@pytest.fixture(params=["pack", "tokenize"])
def job(request: pytest.FixtureRequest, source: Path, tokenizing: Callable[[object], list[object]]) -> list[object]:
    """A command that makes several shards, but for its output."""
    return ["pack", source, *FLAGS, "--num-workers", 1] if request.param == "pack" else tokenizing("the last")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short lease, which a loaded machine renews in time all the same, and retries that hardly wait."""
    monkeypatch.setattr("pipeline.base.objects.lease.SECONDS", 3.0)
    monkeypatch.setattr("pipeline.base.objects.lease.RENEWED_AFTER", 0.3)
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0.01)
