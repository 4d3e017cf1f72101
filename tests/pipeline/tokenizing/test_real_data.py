"""Real chats, real pairs, GPT-2's tokenizer, four styles of template: ids and targets equal those of transformers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers

from tests.conftest import Run
from tests.pipeline.chats import STYLES, chat, template
from tests.pipeline.tokenizing.oracle import straddle_free, trained_runs
from tests.pipeline.tokenizing.test_targets import BEFORE, END

FILES = {
    "gsm8k": ("gsm8k/train.jsonl", ["question"], "answer"),
    "superni": ("superni/train.jsonl", ["instruction", "input"], "output"),
    "oasst1": ("oasst1/conversations.jsonl", [], ""),
    "mgsm": ("mgsm/mgsm.jsonl", ["question"], "answer"),
    "humaneval": ("humaneval/HumanEval.jsonl", ["prompt"], "canonical_solution"),
}

MANY = 1000

pytestmark = pytest.mark.slow


def lines_of(path: Path, style: str) -> list[bytes]:
    """The rows of a file; of many rows the share of a style, so that each is compared in one of them."""
    lines = [line for line in path.read_bytes().split(b"\n") if line]
    return lines[STYLES.index(style) :: len(STYLES)] if len(lines) > MANY else lines


def chats_of(lines: list[bytes], prompt: list[str], completion: str) -> Iterator[list[dict[str, str]]]:
    for line in lines:
        row = json.loads(line)
        yield chat("\n".join(row[part] for part in prompt if row[part]), row[completion]) if prompt else row["messages"]


EVERY = [  # each set in one style, and each style with one set; all others in scripts/soak
    pytest.param(name, style, marks=[] if style == "chatml" or name == "oasst1" else [pytest.mark.soak])
    for name in FILES
    for style in STYLES
]


@pytest.mark.parametrize(("name", "style"), EVERY)
def test_ids_and_targets(run: Run, tmp_path: Path, real_data: Path, gpt2: Path, name: str, style: str) -> None:
    file, prompt, completion = FILES[name]
    lines = lines_of(real_data / file, style)
    source = tmp_path / Path(file).name
    source.write_bytes(b"\n".join(lines))
    chats = list(chats_of(lines, prompt, completion))
    whole = transformers.AutoTokenizer.from_pretrained(str(gpt2))
    mapped = ["--map", f"prompt={prompt[0]},completion={completion}"] if len(prompt) == 1 else []
    found: dict[bool, Any] = {}
    for marks in (False, True):
        path = tmp_path / f"{style}-{marks}.jinja"
        path.write_text(template(style, marks=marks), encoding="utf-8")
        flags = ["--tokenizer", gpt2, "--chat-template", path, *mapped]
        ended = run("tokenize", source, "--output", tmp_path / str(marks), *flags)
        assert ended.code == 0, ended.err
        found[marks] = datasets.load_from_disk(str(tmp_path / str(marks)))
    own = whole.apply_chat_template(
        chats, chat_template=template(style, marks=True), return_assistant_tokens_mask=True, return_dict=True
    )
    assert isinstance(own, transformers.BatchEncoding)
    assert list(found[False]["input_ids"]) == own["input_ids"]
    assert list(found[True]["input_ids"]) == own["input_ids"]
    masks = [[int(label != -100) for label in labels] for labels in found[True]["labels"]]
    assert masks == own["assistant_masks"]
    # Without marks the same turns are found; the style's own trimming apart, every one and nothing else.
    for row, conversation in zip(found[False], chats, strict=True):
        texts = [turn["content"] for turn in conversation if turn["role"] == "assistant"]
        wanted = [BEFORE[style] + (text if style == "chatml" else text.strip()) + END[style] for text in texts]
        runs = trained_runs(row["input_ids"], row["labels"])
        assert [straddle_free(run, text, whole) for run, text in zip(runs, wanted, strict=True)] == wanted
    assert len(found[False]) == len(chats) > 100
