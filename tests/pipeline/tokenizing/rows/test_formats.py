"""What a row is, by its columns; and what in a row is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from pipeline.base.errors import ConfigError, DataError
from pipeline.format.options import TokenizeOptions
from pipeline.tokenizing.rows.choice import choose_format
from pipeline.tokenizing.rows.detection import FirstRows
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.rows.messages import RowFault
from pipeline.tokenizing.rows.samples import Chat, Pair, Sample, Text
from pipeline.tokenizing.rows.turn_reader import TurnReader
from tests.conftest import Run
from tests.pipeline.chats import chat
from tests.pipeline.tokenizing.conftest import Lines


def detect(row: dict[str, Any], forced: str = "auto", **mapped: str) -> Format:
    return choose_format(list(row), forced, mapped, "x.jsonl")


def read(row: dict[str, Any], forced: str = "auto", *, as_chat: bool = False, **mapped: str) -> Sample:
    return detect(row, forced, **mapped).sample(row, as_chat=as_chat)


USER_AND_ASSISTANT = [{"role": "user", "content": "p"}, {"role": "assistant", "content": "c"}]


def test_formats_by_columns() -> None:
    assert read({"messages": chat("a", "b"), "id": 1}) == Chat(chat("a", "b"))
    assert read({"text": "a", "id": 1}) == Text("a")
    assert read({"prompt": "p", "completion": "c"}) == Pair("p", "c")
    assert read({"prompt": "p", "completion": "c"}, as_chat=True) == Chat(USER_AND_ASSISTANT, num_prompt=1)
    assert read({"instruction": "i", "input": "n", "output": "o"}) == Pair("i\nn\n", "o")
    assert read({"instruction": "i", "input": "", "output": "o"}) == Pair("i\n", "o")
    assert read({"question": "p", "answer": "c"}, prompt="question", completion="answer") == Pair("p", "c")


def test_from_and_value() -> None:
    turns = [{"from": "system", "value": "s"}, {"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    assert read({"conversations": turns}) == Chat([{"role": "system", "content": "s"}, *chat("a", "b")])
    for speaker in ("narrator", ["gpt"], None):
        with pytest.raises(RowFault, match="is not known"):
            read({"conversations": [{"from": speaker, "value": "s"}]})
    assert read({"conversations": [{"from": "Human", "value": "a"}, {"from": "GPT", "value": "b"}]}) == Chat(
        chat("a", "b")
    )


def test_conversational_pairs() -> None:
    row = {"prompt": chat("a", "b", "c"), "completion": [{"role": "assistant", "content": "d"}]}
    assert read(row) == Chat(chat("a", "b", "c", "d"), num_prompt=3)


def test_a_system_column_opens_the_chat() -> None:
    system = {"role": "system", "content": "be brief"}
    assert read({"system": "be brief", "messages": chat("a", "b")}) == Chat([system, *chat("a", "b")])
    assert read({"system": "", "messages": chat("a", "b")}) == Chat(chat("a", "b"))
    own = {"role": "system", "content": "be long"}
    assert read({"system": "be long", "messages": [own, *chat("a", "b")]}) == Chat([own, *chat("a", "b")])
    with pytest.raises(RowFault, match="two system turns"):
        read({"system": "be brief", "messages": [own, *chat("a", "b")]})
    assert read({"system": "be brief", "prompt": "p", "completion": "c"}, as_chat=True) == Chat(
        [system, *USER_AND_ASSISTANT], num_prompt=2
    )


def test_tools() -> None:
    tool = {"type": "function", "function": {"name": "add"}}
    for given in ([tool], '[{"type": "function", "function": {"name": "add"}}]'):
        assert read({"messages": chat("a", "b"), "tools": given}) == Chat(chat("a", "b"), tools=[tool])
        row = {"instruction": "a", "output": "b", "tools": given}
        assert read(row, as_chat=True) == Chat(chat("a", "b"), tools=[tool], num_prompt=1)
    assert read({"messages": chat("a", "b"), "tools": []}) == Chat(chat("a", "b"))
    with pytest.raises(RowFault, match="tool descriptions"):
        read({"messages": chat("a", "b"), "tools": "add"})


@pytest.mark.parametrize(
    ("columns", "forced", "mapped", "told"),
    [
        ("id body", "auto", {}, ["no known format", "id, body", "prompt-completion (prompt, completion)", "--map"]),
        ("messages text", "auto", {}, ["messages and text", "--format"]),
        ("instruction output text", "auto", {}, ["instruction and text", "--format"]),
        ("messages conversations", "auto", {}, ["'messages' and 'conversations'", "--map messages=messages"]),
        ("question answer", "prompt-completion", {}, ["needs prompt and completion", "--map prompt=COLUMN"]),
        ("question answer", "auto", {"prompt": "question"}, ["prompt-completion, and completion is missing"]),
        ("question answer", "auto", {"prompt": "quest"}, ["--map prompt=quest", "question, answer"]),
        ("text text", "auto", {}, ["2 columns called 'text'"]),
        ("input_ids labels text", "auto", {}, ["tokenised already", "without --tokenizer"]),
    ],
)
def test_unclear_columns(columns: str, forced: str, mapped: dict[str, str], told: list[str]) -> None:
    with pytest.raises(DataError) as raised:
        choose_format(columns.split(), forced, mapped, "x.jsonl")
    assert all(word in str(raised.value) for word in ["x.jsonl", *told]), raised.value


def test_forced_and_mapped_win_over_ambiguity() -> None:
    row = {"messages": chat("a", "b"), "text": "t", "question": "q", "answer": "a"}
    assert detect(row, "text").name == "text"
    assert detect(row, "messages").name == "messages"
    assert detect(row, prompt="question", completion="answer").name == "prompt-completion"
    assert detect({"conversations": chat("a"), "messages": chat("b")}, messages="conversations").columns == {
        "messages": "conversations"
    }


@pytest.mark.parametrize(
    ("row", "reason", "told"),
    [
        ({"messages": []}, "no_assistant_turn", "no turns"),
        ({"messages": None}, "null_content", "'messages' is null"),
        ({"messages": "hello"}, "not_text", "list of turns"),
        ({"messages": [{"content": "a"}]}, "unknown_role", "turn 0: it has no role"),
        ({"messages": chat("a", "  ")}, "empty_turn", "turn 1 (assistant): it is empty"),
        ({"messages": chat("", "b")}, "empty_turn", "turn 0 (user): it is empty"),
        ({"messages": chat("a", "<think>b")}, "unclosed_reasoning", "turn 1 (assistant): its reasoning"),
        ({"messages": chat("a", "b"), "images": ["x"]}, "image", "column 'images' has content"),
        ({"prompt": "p", "completion": "c", "label": False}, "preference", "column 'label' has content"),
        ({"messages": chat("a", "b"), "train": 0}, "unknown_weight", "column 'train' has content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "image", "of type image_url"),
        ({"prompt": "p", "completion": "c", "chosen": chat("p", "d")}, "preference", "with --map messages=chosen"),
        ({"instruction": "p", "output": "c", "chosen": "d"}, "preference", "with --map output=chosen"),
        ({"messages": chat("p"), "chosen": "d"}, "preference", "with --map prompt=messages,completion=chosen"),
        ({"prompt": "p", "completion": {"a": "b"}}, "not_text", "a text is needed"),
        ({"instruction": "i", "output": "o", "history": [["a"]]}, "not_text", "[question, answer] pairs"),
        ({"prompt": "i", "completion": "o", "history": [{"q": "a"}]}, "not_text", "[question, answer] pairs"),
        ({"messages": [{"role": "user", "content": None}]}, "null_content", "turn 0 (user)"),
        ({"messages": [{"role": "user", "content": 7}]}, "not_text", "a number"),
        ({"prompt": "p", "completion": None}, "null_content", "'completion' is null"),
        ({"prompt": "p", "completion": 1.5}, "not_text", "a number"),
        ({"prompt": "p", "completion": "\n"}, "empty_turn", "'completion' is empty"),
        ({"text": ""}, "empty_turn", "'text' is empty"),
    ],
)
def test_what_can_be_wrong_with_a_row(row: dict[str, Any], reason: str, told: str) -> None:
    with pytest.raises(RowFault) as raised:
        read(row)
    assert (raised.value.reason, told in str(raised.value)) == (reason, True), raised.value


@pytest.mark.parametrize(
    "earlier",
    [
        [["q", "a"]],
        '[["q", "a"]]',
        [{"question": "q", "answer": "a"}],
        [{"user": "q", "assistant": "a", "id": None}],
        chat("q", "a"),
        [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
    ],
)
@pytest.mark.parametrize("asked", [{"instruction": "p", "output": "c"}, {"prompt": "p", "completion": "c"}])
def test_earlier_turns_stand_in_a_history_column(asked: dict[str, Any], earlier: Any) -> None:
    row = asked | {"history": earlier}
    assert read(row, as_chat=True) == Chat(chat("q", "a", "p", "c"), num_prompt=3)
    pair = detect(row).sample(row, as_chat=False)
    assert isinstance(pair, Pair) and pair.prompt.startswith("q\na\np") and pair.notes == ["history_column"]


def test_a_history_goes_before_a_prompt_of_turns_and_after_its_system_turn() -> None:
    system = {"role": "system", "content": "s"}
    row = {"prompt": [system, *chat("p")], "completion": "c", "history": [["q", "a"]]}
    assert read(row) == Chat([system, *chat("q", "a", "p", "c")], num_prompt=4)
    marked = {"prompt": "p", "completion": "c", "system": "s"}
    marked["history"] = [system, chat("q")[0], {"role": "assistant", "content": "a", "weight": 0}]  # type: ignore[assignment]
    whole = Chat([system, *chat("q", "a", "p", "c")], num_prompt=4, marks=[None, None, False, None, None])
    assert read(marked, as_chat=True) == whole
    with pytest.raises(RowFault, match="'history': turns that are more than texts"):
        detect(marked).sample(marked, as_chat=False)


def test_a_row_that_lacks_a_column() -> None:
    with pytest.raises(RowFault, match="'completion' is missing"):
        detect({"prompt": "p", "completion": "c"}).sample({"prompt": "p"}, as_chat=False)


def test_optional_columns_of_later_rows_are_read(
    run: Run, tmp_path: Path, lines: Lines, tokenizer_dir: Path, whole: Any
) -> None:
    source = lines([{"instruction": "i", "output": "o"}, {"instruction": "i", "input": "n", "output": "o"}])
    assert run("tokenize", source, "--output", tmp_path / "out", "--tokenizer", tokenizer_dir).code == 0
    found = datasets.load_from_disk(str(tmp_path / "out"))["input_ids"]
    assert [whole.decode(ids) for ids in found] == ["i\no", "i\nn\no"]


ROWS = [
    {"messages": chat("a", "b"), "tools": None},
    {"messages": [*chat("c"), {"role": "assistant", "content": "d", "name": "x"}], "tools": None},
]


def same_tokens_in_every_file_format(run: Run, folder: Path, files: list[Path], *flags: object) -> None:
    found = []
    for number, file in enumerate(files):
        ended = run("tokenize", file, "--output", folder / f"out-{number}", *flags)
        assert ended.code == 0, ended.err
        found.append(datasets.load_from_disk(str(folder / f"out-{number}")).to_dict())
    assert all(one == found[0] for one in found)
    assert len(found[0]["input_ids"]) == len(ROWS)


def test_every_file_format(run: Run, tmp_path: Path, lines: Lines, tokenizer_dir: Path, chatml: Path) -> None:
    import gzip

    plain = lines(ROWS)
    array = tmp_path / "rows.json"
    array.write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    packed = tmp_path / "rows2.jsonl.gz"
    packed.write_bytes(gzip.compress(plain.read_bytes()))
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(str(tmp_path / "saved"))
    dataset.to_parquet(str(tmp_path / "rows.parquet"))
    typed = datasets.Features({"messages": datasets.List(datasets.Json()), "tools": datasets.Json()})
    datasets.Dataset.from_list(ROWS, features=typed).save_to_disk(str(tmp_path / "json"))
    files = [plain, array, packed, tmp_path / "saved", tmp_path / "rows.parquet", tmp_path / "json"]
    same_tokens_in_every_file_format(run, tmp_path, files, "--tokenizer", tokenizer_dir, "--chat-template", chatml)


def test_absent_fields_of_arrow_structs_are_absent(run: Run, tmp_path: Path, tokenizer_dir: Path, lines: Lines) -> None:
    """A struct column gives every turn every key; a template must not see those that nobody wrote."""
    template = tmp_path / "picky.jinja"
    template.write_text(
        "{% for m in messages %}{{ m.role }}{% if m.extra is defined %}!{% if m.extra.deep is defined %}?{% endif %}"
        "{% endif %}: {{ m.content }}</s>{% endfor %}"
    )
    rows = [
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "extra": {"x": 1}}]},
        {"messages": [{"role": "user", "content": "a", "extra": {"deep": 1}}, {"role": "assistant", "content": "b"}]},
    ]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    files = [lines(rows), tmp_path / "saved"]
    same_tokens_in_every_file_format(
        run, tmp_path, files, "--tokenizer", tokenizer_dir, "--chat-template", template, "--train-on", "all"
    )


def test_named_keys_and_speakers() -> None:
    reader = TurnReader(role_key="speaker", content_key="said", speakers={"bot": "assistant", "customer": "user"})
    format_ = choose_format(["messages"], "auto", {}, "x.jsonl", first=FirstRows(reader=reader))
    turns = [{"speaker": "customer", "said": "a"}, {"speaker": "bot", "said": "b", "train": True}]
    assert format_.sample({"messages": turns}, as_chat=True) == Chat(chat("a", "b"), marks=[None, True])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"template_date": "2026-02-30"}, "--template-date 2026-02-30"),
        ({"template_date": "20260203"}, "--template-date 20260203"),
        ({"template_kwargs": {"messages": []}}, "--template-kwargs messages"),
        ({"keys": {"rol": "speaker"}}, "did you mean 'role'"),
        ({"roles": {"asistant": "bot"}}, "did you mean 'assistant'"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError) as raised:
        TokenizeOptions(**options)
    assert told in str(raised.value)


def looked(rows: list[dict[str, Any]], forced: str = "auto", **mapped: str) -> Format:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return choose_format(columns, forced, mapped, "x.jsonl", more_later=True, first=FirstRows(look=lambda: rows))


def test_a_path_is_read_unless_a_column_has_that_very_name() -> None:
    inner: dict[str, Any] = {"messages": chat("a", "b"), "system": "s", "images": []}
    system = {"role": "system", "content": "s"}
    assert looked([{"data": inner}]).sample({"data": inner}, as_chat=True) == Chat([system, *chat("a", "b")])
    for data in (inner, json.dumps(inner)):
        row = {"data": data}
        assert looked([row], messages="data.messages").sample(row, as_chat=True) == Chat([system, *chat("a", "b")])
    both = {"data.messages": chat("c", "d"), "data": inner}
    assert read(both, messages="data.messages") == Chat(chat("c", "d"))
    with pytest.raises(DataError, match="no such column"):
        read({"data": inner}, messages="date.messages")
    with pytest.raises(RowFault, match=r"column 'data.turns' is missing"):
        read({"data": inner}, messages="data.turns")
    with pytest.raises(RowFault, match=r"column 'data.images' has content"):
        read({"data": inner | {"images": ["x.jpg"]}}, messages="data.messages")


def test_what_stands_beside_a_chat_in_later_rows_is_read_too() -> None:
    format_ = looked([{"data": {"messages": chat("a", "b")}}])
    tool = {"type": "function", "function": {"name": "add"}}
    later = {"data": {"messages": chat("a", "b"), "tools": [tool]}}
    assert format_.sample(later, as_chat=True) == Chat(chat("a", "b"), tools=[tool])


def test_a_few_rows_with_marks_of_roles_are_text() -> None:
    rows = [
        "She read the label, and the user: nobody.",
        "The User: a portrait. The Assistant: a sequel.",
        "Dialogue in a play.\nUser: Who is there?\nAssistant: Me.",
        "Q: Why?\nA: Because.",
        "### Human resources ### Assistant manager",
    ]
    assert looked([{"text": text} for text in rows]).name == "text"
    with pytest.raises(DataError, match="User: … Assistant:"):
        looked([{"text": rows[2]}, {"text": rows[2]}, {"text": rows[0]}])


def test_a_chat_beside_a_text_is_a_choice() -> None:
    row = {"text": "a", "dialog": chat("a", "b")}
    with pytest.raises(DataError, match="--format text or --map messages=dialog"):
        looked([row])
    assert looked([row], "text").name == "text"
    assert looked([row], messages="dialog").name == "messages"


def test_a_text_that_lists_calls_stays_text_where_no_column_says_otherwise() -> None:
    calls = '[{"name": "add", "arguments": {}}]'
    tools = [{"type": "function", "function": {"name": "add"}}]
    assert read({"prompt": "p", "completion": calls}, as_chat=True) == Chat(chat("p", calls), num_prompt=1)
    row = {"query": "p", "answers": calls, "tools": tools}
    sample = looked([row]).sample(row, as_chat=True)
    assert isinstance(sample, Chat)
    assert [call["function"]["name"] for call in sample.messages[1]["tool_calls"]] == ["add"]
    assert sample.tools == tools
    bare = {"name": "add", "parameters": {"type": {"type": "str"}}}
    schema = {"name": "add", "parameters": {"type": "object", "properties": {"type": {"type": "str"}}}}
    in_xlams_way = looked([row]).sample(row | {"tools": json.dumps([bare])}, as_chat=True)
    assert in_xlams_way == Chat(sample.messages, tools=[{"type": "function", "function": schema}], num_prompt=1)
    unsure = {"query": "p", "answers": "It cannot be done.", "tools": tools}
    said = looked([row, row, unsure]).sample(unsure, as_chat=True)
    assert said == Chat(chat("p", "It cannot be done."), tools=tools, num_prompt=1)
    without = {**row, "answers": "[]"}
    with pytest.raises(RowFault, match="has no tool call"):
        looked([without, row, without]).sample(without, as_chat=True)


def test_rows_unlike_the_first_are_left_out_where_that_is_asked(
    run: Run, tmp_path: Path, lines: Lines, flags: list[object]
) -> None:
    rows = [{"dialog": chat("a", "b")}, {"dialog": ["a", "b"]}, {"dialog": "User: a\nAssistant: b"}]
    source = lines([rows[0], rows[0], *rows])
    ended = run("tokenize", source, "--output", tmp_path / "out", *flags, "--on-error", "drop")
    assert ended.code == 0, ended.err
    assert "messages from dialog" in ended.err
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert [(one["row"], one["reason"]) for one in dropped] == [(3, "not_text"), (4, "not_text")]
