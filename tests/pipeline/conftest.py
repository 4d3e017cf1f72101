from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.pipeline.chats import save_tokenizer

if TYPE_CHECKING:
    import fsspec

    from tests.pipeline.objects.server import Proxy

_buckets = itertools.count()


@pytest.fixture(scope="session")
def _server() -> Iterator[Proxy]:
    from tests.pipeline.objects.server import serving

    with serving() as proxy:
        yield proxy


@pytest.fixture
def proxy(_server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """What is between a run and its store."""
    from tests.pipeline.objects.server import CREDENTIALS

    for name, value in {"AWS_ENDPOINT_URL": _server.url, **CREDENTIALS}.items():
        monkeypatch.setenv(name, value)
    yield _server
    _server.fault = lambda _, __: None


@pytest.fixture(scope="session")
def _system(_server: Proxy) -> fsspec.AbstractFileSystem:
    import fsspec

    from tests.pipeline.objects.server import CREDENTIALS

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


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer as a directory of transformers, without a chat template."""
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer") / "small")
