"""A file that is not what its name says is named as what it is, with the way out, by both doors that open files."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
import zstandard

from pipeline.base.errors import DataError
from pipeline.format.options import InputOptions
from pipeline.reading.decoding.foreign import refuse_wrapped_rows
from pipeline.reading.decoding.raw import open_raw
from pipeline.reading.files import InputFile
from pipeline.reading.inputs import resolve
from tests.conftest import Run, left_behind
from tests.pipeline.reading.inputs import BOM, KINDS, ROWS, json_lines, stream, write
from tests.pipeline.samples import table

LINES = json_lines(ROWS[:40])
CHAT = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}]}
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123456789abcdef\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html>\n<html><head><title>Sign in</title></head></html>\n"
NAMES = ("x.jsonl", "x.json", "x.jsonl.gz", "x.json.zst", "x.parquet", "x.arrow")


def parquet() -> bytes:
    content = io.BytesIO()
    pq.write_table(table(ROWS[:40]), content)
    return content.getvalue()


def zipped() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("x.jsonl", LINES)
    return content.getvalue()


def tarred() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        member = tarfile.TarInfo("x.jsonl")
        member.size = len(LINES)
        archive.addfile(member, io.BytesIO(LINES))
    return content.getvalue()


def arrow(folder: Path) -> bytes:
    return stream(ROWS[:40], folder / "other").read_bytes()


PRETTY = json.dumps({"input_ids": list(range(40))}, indent=2).encode()
LONG = json.dumps({"note": "x" * 100_000, "input_ids": [1]}, indent=2).encode()
ENVELOPE = json.dumps({"version": 1, "data": ROWS[:3]}).encode()
FOREIGN: dict[str, tuple[str, bytes | Callable[[Path], bytes], list[str]]] = {
    **{f"pointer {name}": (name, POINTER, ["Git LFS pointer", "git lfs pull"]) for name in NAMES},
    **{f"page {name}": (name, PAGE, ["page of HTML", "download"]) for name in NAMES},
    **{f"zeros {name}": (name, bytes(5000), ["zeros", "make it again"]) for name in NAMES},
    "pointer in gz": ("x.jsonl.gz", gzip.compress(POINTER), ["Git LFS pointer"]),
    "annex": ("x.parquet", b"/annex/objects/MD5E-s5--0123.parquet\n", ["git annex get"]),
    "XML error": ("x.parquet", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', ["HTML or XML"]),
    "UTF-16": ("x.jsonl", LINES.decode().encode("utf-16"), ["UTF-16", "iconv -f UTF-16 -t UTF-8"]),
    "UTF-32": ("x.jsonl", LINES.decode().encode("utf-32"), ["UTF-32", "iconv -f UTF-32 -t UTF-8"]),
    "UTF-16LE": ("x.jsonl", LINES.decode().encode("utf-16-le"), ["iconv -f UTF-16LE"]),
    "UTF-16BE": ("x.json", LINES.decode().encode("utf-16-be"), ["iconv -f UTF-16BE"]),
    "UTF-32LE": ("x.jsonl", LINES.decode().encode("utf-32-le"), ["iconv -f UTF-32LE"]),
    "UTF-32BE": ("x.jsonl", LINES.decode().encode("utf-32-be"), ["iconv -f UTF-32BE"]),
    "UTF-16 in zst": ("x.jsonl.zst", zstandard.compress(LINES.decode().encode("utf-16")), ["UTF-16"]),
    "pretty object": ("x.json", PRETTY, ["over several lines", "jq -c ."]),
    "pretty objects in jsonl": ("x.jsonl", BOM + PRETTY + b"\n" + PRETTY, ["over several lines", "jq -c ."]),
    "pretty object longer than what is looked at": ("x.json", LONG, ["over several lines"]),
    "pretty object with CRLF in gz": ("x.json.gz", gzip.compress(PRETTY.replace(b"\n", b"\r\n")), ["several lines"]),
    "columns of texts": ("x.json", b'{"prompt": ["a", "b"], "completion": ["c", "d"]}', ["columns in place of rows"]),
    "columns of pandas": (
        "x.json",
        b'{"text": {"0": "a", "1": "b"}}',
        ["columns in place of rows"],
    ),
    "a column of chats": (
        "x.json",
        b'{"messages": [[{"role": "user", "content": "a"}]]}',
        ["columns in place of rows"],
    ),
    "rows under a key": ("x.json", ENVELOPE, ["under the key 'data'", "jq -c '.data[]'"]),
    "gzip as jsonl": ("x.jsonl", gzip.compress(LINES), ["gzip", "not JSON text", ".jsonl.gz"]),
    "zstd as jsonl": ("x.jsonl", zstandard.compress(LINES), ["Zstandard", "not JSON text", ".jsonl.zst"]),
    "zstd as gz": ("x.jsonl.gz", zstandard.compress(LINES), ["Zstandard", "not gzip"]),
    "gzip twice": ("x.jsonl.gz", gzip.compress(gzip.compress(LINES)), ["compressed with gzip", "decompress"]),
    "gzip as parquet": ("x.parquet", gzip.compress(parquet()), ["gzip", "not parquet", "decompress"]),
    "JSON as gz": ("x.jsonl.gz", LINES, ["JSON text, not gzip", ".jsonl"]),
    "JSON as parquet": ("x.parquet", LINES, ["JSON text, not parquet"]),
    "JSON as arrow": ("x.arrow", json.dumps(ROWS[:3]).encode(), ["JSON text, not Arrow"]),
    "zip": ("x.jsonl", zipped(), ["zip archive", "unpack"]),
    "zip as gz": ("x.json.gz", zipped(), ["zip archive", "unpack"]),
    "tar": ("x.jsonl", tarred(), ["tar archive", "unpack"]),
    "tar in gz": ("x.jsonl.gz", gzip.compress(tarred()), ["tar archive", "unpack"]),
    "parquet as jsonl": ("x.jsonl", parquet(), ["parquet, not JSON text", ".parquet"]),
    "parquet as arrow": ("x.arrow", parquet(), ["parquet, not Arrow", ".parquet"]),
    "arrow as parquet": ("x.parquet", arrow, ["Arrow stream, not parquet", ".arrow"]),
    "arrow as json": ("x.json", arrow, ["Arrow stream, not JSON text", ".arrow"]),
    "xz": ("x.jsonl", b"\xfd7zXZ\x00\x00\x04", ["xz", "unxz"]),
    "AppleDouble": ("x.jsonl", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X", ["macOS", "leave it out"]),
    "empty parquet": ("x.parquet", b"", ["empty (0 bytes)"]),
    "empty arrow": ("x.arrow", b"", ["empty (0 bytes)"]),
    "empty gz": ("x.jsonl.gz", b"", ["empty (0 bytes)"]),
    "truncated parquet": ("x.parquet", parquet()[:-30], ["damaged or truncated"]),
    "truncated gzip": ("x.jsonl.gz", gzip.compress(LINES)[:-30], ["damaged or truncated"]),
    "Latin-1": ("x.jsonl", b'{"input_ids": [1], "text": "caf\xe9"}\n', ["row 0", "not in UTF-8", "0xe9", "iconv"]),
    "rows that are arrays": ("x.jsonl", b"[1]\n[2]\n", ["rows are objects, one a line"]),
}


@pytest.mark.parametrize("what", FOREIGN)
def test_a_foreign_file_is_named_as_what_it_is(run: Run, tmp_path: Path, what: str) -> None:
    name, made, told = FOREIGN[what]
    path = write(tmp_path / name, made if isinstance(made, bytes) else made(tmp_path))
    before = left_behind(tmp_path)
    ended = run("pack", path, "--output", tmp_path / "out", "--max-length", 64)
    assert ended.code == 3, ended.err
    errors = [line for line in ended.err.splitlines() if not line.startswith("INFO:")]
    assert len(errors) == 1, "one message"
    assert left_behind(tmp_path) == before
    kind = name.removesuffix(".gz").removesuffix(".zst").rsplit(".", 1)[1].removesuffix("l")
    with pytest.raises(DataError) as raised:
        file = open_raw(InputFile(system=fsspec.filesystem("file"), path=str(path), format=kind), str(path))
        rows = [row for block in file.blocks(file.columns) for row in block.rows()]
        raise next(DataError(str(row)) for row in rows if isinstance(row, ValueError))
    for message in (errors[0], str(raised.value)):
        assert name in message
        for words in told:
            assert words in message


ROWS_OF_ONE: dict[str, tuple[bytes, int]] = {
    "one line": (json.dumps(CHAT).encode(), 1),
    "one line with a break at its end": (BOM + json.dumps(CHAT).encode() + b"\r\n\r\n", 1),
    "tool schemas in the only row": (b'{"text": "a", "data": [{"text": "b"}]}', 1),
    "array in a .jsonl": (json.dumps([CHAT, CHAT], indent=2).encode(), 2),
    "a sound line before a broken one": (json.dumps(CHAT).encode() + b'\n{"messages": [\n', 2),
    "a broken line before a sound one": (b'{"messages": [{"ro\n' + json.dumps(CHAT).encode() + b"\n", 2),
}


@pytest.mark.parametrize("what", ROWS_OF_ONE)
def test_what_is_no_foreign_file_is_read(tmp_path: Path, what: str) -> None:
    content, num_rows = ROWS_OF_ONE[what]
    path = write(tmp_path / "x.jsonl", content)
    file = open_raw(InputFile(system=fsspec.filesystem("file"), path=str(path), format="json"), str(path))
    assert sum(1 for block in file.blocks(file.columns) for _ in block.rows()) == num_rows


def test_byte_order_marks_of_joined_files_are_read_over(run: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", BOM + LINES + BOM + LINES)
    ended = run("pack", path, "--output", tmp_path / "out", "--max-length", 64, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["counts"]["samples_in"] == 80
    file = open_raw(InputFile(system=fsspec.filesystem("file"), path=str(path), format="json"), str(path))
    assert [type(row) for block in file.blocks(file.columns) for row in block.rows()] == [dict] * 80


@pytest.mark.parametrize("content", [b"", b"\n \r\n\n", BOM], ids=["nothing", "blank lines", "a mark alone"])
def test_a_file_without_rows_is_said(run: Run, tmp_path: Path, content: bytes) -> None:
    sources = [write(tmp_path / "none.jsonl", content), write(tmp_path / "some.jsonl", LINES)]
    ended = run("pack", *sources, "--output", tmp_path / "out", "--max-length", 64, "--json")
    assert ended.code == 0, ended.err
    assert ended.err.count("none.jsonl: there is no row in it") == 1
    assert "some.jsonl: there" not in ended.err


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.jsonl", "._a.jsonl", ".ipynb_checkpoints/a.jsonl", "b/c.jsonl", "b/.d/e.jsonl", "b/.f.jsonl"):
        path = tmp_path / ".in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, LINES)
    return tmp_path / ".in"


@pytest.mark.parametrize(
    ("pattern", "num_files", "hidden"),
    [
        ("*.jsonl", 1, "1 hidden file left out"),
        ("?*.jsonl", 1, "1 hidden file left out"),
        ("[._a]*.jsonl", 1, "1 hidden file left out"),
        ("b/../*.jsonl", 1, "1 hidden file left out"),
        (".*.jsonl", 1, ""),
        (".ipynb_checkpoints/*.jsonl", 1, ""),
        ("*/*.jsonl", 1, "2 hidden files left out"),
        (".*/*.jsonl", 1, ""),
        ("**/*.jsonl", 2, "4 hidden files left out"),
        ("**/.d/*.jsonl", 1, ""),
        ("**/.*.jsonl", 2, ""),
    ],
)
def test_a_pattern_takes_no_hidden_files(
    tree: Path, caplog: pytest.LogCaptureFixture, pattern: str, num_files: int, hidden: str
) -> None:
    inputs = resolve(f"{tree}/{pattern}", InputOptions())
    assert len(inputs) == num_files
    told = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert len(told) == bool(hidden)
    assert hidden in "".join(told)


def test_a_pattern_that_finds_hidden_files_alone(run: Run, tree: Path) -> None:
    (tree / "a.jsonl").unlink()
    ended = run("pack", f"{tree}/*.jsonl", "--output", tree.parent / "out", "--max-length", 64)
    assert ended.code == 3
    assert "nothing matches this pattern, but for 1 hidden file" in ended.err


@pytest.mark.parametrize("name", ["a::b.jsonl", "::b.jsonl", "zip::b.jsonl", "a::*.jsonl", "zip::?.jsonl", "file://"])
def test_two_colons_in_a_path(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / name.replace("*", "b").replace("?", "b").replace("file://", "a::b.jsonl"), LINES)
    source = f"file://{tmp_path}/a::b.jsonl" if name == "file://" else name
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 64, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["counts"]["samples_in"] == 40


@pytest.mark.parametrize("url", ["zip://x.jsonl::a.zip", "zip://*.jsonl::a.zip", "simplecache::file://{}/x.jsonl"])
def test_chained_urls_are_read(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.zip", zipped())
    write(tmp_path / "x.jsonl", LINES)
    ended = run("pack", url.format(tmp_path), "--output", tmp_path / "out", "--max-length", 64, "--json")
    assert ended.code == 0, ended.err
    assert ended.json["counts"]["samples_in"] == 40


@pytest.mark.parametrize("url", ["a::b.jsonl", "zip://x.jsonl::none.zip", "zip://x.jsonl::x.jsonl", "tar://x::x.jsonl"])
def test_two_colons_that_name_nothing(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "x.jsonl", LINES)
    ended = run("pack", url, "--output", tmp_path / "out", "--max-length", 64)
    assert ended.code == 3, ended.err
    assert ended.err.startswith(f"ERROR: input {url}: ")
    assert len(ended.err.splitlines()) == 1


@pytest.mark.parametrize("file", ["data-00000-of-00001.arrow", "state.json"])
def test_a_pointer_in_a_dataset_directory(run: Run, tmp_path: Path, file: str) -> None:
    source = KINDS["saved"](ROWS, tmp_path)
    assert (Path(source) / file).exists()
    write(Path(source) / file, POINTER)
    ended = run("pack", source, "--output", tmp_path / "out", "--max-length", 64)
    assert ended.code == 3
    assert "git lfs pull" in ended.err


def test_a_chat_whose_turns_hold_text_is_no_list_of_rows() -> None:
    known = frozenset({"text", "messages"})
    refuse_wrapped_rows({"dialog": [{"speaker": "user", "text": "Hi"}]}, known, "x.jsonl")
    for wrapped in ({"text": "Hi"}, {"text": "Hi", "id": 3}, {"messages": [], "source": "web"}):
        with pytest.raises(DataError, match="under the key 'data'"):
            refuse_wrapped_rows({"data": [wrapped]}, known, "x.jsonl")
