"""Ids of tool calls that are sent back, made good where a server left one out or used it twice. Pure."""

from __future__ import annotations

from itertools import count
from typing import TypeAlias, cast

from piapi_async.wire.parse import JSON

_Waiting: TypeAlias = list[tuple[str | None, str]]
"""Calls that no tool message has answered yet: each one's id as it was given, and as it is sent."""


def make_ids_good(messages: list[JSON]) -> None:
    """Give each tool call an id of its own, in place, and the tool message that answers it the same.

    Calls and tool messages are paired in their order, up to the next message with calls. An id that is there and was
    not used before stays. Equal conversations get equal ids.

    Args:
        messages: The messages as they are to be sent; they and their calls are changed.
    """
    called = {_id(call, "id") for message in messages for call in _calls(message)}
    named = {_id(message, "tool_call_id") for message in messages}
    fresh = (f"call_{n}" for n in count(1) if f"call_{n}" not in called | named)
    used: set[str] = set()
    waiting: _Waiting = []
    for message in messages:
        if "tool_calls" in message:
            waiting = []
            for call in _calls(message):
                given = _id(call, "id")
                sent = next(fresh) if given is None or given in used else given
                call["id"] = sent
                used.add(sent)
                waiting.append((given, sent))
        elif message["role"] == "tool":
            _name_call(message, waiting, called)


def _name_call(message: JSON, waiting: _Waiting, called: set[str | None]) -> None:
    """Let a tool message name the call that it answers; one without an id, or with an unknown one, a call without."""
    named = _id(message, "tool_call_id")
    given = named if named in called else None
    for i, (id, sent) in enumerate(waiting):
        if id == given:
            message["tool_call_id"] = sent
            del waiting[i]
            return
    if named is None:
        message.pop("tool_call_id", None)


def _calls(message: JSON) -> list[JSON]:
    return cast("list[JSON]", message.get("tool_calls", []))


def _id(fields: JSON, key: str) -> str | None:
    """The id that stands there; a blank one is none."""
    value = cast("str | None", fields.get(key))
    return value if value and not value.isspace() else None
