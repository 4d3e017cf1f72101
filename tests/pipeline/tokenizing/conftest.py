from __future__ import annotations

import filecmp
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import pytest
import transformers

from pipeline.tokenizing.shard import ShardBuilder, TokenizedShard
from tests.conftest import left_behind
from tests.pipeline.chats import SPECIAL, chat, template


@pytest.fixture(scope="session")
def whole(tokenizer_dir: Path) -> Any:
    """The same, as transformers loads it."""
    return transformers.AutoTokenizer.from_pretrained(str(tokenizer_dir))


@pytest.fixture(scope="session")
def gpt2(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GPT-2's tokenizer with the special tokens that the templates write."""
    folder = tmp_path_factory.mktemp("gpt2") / "gpt2"
    file = real_data / "tokenizers" / "gpt2" / "tokenizer.json"
    end = {"bos_token": "<s>", "eos_token": "</s>"}
    transformers.PreTrainedTokenizerFast(tokenizer_file=str(file), **{**SPECIAL, **end}).save_pretrained(str(folder))
    return folder


@pytest.fixture
def chatml(tmp_path: Path) -> Path:
    """A ChatML template without marks, as a file."""
    path = tmp_path / "chatml.jinja"
    path.write_text(template("chatml", marks=False), encoding="utf-8")
    return path


class Lines(Protocol):
    """Write rows as JSON lines; a text is a line as it is."""

    def __call__(self, rows: list[Any], name: str = ..., /) -> Path: ...


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    def write(rows: list[Any], name: str = "rows.jsonl", /) -> Path:
        path = tmp_path / name
        text = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_bytes((text + "\n").encode("utf-8", "surrogatepass"))
        return path

    return write


def manifest_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return value


def same_files(one: Path, two: Path) -> bool:
    names = left_behind(one)
    return names == left_behind(two) and not filecmp.cmpfiles(one, two, [n for n in names if "." in n], False)[1]


@pytest.fixture
def flags(tokenizer_dir: Path, chatml: Path) -> list[object]:
    return ["--tokenizer", tokenizer_dir, "--chat-template", chatml]


@pytest.fixture
def many(lines: Lines) -> Path:
    return lines([{"messages": chat(f"question {i}", f"answer {i} " * (i % 40 + 1))} for i in range(3000)])


SPECIALS = [
    *("<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|observation|>"),
    *("<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|return|>", "<|call|>", "<|eom|>", "<|eot|>"),
    *("<|turn>", "<turn|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
    "<end_of_utterance>",
]
"""Special tokens of the templates that TRL ships; the tests' tokenizer has some of them already."""


@pytest.fixture(scope="session")
def tok(tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tests' tokenizer with the special tokens of the templates that TRL ships."""
    whole = transformers.AutoTokenizer.from_pretrained(tokenizer_dir)
    whole.add_tokens(
        [transformers.AddedToken(text, special=True, normalized=False) for text in SPECIALS], special_tokens=True
    )
    folder = tmp_path_factory.mktemp("tok")
    whole.save_pretrained(str(folder))
    return folder


@contextmanager
def stopped_after(num_shards: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Let runs be interrupted as they would finish one more shard than so many; yields those that they finished."""
    finish = ShardBuilder.finish
    finished: list[Path] = []

    def finish_some(shard: ShardBuilder) -> TokenizedShard:
        if len(finished) == num_shards:
            raise KeyboardInterrupt
        done = finish(shard)
        finished.append(done.path)
        return done

    with monkeypatch.context() as patched:
        patched.setattr(ShardBuilder, "finish", finish_some)
        yield finished
