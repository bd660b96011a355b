"""What a stream is made of: text, reasoning, calls, and the places where it begins anew."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import attrs

from piapi_async.errors import APIError
from piapi_async.models import ChatCompletionChunk, ChunkChoice


@attrs.frozen(slots=False)
class Restarted:
    """Comes out of `ChatStream.events` where an answer broke off and another one begins: forget the text so far.

    Attributes:
        error: What broke it off; its `partial` is the text to forget.
    """

    error: APIError


@attrs.frozen(slots=False)
class Text:
    """A piece of an answer's text.

    Attributes:
        text: The piece.
        choice: Index of the choice that it belongs to.
    """

    text: str
    choice: int = 0


@attrs.frozen(slots=False)
class Reasoning:
    """A piece of what the model thinks before it answers. It is no part of the text.

    Attributes:
        text: The piece.
        choice: Index of the choice that it belongs to.
    """

    text: str
    choice: int = 0


@attrs.frozen(slots=False)
class CallDelta:
    """A piece of a call of a function or tool.

    Attributes:
        name: The function's name, or a piece of it; `""` in most pieces.
        arguments: A piece of its arguments, which are JSON text.
        id: The tool call's id, where this piece brings it; None for a `function_call`.
        index: Which of the choice's calls it belongs to, from 0.
        choice: Index of the choice that it belongs to.
    """

    name: str
    arguments: str
    id: str | None = None
    index: int = 0
    choice: int = 0


StreamEvent: TypeAlias = Text | Reasoning | CallDelta | Restarted
"""What `ChatStream.events` gives."""


def events_of(batch: list[ChatCompletionChunk] | Restarted) -> list[StreamEvent]:
    """Tell apart what a batch of chunks brings."""
    if isinstance(batch, Restarted):
        return [batch]
    return [event for chunk in batch for choice in chunk.choices for event in _events_in(choice)]


def _events_in(choice: ChunkChoice) -> Iterator[Text | Reasoning | CallDelta]:
    delta = choice.delta
    if reasoning := delta.reasoning:
        yield Reasoning(reasoning, choice.index)
    if delta.content:
        yield Text(delta.content, choice.index)
    if (call := delta.function_call) is not None:
        yield CallDelta(call.name, call.arguments, choice=choice.index)
    for tool in delta.tool_calls or ():
        yield CallDelta(tool.function.name, tool.function.arguments, tool.id, tool.index or 0, choice.index)
