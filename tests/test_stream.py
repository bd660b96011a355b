"""Joining chunks, reading them, and the stream that the caller holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import anyio
import pytest

from piapi_async import (
    APIConnectionError,
    APIResponseError,
    APITimeoutError,
    ChatCompletion,
    ChatCompletionChunk,
    ChatStream,
    Client,
    FunctionCall,
    Retry,
    StreamTruncatedError,
    Timeout,
    ToolCall,
)
from piapi_async.errors import InternalServerError, StreamTooLargeError
from piapi_async.policy import Deadline
from piapi_async.stream import read_chunks
from piapi_async.testing import Close, LocalServer, ReadRequest, Send, Step, Wait
from piapi_async.wire import AnswerBuilder, Headers
from tests.leaks import PROMPT, assert_tight
from tests.wires import WHOLE, chunk, dialled, sse, sse_closed, sse_cut

pytestmark = pytest.mark.anyio


class Bytes:
    """An exchange that holds its body already."""

    def __init__(self, *pieces: bytes, error: APIConnectionError | None = None) -> None:
        self.status = 200
        self.headers: Headers = {}
        self.pieces = list(pieces)
        self.error = error

    async def read(self, deadline: Deadline) -> bytes:
        if not self.pieces and self.error:
            raise self.error
        return self.pieces.pop(0) if self.pieces else b""

    async def read_all(self, deadline: Deadline, start: bytes = b"") -> bytes:
        body, self.pieces = start + b"".join(self.pieces), []
        return body

    async def read_start(self, deadline: Deadline, limit: int = 1 << 16) -> bytes:
        return await self.read_all(deadline)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def batches(
    exchange: Bytes, builder: AnswerBuilder | None = None, **options: Any
) -> AsyncGenerator[list[ChatCompletionChunk], None]:
    """The chunks of an exchange, without any timer."""
    builder = AnswerBuilder() if builder is None else builder
    timers: dict[str, Any] = {"first_event": Deadline(), "progress": None, "deadline": Deadline(), "clock": lambda: 0.0}
    return read_chunks(exchange, builder, **{**timers, **options})


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(index: int | None = 0, finish: str | None = None, **fields: Any) -> bytes:
    return event(choices=[{"index": index, "delta": fields, "finish_reason": finish}])


async def joined(*pieces: bytes, **options: Any) -> ChatCompletion:
    builder = AnswerBuilder()
    async for _ in batches(Bytes(*pieces), builder, **options):
        pass
    return builder.build("asked")


DONE = b"data: [DONE]\n\n"


async def test_chunks_that_arrive_together_come_together() -> None:
    pieces = Bytes(delta(content="a") + delta(content="b"), delta(content="c") + DONE)
    found = [[chunk.text for chunk in batch] async for batch in batches(pieces)]
    assert found == [["a", "b"], ["c"]]


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
    pieces = Bytes(delta(content="a", finish="stop"), error=broken)
    assert [len(batch) async for batch in batches(pieces)] == [1]
    with pytest.raises(StreamTruncatedError):
        _ = [batch async for batch in batches(Bytes(error=broken))]
    reset = APIConnectionError(kind="reset")
    with pytest.raises(APIConnectionError) as caught:
        _ = [batch async for batch in batches(Bytes(error=reset))]
    assert caught.value is reset


async def test_a_choice_below_zero_stays_in_its_stream() -> None:
    for _ in range(2):
        whole = await joined(delta(-1, content="a"), delta(0, content="b"), delta(-1, "stop", content="c"), DONE)
        assert [(choice.index, choice.message.text) for choice in whole.choices] == [(-1, "ac"), (0, "b")]


async def test_a_half_surrogate_at_the_end_is_replaced() -> None:
    half = delta(content="?").replace(b'"?"', rb'"a\ud83d"')
    assert (await joined(half, DONE)).text == "a\ufffd"


# -- what the caller holds -------------------------------------------------------------------------------------------


async def source() -> AsyncGenerator[list[ChatCompletionChunk] | ChatCompletion, None]:
    builder = AnswerBuilder()
    yield []
    pieces = Bytes(delta(content="a") + delta(1, content="x") + delta(content="") + delta(content="b"), DONE)
    async for batch in batches(pieces, builder):
        yield batch
    yield builder.build("m")


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


async def test_an_iterator_is_its_own_iterator() -> None:
    """As every iterator is: what takes one over, such as a second loop or a library, goes on with it."""
    async with ChatStream(source()) as stream:
        assert await anext(stream) == "a"
        tokens = aiter(stream)  # goes on where `anext` was
        assert aiter(tokens) is tokens
        assert [token async for token in tokens] == ["b"]
        with pytest.raises(StopAsyncIteration):
            await anext(stream)
    async with ChatStream(source()) as stream:
        chunks = stream.chunks()
        async for _ in chunks:
            break
        assert len([chunk async for chunk in chunks]) == 3


async def test_an_iterator_that_is_kept_says_that_the_block_was_left() -> None:
    async with ChatStream(source()) as stream:
        async for token in (tokens := aiter(stream)):
            assert token == "a"
            break
        rest = await anext(tokens)  # arrived together with the first
    assert rest == "b"
    for read in (tokens, stream):
        with pytest.raises(RuntimeError, match="left before its end"):
            await anext(read)


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


# -- after a failure ---------------------------------------------------------------------------------------------------

TEXT = [ReadRequest(), Send(sse_cut(chunk("Hel")))]

FAILURES: dict[str, tuple[list[Step], type[BaseException]]] = {
    "cut": ([*TEXT, Close()], StreamTruncatedError),
    "stalled": ([*TEXT, Wait()], APITimeoutError),
    "an error object": (
        [ReadRequest(), Send(sse(chunk("Hel"), b'data: {"error": {"message": "no"}}\n\n'))],
        InternalServerError,
    ),
    "too large": ([ReadRequest(), Send(sse(chunk("Hel"), b"data: " + bytes(17 << 20)))], StreamTooLargeError),
}

READS: dict[str, Callable[[ChatStream], Awaitable[Any]]] = {
    "tokens": lambda stream: anext(stream),
    "completion": lambda stream: stream.completion(),
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_after_an_error_every_further_read_raises(failure: str) -> None:
    script, cls = FAILURES[failure]
    async with dialled(script, timeout=Timeout(first_event=5, progress=0.05 if failure == "stalled" else 5)) as (
        client,
        _,
    ):
        async with client.stream(PROMPT) as stream:
            with pytest.raises(cls) as caught:
                async for token in stream:
                    assert token == "Hel"
            assert getattr(caught.value, "partial", None) == "Hel"
            for _ in range(2):
                for read in READS.values():
                    with pytest.raises(RuntimeError, match="failed before") as further:
                        await read(stream)
                    assert_tight(further.value)
        assert client.statistics().in_flight == 0


@pytest.mark.parametrize("how", ["chunks", "events"])
async def test_after_an_error_an_iteration_over_chunks_raises_too(how: str) -> None:
    async with dialled([*TEXT, Close()]) as (client, _), client.stream(PROMPT) as stream:
        iteration = getattr(stream, how)()
        assert (await anext(iteration)).text == "Hel"
        with pytest.raises(StreamTruncatedError):
            await anext(iteration)
        for _ in range(2):
            with pytest.raises(RuntimeError, match="failed before"):
                await anext(iteration)


@pytest.mark.parametrize("read", READS)
async def test_after_a_read_that_timed_out_every_further_read_raises(read: str) -> None:
    """The stream was closed by then, so what came of it must not look whole."""
    rest = chunk("lo!") + chunk(finish="stop") + DONE
    script = [*TEXT, Wait(0.1), Send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(rest), rest)), Wait()]
    async with dialled(script) as (client, _):
        async with client.stream(PROMPT) as stream:
            assert await anext(stream) == "Hel"
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(READS[read](stream), 0.02)
            assert client.statistics().in_flight == 0
            for again in READS.values():
                with pytest.raises(RuntimeError, match="failed before"):
                    await again(stream)


async def test_what_had_arrived_before_the_failure_is_handed_out_first() -> None:
    async with dialled([ReadRequest(), Send(sse_closed(chunk("Hel") + chunk("lo!")))]) as (client, _):
        async with client.stream(PROMPT) as stream:
            assert [await anext(stream), await anext(stream)] == ["Hel", "lo!"]
            with pytest.raises(StreamTruncatedError):
                await anext(stream)


async def test_an_answer_that_is_whole_stays_so() -> None:
    async with dialled([ReadRequest(), Send(sse(WHOLE, DONE))]) as (client, _), client.stream(PROMPT) as stream:
        assert [token async for token in stream] == ["Hel", "lo!"]
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(stream)
            assert (await stream.completion()).text == "Hello!"


# -- left while another task reads -------------------------------------------------------------------------------------


async def closed(client: Client) -> None:
    assert client.statistics().in_flight == 0
    with anyio.fail_after(0.1):
        while "open=0" not in repr(client):
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("hedge", [False, True])
async def test_left_while_another_task_reads(hedge: bool) -> None:
    async def consume(stream: ChatStream) -> None:
        async for token in stream:
            tokens.append(token)

    tokens: list[str] = []
    mine = KeyError("mine")
    async with dialled([*TEXT, Wait()], retry=Retry(hedge=hedge)) as (client, _):
        with pytest.raises(KeyError) as caught:
            async with client.stream(PROMPT) as stream:
                reader = asyncio.create_task(consume(stream))
                while not tokens:
                    await asyncio.sleep(0.001)
                raise mine
        assert caught.value is mine
        await closed(client)
        with pytest.raises(APIConnectionError) as read:
            await reader
        assert (read.value.kind, read.value.maybe_billed, tokens) == ("closed", True, ["Hel"])
        assert_tight(read.value)
        assert reader.cancelling() == 0


async def test_left_while_a_reader_is_cancelled_too() -> None:
    """The reader's own cancellation is not swallowed."""
    async with dialled([*TEXT, Wait()]) as (client, _):
        async with client.stream(PROMPT) as stream:
            assert await anext(stream) == "Hel"
            reader = asyncio.create_task(anext(stream))
            await asyncio.sleep(0.01)
            reader.cancel()
        await asyncio.wait([reader])
        assert reader.cancelled()
        await closed(client)


