"""The stream that the caller holds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import anyio
import pytest

from piapi_async import (
    APIConnectionError,
    APITimeoutError,
    ChatCompletion,
    ChatCompletionChunk,
    ChatStream,
    Client,
    Retry,
    StreamTruncatedError,
    Timeout,
)
from piapi_async.errors import InternalServerError, StreamTooLargeError
from piapi_async.testing import Close, LocalServer, ReadRequest, Send, Step, Wait
from piapi_async.wire import AnswerBuilder
from tests.leaks import PROMPT, assert_tight
from tests.stream.exchanges import Bytes, batches, delta
from tests.wires import DONE, WHOLE, chunk, dialled, sse, sse_closed, sse_cut

pytestmark = pytest.mark.anyio


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
