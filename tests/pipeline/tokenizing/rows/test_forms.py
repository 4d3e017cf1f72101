"""The public forms of rows: what docs/schemas.md says becomes of each is what becomes of it, in every file format.

What becomes of them stands in forms/forms.json; UPDATE_GOLDEN=1 writes it anew, and scripts/figures the page.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
import pytest

from pipeline.base.errors import ConfigError, DataError
from pipeline.format.options import TokenizeOptions
from pipeline.reading.decoding.raw import open_raw
from pipeline.reading.files import InputFile
from pipeline.tokenizing.rows.gathering import blocks_of
from pipeline.tokenizing.tokenization import Tokenization
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer, load_tokenizer
from tests.pipeline.chats import TEMPLATES
from tests.pipeline.tokenizing.oracle import samples_of, trained_runs

FORMS = Path(__file__).parent / "forms"
INDEX: dict[str, Any] = json.loads((FORMS / "forms.json").read_text(encoding="utf-8"))
OUTCOMES = ("reads", "trained", "refused")
every_form = pytest.mark.parametrize("name", INDEX)


@pytest.fixture(scope="session")
def gpt2_loaded(gpt2: Path) -> TextTokenizer:
    return with_template(gpt2)


@pytest.fixture(scope="session")
def small_loaded(tokenizer_dir: Path) -> TextTokenizer:
    return with_template(tokenizer_dir)


def with_template(folder: Path) -> TextTokenizer:
    """A tokenizer with a ChatML template, of our own, that writes tools and calls."""
    tokenizer = load_tokenizer(str(folder))
    tokenizer.whole.chat_template = (TEMPLATES / "chatml_tools.jinja").read_text(encoding="utf-8")
    return tokenizer


def options_of(flags: list[str]) -> TokenizeOptions:
    """The options that flags of a form give."""
    given: dict[str, Any] = {}
    for flag, value in zip(flags[::2], flags[1::2], strict=True):
        name = flag.removeprefix("--")
        given[name] = value if name == "format" else dict(pair.split("=") for pair in value.split(","))
    return TokenizeOptions(**given)


def outcome(path: Path, tokenizer: TextTokenizer, flags: list[str], caplog: pytest.LogCaptureFixture) -> dict[str, Any]:
    """What becomes of a file: how the log says it is read and what of each row is trained, or the message."""
    caplog.set_level("INFO", logger="pipeline")
    caplog.clear()
    tokenization = Tokenization(tokenizer, None, options_of(flags))
    kind = {".jsonl": "json", ".parquet": "parquet", ".arrow": "arrow"}[path.suffix]
    try:
        file = open_raw(InputFile(system=fsspec.filesystem("file"), path=str(path), format=kind), str(path))
        (format_,) = tokenization.formats_of([file])
    except (ConfigError, DataError) as error:
        return {"refused": str(error).removeprefix(f"{path}: ").replace(str(path), "the file")}
    (block,) = blocks_of(file, format_)
    encoded_block = tokenization.encoder(format_).encode(block)
    errors = [fault for fault in encoded_block.faults if fault.is_error]
    if errors:
        return {"refused": errors[0].detail}
    (told,) = [record.getMessage() for record in caplog.records if ": format " in record.getMessage()]
    runs = [trained_runs(*sample) for sample in samples_of(encoded_block)]
    return {
        "reads": re.split(", (?:rendered by|without a chat|trained on)", told.partition(": format ")[2])[0],
        "trained": [[tokenizer.whole.decode(run) for run in of_row] for of_row in runs],
    }


@every_form
def test_a_form_is_read_as_the_page_says_from_every_kind_of_file(
    name: str, small_loaded: TextTokenizer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    form = INDEX[name]
    source = FORMS / f"{name}.jsonl"
    found = outcome(source, small_loaded, form["flags"], caplog)
    if os.environ.get("UPDATE_GOLDEN"):
        form = INDEX[name] = {key: value for key, value in form.items() if key not in OUTCOMES} | found
        (FORMS / "forms.json").write_text(json.dumps(INDEX, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    told = {key: form[key] for key in OUTCOMES if key in form}
    assert found == told
    table = pa.Table.from_pylist([json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()])
    pq.write_table(table, tmp_path / "rows.parquet")
    with pa.OSFile(str(tmp_path / "rows.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    assert outcome(tmp_path / "rows.parquet", small_loaded, form["flags"], caplog) == told
    assert outcome(tmp_path / "rows.arrow", small_loaded, form["flags"], caplog) == told


@pytest.mark.slow
@every_form
def test_a_form_is_read_as_the_page_says_with_a_real_tokenizer(
    name: str, gpt2_loaded: TextTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    form = INDEX[name]
    found = outcome(FORMS / f"{name}.jsonl", gpt2_loaded, form["flags"], caplog)
    assert found == {key: form[key] for key in OUTCOMES if key in form}


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("json-in-text", "--map messages=text.messages"),
        ("json-in-text", "--format text"),
        ("json-in-text", "--format messages"),
        ("two-chats", "--map messages=dialog"),
        ("other-keys", "--map messages=dialog --keys role=speaker,content=text --roles user=human,assistant=bot"),
        ("dolly", "--map input=context,output=response"),
        ("openorca", "--map prompt=question,completion=response"),
        ("pair-in-a-struct", "--map prompt=qa.question,completion=qa.answer"),
        ("context-of-turns", "--map prompt=context,completion=response"),
        ("preferences", "--map messages=chosen"),
        ("preferences-texts", "--map completion=chosen"),
        ("preferences-turns", "--map prompt=conversations,completion=chosen"),
        ("preferences-openai", "--map prompt=input.messages,completion=preferred_output"),
        ("hh-rlhf", "--map text=chosen --format text"),
        ("chatml-text", "--map text=conversation --format text"),
        ("guanaco", "--format text"),
    ],
)
def test_the_way_out_that_a_message_names_is_one(
    name: str, flags: str, small_loaded: TextTokenizer, caplog: pytest.LogCaptureFixture
) -> None:
    assert flags in INDEX[name]["refused"]
    found = outcome(FORMS / f"{name}.jsonl", small_loaded, flags.split(), caplog)
    assert found["trained"], found


def test_every_form_has_its_file() -> None:
    assert {path.stem for path in FORMS.glob("*.jsonl")} == {*INDEX}
