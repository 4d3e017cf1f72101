"""What lies on a store, and what readers would find there."""

from __future__ import annotations

import http.client
import json
from pathlib import Path
from urllib.parse import quote

import fsspec

from tests.pipeline.objects.server import Proxy

FLAGS = ["--max-length", "80", "--shard-size", "12KB"]

_SIGNED = {
    "Authorization": "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/s3/aws4_request, SignedHeaders=host,"
    " Signature=0"
}


def contents(store: fsspec.AbstractFileSystem, folder: str) -> dict[str, bytes]:
    """All objects below a folder."""
    return {name.removeprefix(f"{folder}/"): store.cat_file(name) for name in store.find(folder)}


def files(folder: Path) -> dict[str, bytes]:
    """All files below a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def puts(proxy: Proxy, out: str) -> list[str]:
    """The names that were written below a folder, in order, but for the lease."""
    begin = f"PUT /{out}/"
    written = [request.removeprefix(begin).partition("?")[0] for request in proxy.seen if request.startswith(begin)]
    return [name for name in written if name != ".lease"]


def read(proxy: Proxy, out: str) -> dict[str, int] | None:
    """What a reader finds who looks at this moment: the files of a dataset with their sizes, None if there is none.

    It is an error if a dataset is there that is not whole.
    """
    if _get(proxy, f"{out}/state.json") is None:
        return None
    manifest = json.loads(_get(proxy, f"{out}/manifest.json") or b"null")
    assert manifest is not None, "state.json without a manifest"
    sizes = {name: len(_get(proxy, f"{out}/{name}") or b"") for name in manifest["files"]}
    assert sizes == {name: entry["bytes"] for name, entry in manifest["files"].items()}
    return sizes


def _get(proxy: Proxy, path: str) -> bytes | None:
    """An object, behind the back of the proxy."""
    connection = http.client.HTTPConnection(*proxy.target)
    connection.request("GET", quote(f"/{path}"), headers=_SIGNED)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    assert answer.status in (200, 404), content
    return content if answer.status == 200 else None
