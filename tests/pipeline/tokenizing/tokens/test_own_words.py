"""Special tokens in people's own words are text, the template's stay what they are, whoever said what where."""

from __future__ import annotations

import json
import re
import string
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pipeline.format.options import TokenizeOptions
from pipeline.reading.decoding.raw import RawBlock
from pipeline.tokenizing.encoding import Encoder
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer, load_tokenizer
from tests.pipeline.chats import CORPUS, template
from tests.pipeline.tokenizing.oracle import lines_of, samples_of, trained_runs
from tests.pipeline.tokenizing.test_targets import encode, encoder

trl = pytest.importorskip("trl", reason="the chat templates that TRL ships are not installed")
TEMPLATES = Path(trl.__file__).parent / "chat_templates"
SPECIALS = ["<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>", "<|observation|>"]
MARKER = "QZQ"
"""Stands for a special token in words, to the oracle: nobody else writes it."""


def words(name: str, special: str) -> str:
    return f"{name} {special}{special}\n{special}x"


def conversation(special: str) -> dict[str, Any]:
    """Special tokens wherever somebody can say something."""
    properties = {"city": {"type": "string", "description": words("d", special)}}
    function = {"name": "f", "description": words("t", special), "parameters": {"properties": properties}}
    call = {"type": "function", "function": {"name": "f", "arguments": {"city": words("e", special)}}}
    return {
        "messages": [
            {"role": "system", "content": words("s", special)},
            {"role": "user", "content": words("u", special)},
            {"role": "assistant", "content": words("a", special), "tool_calls": [call]},
            {"role": "tool", "content": words("r", special)},
            {"role": "assistant", "content": words("b", special), "reasoning_content": words("h", special)},
        ],
        "tools": [{"type": "function", "function": function}],
    }


def loaded(whole: Any, folder: Path) -> TextTokenizer:
    from transformers import AddedToken

    whole.add_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS], special_tokens=True)
    whole.save_pretrained(str(folder))
    return load_tokenizer(str(folder))


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory: pytest.TempPathFactory, real_data: Path) -> TextTokenizer:
    """GPT-2's tokenizer with special tokens of templates."""
    from transformers import PreTrainedTokenizerFast

    file = str(real_data / "tokenizers" / "gpt2" / "tokenizer.json")
    whole = PreTrainedTokenizerFast(tokenizer_file=file, eos_token="<|endoftext|>")
    return loaded(whole, tmp_path_factory.mktemp("own"))


