"""A sample → its text, with the characters that are to be trained."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from pipeline.base.errors import ConfigError
from pipeline.base.words import counted
from pipeline.format.options import TokenizeOptions
from pipeline.tokenizing.chats.formats import Chat, Format, RowFault, Sample, Text, unsaid
from pipeline.tokenizing.chats.template import ChatTemplate, Span, TemplateRefusal
from pipeline.tokenizing.chats.turns import Turn, TurnFinder
from pipeline.tokenizing.tokenizer import TextTokenizer


@dataclass(slots=True, kw_only=True)
class Rendering:
    """A sample as text."""

    text: str
    targets: list[Span] | None
    """Characters to be trained, in order; None trains every token."""

    end_tokens: list[Span] = field(default_factory=list)
    """Characters of special tokens that end a trained turn."""

    prompt: str
    """What the user said, to embed the sample by; all of a plain text."""

    notes: list[str]
    """What is to be said about it; see `tally.NOTES`."""


class Renderer:
    """Renders the samples of one format."""

    def __init__(
        self, tokenizer: TextTokenizer, template: ChatTemplate | None, format_: Format, options: TokenizeOptions
    ) -> None:
        """template: None lays pairs end to end. Raises `ConfigError` for targets that the format cannot have."""
        train_on = options.train_on or format_.default_train_on
        if format_.name == "text" and train_on != "all":
            raise ConfigError(f"--train-on {train_on}: plain text has no {train_on}; it is trained as a whole")
        self._train_on = train_on
        self._template, self._special_texts = template, tokenizer.special_texts
        self._turns = TurnFinder(template, tokenizer.special_texts) if template else None
        self._eos = tokenizer.eos_text if options.append_eos else None

    def together(self, samples: Sequence[Sample]) -> dict[int, str]:
        """What a template writes for chats without tools, by their identity; nothing if it refuses one of them."""
        if self._template is None or self._uses_marks:
            return {}
        chats = [sample for sample in samples if isinstance(sample, Chat) and sample.tools is None]
        try:
            texts = self._template.render_all([chat.messages for chat in chats])
        except TemplateRefusal:
            return {}
        return {id(chat): text for chat, text in zip(chats, texts, strict=True)}

    @property
    def _uses_marks(self) -> bool:
        return self._template is not None and self._template.has_marks and self._train_on != "all"

    def render(self, sample: Sample, chat_text: str | None) -> Rendering:
        """Render one sample; chat_text: what `together` gave for it. Raises `RowFault`."""
        if isinstance(sample, Chat):
            return self._chat(sample, chat_text)
        if isinstance(sample, Text):
            return Rendering(text=sample.text, targets=None, prompt=sample.text, notes=self._notes([sample.text]))
        text = sample.prompt + sample.completion
        targets = None if self._train_on == "all" else [(len(sample.prompt), len(text))]
        return Rendering(text=text, targets=targets, prompt=sample.prompt, notes=self._notes([text]))

    def _chat(self, chat: Chat, chat_text: str | None) -> Rendering:
        template = self._template
        if template is None or self._turns is None:
            raise ConfigError("a prompt of turns needs a chat template; give one with --chat-template FILE")
        answers = [number for number, turn in enumerate(chat.messages) if turn["role"] == "assistant"]
        trained = self._trained(chat, answers)
        if not trained and self._train_on != "all":
            roles = ", ".join(sorted({turn["role"] for turn in chat.messages}))
            raise RowFault("no_assistant_turn", f"it has no assistant turn to train (its roles are: {roles})")
        marks: list[Span] = []
        try:
            if self._uses_marks:
                text, marks = template.render_marked(chat.messages, chat.tools)
                marks = [mark for mark in marks if mark[0] < mark[1]]
            else:
                text = template.render(chat.messages, chat.tools) if chat_text is None else chat_text
        except TemplateRefusal as refusal:
            raise RowFault("template_refused", f"{template.name} refuses it: {refusal}") from None
        self._turns.require_all(chat)
        spoken = [turn for turn in chat.messages if isinstance(turn.get("content"), str)]
        rendering = Rendering(
            text=text,
            targets=None,
            prompt="\n".join(turn["content"] for turn in spoken if turn["role"] == "user"),
            notes=self._notes([turn["content"] for turn in spoken]) + _notes_of_calls(chat, text),
        )
        if self._uses_marks:
            rendering.targets = self._marked(template, chat, answers, trained, marks, text)
        elif self._train_on != "all":
            self._add_turns(rendering, template, self._turns.find(chat, trained, text))
        return rendering

    def _trained(self, chat: Chat, answers: list[int]) -> list[int]:
        """The assistant turns that are trained; those of weight 0, as OpenAI's format has it, are not."""
        if self._train_on == "completion":
            answers = [number for number in answers if number >= chat.num_prompt] if chat.num_prompt else answers[-1:]
        return [number for number in answers if chat.messages[number].get("weight") != 0]

    def _marked(
        self, template: ChatTemplate, chat: Chat, answers: list[int], trained: list[int], marks: list[Span], text: str
    ) -> list[Span]:
        """The marks of the trained turns, all of them if every turn is trained.

        Raises `RowFault` for marks that are not the turns', or lack what a turn says.
        """
        if len(marks) != len(answers) and (trained != answers or not marks):
            told = f"{counted(len(marks), 'generation')} in {counted(len(answers), 'assistant turn')}"
            raise RowFault(
                "template_mismatch", f"{template.name} marks {told}, so what is to be trained cannot be told"
            )
        if len(marks) != len(answers):
            return marks
        for number, mark in zip(answers, marks, strict=True):
            turn, marked = chat.messages[number], text[slice(*mark)]
            is_blank = (
                not self._special_texts.sub("", marked).strip() and str(turn.get("content")).strip() not in marked
            )
            missing = unsaid(turn, marked)
            if is_blank or missing is not None:
                what = "text" if missing is None else f"reasoning or tool call {missing.strip()[:40]!r}"
                raise RowFault(
                    "template_mismatch", f"turn {number} (assistant): {template.name} does not write its {what}"
                )
        return [mark for number, mark in zip(answers, marks, strict=True) if number in trained]

    def _add_turns(self, rendering: Rendering, template: ChatTemplate, turns: list[Turn]) -> None:
        """Make targets of turns, each with its end token. Raises `RowFault` for one that has none."""
        targets: list[Span] = []
        text = rendering.text
        shift = 0  # characters of end tokens put in so far
        for turn in turns:
            begin, end = turn.content[0] + shift, turn.content[1] + shift
            if turn.end_token is not None:
                token = turn.end_token[0] + shift, turn.end_token[1] + shift
            elif self._eos is not None:
                text = text[:end] + self._eos + text[end:]
                token = end, end + len(self._eos)
                shift += len(self._eos)
            else:
                written = f" ({turn.after[:20]!r} is none to the tokenizer)" if turn.after.strip() else ""
                raise RowFault(
                    "no_end_token",
                    f"{template.name} writes no special token after turn {turn.message} (assistant){written}, so the"
                    " model would not learn to stop; --append-eos puts the tokenizer's end token there",
                )
            if token[0] == end:
                targets.append((begin, token[1]))
            else:  # the template writes something in between, which is nobody's to learn
                targets += [(begin, end), token]
                rendering.notes.append("gap")
            rendering.end_tokens.append(token)
        rendering.text, rendering.targets = text, targets

    def _notes(self, texts: list[str]) -> list[str]:
        return ["holds_special"] if any(self._special_texts.search(text) for text in texts) else []


def _notes_of_calls(chat: Chat, text: str) -> list[str]:
    """Whether arguments of a call are JSON as text, and the template has written that text as JSON again."""
    for turn in chat.messages:
        for call in turn.get("tool_calls") or []:
            function = call.get("function", call) if isinstance(call, dict) else None
            arguments = function.get("arguments") if isinstance(function, dict) else None
            if isinstance(arguments, str) and '"' in arguments and json.dumps(arguments, ensure_ascii=False) in text:
                return ["encoded_twice"]
    return []
