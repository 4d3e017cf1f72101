"""What a cell claims, worked out apart from the tokeniser: by transformers, and by eye in the templates."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from chat_matrix.families import Family
from chat_matrix.kinds import Row

Sample = tuple[list[int], list[bool], int]
"""Token ids, whether each is a target, and the turn that ends the sample."""

_REASONING = ("reasoning_content", "reasoning", "thinking")
_INLINE = re.compile(r"<think>.*?</think>\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Holds samples of one template against transformers and against the family's headers and ends."""

    family: Family
    source: str
    """The template, with a day in place of the clock."""

    with_marks: str | None
    """TRL's variant with generation marks, if there is one."""

    whole: Any
    """The tokenizer as transformers has it."""

    def faults(self, row: Row, samples: Sequence[Sample], options: Mapping[str, Any]) -> list[str]:
        """What is wrong with the samples of a row, in words."""
        turns = self.family.messages([self._told(turn, options) for turn in row["messages"]])
        said = {number: _said(turn) for number, turn in enumerate(row["messages"]) if turn["role"] == "assistant"}
        faults = []
        trained: list[int] = []
        for ids, targets, last in samples:
            text, runs = self._expected(turns, row.get("tools"), ids, targets, last, options)
            if text is None:
                faults.append(f"ids of the sample up to turn {last} are not those of apply_chat_template")
                continue
            own = self._tokens(text, runs)
            if own != [number for number, is_target in enumerate(targets) if is_target]:
                faults.append(f"targets of the sample up to turn {last} are not what stands between header and end")
            written = "".join(text[slice(*run)] for run in runs)
            trained += [number for number, text in said.items() if number <= last and text in written]
        if sorted(trained) != list(said):
            faults.append(f"turns {sorted(trained)} are trained, not each of {list(said)} once")
        return faults

    def _expected(
        self,
        turns: list[dict[str, Any]],
        tools: Any,
        ids: list[int],
        targets: list[bool],
        last: int,
        options: Mapping[str, Any],
    ) -> tuple[str | None, list[tuple[int, int]]]:
        """The text that a sample should be, None if it is another, and those of the model's turns that it trains."""
        text = self.rendered(turns[: last + 1], tools)
        is_open = turns[last]["role"] == "assistant" and options.get("turn_end") == "next"
        text += self.family.next_opener if is_open else ""
        text = self._ended(text) if options.get("append_eos") else text
        if self._encoded(text)["input_ids"] == ids:
            return text, self._trained(text, targets)
        number = last  # as it is seen when the last turn is generated
        seen = self.rendered(turns[:number], tools, add_generation_prompt=True)
        text = seen + text[self.family.runs(text)[-1][0] :]
        if self._encoded(text)["input_ids"] == ids:
            return text, self._trained(text, targets)
        return None, []

    def _ended(self, text: str) -> str:
        """A text with the end token after each of the model's turns that it does not end."""
        for begin, end in reversed(self.family.runs(text)):
            is_open = re.search(rf"(?:{self.family.ends})\Z", text[begin:end]) is None
            text = text[:end] + self.family.eos + text[end:] if is_open else text
        return text

    def _trained(self, text: str, targets: list[bool]) -> list[tuple[int, int]]:
        """The model's turns of a text of which some token is a target."""
        return [run for run in self.family.runs(text) if any(targets[token] for token in self._tokens(text, [run]))]

    def _tokens(self, text: str, runs: Sequence[tuple[int, int]]) -> list[int]:
        offsets = self._encoded(text)["offset_mapping"]
        return [n for n, (a, b) in enumerate(offsets) if any(a < run[1] and b > run[0] for run in runs)]

    def by_marks(self, row: Row, samples: Sequence[Sample], options: Mapping[str, Any]) -> Counter[str] | None:
        """What TRL's marks train otherwise in a row's one sample; None where they cannot be asked.

        Each is a text with + for what they train and we do not, - for what we train and they do not.
        """
        if self.with_marks is None or len(samples) != 1 or options.get("turn_end"):
            return None
        ids, targets, _ = samples[0]
        turns = self.family.messages([self._told(turn, options) for turn in row["messages"]])
        try:
            marked = self.marked(turns, row.get("tools"))
        except Exception:  # a template is a program: anything can come out of it
            return None
        return self.differences(ids, targets, marked)

    def differences(self, ids: list[int], targets: list[bool], marked: Any) -> Counter[str] | None:
        """What marks train otherwise; None where they are of another text."""
        if marked["input_ids"] != ids:
            return None
        signed = [
            is_marked - is_target for is_marked, is_target in zip(marked["assistant_masks"], targets, strict=True)
        ]
        runs = groupby(zip(signed, ids, strict=True), key=lambda pair: pair[0])
        told = ((sign, self.whole.decode([token for _, token in run])) for sign, run in runs)
        return Counter(f"{'+' if sign > 0 else '-'}{text}" for sign, text in told if sign)

    def unexplained(self, differences: Counter[str] | None) -> list[str]:
        """Those differences that the family does not explain."""
        family = self.family
        return [
            told
            for told in differences or {}
            if not re.fullmatch(family.marks_more if told[0] == "+" else family.marks_less, told[1:])
        ]

    def marked(self, turns: list[dict[str, Any]], tools: Any) -> Any:
        """Token ids, and the mask of TRL's marks."""
        return self.whole.apply_chat_template(
            turns, tools=tools, chat_template=self.with_marks, return_assistant_tokens_mask=True, return_dict=True
        )

    def rendered(self, turns: list[dict[str, Any]], tools: Any, **how: Any) -> str:
        """What transformers renders."""
        return str(self.whole.apply_chat_template(turns, tools=tools, chat_template=self.source, tokenize=False, **how))

    def _encoded(self, text: str) -> Any:
        return self.whole(text, add_special_tokens=False, return_offsets_mapping=True)

    def _told(self, turn: Row, options: Mapping[str, Any]) -> Row:
        """A turn with its reasoning where the options put it."""
        thought = next((turn[key] for key in _REASONING if key in turn), None)
        rest = {key: value for key, value in turn.items() if key not in _REASONING}
        if options.get("reasoning") == "drop" and turn["role"] == "assistant":
            return rest | {"content": _INLINE.sub("", turn["content"])}
        has_place = self.family.thinks_before_calls_alone and bool(turn.get("tool_calls"))
        if thought is None or has_place or not options.get("reasoning_inline"):
            return turn
        return rest | {"content": f"<think>\n{thought}\n</think>\n\n{turn['content'] or ''}"}


def _said(turn: Row) -> str:
    """What tells a turn from the others."""
    said = (turn["content"] or "").split("</think>")[-1].strip() or turn.get("function_calls")
    return said or str(turn["tool_calls"][0]["function"]["arguments"]["city"])
