"""A sample → its text, with the characters that are to be trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import ConfigError
from pipeline.tokenize.formats import Chat, Format, Pair, RowFault, Sample
from pipeline.tokenize.options import TokenizeOptions
from pipeline.tokenize.template import ChatTemplate, Span, TemplateRefusal
from pipeline.tokenize.tokenizer import TextTokenizer
from pipeline.tokenize.turns import TurnFinder


@dataclass(frozen=True, slots=True)
class Rendered:
    """A sample as text."""

    text: str
    targets: list[Span] | None
    """Characters to be trained, in order; None trains every token."""

    end_tokens: list[Span]
    """Characters of special tokens that end a trained turn."""

    prompt: str
    """What the user said, to embed the sample by; all of it where nobody answers."""

    holds_special: bool
    """Whether a special token stands in the sample's own words, as after a template applied before."""


class Renderer:
    """Renders the samples of one format."""

    def __init__(
        self, tokenizer: TextTokenizer, template: ChatTemplate | None, format_: Format, options: TokenizeOptions
    ) -> None:
        """template: None lays pairs end to end. Raises `ConfigError` for targets that the format cannot have."""
        train_on = options.train_on or format_.default_train_on
        if format_.name == "text" and train_on != "all":
            raise ConfigError(f"--train-on {train_on}: plain text has no {train_on}; it is trained as a whole")
        self._train_on, self._format = train_on, format_
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

    def render(self, sample: Sample, written: str | None) -> Rendered:
        """Render one sample; written: what `together` gave for it. Raises `RowFault`."""
        if isinstance(sample, Chat):
            return self._chat(sample, written)
        own = sample.prompt + sample.completion if isinstance(sample, Pair) else sample.text
        targets = prompt = None
        if isinstance(sample, Pair) and self._train_on != "all":
            targets, prompt = [(len(sample.prompt), len(own))], sample.prompt
        return Rendered(own, targets, [], own if prompt is None else prompt, self._holds_special([own]))

    def _chat(self, chat: Chat, written: str | None) -> Rendered:
        template = self._template
        if template is None:
            raise ConfigError("a prompt of turns needs a chat template; give one with --chat-template FILE")
        spoken = [turn for turn in chat.messages if isinstance(turn.get("content"), str)]
        prompt = "\n".join(turn["content"] for turn in spoken if turn["role"] == "user")
        holds_special = self._holds_special([turn["content"] for turn in spoken])
        answers = [number for number, turn in enumerate(chat.messages) if turn["role"] == "assistant"]
        trained = self._trained(chat, answers)
        if not trained and self._train_on != "all":
            raise RowFault("no_assistant_turn", "it has no assistant turn, so nothing to train")
        try:
            if self._uses_marks:
                text, marks = template.render_marked(chat.messages, chat.tools)
            else:
                text = template.render(chat.messages, chat.tools) if written is None else written
        except TemplateRefusal as refusal:
            raise RowFault("template_refused", f"{template.name} refuses it: {refusal}") from None
        if self._train_on == "all":
            return Rendered(text, None, [], prompt, holds_special)
        if self._uses_marks:
            if trained != answers:
                marks = self._marks_of(trained, answers, marks)
            if not marks:
                raise RowFault("template_mismatch", f"{template.name} marks no generation in it")
            return Rendered(text, marks, [], prompt, holds_special)
        return self._turns_of(chat, trained, text, prompt, holds_special)

    def _trained(self, chat: Chat, answers: list[int]) -> list[int]:
        """The assistant turns that are trained."""
        if self._train_on == "completion":
            return [number for number in answers if number >= chat.num_prompt] if chat.num_prompt else answers[-1:]
        return answers

    def _marks_of(self, trained: list[int], answers: list[int], marks: list[Span]) -> list[Span]:
        if len(marks) != len(answers):
            raise RowFault(
                "template_mismatch",
                f"{self._template_name} marks {len(marks)} generations for {len(answers)} assistant turns, so which"
                " of them are the completion cannot be told",
            )
        return [marks[answers.index(number)] for number in trained]

    @property
    def _template_name(self) -> str:
        assert self._template is not None
        return self._template.name

    def _turns_of(self, chat: Chat, trained: list[int], text: str, prompt: str, holds_special: bool) -> Rendered:
        assert self._turns is not None
        targets: list[Span] = []
        ends: list[Span] = []
        shift = 0  # characters of end tokens put in so far
        for turn in self._turns.find(chat, trained, text):
            begin, end = turn.content[0] + shift, turn.content[1] + shift
            token = turn.end_token
            if token is None:
                if self._eos is None:
                    raise RowFault(
                        "no_end_token",
                        f"{self._template_name} writes no end token after turn {turn.message} (assistant), so the model"
                        " would not learn to stop; --append-eos puts the tokenizer's there",
                    )
                text = text[:end] + self._eos + text[end:]
                begin_of_token, end_of_token = end, end + len(self._eos)
                shift += len(self._eos)
            else:
                begin_of_token, end_of_token = token[0] + shift, token[1] + shift
            if begin_of_token == end:
                targets.append((begin, end_of_token))
            else:  # the template writes something in between, which is nobody's to learn
                targets += [(begin, end), (begin_of_token, end_of_token)]
            ends.append((begin_of_token, end_of_token))
        return Rendered(text, targets, ends, prompt, holds_special)

    def _holds_special(self, texts: list[str]) -> bool:
        return any(self._special_texts.search(text) for text in texts)
