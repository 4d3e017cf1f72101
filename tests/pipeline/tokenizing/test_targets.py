"""Token ids equal transformers' own; targets are the assistant's words and their end tokens, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.format.options import TokenizeOptions
from pipeline.reading.decoding.raw import RawBlock
from pipeline.tokenizing.chats.turns.finder import TurnFinder
from pipeline.tokenizing.encoding import EncodedBlock, Encoder
from pipeline.tokenizing.rows.formats import Format
from pipeline.tokenizing.tokenization import load_tokenization, turn_reader
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer
from tests.pipeline.chats import STYLES, chat, template
from tests.pipeline.tokenizing.oracle import lines_of, samples_of, straddle_free, trained_runs

END = {"chatml": "<|im_end|>", "llama3": "<|eot_id|>", "mistral": "</s>", "gemma": "<end_of_turn>"}
BEFORE = {"chatml": "", "llama3": "", "mistral": " ", "gemma": ""}
"""What a template writes between its generation prompt and an answer."""

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
ODD = st.sampled_from(
    ["a", " a", "a\n", "\n\nb", "  x  ", "😀", "é😀", "的", "</s>", "assistant", "[INST] x", "\u2028", "1"]
)


def encoder(tokenizer: Path | TextTokenizer, source: str, tmp_path: Path, **options: Any) -> Encoder:
    path = tmp_path / "template.jinja"
    path.write_text(source, encoding="utf-8")
    tokenization = load_tokenization(tokenizer, path, TokenizeOptions(**options))
    return Encoder(
        tokenization.tokenizer,
        tokenization.template,
        Format(
            name="messages",
            columns={"messages": "messages", "tools": "tools"},
            reader=turn_reader(tokenization.options, tokenization.template),
        ),
        tokenization.options,
    )


def encode(one: Encoder, chats: list[Any]) -> EncodedBlock:
    return one.encode(RawBlock(lines_of([row if isinstance(row, dict) else {"messages": row} for row in chats]), 0))


@pytest.fixture(params=STYLES)
def style(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(WORDS | ODD, min_size=2, max_size=7).filter(lambda turns: any(map(str.strip, turns[1::2]))))
def test_any_chat(style: str, turns: list[str], tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    turns = [turn if turn.strip() else "x" for turn in turns]
    conversation = chat(*turns)
    found = encode(encoder(tokenizer_dir, template(style, marks=False), tmp_path), [conversation])
    assert not found.faults
    own = whole.apply_chat_template(conversation, chat_template=template(style, marks=False))
    assert found.input_ids.tolist() == own["input_ids"]
    texts = [turn if style == "chatml" else turn.strip() for turn in turns[1::2]]
    runs = trained_runs(*samples_of(found)[0])
    wanted = [BEFORE[style] + text + END[style] for text in texts]
    assert [straddle_free(run, text, whole) for run, text in zip(runs, wanted, strict=True)] == wanted


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(WORDS | ODD, min_size=2, max_size=7))
def test_marks_are_followed(style: str, turns: list[str], tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    conversation = chat(*(turn if turn.strip() else "x" for turn in turns))
    found = encode(encoder(tokenizer_dir, template(style, marks=True), tmp_path), [conversation])
    own = whole.apply_chat_template(
        conversation, chat_template=template(style, marks=True), return_assistant_tokens_mask=True
    )
    assert found.input_ids.tolist() == own["input_ids"]
    assert (found.labels != -100).astype(int).tolist() == own["assistant_masks"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(WORDS | ODD, min_size=2, max_size=7))
def test_all_ways_find_the_same(
    style: str, turns: list[str], tokenizer_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [chat(*(turn if turn.strip() else "x" for turn in turns))]
    source = template(style, marks=False)
    plain = samples_of(encode(encoder(tokenizer_dir, source, tmp_path), rows))
    keyed = samples_of(encode(encoder(tokenizer_dir, source, tmp_path), [[{**turn, "id": 7} for turn in rows[0]]]))
    with monkeypatch.context() as patched:
        patched.setattr(TurnFinder, "_find", lambda *_: None)
        alone = samples_of(encode(encoder(tokenizer_dir, source, tmp_path), rows))
    assert plain == keyed == alone
    assert len(plain) == 1


def test_a_text_that_stands_elsewhere_too_is_not_mistaken(tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    conversation = chat("assistant", "assistant", "user", "assistant")
    found = encode(encoder(tokenizer_dir, template("chatml", marks=False), tmp_path), [conversation])
    (sample,) = samples_of(found)
    assert [whole.decode(run) for run in trained_runs(*sample)] == ["assistant<|im_end|>"] * 2
    marked = encode(encoder(tokenizer_dir, template("chatml", marks=True), tmp_path), [conversation])
    assert samples_of(marked) == [sample]


THINKING = """{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.role == 'assistant' and not loop.last and '</think>' in message.content -%}
        {{- message.content.split('</think>')[-1].lstrip('\\n') -}}
    {%- elif message.role == 'assistant' and '</think>' in message.content -%}
        {{- '<think>\\n' + message.content.split('</think>')[0].split('<think>')[-1].strip('\\n') + '\\n</think>\\n\\n'
            + message.content.split('</think>')[1].strip('\\n') -}}
    {%- else -%}{{- message.content -}}{%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


def test_a_template_that_looks_into_the_text(tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    one = encoder(tokenizer_dir, THINKING, tmp_path)
    thought = "<think>\nbecause\n</think>\n\nyes"
    found = encode(one, [chat("q", thought), chat("q", thought, "more", "no"), chat("q", "because</think>yes")])
    sample, opened = samples_of(found)
    assert [whole.decode(run) for run in trained_runs(*sample)] == [thought + "<|im_end|>"]
    assert [whole.decode(run) for run in trained_runs(*opened)] == [thought + "<|im_end|>"]
    # In the second the first turn is rendered otherwise within the whole.
    assert [(fault.row, fault.reason) for fault in found.faults] == [(1, "history_rewritten")]
    # It does not have to be told where only the last turn is trained.
    one = encoder(tokenizer_dir, THINKING, tmp_path, train_on="completion")
    last = encode(one, [chat("q", thought, "r", "no")])
    assert [whole.decode(run) for run in trained_runs(*samples_of(last)[0])] == ["no<|im_end|>"]


NO_END = "{% for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}"


def test_a_template_without_end_tokens(tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    conversation = chat("q", "first", "r", "second")
    (fault,) = encode(encoder(tokenizer_dir, NO_END, tmp_path), [conversation]).faults
    assert (fault.reason, "--append-eos" in fault.detail) == ("no_end_token", True)
    (sample,) = samples_of(encode(encoder(tokenizer_dir, NO_END, tmp_path, append_eos=True), [conversation]))
    assert whole.decode(sample[0]) == "user: q\nassistant: first</s>\nuser: r\nassistant: second</s>\n"
    runs = trained_runs(*sample)
    wanted = ["first</s>", "second</s>"]
    assert [straddle_free(run, text, whole) for run, text in zip(runs, wanted, strict=True)] == wanted


def test_what_the_template_inserts_is_trained_unless_masked(tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    source = template("chatml", marks=False).replace(
        "message.content + '<|im_end|>'", "message.content + '@@<|im_end|>'"
    )
    for inserted, wanted in (("auto", ["yes@@<|im_end|>"]), ("mask", ["yes", "<|im_end|>"])):
        one = encoder(tokenizer_dir, source, tmp_path, inserted=inserted)
        (sample,) = samples_of(encode(one, [chat("q", "yes")]))
        assert whole.decode(sample[0]).count("@@") == 2
        assert [whole.decode(run) for run in trained_runs(*sample)] == wanted


TOOLS = """{%- if tools -%}{{- 'tools: ' + (tools | tojson) + '\\n' -}}{%- endif -%}
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.content -%}{{- message.content -}}{%- endif -%}
    {%- for call in message.tool_calls or [] -%}{{- '<call>' + (call.function | tojson) + '</call>' -}}{%- endfor -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


def test_tool_calls_are_trained(tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    conversation = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2"},
        {"role": "assistant", "content": "Two."},
    ]
    tools = [{"type": "function", "function": {"name": "add"}}]
    found = encode(encoder(tokenizer_dir, TOOLS, tmp_path), [{"messages": conversation, "tools": tools}])
    assert not found.faults
    (sample,) = samples_of(found)
    own = whole.apply_chat_template(conversation, tools=tools, chat_template=TOOLS)
    assert sample[0] == own["input_ids"]
    assert [whole.decode(run) for run in trained_runs(*sample)] == [
        '<call>{"name": "add", "arguments": {"a": 1}}</call><|im_end|>',
        "Two.<|im_end|>",
    ]


def test_all_and_completion(tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    conversation = chat("q", "first", "r", "second")
    for marks in (False, True):
        source = template("chatml", marks=marks)
        (sample,) = samples_of(encode(encoder(tokenizer_dir, source, tmp_path, train_on="all"), [conversation]))
        assert sample[0] == sample[1]
        (sample,) = samples_of(encode(encoder(tokenizer_dir, source, tmp_path, train_on="completion"), [conversation]))
        assert [whole.decode(run) for run in trained_runs(*sample)] == ["second<|im_end|>"]


def test_marks_that_leave_out_the_end_token_are_noted(tokenizer_dir: Path, tmp_path: Path) -> None:
    marked = template("chatml", marks=True)
    short = marked.replace(
        "message.content + '<|im_end|>' -}}{%- endgeneration -%}",
        "message.content -}}{%- endgeneration -%}{{- '<|im_end|>' -}}",
    )
    assert short != marked
    assert encode(encoder(tokenizer_dir, short, tmp_path), [chat("q", "a")]).notes == {"unfinished": [0]}
    assert encode(encoder(tokenizer_dir, marked, tmp_path), [chat("q", "a")]).notes == {}


def test_special_tokens_in_somebodys_words_are_noted(tokenizer_dir: Path, tmp_path: Path) -> None:
    rows = [chat("q", "a"), chat("<|im_start|>user\nq<|im_end|>", "a")]
    found = encode(encoder(tokenizer_dir, template("chatml", marks=False), tmp_path), rows)
    assert found.notes == {"holds_special": [1]}


@pytest.mark.parametrize(
    "source",
    [
        "{% for m in messages %}{{ m.role }}: {{ m.contents }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content[:3] }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content | upper }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content | replace('l', 'L') }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{% if not loop.last %}{{ m.role }}: {{ m.content }}<|im_end|>{% endif %}{% endfor %}",
        "{% for m in messages if m.role != 'user' %}{{ m.role }}: {{ m.content }}<|im_end|>{% endfor %}",
        "{% for m in messages %}{{ m.role }}: {{ m.content }} {{ m.content }}<|im_end|>{% endfor %}",
    ],
    ids=["lost", "cut", "upper case", "replaced", "the last left out", "users left out", "twice"],
)
def test_templates_that_do_not_write_what_was_said(tokenizer_dir: Path, tmp_path: Path, source: str) -> None:
    for conversation in (chat("Hallo", "hello there"), chat("Hi", "hello hello", "Bye", "bye all")):
        found = encode(encoder(tokenizer_dir, source, tmp_path), [conversation])
        assert [fault.reason for fault in found.faults] == ["template_mismatch"], found


def test_a_tool_call_that_the_template_ignores(tokenizer_dir: Path, tmp_path: Path) -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    conversation = [*chat("1+1?"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    for marks in (False, True):
        found = encode(encoder(tokenizer_dir, template("chatml", marks=marks), tmp_path), [conversation])
        (fault,) = found.faults
        assert (fault.reason, "tool call 'add'" in fault.detail) == ("template_mismatch", True)


def test_white_space_before_a_tool_call_is_trained(tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    """The generation prompt ends before it, so the model has to write it."""
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    conversation = [*chat("1+1?"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    (sample,) = samples_of(
        encode(encoder(tokenizer_dir, TOOLS.replace("<call>", "\\n<call>"), tmp_path), [conversation])
    )
    assert whole.decode(trained_runs(*sample)[0]).startswith("\n<call>")


def test_the_header_of_a_tool_call_is_found_without_a_generation_prompt(
    tokenizer_dir: Path, whole: Any, tmp_path: Path
) -> None:
    source = TOOLS.rpartition("{%- if add_generation_prompt")[0]
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    conversation = [*chat("1+1?"), {"role": "assistant", "content": "", "tool_calls": [call]}]
    (sample,) = samples_of(encode(encoder(tokenizer_dir, source, tmp_path), [conversation]))
    assert [whole.decode(run) for run in trained_runs(*sample)] == [
        '<call>{"name": "add", "arguments": {"a": 1}}</call><|im_end|>'
    ]


def test_reasoning_is_trained_or_the_row_refused(tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    turn = {"role": "assistant", "content": "Two.", "reasoning_content": "one and one"}
    (fault,) = encode(encoder(tokenizer_dir, template("chatml", marks=False), tmp_path), [[*chat("q"), turn]]).faults
    assert (fault.reason, "'one and one'" in fault.detail) == ("template_mismatch", True)
    thought = "('<think>' + message.reasoning_content + '</think>' if message.reasoning_content else '')"
    source = template("chatml", marks=False).replace("message.content + ", f"{thought} + message.content + ")
    (sample,) = samples_of(encode(encoder(tokenizer_dir, source, tmp_path), [[*chat("q"), turn]]))
    assert [whole.decode(run) for run in trained_runs(*sample)] == ["<think>one and one</think>Two.<|im_end|>"]


def test_turns_of_weight_zero_are_not_trained(tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    conversation = chat("q", "bad", "r", "good")
    conversation[1]["weight"] = 0  # type: ignore[assignment]
    for marks in (False, True):
        found = encode(encoder(tokenizer_dir, template("chatml", marks=marks), tmp_path), [conversation])
        assert [whole.decode(run) for run in trained_runs(*samples_of(found)[0])] == ["good<|im_end|>"]


def test_arguments_as_text_are_decoded(tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    one = encoder(tokenizer_dir, TOOLS, tmp_path)
    for arguments, written in (('{"a": 1}', '{"a": 1}'), ("", "{}"), ("not JSON", '"not JSON"')):
        call = {"type": "function", "function": {"name": "add", "arguments": arguments}}
        found = encode(one, [[*chat("1+1?"), {"role": "assistant", "content": "", "tool_calls": [call]}]])
        ((ids, labels),) = samples_of(found)
        assert [whole.decode(run) for run in trained_runs(ids, labels)] == [
            '<call>{"name": "add", "arguments": ' + written + "}</call><|im_end|>"
        ]
        assert found.kinds.total() == sum(label != -100 for label in labels)


def test_content_in_parts_is_one_text(tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "yo "}, {"type": "text", "text": "you"}]
    picture = [{"type": "image", "url": "x"}]
    rows = [
        [*chat("q"), {"role": "assistant", "content": parts}],
        [*chat("q"), {"role": "assistant", "content": picture}],
    ]
    found = encode(encoder(tokenizer_dir, template("chatml", marks=False), tmp_path), rows)
    assert [whole.decode(run) for run in trained_runs(*samples_of(found)[0])] == ["yo you<|im_end|>"]
    assert [(fault.row, fault.reason) for fault in found.faults] == [(1, "image")]


def test_the_last_turn_may_end_otherwise(tokenizer_dir: Path, whole: Any, tmp_path: Path) -> None:
    """An end token that only the last turn has is not found in the header of the turn after another one."""
    source = (
        "{% for m in messages %}<|im_start|>{{ m.role + ' ' + m.content }}{% if loop.last %}</s>{% endif %}{% endfor %}"
    )
    one = encoder(tokenizer_dir, source, tmp_path)
    found = encode(one, [chat("q", "a"), chat("q", "a", "r", "b")])
    assert [whole.decode(run) for run in trained_runs(*samples_of(found)[0])] == [" a</s>"]
    assert [(fault.row, fault.reason) for fault in found.faults] == [(1, "no_end_token")]


def test_other_keys_of_a_turn_change_nothing(style: str, tokenizer_dir: Path, tmp_path: Path) -> None:
    source = template(style, marks=False).rpartition("{%- if add_generation_prompt")[0] or template(style, marks=False)
    plain = chat("a?", "  A  ", "assistant", "assistant")
    keyed = [{**turn, "id": 7} for turn in plain]
    one, two = samples_of(encode(encoder(tokenizer_dir, source, tmp_path), [plain, keyed]))
    assert one == two


def test_an_empty_mark_marks_nothing(tokenizer_dir: Path, tmp_path: Path) -> None:
    marked = template("chatml", marks=True)
    source = marked.replace("{%- generation -%}", "{%- generation -%}{%- endgeneration -%}{%- generation -%}", 1)
    rows = [chat("q", "a")]
    found, wanted = (samples_of(encode(encoder(tokenizer_dir, text, tmp_path), rows)) for text in (source, marked))
    assert found == wanted and len(found) == 1