async def test_cancelled_while_it_leaves_another_task_reading() -> None:
    async with dialled([*TEXT, Wait()]) as (client, _):
        readers: list[asyncio.Task[ChatCompletion]] = []

        async def leave() -> None:
            async with client.stream(PROMPT) as stream:
                assert await anext(stream) == "Hel"
                readers.append(asyncio.create_task(stream.completion()))
                await asyncio.sleep(0.01)
                asyncio.get_running_loop().call_soon(leaver.cancel)

        leaver = asyncio.create_task(leave())
        await asyncio.wait([leaver])
        assert leaver.cancelled()
        with pytest.raises(APIConnectionError) as caught:
            await readers[0]
        assert caught.value.kind == "closed"
        await closed(client)


async def test_two_tasks_cannot_read_at_once() -> None:
    async with dialled([*TEXT, Wait(0.05), Send(b"0\r\n\r\n")]) as (client, _), client.stream(PROMPT) as stream:
        assert await anext(stream) == "Hel"
        reader = asyncio.create_task(stream.completion())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="another task"):
            await anext(stream)
        with pytest.raises(StreamTruncatedError):  # the one that read goes on
            await reader


# -- over the wire -----------------------------------------------------------------------------------------------------


async def test_leaving_early_closes_the_connection_and_frees_the_place(piapi_server: LocalServer) -> None:
    piapi_server.tokens_per_second = 1000
    async with Client(piapi_server.api_key, base_url=piapi_server.base_url, model="gpt-4o-mini") as client:
        async with client.stream("Tell me a long story about the sea.") as stream:
            async for token in stream:
                assert token
                assert "in_flight=1" in repr(client)
                break
        await closed(client)


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


async def test_a_second_iteration_of_a_stream_that_failed_says_so() -> None:
    async with dialled([ReadRequest(), Send(sse_closed(chunk("Hel"))), Close()]) as (client, _):
        async with client.stream(PROMPT) as stream:
            with pytest.raises(StreamTruncatedError):
                async for _ in stream:
                    pass
            for read in (lambda: aiter(stream), stream.chunks, stream.events):
                with pytest.raises(RuntimeError, match="has failed before"):
                    read()