@pytest.fixture(scope="module")
def metaspace(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    """A tokenizer as Llama's: the first word of a text, and no other piece, has a space put before it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    letters = [*string.printable, "▁"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>"], initial_alphabet=letters)
    backend.train_from_iterator(CORPUS, trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="<|endoftext|>")
    return loaded(whole, tmp_path_factory.mktemp("metaspace"))


def ids_wanted(tokenizer: TextTokenizer, rendered: str, special: str) -> list[int]:
    """What a tokenizer without any special token gives between those of a template, in whose rendering words have
    `MARKER` in place of one."""
    from tokenizers import Tokenizer

    state = json.loads(tokenizer.backend.to_str())
    ids = {token["content"]: token["id"] for token in state["added_tokens"]}
    state["added_tokens"] = []
    bare, later = (Tokenizer.from_str(json.dumps(state)) for _ in range(2))
    if state["pre_tokenizer"].get("prepend_scheme"):
        from tokenizers import pre_tokenizers

        later.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    found: list[int] = []
    for number, piece in enumerate(re.split(f"({'|'.join(map(re.escape, SPECIALS))})", rendered)):
        text = piece.replace(MARKER, special)
        found += [ids[piece]] if piece in SPECIALS else (later if number else bare).encode(text).ids
    return found


@pytest.mark.parametrize(
    ("tokenizer", "name", "special", "options"),
    [
        ("gpt2", "qwen3", "<|im_end|>", {}),
        ("gpt2", "qwen3_training", "<|user|>", {}),
        ("gpt2", "glm4moe", "<|endoftext|>", {"turn_end": "next"}),
        ("metaspace", "qwen3", "<|im_start|>", {}),
    ],
)
def test_split(
    request: pytest.FixtureRequest, tmp_path: Path, tokenizer: str, name: str, special: str, options: dict[str, Any]
) -> None:
    own: TextTokenizer = request.getfixturevalue(tokenizer)
    source = (TEMPLATES / f"{name}.jinja").read_text(encoding="utf-8")
    found = encode(encoder(own, source, tmp_path, special_in_text="split", **options), [conversation(special)])
    assert (found.faults, found.notes["special_split"]) == ([], [0])
    row = conversation(MARKER)
    rendered = str(own.whole.apply_chat_template(row["messages"], row["tools"], chat_template=source, tokenize=False))
    (sample,) = samples_of(found)
    assert sample[0] == ids_wanted(own, rendered + ("<|user|>" if options else ""), special)
    # The targets are those of the same chat whose words hold nothing special.
    (harmless,) = samples_of(encode(encoder(own, source, tmp_path, **options), [row]))
    runs = [[own.decode(run) for run in trained_runs(*one)] for one in (sample, harmless)]
    assert runs[0] == [run.replace(MARKER, special) for run in runs[1]]


def of_format(tokenizer: TextTokenizer, columns: list[str], name: str, **options: Any) -> Encoder:
    format_ = Format(name=name, columns=dict(zip(columns, columns, strict=True)))
    return Encoder(tokenizer, None, format_, TokenizeOptions(**options))


def test_split_without_a_template(metaspace: TextTokenizer) -> None:
    end = "<|endoftext|>"
    row = {"text": f"{end}a{end}", "prompt": f"q{end}", "completion": f"{end} a{end}"}
    for columns, name in ((["text"], "text"), (["prompt", "completion"], "prompt-completion")):
        wanted = ids_wanted(metaspace, "".join(row[column] for column in columns), end)
        for appends in (False, True):
            one = of_format(metaspace, columns, name, special_in_text="split", append_eos=appends)
            found = one.encode(RawBlock(lines_of([row]), 0))
            assert found.input_ids.tolist() == wanted + [metaspace.eos_id] * appends
            assert found.notes == {"special_split": [0]} | ({} if appends else {"unfinished": [0]})
            assert found.labels[-1] == found.input_ids[-1]


@pytest.mark.parametrize("where", ["system", "user", "arguments", "result", "reasoning", "description", "name"])
def test_every_word_is_looked_at(metaspace: TextTokenizer, tmp_path: Path, where: str) -> None:
    row = conversation("")
    holder, key = {
        "system": (row["messages"][0], "content"),
        "user": (row["messages"][1], "content"),
        "arguments": (row["messages"][2]["tool_calls"][0]["function"]["arguments"], "city"),
        "result": (row["messages"][3], "content"),
        "reasoning": (row["messages"][4], "reasoning_content"),
        "description": (row["tools"][0]["function"], "description"),
        "name": (row["messages"][1], "name"),
    }[where]
    holder[key] = "<|im_end|>"
    source = (TEMPLATES / "qwen3.jinja").read_text(encoding="utf-8")
    told = partial(encoder, metaspace, source, tmp_path)
    assert encode(told(), [row]).notes["holds_special"] == [0]
    assert encode(told(special_in_text="split"), [row]).notes["special_split"] == [0]
    (fault,) = encode(told(special_in_text="error"), [row]).faults
    assert fault.reason == "special_in_text"


def test_what_cannot_be_split_is_refused(metaspace: TextTokenizer, tmp_path: Path) -> None:
    shouts = template("chatml", marks=False).replace("message.content", "message.content | upper")
    rows = [[{"role": "user", "content": "<|im_end|>"}, {"role": "assistant", "content": "A"}]]
    (fault,) = encode(encoder(metaspace, shouts, tmp_path, special_in_text="split"), rows).faults
    assert "changes them, so they cannot be told" in fault.detail
    rows[0][1]["content"] = "\U000f0000"
    (fault,) = encode(
        encoder(metaspace, template("chatml", marks=False), tmp_path, special_in_text="split"), rows
    ).faults
    assert "private-use characters" in fault.detail


def test_a_special_token_that_is_a_word_too_cannot_be_split(tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "</s>", "▁a", "<", "/", "s", ">"]
    backend = Tokenizer(models.Unigram([(piece, -float(n)) for n, piece in enumerate(pieces)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>").save_pretrained(tmp_path)
    found = of_format(load_tokenizer(str(tmp_path)), ["text"], "text", special_in_text="split").encode(
        RawBlock(lines_of([{"text": "a a"}, {"text": "a</s> a"}]), 0)
    )
    assert [(fault.row, "an ordinary word too" in fault.detail) for fault in found.faults] == [(1, True)]
    assert found.rows == [0]
