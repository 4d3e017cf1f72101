from __future__ import annotations

import itertools
from collections.abc import Iterator

import fsspec
import pytest

from tests.pipeline.objects.server import CREDENTIALS, Proxy, serving

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


@pytest.fixture
def store(proxy: Proxy) -> Iterator[fsspec.AbstractFileSystem]:
    """The store, as fsspec sees it."""
    kind = type(fsspec.filesystem("s3"))
    kind.clear_instance_cache()
    yield fsspec.filesystem("s3", use_listings_cache=False)
    kind.clear_instance_cache()


@pytest.fixture
def bucket(store: fsspec.AbstractFileSystem, proxy: Proxy) -> str:
    """A bucket of the test's own."""
    name = f"bucket-{next(_buckets)}"
    store.mkdir(name)
    proxy.seen.clear()
    return name
