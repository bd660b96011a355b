"""What a stream is made of, told apart."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Any

import pytest

import piapi_async.stream
from piapi_async import (
    APIConnectionError,
    ChatCompletion,
    ChatCompletionChunk,
    ChatStream,
    ChunkChoice,
    Delta,
    FunctionCall,
    ToolCall,
)
from piapi_async.stream import CallDelta, Reasoning, Restarted, StreamItem, Text
from piapi_async.stream.events import events_of

THOUGHTS = (
    {"type": "thinking", "thinking": [{"type": "text", "text": "Hm"}, "?", 5, {"type": "image"}]},
    {"type": "reasoning", "reasoning": "So."},
    {"type": "thinking", "thinking": 5},
    {"type": "text", "text": "Hi"},
)


def chunk(index: int = 0, **fields: Any) -> ChatCompletionChunk:
    return ChatCompletionChunk((ChunkChoice(index, Delta(**fields)),))


@pytest.mark.parametrize(
    ("fields", "events"),
    [
        ({}, []),
        ({"role": "assistant", "content": ""}, []),
        ({"content": "Hi"}, [Text("Hi", 1)]),
        ({"refusal": "No."}, []),
        ({"extra": {"reasoning_content": "Hm"}}, [Reasoning("Hm", 1)]),
        ({"extra": {"reasoning_content": "", "reasoning": "Hm"}}, [Reasoning("Hm", 1)]),
        ({"extra": {"reasoning": {"effort": "low"}}}, []),
        ({"content": "Hi", "extra": {"reasoning": "Hm"}}, [Reasoning("Hm", 1), Text("Hi", 1)]),
        ({"content": "Hi", "extra": {"content_parts": THOUGHTS}}, [Reasoning("Hm?So.", 1), Text("Hi", 1)]),
        ({"function_call": FunctionCall("f")}, [CallDelta("f", "", choice=1)]),
        (
            {"tool_calls": (ToolCall(FunctionCall("f", "{"), "a", index=1), ToolCall(FunctionCall("", "}")))},
            [CallDelta("f", "{", "a", 1, 1), CallDelta("", "}", None, 0, 1)],
        ),
    ],
)
def test_what_a_chunk_brings(fields: dict[str, Any], events: list[object]) -> None:
    assert events_of([chunk(1, **fields)]) == events


def test_chunks_and_choices_stay_in_their_order() -> None:
    several = ChatCompletionChunk(
        (ChunkChoice(1, Delta(content="x")), ChunkChoice(0, Delta(content="a"))),
    )
    assert events_of([several, ChatCompletionChunk(), chunk(content="b")]) == [Text("x", 1), Text("a"), Text("b")]
    assert events_of([]) == []


@pytest.mark.anyio
async def test_a_stream_that_begins_anew() -> None:
    broke = APIConnectionError(kind="reset")

    async def source() -> AsyncGenerator[StreamItem, None]:
        yield [chunk(content="a")]
        yield Restarted(broke)
        yield [chunk(content="b")]
        yield ChatCompletion("", "chat.completion", 0, "m", ())

    async with ChatStream(source(), restarts=True) as stream:
        for refused in (stream.chunks, stream.__aiter__):
            with pytest.raises(RuntimeError, match="is read by events"):
                refused()
        with pytest.raises(RuntimeError, match="is read by events"):
            await anext(stream)
        assert [event async for event in stream.events()] == [Text("a"), Restarted(broke), Text("b")]


def test_the_package_has_no_other_names() -> None:
    assert not hasattr(piapi_async.stream, "Silence")
