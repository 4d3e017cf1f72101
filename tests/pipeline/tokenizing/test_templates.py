"""What templates of TRL do with chats, each in a way of its own."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import AutoTokenizer

from tests.documents import ROOT
from tests.pipeline.chats import STYLES
from tests.pipeline.tokenizing.oracle import samples_of
from tests.pipeline.tokenizing.test_chats import AGENT, CALL, PLAIN, REASONED, TEMPLATES, TOOL, answer, told, user

WORDS = [("first", "Hello"), ("second", "Ciao")]


def test_an_answer_that_loses_what_was_thought_before_a_call_is_cut_there(tok: Path, tmp_path: Path) -> None:
    """gpt-oss writes it until the final answer is there; while that is generated, it is read."""
    looked, said = (AGENT[n] | {"reasoning_content": thought} for n, thought in ((1, "Look."), (3, "Mild.")))
    row = {"messages": [AGENT[0], looked, AGENT[2], said], "tools": [TOOL]}
    day = {"template_date": "2026-01-02"}
    (fault,) = told(tok, "gptoss", tmp_path, row, **day)[0].faults
    assert fault.reason == "history_rewritten"
    found, ((call,), (final,)) = told(tok, "gptoss", tmp_path, row, history="expand", **day)
    assert call.startswith("<|channel|>analysis<|message|>Look.<|end|><|start|>assistant to=functions.get_weather")
    assert final == (
        "<|channel|>analysis<|message|>Mild.<|end|><|start|>assistant<|channel|>final<|message|>It is 12.<|return|>"
    )
    source = (
        (TEMPLATES / "gptoss.jinja").read_text(encoding="utf-8").replace('strftime_now("%Y-%m-%d")', '"2026-01-02"')
    )
    whole: Any = AutoTokenizer.from_pretrained(tok)
    seen = whole.apply_chat_template(
        row["messages"][:3], tools=[TOOL], chat_template=source, add_generation_prompt=True
    )
    (_, (ids, labels)) = samples_of(found)
    first = next(at for at, label in enumerate(labels) if label != -100)
    assert ids[:first] == seen["input_ids"]
    assert found.turns == [1, 3]
    rendered, runs = told(tok, "gptoss", tmp_path, row, history="as-rendered", **day)
    assert (len(runs), rendered.notes) == (1, {"history_left_out": [0]})


def test_a_call_whose_name_is_written_twice(tok: Path, tmp_path: Path) -> None:
    turns = [AGENT[0], answer("", tool_calls=[CALL | {"id": "1"}, CALL | {"id": "2"}])]
    row = {"messages": turns, "tools": [TOOL]}
    _, ((calls,),) = told(tok, "muse_glimmer", tmp_path, row, template_date="2026-01-02")
    assert calls.startswith(" to=get_weather<|message|><atem:function_calls>")
    assert (calls.count("Oslo"), calls[-7:]) == (2, "<|eot|>")


CALLS = [CALL | {"id": "1"}, CALL | {"id": "2"}]
RESULTS = [{"role": "tool", "content": word, "name": "get_weather", "tool_call_id": word[-1]} for word in ("w1", "w2")]


@pytest.mark.parametrize("name", ["gemma4", "gemma4_v5", "diffusion_gemma"])
def test_results_inside_a_turn_are_not_trained(tok: Path, tmp_path: Path, name: str) -> None:
    """Ids tell such chats from those of their shape, so that what others say is looked at otherwise."""
    turns = [AGENT[0], answer("I look.", tool_calls=CALLS), *RESULTS, answer("It is 12.")]
    (fault,) = told(tok, name, tmp_path, {"messages": turns, "tools": [TOOL]})[0].faults
    assert "writes some of it after what comes next" in fault.detail
    turns[1] = answer("", tool_calls=CALLS)
    assert told(tok, name, tmp_path, {"messages": turns, "tools": [TOOL]})[0].faults == []


def test_a_call_in_front_of_inline_reasoning_is_a_call(tok: Path, tmp_path: Path) -> None:
    row = {"messages": [AGENT[0], answer("", tool_calls=[CALL], reasoning="Look.")], "tools": [TOOL]}
    found, ((run,),) = told(tok, "gemma4_v2", tmp_path, row, reasoning_inline=True, tool_calls="mask")
    assert run == "<think>\nLook.\n</think><turn|>"
    assert set(found.kinds) == {"reasoning", "end"}


@pytest.mark.parametrize(
    ("options", "trained"),
    [
        ({"reasoning": "mask"}, ["Hello.<|im_end|>\n", "Ciao.<|im_end|>\n"]),
        ({"reasoning": "mask", "inserted": "mask"}, ["Hello.<|im_end|>\n", "Ciao.<|im_end|>\n"]),
        ({}, [f"<think>\n{one} thought\n</think>\n\n{said}.<|im_end|>\n" for one, said in WORDS]),
    ],
)
def test_marks_round_turns_whose_prompt_closes_reasoning(
    tok: Path, tmp_path: Path, options: dict[str, Any], trained: list[str]
) -> None:
    """Where they begin is told by the marks alone; what is reasoning in them is masked all the same."""
    found, runs = told(tok, "qwen3_5_nothink_training", tmp_path, REASONED, **options)
    assert runs == [trained]
    assert bool(found.kinds["reasoning"]) is not bool(options)


TWICE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}"
    "{{ m.content }} ({{ m.content }})<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize(
    ("options", "flag"), [({"reasoning": "mask"}, "--reasoning mask"), ({"inserted": "mask"}, "--inserted mask")]
)
def test_marks_in_which_what_is_masked_cannot_be_told(
    tok: Path, tmp_path: Path, options: dict[str, Any], flag: str
) -> None:
    turns = [user("Hi"), answer("<think>Hm.</think>Hello.")]
    (fault,) = told(tok, TWICE, tmp_path, turns, **options)[0].faults
    assert (fault.reason, flag in fault.detail) == ("template_mismatch", True)
    assert told(tok, TWICE, tmp_path, turns)[0].faults == []
    assert told(tok, TWICE, tmp_path, PLAIN, reasoning="mask")[0].faults == []


def test_turns_that_a_template_merges_are_one(tok: Path, tmp_path: Path) -> None:
    row = [user("Hi"), answer("Hello."), answer("Again.")]
    assert told(tok, "gemma4_v5", tmp_path, row)[1] == [["Hello.Again.<turn|>"]]
    assert told(tok, "gemma4_v5", tmp_path, row, train_on="last")[1] == [["Again.<turn|>"]]


def test_templates_that_take_contents_in_parts_alone(tok: Path, tmp_path: Path) -> None:
    _, runs = told(tok, "idefics3", tmp_path, PLAIN)
    assert runs == [[" Hello.<end_of_utterance>", " Ciao.<end_of_utterance>"]]


def test_reasoning_that_a_template_writes_of_calls_alone(tok: Path, tmp_path: Path) -> None:
    row = [AGENT[0], AGENT[1] | {"reasoning": "Look."}, AGENT[2], answer("It is 12.", reasoning="Mild.")]
    _, ((call, said),) = told(tok, "gemma4", tmp_path, {"messages": row, "tools": [TOOL]}, reasoning_inline=True)
    assert call.startswith("<|channel>thought\nLook.\n<channel|><|tool_call>")
    assert said == "<think>\nMild.\n</think>\n\nIt is 12.<turn|>"
    (fault,) = told(tok, "deepseekv3", tmp_path, REASONED[:2], append_eos=True, reasoning_inline=True)[0].faults
    assert fault.detail.endswith("'first thought'; --reasoning drop takes it out")


LAST_END = (
    "{% for m in messages %}<|the {{ m.role }}|>{{ m.content }}"
    "{% if m.function_calls %} = {{ m.function_calls }};{% endif %}"
    "{{ eos_token if loop.last and m.role == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}<|the assistant|>{% endif %}"
)
"""Only the last turn has an end, and it begins as the header does that follows the others, which is no token."""


@pytest.mark.parametrize(("options", "end"), [({"turn_end": "none"}, ""), ({"append_eos": True}, "<|eos|>")])
def test_what_follows_a_turn_is_no_part_of_it(tok: Path, tmp_path: Path, options: dict[str, Any], end: str) -> None:
    whole: Any = AutoTokenizer.from_pretrained(tok)
    whole.add_special_tokens({"eos_token": "<|eos|>"})
    whole.save_pretrained(tmp_path / "tok")
    turns = [user("Hi"), answer("Yo", function_calls="look()"), *PLAIN]
    _, (runs,) = told(tmp_path / "tok", LAST_END, tmp_path, turns, **options)
    assert runs == [f"Yo = look();{end}", f"Hello.{end}", "Ciao.<|eos|>"]


@pytest.fixture(scope="module")
def chat_matrix() -> Iterator[Any]:
    """What makes docs/templates.md."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "scripts"))
        names = ("cells", "families", "kinds", "marks", "page")
        yield SimpleNamespace(**{name: importlib.import_module(f"chat_matrix.{name}") for name in names})


