from __future__ import annotations

import filecmp
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tests.conftest import left_behind

TEMPLATES = Path(__file__).parent / "templates"
STYLES = ("chatml", "llama3", "mistral", "gemma")
SPECIAL = {
    "bos_token": "<s>",
    "eos_token": "</s>",
    "extra_special_tokens": [
        "<|im_start|>",
        "<|im_end|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
        "<start_of_turn>",
        "<end_of_turn>",
    ],
}
CORPUS = [
    "The quick brown fox jumps over the lazy dog, 12 times out of 345.\r\n\tWhy? Because it can!",
    "user assistant model system [INST] [/INST] a question and its answer",
    "der schnelle braune Fuchs springt über den faulen Hund",
    "быстрая коричневая лиса 敏捷的棕色狐狸 الثعلب البني 😀🎉",
]


def template(style: str, *, marks: bool) -> str:
    """A chat template, with or without its generation marks."""
    text = (TEMPLATES / f"{style}.jinja").read_text(encoding="utf-8")
    return text if marks else text.replace("{%- generation -%}", "").replace("{%- endgeneration -%}", "")


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE as a directory of transformers, without a chat template."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        CORPUS * 3, trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    )
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **SPECIAL)
    whole.save_pretrained(str(folder))
    return folder


@pytest.fixture(scope="session")
def whole(tokenizer_dir: Path) -> Any:
    """The same, as transformers loads it."""
    return transformers.AutoTokenizer.from_pretrained(str(tokenizer_dir))


@pytest.fixture
def chatml(tmp_path: Path) -> Path:
    """A ChatML template without marks, as a file."""
    path = tmp_path / "chatml.jinja"
    path.write_text(template("chatml", marks=False), encoding="utf-8")
    return path


Lines = Callable[[list[Any]], Path]


@pytest.fixture
def lines(tmp_path: Path) -> Lines:
    """Write rows as JSON lines."""

    def write(rows: list[Any], name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        text = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
        path.write_bytes((text + "\n").encode("utf-8", "surrogatepass"))
        return path

    return write


def chat(*contents: str) -> list[dict[str, str]]:
    """User and assistant in turn."""
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


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
