"""What the tests of gateways share: events with what they like, and what a client makes of them with one request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from piapi_async import ChatCompletion, ChatCompletionChunk, Retry
from piapi_async.testing import Close, ReadRequest, Send
from tests.leaks import PROMPT
from tests.wires import completion, dialled, read, sse

COUNTS = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def part(index: object = 0, finish: object = None, /, **delta: Any) -> bytes:
    """An event with one choice."""
    return event(choices=[{"index": index, "delta": delta, "finish_reason": finish}])


def plain(**message: Any) -> bytes:
    """A body with one message."""
    choice = {"index": 0, "message": {"role": "assistant", "content": None, **message}, "finish_reason": "stop"}
    return completion(choices=[choice])


async def answer(sent: bytes, how: Any = read, **params: Any) -> ChatCompletion:
    """What a client makes of an answer, for which it must not ask twice; many attempts are allowed."""
    async with dialled([ReadRequest(), Send(sent), Close()], retry=Retry(3, base=0)) as (client, server):
        whole: ChatCompletion = await how(client, **params)
        assert len(server.requests) == 1
        assert [attempt.kind for attempt in whole.attempts] == ["ok"]
        return whole


async def chunks_of(*events: bytes) -> tuple[list[ChatCompletionChunk], ChatCompletion]:
    async with dialled([ReadRequest(), Send(sse(*events))]) as (client, _), client.stream(PROMPT) as stream:
        return [each async for each in stream.chunks()], await stream.completion()


async def events_of(*events: bytes) -> list[Any]:
    async with dialled([ReadRequest(), Send(sse(*events))]) as (client, _), client.stream(PROMPT) as stream:
        return [each async for each in stream.events()]


def named(table: dict[str, Any]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", table.values(), ids=table.keys())
