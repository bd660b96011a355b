"""Joining chunks, reading them, and the stream that the caller holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from piapi_async import (
    APIConnectionError,
    APIResponseError,
    ChatCompletion,
    ChatStream,
    Client,
    FunctionCall,
    StreamTruncatedError,
    ToolCall,
)
from piapi_async.policy import Due
from piapi_async.stream import Answer, Timers, read_chunks
from piapi_async.testing import LocalServer, RawServer, ReadRequest, Send, http_response
from piapi_async.wire import WireChunk

pytestmark = pytest.mark.anyio

NO_TIMERS = Timers(Due(), None, Due())


class Bytes:
    """An exchange that holds its body already."""

    began = 0.0

    def __init__(self, *pieces: bytes, error: APIConnectionError | None = None) -> None:
        self.pieces = list(pieces)
        self.error = error

    async def read(self, due: Due) -> bytes:
        if not self.pieces and self.error:
            raise self.error
        return self.pieces.pop(0) if self.pieces else b""

    async def read_all(self, due: Due, start: bytes = b"") -> bytes:
        body, self.pieces = start + b"".join(self.pieces), []
        return body


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(index: int | None = 0, finish: str | None = None, **fields: Any) -> bytes:
    return event(choices=[{"index": index, "delta": fields, "finish_reason": finish}])


async def joined(*pieces: bytes, **options: Any) -> ChatCompletion:
    answer = Answer()
    async for _ in read_chunks(Bytes(*pieces), answer, NO_TIMERS, **options):
        pass
    return whole(answer, "asked")


def whole(answer: Answer, asked: str) -> ChatCompletion:
    found = answer.whole(asked)
    return ChatCompletion(found.id, found.object, found.created, found.model, found.choices, found.usage)


DONE = b"data: [DONE]\n\n"


async def test_chunks_that_arrive_together_come_together() -> None:
    batches = [
        [chunk.choices[0].delta.content for chunk in batch]
        async for batch in read_chunks(
            Bytes(delta(content="a") + delta(content="b"), delta(content="c") + DONE), Answer(), NO_TIMERS
        )
    ]
    assert batches == [["a", "b"], ["c"]]


async def test_choices_are_joined_apart() -> None:
    whole = await joined(
        event(id="c-1", created=7, model="m", choices=[{"index": 1, "delta": {"role": "assistant", "content": "b"}}]),
        delta(0, content="a"),
        delta(1, content="B", finish="length"),
        delta(0, content="A", finish="stop"),
        event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}),
        event(choices=[], usage=None),
        DONE,
    )
    assert [(c.index, c.message.content, c.finish_reason) for c in whole.choices] == [
        (0, "aA", "stop"),
        (1, "bB", "length"),
    ]
    assert (whole.id, whole.created, whole.model) == ("c-1", 7, "m")
    assert whole.usage is not None
    assert whole.usage.total_tokens == 5
    assert whole.raw["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
    assert whole.raw["model"] == "m"


async def test_a_stream_that_names_no_model_has_the_one_asked() -> None:
    whole = await joined(delta(content="a", finish="stop"))
    assert (whole.model, whole.raw["usage"]) == ("asked", None)


async def test_function_call_fragments() -> None:
    whole = await joined(
        delta(role="assistant", content=None, function_call={"name": "get_weather", "arguments": ""}),
        delta(function_call={"name": "get_weather", "arguments": '{"city": '}),  # repeated, as llama-cpp-python does
        delta(function_call={"arguments": '"Oslo"}'}),
        delta(finish="function_call"),
        DONE,
    )
    message = whole.choices[0].message
    assert message.function_call == FunctionCall("get_weather", '{"city": "Oslo"}')
    assert (message.content, whole.text, whole.finish_reason) == (None, "", "function_call")


def tool(arguments: str = "", name: str = "", **fields: Any) -> dict[str, Any]:
    return {**fields, "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    "fragments",
    [
        [tool("{", "f", index=0, id="a"), tool("{", "g", index=1, id="b"), tool("}", index=0), tool("}", index=1)],
        [tool("{", "f", id="a"), tool("}"), tool("{", "g", id="b"), tool("}")],
        [tool("{", "f", id="a"), tool("{", "g", id="b"), tool("}", id="a"), tool("}", id="b")],
    ],
    ids=["index", "order", "id"],
)
async def test_tool_call_fragments(fragments: list[dict[str, Any]]) -> None:
    whole = await joined(*(delta(tool_calls=[each]) for each in fragments), delta(finish="tool_calls"), DONE)
    assert whole.choices[0].message.tool_calls == (
        ToolCall(FunctionCall("f", "{}"), "a"),
        ToolCall(FunctionCall("g", "{}"), "b"),
    )


async def test_a_tool_call_without_index_or_id() -> None:
    whole = await joined(delta(tool_calls=[tool("{", "f")]), delta(tool_calls=[tool("}")]), delta(finish="tool_calls"))
    assert whole.choices[0].message.tool_calls == (ToolCall(FunctionCall("f", "{}")),)


async def test_logprobs_are_joined() -> None:
    def with_logprobs(value: Any) -> bytes:
        return event(choices=[{"index": 0, "delta": {"content": "a"}, "logprobs": value}])

    finish = delta(finish="stop")
    parts = [{"content": [1], "refusal": None}, {"content": [2]}]
    assert (await joined(with_logprobs(parts[0]), finish)).choices[0].logprobs == parts[0]
    assert (await joined(*map(with_logprobs, parts), finish)).choices[0].logprobs == {"content": [1, 2]}
    assert (await joined(with_logprobs([1]), with_logprobs([2]), finish)).choices[0].logprobs == [[1], [2]]


async def test_the_end_of_a_stream() -> None:
    text = delta(content="a")
    finish = delta(finish="stop")
    assert (await joined(text, finish)).finish_reason == "stop"
    assert (await joined(text, DONE)).finish_reason is None  # Ollama does that; `stop` is never invented
    assert (await joined(text, b"data: [none]\n\n")).finish_reason is None
    with pytest.raises(StreamTruncatedError, match="terminator"):
        await joined(text)
    with pytest.raises(StreamTruncatedError, match="finish_reason"):
        await joined(text, DONE, require_finish_reason=True)
    assert (await joined(text, finish, DONE, require_finish_reason=True)).text == "a"
    with pytest.raises(StreamTruncatedError):  # one of two choices never finishes
        await joined(text, delta(1, content="b"), finish)
    with pytest.raises(APIResponseError):
        await joined(DONE)


async def test_a_broken_connection_is_one_more_end() -> None:
    broken = APIConnectionError(kind="truncated body")
    answer = Answer()
    pieces = Bytes(delta(content="a", finish="stop"), error=broken)
    assert [len(batch) async for batch in read_chunks(pieces, answer, NO_TIMERS)] == [1]
    with pytest.raises(StreamTruncatedError):
        _ = [batch async for batch in read_chunks(Bytes(error=broken), Answer(), NO_TIMERS)]
    reset = APIConnectionError(kind="reset")
    with pytest.raises(APIConnectionError) as caught:
        _ = [batch async for batch in read_chunks(Bytes(error=reset), Answer(), NO_TIMERS)]
    assert caught.value is reset


async def test_a_choice_below_zero_stays_in_its_stream() -> None:
    for _ in range(2):
        whole = await joined(delta(-1, content="a"), delta(0, content="b"), delta(-1, "stop", content="c"), DONE)
        assert [(choice.index, choice.message.text) for choice in whole.choices] == [(-1, "ac"), (0, "b")]


async def test_a_half_surrogate_at_the_end_is_replaced() -> None:
    half = delta(content="?").replace(b'"?"', rb'"a\ud83d"')
    assert (await joined(half, DONE)).text == "a\ufffd"


# -- what the caller holds -------------------------------------------------------------------------------------------


async def source() -> AsyncGenerator[list[WireChunk] | ChatCompletion, None]:
    answer = Answer()
    yield []
    async for batch in read_chunks(
        Bytes(delta(content="a") + delta(1, content="x") + delta(content="") + delta(content="b"), DONE),
        answer,
        NO_TIMERS,
    ):
        yield batch
    yield whole(answer, "m")


async def test_tokens_chunks_and_completion() -> None:
    async with ChatStream(source()) as stream:
        assert [token async for token in stream] == ["a", "b"]
        assert (await stream.completion()).text == "ab"
    assert (await stream.completion()).text == "ab"  # kept
    async with ChatStream(source()) as stream:
        assert len([chunk async for chunk in stream.chunks()]) == 4
        assert len((await stream.completion()).choices) == 2
    async with ChatStream(source()) as stream:
        assert (await stream.completion()).text == "ab"


async def test_tokens_one_by_one() -> None:
    async with ChatStream(source()) as stream:
        assert await anext(stream) == "a"
        assert (await stream.completion()).text == "ab"  # what is left is drained
        assert await anext(stream) == "b"  # arrived together with the first
        with pytest.raises(StopAsyncIteration):
            await anext(stream)


async def test_one_consumer() -> None:
    async with ChatStream(source()) as stream:
        async for _ in stream:
            break
        with pytest.raises(RuntimeError, match="consumer"):
            stream.chunks()
        with pytest.raises(RuntimeError, match="consumer"):
            aiter(stream)


async def test_only_inside_its_block() -> None:
    stream = ChatStream(source())
    for use in (lambda: aiter(stream), stream.chunks):
        with pytest.raises(RuntimeError, match="async with"):
            use()
    with pytest.raises(RuntimeError, match="async with"):
        await stream.completion()
    async with stream:
        with pytest.raises(RuntimeError, match="open already"):
            await stream.__aenter__()
    with pytest.raises(RuntimeError, match="async with"):
        aiter(stream)


async def test_a_failed_stream_has_no_completion() -> None:
    async with (
        RawServer([ReadRequest(), Send(http_response(200, delta(content="a"), close_delimited=True))]) as server,
        Client("sk-x", base_url=server.base_url, model="m") as client,
        client.stream("x") as stream,
    ):
        with pytest.raises(StreamTruncatedError) as caught:
            async for _ in stream:
                pass
        assert caught.value.partial == "a"
        with pytest.raises(RuntimeError, match="failed"):
            await stream.completion()


async def test_leaving_early_closes_the_connection_and_frees_the_place(piapi_server: LocalServer) -> None:
    piapi_server.tokens_per_second = 1000
    async with Client(piapi_server.api_key, base_url=piapi_server.base_url, model="gpt-4o-mini") as client:
        async with client.stream("Tell me a long story about the sea.") as stream:
            async for token in stream:
                assert token
                assert "in_flight=1" in repr(client)
                break
        assert "in_flight=0" in repr(client)
        await asyncio.sleep(0.005)
        assert "open=0" in repr(client)


async def test_functions_and_tools_over_the_wire(piapi_server: LocalServer) -> None:
    weather = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
    async with Client(piapi_server.api_key, base_url=piapi_server.base_url, model="gpt-4o-mini") as client:
        whole = await client.complete("Weather?", functions=[weather], function_call={"name": "get_weather"})
        async with client.stream("Weather?", functions=[weather], function_call={"name": "get_weather"}) as stream:
            streamed = await stream.completion()
        assert streamed.choices[0].message == whole.choices[0].message
        tools = [{"type": "function", "function": weather}]
        async with client.stream("Weather?", tools=tools, tool_choice="required", n=2) as stream:
            several = await stream.completion()
        for choice in several.choices:
            assert choice.message.tool_calls
            assert choice.message.tool_calls[0].function.name == "get_weather"
