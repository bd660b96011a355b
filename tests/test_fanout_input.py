"""How the fan-out drives its input: one task and one context, closed when the block is left, its errors its own."""

from __future__ import annotations

import asyncio
import gc
import io
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from piapi_async import Result, Results

pytestmark = pytest.mark.anyio

span: ContextVar[object] = ContextVar("span", default=None)


async def answer(index: int, item: object) -> Result:
    await asyncio.sleep(0)
    return Result(index, None, key=span.get())


async def never(index: int, item: object) -> Result:
    await asyncio.sleep(60)
    raise AssertionError("it was not cancelled")


def results(items: Any, ask: Any = answer, concurrency: int = 3) -> Results[Any]:
    return Results(items, ask, concurrency=concurrency, ordered=False)


# -- one task, one context ---------------------------------------------------------------------------------------------


async def spans(count: int) -> AsyncGenerator[int, None]:
    """As tracing does: a context variable that is set and reset around each item."""
    task = asyncio.current_task()
    for i in range(count):
        token = span.set(i)
        await asyncio.sleep(0)
        yield i
        span.reset(token)
        assert asyncio.current_task() is task
        assert span.get() == "the caller's"


def plain_spans(count: int) -> Generator[int, None, None]:
    for i in range(count):
        token = span.set(i)
        yield i
        span.reset(token)
        assert span.get() == "the caller's"


@pytest.mark.parametrize("source", [spans, plain_spans])
async def test_the_input_is_driven_in_one_task_and_context(source: Callable[[int], Any]) -> None:
    token = span.set("the caller's")
    async with results(source(50)) as found:
        keys = {result.index: result.key async for result in found}
    assert keys == {i: i for i in range(50)}  # each call saw the context that its item came in
    assert span.get() == "the caller's"
    span.reset(token)


async def test_an_input_may_hold_a_scope_open_around_its_items() -> None:
    async def scoped() -> AsyncGenerator[int, None]:
        async with anyio.create_task_group(), asyncio.timeout(60):
            for i in range(5):
                yield i

    async with results(scoped()) as found:
        assert len([result async for result in found]) == 5


async def test_an_input_that_never_waits_lets_the_others_have_their_turn() -> None:
    pulled = 0

    def endless() -> Iterator[int]:
        nonlocal pulled
        while True:
            pulled += 1
            yield pulled

    async with results(endless(), never, concurrency=100):
        for turn in range(5):
            await asyncio.sleep(0)
            assert pulled <= 16 * (turn + 1)


# -- closed when the block is left -------------------------------------------------------------------------------------


class Source:
    """An input that notes how far its end has come.

    Args:
        at: Where it is when the block is left: at its `yield`, or at a wait of its own.
    """

    def __init__(self, at: str) -> None:
        self.log: list[str] = []
        self._at = at

    async def __call__(self) -> AsyncGenerator[int, None]:
        task = asyncio.current_task()
        try:
            yield 0
            if self._at == "wait":
                await asyncio.sleep(60)
            while True:
                yield 1
        finally:
            self.log.append("finally")
            await asyncio.sleep(0.001)
            assert asyncio.current_task() is task
            self.log.append("closed")

    def plain(self) -> Generator[int, None, None]:
        try:
            while True:
                yield 0
        finally:
            self.log.append("closed")


class OwnError(Exception):
    """An error of the caller's."""


async def leave_by_break(source: Any) -> None:
    async with results(source) as found:
        async for _ in found:
            break


async def leave_by_error(source: Any) -> None:
    error = OwnError("mine")
    with pytest.raises(OwnError) as caught:
        async with results(source) as found:
            await anext(found)
            raise error
    assert caught.value is error
    assert error.__context__ is None


async def leave_by_cancellation(source: Any) -> None:
    async def use() -> None:
        async with results(source, never):
            await asyncio.sleep(60)

    task = asyncio.create_task(use())
    await asyncio.sleep(0.005)
    task.cancel("mine")
    with pytest.raises(asyncio.CancelledError) as caught:
        await task
    assert caught.value.args == ("mine",)


async def leave_by_scope(source: Any) -> None:
    with anyio.move_on_after(0.005) as scope:
        async with results(source, never):
            await asyncio.sleep(60)
    assert scope.cancelled_caught


async def leave_by_timeout(source: Any) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.005), results(source, never):
            await asyncio.sleep(60)


WAYS = pytest.mark.parametrize(
    "leave", [leave_by_break, leave_by_error, leave_by_cancellation, leave_by_scope, leave_by_timeout]
)


@pytest.mark.parametrize("at", ["yield", "wait"])
@WAYS
async def test_a_generator_is_closed_when_the_block_is_left(leave: Callable[[Any], Any], at: str) -> None:
    source = Source(at)
    await leave(source())
    assert source.log == ["finally", "closed"]