@pytest.fixture(scope="module")
def benches(chat_matrix: Any, tokenizer_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Every third template of TRL and all of our own; scripts/templates tries every one."""
    every, own = (
        [name for family in chat_matrix.families.FAMILIES if bool(family.style) == is_own for name in family.templates]
        for is_own in (False, True)
    )
    folder = tmp_path_factory.mktemp("benches")
    found: dict[str, Any] = chat_matrix.cells.benches(tokenizer_dir / "tokenizer.json", folder, [*every[::3], *own])
    return found


def test_the_page_says_what_becomes_of_chats(chat_matrix: Any, benches: dict[str, Any]) -> None:
    page = (ROOT / "docs/templates.md").read_text(encoding="utf-8")
    told = chat_matrix.page.told_in(page)
    of_trl = {path.stem for path in TEMPLATES.glob("*.jinja") if not path.stem.endswith("_training")}
    own = {path.stem for path in chat_matrix.families.OWN_TEMPLATES.glob("*.jinja")} - {*STYLES, "chatml_tools"}
    assert set(told) == of_trl | own
    matrix = chat_matrix.cells.matrix(benches)
    assert len(matrix) > 12
    for name, row in matrix.items():
        assert {kind: chat_matrix.page.words_of(cell) for kind, cell in row.items()} == told[name], name


def test_oracles_see_wrong_samples(chat_matrix: Any, benches: dict[str, Any]) -> None:
    bench = benches["qwen2_5"]
    row = chat_matrix.kinds.KINDS["call in an earlier turn"]
    ((ids, targets, turn),) = chat_matrix.cells.samples_of(bench.encoded(row, {}))
    first, last = targets.index(True), max(at for at, is_target in enumerate(targets) if is_target)
    for wrong in (
        [(ids, [*targets[: first - 1], True, *targets[first:]], turn)],
        [(ids, [*targets[:last], False, *targets[last + 1 :]], turn)],
        [(ids, [is_target and at > first + 40 for at, is_target in enumerate(targets)], turn)],
        [([*ids[:-1], ids[0]], targets, turn)],
        [(ids, targets, turn)] * 2,
    ):
        assert bench.judge.faults(row, wrong, {}) != []
    assert bench.judge.faults(row, [(ids, targets, turn)], {}) == []
    shifted = bench.judge.by_marks(row, [(ids, [*targets[1:], False], turn)], {})
    assert bench.judge.unexplained(shifted) != []


@pytest.mark.parametrize("name", ["qwen2_5", "gptoss", "gemma"])
def test_marks_are_followed_over_real_chats(
    chat_matrix: Any, tokenizer_dir: Path, tmp_path: Path, real_data: Path, name: str
) -> None:
    lines = (real_data / "oasst1/conversations.jsonl").read_text(encoding="utf-8").splitlines()[::80]
    (bench,) = chat_matrix.cells.benches(tokenizer_dir / "tokenizer.json", tmp_path, [name]).values()
    counts, others = chat_matrix.marks.compared(bench, [json.loads(line) for line in lines])
    assert (counts["equal"], counts["same text"], counts["explained"]) == (len(lines),) * 3, others
