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

    takes_text: bool = False
    """Whether arguments of calls have to be JSON as text."""

    takes_parts: bool = False
    """Whether contents have to be lists of parts."""

    thinks_before_calls_alone: bool = False
    """Whether reasoning has a place in turns with calls and in no others."""

    next_opener: str = ""
    """What generation stops at where the templates end no turn, so that `--turn-end next` puts it at a chat's end."""

    marks_more: str = r"(?!)"
    """Regular expression of what TRL's marks train beyond what the model has to write."""

    marks_less: str = r"(?!)"
    """Regular expression of what they leave out of it."""

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


_NEWLINE = r"\n"
_CHATML = r"<\|im_start\|>assistant\n"
_OPEN_THINK = r"(?:<think>\n)?"
_GEMMA_4 = r"(?:<tool_response\|>)?<\|turn>model\n|<tool_response\|>(?!<\|turn>)"
_ONLY_THINK = r"<think>?\n?|\n"

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
        templates=("gemma4_v5", "diffusion_gemma"),
        opens=_GEMMA_4,
        ends=r"<turn\|>|<\|tool_response>",
        eos="<turn|>",
        marks_more=_NEWLINE,
        marks_less=r"<\|tool_response>",
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
)
"""Every template that TRL ships, but for its variants with marks."""