@WAYS
async def test_a_plain_generator_is_closed_when_the_block_is_left(leave: Callable[[Any], Any]) -> None:
    source = Source("yield")
    await leave(source.plain())
    assert source.log == ["closed"]


async def test_one_that_was_begun_before_is_closed_where_nothing_was_pulled() -> None:
    source = Source("yield")
    items = source.plain()
    next(items)
    async with results(items):
        pass
    assert source.log == ["closed"]


async def test_what_is_no_generator_stays_open() -> None:
    file = io.StringIO("a\nb\nc\n")
    async with results(file, concurrency=1) as found:
        await anext(found)
    assert not file.closed


async def test_an_input_that_takes_no_notice_of_being_cancelled() -> None:
    log: list[str] = []

    async def stubborn() -> AsyncGenerator[int, None]:
        try:
            yield 0
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                log.append("cancelled")
            yield 1
        finally:
            log.append("closed")

    asked: list[object] = []

    async def ask(index: int, item: object) -> Result:
        asked.append(item)
        return Result(index, None)

    async with results(stubborn(), ask) as found:
        await anext(found)
        await asyncio.sleep(0.001)
    assert (log, asked) == (["cancelled", "closed"], [0])


async def test_a_caller_that_is_cancelled_again_does_not_wait_for_a_slow_close() -> None:
    async def slow() -> AsyncGenerator[int, None]:
        try:
            while True:
                yield 0
        finally:
            await asyncio.sleep(60)

    async def use() -> None:
        async with results(slow(), never):
            await asyncio.sleep(60)

    task = asyncio.create_task(use())
    for _ in range(2):
        await asyncio.sleep(0.002)
        task.cancel()
    with anyio.fail_after(1), pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_while_a_block_without_an_error_is_left() -> None:
    source = Source("yield")

    async def use() -> None:
        async with results(source(), never) as found:
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(task.cancel)
            assert found is not None

    task = asyncio.create_task(use())
    await asyncio.wait([task])
    assert task.cancelled()
    assert source.log[0] == "finally"


# -- errors of the input -----------------------------------------------------------------------------------------------


async def test_what_it_raises_as_it_is_closed_comes_out_of_the_block() -> None:
    error = OwnError("mine")

    async def broken() -> AsyncGenerator[int, None]:
        try:
            while True:
                yield 0
        finally:
            raise error

    with pytest.raises(OwnError) as caught:
        async with results(broken()) as found:
            await anext(found)
    assert caught.value is error


async def test_one_that_was_cancelled_by_itself_does_not_look_whole() -> None:
    async def waits() -> AsyncIterator[int]:
        yield 0
        other = asyncio.create_task(asyncio.sleep(60))
        other.cancel()
        await other

    async with results(waits()) as found:
        assert (await anext(found)).index == 0
        for _ in range(2):
            with pytest.raises(asyncio.CancelledError):
                await anext(found)


async def test_a_call_that_was_cancelled_from_outside_does_not_look_whole() -> None:
    calls: list[asyncio.Task[Any] | None] = []

    async def ask(index: int, item: object) -> Result:
        calls.append(asyncio.current_task())
        return await never(index, item)

    async with results([0], ask) as found:
        await asyncio.sleep(0.001)
        assert calls[0] is not None
        calls[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await anext(found)


# -- read when it is over ----------------------------------------------------------------------------------------------


async def test_read_after_the_block_was_left_early() -> None:
    async with results(range(100)) as found:
        await anext(found)
    with pytest.raises(RuntimeError, match="left before its end"):
        async for _ in found:
            pass


async def test_left_while_another_task_reads() -> None:
    async with results([0], never) as found:
        reader = asyncio.create_task(anext(found))
        await asyncio.sleep(0)
    with pytest.raises(RuntimeError, match="left before its end"):
        await reader


async def test_nothing_of_a_map_that_was_never_entered_is_left() -> None:
    source = Source("yield")
    unused = results(source())
    del unused
    gc.collect()
    await asyncio.sleep(0.001)
    assert source.log == []


# -- an error that would look like the end -----------------------------------------------------------------------------


def stops() -> Iterator[int]:
    yield 1
    raise StopAsyncIteration("of the input")


async def stop(index: int, item: object) -> Result:
    raise StopAsyncIteration("of the call")


@pytest.mark.parametrize(("items", "ask"), [(stops, answer), (lambda: [1], stop)])
async def test_a_stop_from_elsewhere_does_not_end_the_results(items: Callable[[], Any], ask: Any) -> None:
    with pytest.raises(RuntimeError, match="StopAsyncIteration") as caught:
        async with results(items(), ask) as found:
            async for _ in found:
                pass
    assert isinstance(caught.value.__cause__, StopAsyncIteration)
