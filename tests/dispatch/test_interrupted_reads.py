"""A read of a stream that ends before its time, at any wait, hedged or not: the stream never looks whole afterwards."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from benchmarks.outage import VirtualLoop
from piapi_async import APIConnectionError, ChatStream, Retry
from piapi_async.route import SAMPLES
from tests.dispatch.scripted import HOW, WORST, Answer, Interruption, Piece, World, make
from tests.wires import DONE, chunk

pytestmark = pytest.mark.anyio

PIECES: list[Piece] = [chunk("Hel"), 0.5, chunk("lo"), 0.0, chunk("!", "stop"), 0.5, DONE]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualLoop}


def world_of(hedge: bool) -> World:
    """A provider, or two of which the first is slow to begin, so that the second is asked too."""
    if not hedge:
        return make({"one": [Answer(PIECES)]}, budget=9 * WORST)
    world = make({"one": [Answer(PIECES, think=9)], "two": [Answer(PIECES)]}, retry=Retry(hedge=True), budget=9 * WORST)
    for starts in world.upstream().starts:
        starts.extend([1.0] * SAMPLES)
    world.dispatcher.hedgeable = 2000
    return world


async def by_tokens(stream: ChatStream, got: list[str]) -> None:
    async for token in stream:
        got.append(token)


async def by_next(stream: ChatStream, got: list[str]) -> None:
    while True:
        try:
            got.append(await anext(stream))
        except StopAsyncIteration:
            return


async def by_chunks(stream: ChatStream, got: list[str]) -> None:
    async for each in stream.chunks():
        got.append(each.text)


async def by_events(stream: ChatStream, got: list[str]) -> None:
    async for event in stream.events():
        got.append(getattr(event, "text", ""))


async def by_completion(stream: ChatStream, got: list[str]) -> None:
    got.append((await stream.completion()).text)


READ = pytest.mark.parametrize("read", [by_tokens, by_next, by_chunks, by_events, by_completion])
HEDGED = pytest.mark.parametrize("hedge", [False, True])

Read = Callable[[ChatStream, list[str]], Awaitable[None]]


@READ
@HEDGED
async def test_every_way_of_reading_gives_the_whole_answer(read: Read, hedge: bool) -> None:
    """The tokens of the first read, which decides a race, come out of each."""
    world, got = world_of(hedge), list[str]()
    async with ChatStream(world.dispatcher.stream(world.call(stream=True))) as stream:
        await read(stream, got)
        assert (await stream.completion()).text == "".join(got) == "Hello!"
    assert world.dispatcher.hedges == hedge
    world.assert_idle()


async def reads_cut(read: Read, hedge: bool, how: str) -> AsyncIterator[tuple[World, ChatStream, list[str], bool]]:
    """Open a stream, and cut its reading off at the first wait, at the second, …; whole in the end."""
    for at in itertools.count(1):
        world, got = world_of(hedge), list[str]()
        async with ChatStream(world.dispatcher.stream(world.call(stream=True))) as stream:

            async def work(stream: ChatStream = stream, got: list[str] = got) -> bool:
                await read(stream, got)
                return True

            whole = await Interruption(at, how).run(work())
            yield world, stream, got, whole is True
        world.assert_idle()
        if whole:
            return


@pytest.mark.parametrize("how", HOW)
@READ
@HEDGED
async def test_cut_at_every_wait(read: Read, hedge: bool, how: str) -> None:
    cuts = 0
    async for world, stream, got, whole in reads_cut(read, hedge, how):
        if whole:
            assert "".join(got) == "Hello!"
            continue
        cuts += 1
        assert "".join(got) in ("", "Hel", "Hello", "Hello!")
        world.assert_idle()  # at once, though the block goes on
        for again in (stream.completion, lambda s=stream: anext(s), stream.completion):
            with pytest.raises(RuntimeError, match="failed before"):
                await again()
    assert cuts >= 3


@READ
@HEDGED
async def test_the_block_is_left_at_every_wait_of_a_reader(read: Read, hedge: bool) -> None:
    """The reader gets a clear error, the caller its own."""
    tasks = asyncio.all_tasks()
    outcomes: list[str] = []
    for turns in itertools.count():
        world, got, mine = world_of(hedge), list[str](), KeyError("mine")
        reader: asyncio.Task[None] | None = None
        with pytest.raises(KeyError) as caught:
            async with ChatStream(world.dispatcher.stream(world.call(stream=True))) as stream:
                reader = asyncio.ensure_future(read(stream, got))
                for _ in range(turns):
                    await asyncio.sleep(0.05)
                raise mine
        assert caught.value is mine
        world.assert_idle()
        assert reader is not None
        await asyncio.wait([reader])
        failure = reader.exception()
        outcomes.append("whole" if failure is None else getattr(failure, "kind", type(failure).__name__))
        if failure is None:
            assert "".join(got) == "Hello!"
            break
        assert isinstance(failure, (APIConnectionError, RuntimeError))
        assert reader.cancelling() == 0
    assert asyncio.all_tasks() == tasks
    # One that had not begun to read finds the block left; all others were closed while they read.
    assert set(outcomes[1:-1]) == {"closed"}
    assert len(outcomes) > 10
