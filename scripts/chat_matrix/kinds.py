"""Kinds of chats, each as small as shows it."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def _user(content: str, **keys: Any) -> Row:
    return {"role": "user", "content": content, **keys}


def _answer(content: str, **keys: Any) -> Row:
    return {"role": "assistant", "content": content, **keys}


def _call(number: int, city: str) -> Row:
    function = {"name": "get_weather", "arguments": {"city": city}}
    return {"id": f"call0000{number}", "type": "function", "function": function}


def _result(number: int, content: str) -> Row:
    return {"role": "tool", "name": "get_weather", "tool_call_id": f"call0000{number}", "content": content}


_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Tells the weather.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "description": "Where."}},
                "required": ["city"],
            },
        },
    }
]
_SYSTEM = {"role": "system", "content": "Be brief."}
_FIRST = [_user("Why is it raining?"), _answer("Because of a low.")]
_SECOND = [_user("And tomorrow?"), _answer("Sun is expected.")]
_THOUGHT = _answer("Because of a low.", reasoning_content="Pressure fell.")
_SECOND_THOUGHT = _answer("Sun is expected.", reasoning_content="It rises again.")
_CALLED = [_user("Weather in Oslo?"), _answer("", tool_calls=[_call(1, "Oslo")])]
_RESULT = [_result(1, "12 degrees"), _answer("Mild, 12 degrees.")]

KINDS: dict[str, Row] = {
    "one turn": {"messages": _FIRST},
    "several turns": {"messages": [*_FIRST, *_SECOND]},
    "system turn": {"messages": [_SYSTEM, *_FIRST]},
    "empty system turn": {"messages": [_SYSTEM | {"content": ""}, *_FIRST]},
    "developer turn": {"messages": [{"role": "developer", "content": "Be brief."}, *_FIRST]},
    "two answers in a row": {"messages": [*_FIRST, _answer("That is all.")]},
    "names": {"messages": [_user("Why is it raining?", name="Ada"), _answer("Because of a low.", name="Bot")]},
    "ends with the user": {"messages": [*_FIRST, _SECOND[0]]},
    "reasoning": {"messages": [_FIRST[0], _THOUGHT]},
    "reasoning in every turn": {"messages": [_FIRST[0], _THOUGHT, _SECOND[0], _SECOND_THOUGHT]},
    "inline reasoning": {"messages": [_FIRST[0], _answer("<think>\nPressure fell.\n</think>\n\nBecause of a low.")]},
    "tools, no call": {"messages": _FIRST, "tools": _TOOLS},
    "call": {"messages": _CALLED, "tools": _TOOLS},
    "call and text": {
        "messages": [_CALLED[0], _answer("I will look.", tool_calls=[_call(1, "Oslo")])],
        "tools": _TOOLS,
    },
    "call and text, result, answer": {
        "messages": [_CALLED[0], _answer("I will look.", tool_calls=[_call(1, "Oslo")]), *_RESULT],
        "tools": _TOOLS,
    },
    "two calls": {
        "messages": [_user("Oslo and Rome?"), _answer("", tool_calls=[_call(1, "Oslo"), _call(2, "Rome")])],
        "tools": _TOOLS,
    },
    "call, result, answer": {"messages": [*_CALLED, *_RESULT], "tools": _TOOLS},
    "call in an earlier turn": {"messages": [*_CALLED, *_RESULT, *_SECOND], "tools": _TOOLS},
    "reasoning and calls": {
        "messages": [
            _CALLED[0],
            _answer("", reasoning_content="I have to look.", tool_calls=[_call(1, "Oslo")]),
            _RESULT[0],
            _answer("Mild, 12 degrees.", reasoning_content="Twelve is mild."),
            _SECOND[0],
            _SECOND_THOUGHT,
        ],
        "tools": _TOOLS,
    },
}
"""What a row of each kind holds."""
