"""A chat → its text, with the characters that are to be trained, by kind."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import partial

from pipeline.base.words import counted
from pipeline.format.options import TokenizeOptions
from pipeline.tokenizing.chats.hiding import looked_at, require_same
from pipeline.tokenizing.chats.marks import ends_trained, owners_of, untrained, within, without
from pipeline.tokenizing.chats.reasoning import ReasoningMarks
from pipeline.tokenizing.chats.rendered import Rendering, num_without_reasoning
from pipeline.tokenizing.chats.template import ChatTemplate, Marked, TemplateRefusal
from pipeline.tokenizing.chats.turns.ends import End, own_or_next, own_or_put
from pipeline.tokenizing.chats.turns.faults import endless, unlocated, unmarked, unparted
from pipeline.tokenizing.chats.turns.finder import TurnFinder
from pipeline.tokenizing.chats.turns.shapes import FoundTurns, Shape, Targets, Turn, parts_in, parts_of, shifted
from pipeline.tokenizing.chats.unsaid import Unsaid
from pipeline.tokenizing.rows.messages import (
    Message,
    RowFault,
    has_free_arguments,
    reasoning_of,
    said_besides,
    who_is,
    with_text_arguments,
)
from pipeline.tokenizing.rows.samples import Chat
from pipeline.tokenizing.tokens.own_words import HIDDEN, OwnWords
from pipeline.tokenizing.tokens.places import Span
from pipeline.tokenizing.tokens.tokenizer import TextTokenizer

_CHOICES = {"reasoning": "reasoning", "call": "tool_calls", "inserted": "inserted"}
"""Kinds of targets -> the option that masks them."""


class ChatRenderer:
    """Renders chats by a template."""

    def __init__(
        self,
        template: ChatTemplate,
        *,
        tokenizer: TextTokenizer,
        train_on: str,
        options: TokenizeOptions,
        words: OwnWords,
    ) -> None:
        self._words = words
        self._template, self._train_on, self._options = template, train_on, options
        self._special_texts = tokenizer.special_texts
        self._marks = ReasoningMarks(*options.reasoning_marks.split(","))
        self._turns = TurnFinder(template.of_any_day(), tokenizer, self._marks)
        self._unsaid = Unsaid(template, self._turns.probes, options)
        self._uses_marks = template.has_marks and train_on != "all"
        self._eos = tokenizer.eos_text if options.append_eos else None
        choices = {kind: getattr(options, name) for kind, name in _CHOICES.items()}
        self._masked = {kind for kind, choice in choices.items() if choice == "mask"}

    @property
    def writes_tools(self) -> bool:
        """Whether the template writes the tools of a chat."""
        return self._turns.probes.writes_tools

    def together(self, chats: Sequence[Chat]) -> dict[int, Marked]:
        """What the template writes for plain chats, by their identity; nothing if it refuses one of them."""
        chats = [chat for chat in chats if self._marks.plain_roles(chat)]
        try:
            write = self._template.render_all_marked if self._uses_marks else self._template.render_all
            texts = write([chat.messages for chat in chats])
        except TemplateRefusal:
            return {}
        return {id(chat): text for chat, text in zip(chats, texts, strict=True)}

    def render(self, chat: Chat, chat_text: Marked | None) -> list[Rendering]:
        """Render a chat, which may give several samples; chat_text: what `together` gave for it. Raises `RowFault`."""
        trained = self._trained(chat)
        if not trained and self._train_on != "all":
            roles = ", ".join(sorted({turn["role"] for turn in chat.messages}))
            is_marked = any(
                turn["role"] == "assistant" and chat.marked(n) is False for n, turn in enumerate(chat.messages)
            )
            why = "; the data marks assistant turns as not trained" if is_marked else ""
            why = why or who_is(turn["role"] for turn in chat.messages)
            raise RowFault("no_assistant_turn", f"it has no assistant turn to train (its roles are: {roles}{why})")
        notes, num_dropped = list(chat.notes), 0
        if self._marks.plain_roles(chat) is None:
            told = chat
            chat = self._with_reasoning(told, notes)
            if "reasoning_dropped" in notes:
                pairs = list(zip(told.messages, chat.messages, strict=True))[chat.num_shared :]
                num_dropped = sum(one != other for one, other in pairs)
            if any(map(has_free_arguments, told.messages)):
                notes.append("free_arguments")
            if self._turns.probes.wants_text:
                chat = chat.with_messages([with_text_arguments(turn) for turn in chat.messages])
        chat = looked_at(chat, self._words, self._marks, notes)
        chat_text = None if HIDDEN in notes else chat_text
        renderings = self._samples(chat, trained, chat_text, notes)
        renderings[0].turns = {
            "turns": len(chat.messages) - chat.num_shared,
            "turns_trained": len(trained),
            "reasoning_left_out": num_dropped + num_without_reasoning(renderings, chat.num_shared),
        }
        return renderings

    def _samples(self, chat: Chat, trained: list[int], chat_text: Marked | None, notes: list[str]) -> list[Rendering]:
        """The samples that a chat gives: one, or one for each answer that is rewritten once it is history."""
        shape = self._turns.shape(chat)
        rewritten = [] if self._train_on == "all" else self._turns.rewritten(chat, shape)
        rewritten = [one for one in rewritten if _within(trained, one.turns)]
        if not rewritten or self._options.history != "expand":
            loses = [one for one in rewritten if one.loses]
            if loses and self._options.history == "whole":
                raise RowFault(
                    "history_rewritten",
                    f"{self._template.name} leaves out reasoning of {counted(len(loses), 'turn')} once it is history,"
                    " so one sample cannot be what the model sees when it is used: --history expand makes a sample of"
                    " each such answer, --history as-rendered trains what is written, and a template that keeps history"
                    " (--chat-template FILE) keeps it whole",
                )
            if rewritten:
                notes.append("history_left_out" if loses else "history_inserted")
            return [self._rendering(chat, shape, trained, chat_text, notes)]
        renderings = []
        for one in rewritten:
            own = _within(trained, one.turns)
            cut = chat.up_to(one.turns.stop)
            renderings.append(self._rendering(cut, self._turns.shape(cut), own, None, list(notes), one.goes_on))
        rest = sorted(set(trained).difference(*(one.turns for one in rewritten)))
        if rest:
            renderings.append(self._rendering(chat, shape, rest, chat_text, list(notes)))
        return renderings

    def _trained(self, chat: Chat) -> list[int]:
        """The assistant turns that are trained, as the data's own marks and `--train-on` have it."""
        answers = [number for number, turn in enumerate(chat.messages) if turn["role"] == "assistant"]
        if self._train_on in ("completion", "last"):
            told = chat.num_prompt if self._train_on == "completion" else 0
            answers = [number for number in answers if number >= told] if told else answers[-1:]
        return [number for number in answers if chat.marked(number) is not False] if chat.marks else answers

    def _with_reasoning(self, chat: Chat, notes: list[str]) -> Chat:
        """The chat without its reasoning, or with it in front of the content, where that is asked for."""
        if self._options.reasoning != "auto":
            self._marks.require_sure(chat)
        chat = self._marks.settled(chat)
        if self._options.reasoning == "drop":
            told = self._marks.without_all_reasoning(chat)
            notes += [] if told.messages == chat.messages else ["reasoning_dropped"]
            return told
        if self._options.reasoning_inline:
            has_place = self._turns.probes.has_reasoning
            return chat.with_messages(
                [turn if has_place(turn) else self._marks.with_inline_reasoning(turn) for turn in chat.messages]
            )
        return chat

    def _rendering(
        self,
        chat: Chat,
        shape: Shape | None,
        trained: list[int],
        chat_text: Marked | None,
        notes: list[str],
        goes_on: bool = False,
    ) -> Rendering:
        """goes_on: whether what comes before the first trained turn is to be as its generation prompt has it."""
        template = self._template
        if chat_text is not None:
            text, marks = chat_text
        elif self._uses_marks:
            ((text, marks),) = template.render_all_marked([chat.messages], chat.tools)
        else:
            text, marks = template.render(chat.messages, chat.tools), []
        if HIDDEN in notes:
            require_same(chat, text, self._words, template)
        found = self._turns.find(chat, shape, text)
        notes = self._unsaid.notes(chat, trained, text, found, notes)
        prompt = chat.asked if self._options.keep_text else ""
        rendering = Rendering(
            text=text,
            targets=None,
            prompt=self._words.shown(prompt) if HIDDEN in notes else prompt,
            notes=notes,
            source_turn=len(chat.messages) - 1,
            source_row=chat.rows[-1] if chat.rows else None,
            without_reasoning=frozenset(leaf.message for leaf in found.missing if leaf.kind == "reasoning"),
            around="template" if found.knows_others else "text",
        )
        rendering.parts = partial(parts_of, chat, found, rendering.puts)
        if self._uses_marks:
            rendering.targets = self._marked(chat, trained, marks, text, found)
        elif self._train_on != "all":
            self._add_turns(rendering, chat, trained, found)
        if goes_on and trained[0] in found.turns:
            self._open(rendering, chat, found.turns[trained[0]])
        return rendering

    def _open(self, rendering: Rendering, chat: Chat, turn: Turn) -> None:
        """Put what generation sees in front of a turn. Raises `RowFault`."""
        before = chat.up_to(turn.message)
        opened = self._template.render(before.messages, chat.tools, generation_prompt=True)
        closed = self._template.render(before.messages, chat.tools)
        begin = turn.parts[0][1][0] if turn.parts else turn.end
        shift, own, whole = len(opened) - begin, rendering.parts, rendering.text[:begin]
        found = self._turns.find(before, self._turns.shape(before), closed)
        rendering.parts = lambda: [
            *parts_in(opened, [(closed, parts_of(before, found, ())), (whole, own())]),
            *shifted(own(), shift, since=begin),
        ]
        rendering.text = opened + rendering.text[begin:]
        rendering.targets = shifted(rendering.targets or [], shift)
        rendering.end_tokens = [(span[0] + shift, span[1] + shift) for span in rendering.end_tokens]

    def _marked(self, chat: Chat, trained: list[int], marks: list[Span], text: str, found: FoundTurns) -> Targets:
        """What the template marks in the trained turns. Raises `RowFault` for marks that are not the turns'."""
        answers = [number for number, turn in enumerate(chat.messages) if turn["role"] == "assistant"]
        owners = owners_of(marks, answers, found)
        bare = set(trained).difference(owners)
        if None in owners or bare:
            told = f"{counted(len(marks), 'generation')} in {counted(len(answers), 'assistant turn')}"
            raise RowFault(
                "template_mismatch", f"{self._template.name} marks {told}, so what is to be trained cannot be told"
            )
        targets: Targets = []
        written = dict.fromkeys(trained, "")  # inside the marks of each turn
        for number, mark in zip(owners, marks, strict=True):
            if number is None or number not in written:
                continue
            written[number] += text[slice(*mark)]
            parts = within(mark, found.turns.get(number) or found.unbegun.get(number))
            targets += self._chosen(chat, number, parts, text, found)
        left_out = {(leaf.message, leaf.text) for leaf in found.missing}  # of which it was decided before
        for number, own in written.items():
            message = chat.messages[number]
            answer = str(message.get("content") or "").strip()
            is_there = answer and answer in own
            is_found = number in found.turns or number in found.unbegun
            if not is_there and (not is_found or not self._special_texts.sub("", own).strip()):
                raise unmarked(number, self._template, "text")
            for said in said_besides(message):
                if said.strip() not in own and (number, said) not in left_out:
                    raise unmarked(number, self._template, f"reasoning or tool call {said.strip()[:40]!r}")
        return targets

    def _chosen(self, chat: Chat, number: int, parts: Targets, text: str, found: FoundTurns) -> Targets:
        """The parts of a turn that are trained. Raises `RowFault` where those that the data marks cannot be located."""
        chosen = [(kind, span) for kind, span in parts if kind not in self._masked and span[0] < span[1]]
        marked, turn = chat.parts_marked(number), found.turns.get(number) or found.unbegun.get(number)
        if turn is None and (masked := self._masked_in(chat.messages[number])):
            raise unparted(number, self._template, found.untold[number], masked)
        chosen = [(kind, self._stop(span, turn, text) if kind == "end" else span) for kind, span in chosen]
        if marked is None:
            return chosen
        if turn is None:
            raise unlocated(number, self._template, found.untold[number])
        spans = untrained(marked, turn, self._words.shown(text), self._marks)
        if spans is None:
            raise RowFault(
                "template_mismatch",
                f"turn {number} (assistant): {self._template.name} changes what it says, so the parts that the data"
                " marks as not trained cannot be located",
            )
        return [one for one in without(chosen, spans) if one[0] != "end" or ends_trained(marked, chat.messages[number])]

    def _masked_in(self, message: Message) -> list[str]:
        """The options by which something is masked that a turn may have."""
        thinks = reasoning_of(message) is not None or self._marks.apart(message.get("content")) is not None
        calls = bool(message.get("tool_calls") or message.get("function_calls"))
        has = {"reasoning": thinks, "call": calls, "inserted": True}
        return [_CHOICES[kind].replace("_", "-") for kind in self._masked if has[kind]]

    def _add_turns(self, rendering: Rendering, chat: Chat, trained: list[int], found: FoundTurns) -> None:
        """Make targets of turns, each with its end. Raises `RowFault` for one that has none."""
        targets: Targets = []
        texts: list[str] = []  # with the end tokens between them
        at = shift = 0  # characters of the rendering so far, and of end tokens put in so far
        for number in trained:
            turn = found.turns.get(number)
            if turn is None:
                raise unlocated(number, self._template, found.untold[number])
            parts = list(turn.parts)
            if self._options.inserted == "train" and parts and turn.begin_least < parts[0][1][0]:
                parts.insert(0, ("inserted", (turn.begin_least, parts[0][1][0])))
            targets += shifted(self._chosen(chat, number, parts, rendering.text, found), shift)
            if turn.goes_on:
                continue
            end = self._end(turn, rendering, is_last=number == len(chat.messages) - 1)
            if end is None:
                continue
            if end.put is not None:
                rendering.puts.append((end.put[0] + shift, end.put[1] + shift))
                texts += (rendering.text[at : end.put[0]], end.put_text)
                at = end.put[0]
            marked = chat.parts_marked(number)
            if marked is None or ends_trained(marked, chat.messages[number]):
                begin, stop = self._stop((min(turn.end, end.token[0]), end.token[1]), turn, rendering.text)
                targets.append(("end", (begin + shift, stop + shift)))
                rendering.end_tokens.append((end.token[0] + shift, end.token[1] + shift))
            shift += len(end.put_text)
        rendering.text, rendering.targets = "".join([*texts, rendering.text[at:]]), targets

    def _stop(self, end: Span, turn: Turn | None, text: str) -> Span:
        """The end of a turn that is trained: of one that ends in a masked call only what stops generation, without the
        marks that close the call.
        """
        if "call" not in self._masked or turn is None or not turn.parts or turn.parts[-1][0] != "call":
            return end
        specials = [found.start() for found in self._special_texts.finditer(text, *end)]
        return (specials[-1], end[1]) if specials else end

    def _end(self, turn: Turn, rendering: Rendering, *, is_last: bool) -> End | None:
        """What ends a turn of a chat; None where none is wanted. Raises `RowFault` where it lacks."""
        choice, opener = self._options.turn_end, self._turns.probes.user_opener
        if self._eos is not None:
            return own_or_put(turn, self._eos)
        if choice == "next":
            end = own_or_next(turn, rendering.text, opener, is_last=is_last)
        else:
            end = None if turn.end_tokens is None else End(turn.end_tokens)
        if end is None and choice != "none":
            raise endless(turn, self._template, None if opener is None else opener.text)
        if end is None and "no_turn_end" not in rendering.notes:
            rendering.notes.append("no_turn_end")
        return end


def _within(numbers: list[int], turns: range) -> list[int]:
    """Those of some numbers, which are in order, that are in a range."""
    return numbers[bisect_left(numbers, turns.start) : bisect_left(numbers, turns.stop)]
