"""Whatever is changed in a published directory is found: in any file, at any position, packed or tokenised."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import datasets
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import PackOptions, RunOptions, TokenizeOptions, pack, tokenize, verify
from tests.conftest import Run
from tests.pipeline.chats import save_tokenizer
from tests.pipeline.samples import random_rows, save

ONE = RunOptions(num_workers=1)
KINDS = ("packed", "packed splits", "tokenised", "tokenised splits")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A dataset of each kind."""
    folder = tmp_path_factory.mktemp("published")
    run = RunOptions(num_workers=1, cache_dir=folder / "cache")
    rows, options = random_rows(60), PackOptions(max_length=60, window_samples=25, shard_size=6000)
    texts = [{"text": f"the {n} old trains"} for n in range(10)]
    parts = {"train": rows[:30], "test": rows[30:]}
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in parts.items()}).save_to_disk(folder / "splits")
    text_parts = {"train": texts[:6], "test": texts[6:]}
    raw = datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in text_parts.items()})
    raw.save_to_disk(folder / "raw splits")
    datasets.Dataset.from_list(texts).save_to_disk(folder / "raw")
    tokenizer = save_tokenizer(folder / "tokenizer")
    pack(save(rows, folder / "rows"), folder / "packed", options, run=run)
    pack(folder / "splits", folder / "packed splits", options, run=run)
    for name, source in (("tokenised", "raw"), ("tokenised splits", "raw splits")):
        dropping = TokenizeOptions(on_error="drop")
        tokenize(folder / source, folder / name, tokenizer, dropping, run=run)
    assert all(verify(folder / name, run=ONE).status == "verified" for name in KINDS)
    return {name: folder / name for name in KINDS}


def files_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_change_of_a_file_is_found(kind: str, published: dict[str, Path], data: st.DataObject) -> None:
    file = data.draw(st.sampled_from(files_of(published[kind])))
    content = file.read_bytes()
    at = data.draw(st.integers(0, max(0, len(content) - 1)))
    changed = data.draw(
        st.sampled_from(
            [
                *([flip(content, at, data.draw(st.integers(0, 7))), content[:at]] if content else []),
                content + b"\0",
                content + content[-1:],
            ]
        )
    )
    if changed == content:
        return  # nothing was appended to an empty file
    try:
        file.write_bytes(changed)
        result = verify(published[kind], run=ONE)
        assert result.status == "failed"
        assert file.name in " ".join(result.problems)
    finally:
        file.write_bytes(content)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_every_flipped_bit_is_found(kind: str, published: dict[str, Path]) -> None:
    number = 0
    draws = np.random.default_rng(0)
    for file in files_of(published[kind]):
        content = file.read_bytes()
        for at in range(0, len(content), 3):
            file.write_bytes(flip(content, at, int(draws.integers(0, 8))))
            assert verify(published[kind], run=ONE).problems, f"{file} byte {at}"
            number += 1
        file.write_bytes(content)
    print(f"{kind}: {number} of {number} flipped bits found")


def swap(one: Path, other: Path) -> None:
    first, second = one.read_bytes(), other.read_bytes()
    one.write_bytes(second)
    other.write_bytes(first)


def make_folder(_: Path, files: list[Path]) -> None:
    files[0].unlink()
    files[0].mkdir()


def break_link(_: Path, files: list[Path]) -> None:
    files[0].unlink()
    files[0].symlink_to("nowhere")


CHANGES: dict[str, Callable[[Path, list[Path]], object]] = {
    "a file is missing": lambda _, files: files[0].unlink(),
    "every file is swapped with the next": lambda _, files: swap(*files[:2]),
    "a file has another name": lambda _, files: files[0].rename(files[0].with_name("other")),
    "a file is a folder": make_folder,
    "a file is a broken link": break_link,
    "there is one more shard": lambda folder, files: shutil.copy(
        next(file for file in files if file.suffix == ".arrow"), folder / "data-00000000-w0000-s0099.arrow"
    ),
    "there is one more file": lambda folder, _: (folder / ".hidden").touch(),
    "there is one more link": lambda folder, _: (folder / "link").symlink_to(folder.parent),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("change", CHANGES)
def test_missing_extra_and_swapped_files_are_found(
    kind: str, change: str, published: dict[str, Path], tmp_path: Path
) -> None:
    files = files_of(published[kind])
    for turn in range(0, len(files), 1 if "missing" in change else 3):
        folder = shutil.copytree(published[kind], tmp_path / f"{turn}")
        names = [folder / file.relative_to(published[kind]) for file in files[turn:] + files[:turn]]
        is_same = names[0].read_bytes() == names[1].read_bytes()
        CHANGES[change](folder, names)
        result = verify(folder, run=ONE)
        assert result.problems or (is_same and "swapped" in change), f"{change}: {names[0].name}"


@pytest.mark.parametrize("name", ["cache-0123.arrow", "tmpab12cd", ".nfs000123", "tmpdir/data.arrow"])
def test_what_readers_leave_is_told_and_replaced(
    name: str, published: dict[str, Path], tmp_path: Path, run: Run
) -> None:
    out = shutil.copytree(published["packed"], tmp_path / "out")
    (out / name).parent.mkdir(exist_ok=True)
    (out / name).write_bytes(b"x")
    ended = run("verify", out)
    assert (ended.code, name in ended.err) == (0, True), ended.err
    again = ("pack", published["packed"].parent / "rows", "--output", out, "--max-length", 61, "--overwrite")
    ended = run(*again)
    assert (ended.code, name in ended.err) == (0, True), ended.err
    assert not (out / name).exists()


def test_a_tokenised_dataset_is_verified_without_a_source(published: dict[str, Path], run: Run) -> None:
    ended = run("verify", published["tokenised splits"])
    assert (ended.code, "10 samples" in ended.out) == (0, True), ended.out
    ended = run("verify", published["tokenised"], "--source", published["tokenised"].parent / "raw")
    assert (ended.code, "leave out --source" in ended.err) == (2, True), ended.err
