"""Families of chat templates: how each opens and ends what the model has to write, as read by eye in the templates."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

_TRL = find_spec("trl")
TEMPLATES = Path((_TRL and _TRL.origin) or "trl").parent / "chat_templates"
"""Those that TRL ships."""

OWN_TEMPLATES = Path(__file__).parents[2] / "tests/pipeline/templates"
"""Our own, in the style of families that TRL lacks."""

SPECIAL = re.compile(
    r"<[|｜][^<>'\"{}\s]{1,30}[|｜]>|</s>|\[/?[A-Z_]{4,20}\]|<(?:start|end)_of_turn>|<end_of_utterance>|<sop>|\[gMASK\]"
    r"|<\|(?:turn|channel|tool_call|tool_response|tool)>|<(?:turn|channel|tool_call|tool_response|tool)\|>"
)
"""What stands in a template and is a special token to its models."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """Templates that write alike. What the model writes stands between `opens` and, with it, `ends`."""

    templates: tuple[str, ...]
    opens: str
    """Regular expression of the generation prompt, as it stands in a chat."""

    ends: str
    """Regular expression of what generation stops at, which is trained with the turn."""

    eos: str
    """The tokenizer's end token."""

    folder: Path = TEMPLATES
    """Where the templates lie."""

    style: str = ""
    """What is special about a template of our own, in words."""

    special: re.Pattern[str] = SPECIAL
    """What stands in the templates and is a special token, besides `eos`."""

    takes_text: bool = False
    """Whether arguments of calls have to be JSON as text."""

    takes_parts: bool = False
    """Whether contents have to be lists of parts."""

    has_function_calls: bool = False
    """Whether calls are a text, `function_calls`, and their results the environment's."""

    thinks_before_calls_alone: bool = False
    """Whether reasoning has a place in turns with calls and in no others."""

    next_opener: str = ""
    """What generation stops at where the templates end no turn, so that `--turn-end next` puts it at a chat's end."""

    marks_more: str = r"(?!)"
    """Regular expression of what TRL's marks train beyond what the model has to write."""

    marks_less: str = r"(?!)"
    """Regular expression of what they leave out of it."""

    def row(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row in the way that chats for these models are written."""
        return row | {"messages": [_as_text(turn) for turn in row["messages"]]} if self.has_function_calls else row

    def runs(self, text: str) -> list[tuple[int, int]]:
        """The characters of what the model writes in each turn of a chat."""
        found: list[tuple[int, int]] = []
        at = 0
        while (opened := re.compile(self.opens).search(text, at)) and (
            ended := re.compile(self.ends).search(text, opened.end())
        ):
            found.append((opened.end(), ended.end()))
            at = opened.end() if ended.end() == opened.end() else ended.end() - len(ended[0])
        return found

    def messages(self, turns: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """A chat as these templates want it."""
        made = []
        for turn in turns:
            one = dict(turn)
            if self.takes_parts and isinstance(turn.get("content"), str):
                one["content"] = [{"type": "text", "text": turn["content"]}]
            if self.takes_text and turn.get("tool_calls"):
                one["tool_calls"] = [_with_text(call) for call in turn["tool_calls"]]
            made.append(one)
        return made


def _with_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return call | {"function": function | {"arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _as_text(turn: dict[str, Any]) -> dict[str, Any]:
    told = {key: value for key, value in turn.items() if key not in ("tool_calls", "tool_call_id", "name")}
    calls = [call["function"] for call in turn.get("tool_calls", ())]
    if calls:
        told |= {"content": turn["content"] or None, "function_calls": "\n".join(map(_code, calls))}
    return told | {"role": "environment" if turn["role"] == "tool" else turn["role"]}


def _code(function: dict[str, Any]) -> str:
    arguments = ", ".join(f"{key}={json.dumps(value)}" for key, value in function["arguments"].items())
    return f"{function['name']}({arguments})"


_NEWLINE = r"\n"
_CHATML = r"<\|im_start\|>assistant\n"
_OPEN_THINK = r"(?:<think>\n)?"
_GEMMA_4 = r"(?:<tool_response\|>)?<\|turn>model\n|<tool_response\|>(?!<\|turn>)"
_ONLY_THINK = r"<think>?\n?|\n"
_NO_OTHER = re.compile(r"(?!)")

FAMILIES = (
    Family(
        templates=("qwen2_5", "qwen2_5_vl", "qwen3", "qwen3_instruct_2507", "qwen3_vl", "lfm2", "lfm2_v2"),
        opens=_CHATML,
        ends=r"<\|im_end\|>",
        eos="<|im_end|>",
        marks_more=_NEWLINE,
    ),
    Family(
        templates=("qwen3_5_think", "qwen3_6", "qwen3_8"),
        opens=_CHATML + _OPEN_THINK,
        ends=r"<\|im_end\|>",
        eos="<|im_end|>",
        marks_more=_ONLY_THINK,
    ),
    Family(
        templates=("qwen3_5_nothink",),
        opens=_CHATML + r"(?:<think>\n(?:\n</think>\n\n)?)?",
        ends=r"<\|im_end\|>",
        eos="<|im_end|>",
        marks_more=rf"{_ONLY_THINK}|<think>\n\n</think>\n\n",
    ),
    Family(
        templates=("nemotron_3_nano", "nemotron_3_super", "nemotron_3_ultra", "nemotron_3_5_lightning"),
        opens=_CHATML + r"(?:<think>\n?)?",
        ends=r"<\|im_end\|>",
        eos="<|im_end|>",
        marks_more=_ONLY_THINK,
    ),
    Family(
        templates=("lfm2_2_5", "lfm2_2_5_v2", "lfm2_2_5_vl"),
        opens=_CHATML,
        ends=r"<\|im_end\|>\n",  # as their own marks have it
        eos="<|im_end|>",
    ),
    Family(
        templates=("cohere",),
        opens=r"<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|>",
        ends=r"<\|END_OF_TURN_TOKEN\|>",
        eos="<|END_OF_TURN_TOKEN|>",
    ),
    Family(
        templates=("cohere2",),
        opens=r"<\|START_OF_TURN_TOKEN\|><\|CHATBOT_TOKEN\|><\|START_RESPONSE\|>",
        ends=r"<\|END_OF_TURN_TOKEN\|>",
        eos="<|END_OF_TURN_TOKEN|>",
    ),
    Family(
        templates=("deepseekv3", "deepseek_r1_distill"),
        opens=r"<｜Assistant｜>|<｜tool▁outputs▁end｜>",
        ends=r"<｜end▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>",
        takes_text=True,
        marks_more=r"<｜Assistant｜>|<｜tool▁outputs▁end｜>",
    ),
    Family(
        templates=("gemma", "gemma3"),
        opens=r"<start_of_turn>model\n",
        ends=r"<end_of_turn>",
        eos="<end_of_turn>",
        marks_more=_NEWLINE,
    ),
    Family(
        templates=("gemma4_v5",),
        opens=_GEMMA_4,
        ends=r"<turn\|>|<\|tool_response>",
        eos="<turn|>",
        marks_more=_NEWLINE,
        marks_less=r"<\|tool_response>",
    ),
    Family(
        templates=("diffusion_gemma",),
        opens=r"<\|turn>model\n(?<!<tool_response\|><\|turn>model\n)|<tool_response\|>",
        ends=r"<turn\|>|<\|tool_response>",
        eos="<turn|>",
        marks_more=_NEWLINE,
        marks_less=r"<\|tool_response>|<\|turn>model\n",
    ),
    Family(templates=("gemma4_v2",), opens=_GEMMA_4, ends=r"<turn\|>|<\|tool_response>", eos="<turn|>"),
    Family(
        templates=("gemma4", "gemma4_v3", "gemma4_v4"),
        opens=_GEMMA_4,
        ends=r"<turn\|>|<\|tool_response>",
        eos="<turn|>",
        thinks_before_calls_alone=True,
    ),
    Family(
        templates=("glm4moe",),
        opens=r"<\|assistant\|>",
        ends=r"<\|user\|>|<\|observation\|>|<\|assistant\|>",
        eos="<|endoftext|>",
        next_opener="<|user|>",
    ),
    Family(
        templates=("gptoss",),
        opens=r"<\|start\|>assistant",
        ends=r"<\|return\|>|<\|call\|>|<\|channel\|>final<\|message\|>[^<]*<\|end\|>",
        eos="<|return|>",
        marks_more=r"<\|start\|>assistant",
    ),
    Family(
        templates=("muse_glimmer",),
        opens=r"<\|start\|>assistant",
        ends=r"<\|eot\|>",
        eos="<|eot|>",
        marks_more=r"<\|start\|>assistant",
    ),
    Family(
        templates=("idefics3", "smolvlm"),
        opens=r"Assistant:",
        ends=r"<end_of_utterance>",
        eos="<end_of_utterance>",
        takes_parts=True,
        marks_more=_NEWLINE,
    ),
    Family(templates=("llava_next",), opens=r"\[/INST\]|(?<=</s>) (?= )", ends=r"</s>", eos="</s>", takes_parts=True),
    Family(
        templates=("llama3", "llama3_1", "llama3_2"),
        opens=r"<\|start_header_id\|>assistant<\|end_header_id\|>\n\n",
        ends=r"<\|eot_id\|>|<\|eom_id\|>",
        eos="<|eot_id|>",
    ),
    Family(
        templates=("phi3", "phi3_5"),
        opens=r"<\|assistant\|>\n",
        ends=r"<\|end\|>(?:\n<\|endoftext\|>)?",
        eos="<|endoftext|>",
        marks_more=_NEWLINE,
    ),
    Family(
        templates=("mistral_tools",),
        opens=r"\[/INST\]|\[/TOOL_RESULTS\](?!\[TOOL_RESULTS\])",
        ends=r"</s>",
        eos="</s>",
        folder=OWN_TEMPLATES,
        style=(
            "no generation prompt; tools and system turn stand before the last user turn, wherever that"
            " is; a turn with calls has no text"
        ),
    ),
    Family(
        templates=("llama2",),
        opens=r"\[/INST\]",
        ends=r"</s>",
        eos="</s>",
        folder=OWN_TEMPLATES,
        style="marks of turns are plain text, the bos token begins every question, no generation prompt",
        special=_NO_OTHER,
    ),
    Family(
        templates=("zephyr",),
        opens=r"<\|assistant\|>\n",
        ends=r"</s>",
        eos="</s>",
        folder=OWN_TEMPLATES,
        style="marks of turns are plain text, and the eos token ends every turn, whoever speaks",
        special=_NO_OTHER,
    ),
    Family(
        templates=("olmo",),
        opens=r"<\|assistant\|>\n",
        ends=r"<\|endoftext\|>|(?=\n<\|(?:user|assistant)\|>\n)",
        eos="<|endoftext|>",
        folder=OWN_TEMPLATES,
        style=(
            "marks of turns are plain text, and the eos token ends the last answer alone; nothing ends those before it"
        ),
        special=_NO_OTHER,
    ),
    Family(
        templates=("olmo_tools",),
        opens=_CHATML,
        ends=r"<\|im_end\|>|<\|endoftext\|>",
        eos="<|endoftext|>",
        folder=OWN_TEMPLATES,
        style=(
            "`<|im_end|>` ends turns and the eos token the last; calls are a text, `function_calls`, and"
            " their results the role `environment`'s: its chats were written so"
        ),
        has_function_calls=True,
    ),
    Family(
        templates=("chatml_eos",),
        opens=_CHATML,
        ends=r"<\|im_end\|></s>",
        eos="</s>",
        folder=OWN_TEMPLATES,
        style="answers end with `<|im_end|>` and, after it, the eos token",
    ),
)
"""Every template that TRL ships, but for its variants with marks, and our own."""
