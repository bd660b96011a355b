"""The fan-out by itself: what it pulls, hands out, keeps back and cancels."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from types import CoroutineType
from typing import Any, cast

import anyio
import anyio.lowlevel
import attrs
import pytest

from piapi_async import (
    APIConnectionError,
    Attempt,
    ChatCompletion,
    ChatRequest,
    ConfigurationError,
    Result,
    Results,
    fanout,
)

pytestmark = pytest.mark.anyio

Ask = Callable[[int, Any], Awaitable[Result]]


class Answers:
    """An `ask` whose calls end when they are told to, and that counts them.

    Attributes:
        running: Index of each call under way.
        most: Most calls that were under way at once.
        cancelled: Index of each call that was cancelled.
    """

    def __init__(self, *, at_once: bool = True) -> None:
        self.running: set[int] = set()
        self.most = 0
        self.cancelled: list[int] = []
        self.asked: list[tuple[int, object]] = []
        self._at_once = at_once
        self._doors: dict[int, anyio.Event] = {}

    def finish(self, *indexes: int) -> None:
        for index in indexes:
            self._door(index).set()

    def _door(self, index: int) -> anyio.Event:
        return self._doors.setdefault(index, anyio.Event())

    async def __call__(self, index: int, item: object) -> Result:
        self.asked.append((index, item))
        self.running.add(index)
        self.most = max(self.most, len(self.running))
        try:
            if self._at_once:
                await anyio.lowlevel.checkpoint()
            else:
                await self._door(index).wait()
        except asyncio.CancelledError:
            self.cancelled.append(index)
            raise
        finally:
            self.running.discard(index)
        return Result(index, None, latency=float(index))


class Counted:
    """An endless or finite iterator that counts what is pulled."""

    def __init__(self, end: int | None = None) -> None:
        self.pulled = 0
        self.end = end

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if self.pulled == self.end:
            raise StopIteration
        self.pulled += 1
        return self.pulled - 1


async def settle() -> None:
    """Let every task that can go on do so."""
    for _ in range(50):
        await anyio.lowlevel.checkpoint()


async def tasks_left() -> int:
    """The tasks of a fan-out: what drives the input, and the calls."""
    await settle()
    coroutines = [cast("CoroutineType[Any, Any, Any]", task.get_coro()) for task in asyncio.all_tasks()]
    return sum(each.cr_code.co_filename in (fanout.__file__, __file__) for each in coroutines)


async def from_list(items: list[Any]) -> AsyncIterator[Any]:
    for item in items:
        await anyio.lowlevel.checkpoint()
        yield item


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("size", [0, 1, 2, 3, 7, 100])
@pytest.mark.parametrize("concurrency", [1, 2, 3, 50])
@pytest.mark.parametrize("asynchronous", [False, True])
async def test_every_item_is_asked_once(size: int, concurrency: int, ordered: bool, asynchronous: bool) -> None:
    ask = Answers()
    items = [f"item {i}" for i in range(size)]
    given = from_list(items) if asynchronous else items
    async with Results(given, ask, concurrency=concurrency, ordered=ordered) as results:
        found = [result.index async for result in results]
    assert sorted(found) == list(range(size))
    assert sorted(ask.asked) == list(enumerate(items))
    assert ask.most <= concurrency
    if ordered:
        assert found == list(range(size))
    assert await tasks_left() == 0


async def test_results_come_as_they_finish() -> None:
    ask = Answers(at_once=False)
    async with Results(["a", "b", "c"], ask, concurrency=3, ordered=False) as results:
        await settle()
        for index in (2, 0, 1):
            ask.finish(index)
            assert (await anext(results)).index == index
        with pytest.raises(StopAsyncIteration):
            await anext(results)


async def test_results_come_in_order() -> None:
    ask = Answers(at_once=False)
    async with Results(range(3), ask, concurrency=3, ordered=True) as results:
        await settle()
        ask.finish(2, 1)
        await settle()
        with anyio.move_on_after(0.01) as scope:
            await anext(results)
        assert scope.cancelled_caught
        ask.finish(0)
        assert [result.index async for result in results] == [0, 1, 2]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("concurrency", [1, 2, 5])
async def test_no_more_than_twice_the_concurrency_is_pulled_ahead(concurrency: int, ordered: bool) -> None:
    items = Counted()
    async with Results(items, Answers(), concurrency=concurrency, ordered=ordered) as results:
        await settle()
        assert items.pulled == 2 * concurrency
        for handed in range(1, 20):
            await anext(results)
            assert items.pulled <= handed + 2 * concurrency
            await settle()
            assert items.pulled == handed + 2 * concurrency


async def test_the_first_in_order_holds_the_others_up() -> None:
    ask = Answers(at_once=False)
    items = Counted()
    async with Results(items, ask, concurrency=3, ordered=True) as results:
        ask.finish(*range(1, 100))
        await settle()
        assert items.pulled == 6
        assert ask.running == {0}
        ask.finish(0)
        assert [(await anext(results)).index for _ in range(30)] == list(range(30))


async def test_a_slow_item_does_not_hold_the_others_up() -> None:
    ask = Answers(at_once=False)
    ask.finish(*range(1, 1000))
    async with Results(Counted(), ask, concurrency=2, ordered=False) as results:
        assert [(await anext(results)).index for _ in range(200)] == list(range(1, 201))
    assert 0 in ask.cancelled


async def test_calls_begin_as_items_come() -> None:
    send, receive = anyio.create_memory_object_stream[str](0)
    ask = Answers(at_once=False)
    async with send, receive, Results(receive, ask, concurrency=100, ordered=False) as results:
        for size in range(1, 6):
            await send.send("x")
            await settle()
            assert len(ask.running) == size
            assert await tasks_left() == size + 1  # one waits for the next item
        ask.finish(*range(5))
        await send.aclose()
        assert len([result async for result in results]) == 5


@pytest.mark.parametrize("ordered", [False, True])
async def test_an_answer_that_is_there_at_once(ordered: bool) -> None:
    async def ask(index: int, item: int) -> Result:
        return Result(index, None)

    async with Results(Counted(1000), ask, concurrency=3, ordered=ordered) as results:
        assert len([result async for result in results]) == 1000


async def test_nothing_is_kept_of_what_was_handed_out() -> None:
    class Item:
        pass

    class FailureError(Exception):
        pass

    items = (Item() for _ in count())
    alive: list[weakref.ref[Any]] = []

    async def ask(index: int, item: Item) -> Result:
        alive.append(weakref.ref(item))
        await anyio.lowlevel.checkpoint()
        result = Result(index, None, error=FailureError())
        alive.append(weakref.ref(cast("FailureError", result.error)))
        return result

    async with Results(items, ask, concurrency=4, ordered=False) as results:
        for _ in range(100):
            await anext(results)
        await settle()
        gc.collect()
        assert len([ref for ref in alive if ref() is not None]) <= 2 * 8


# -- input that misbehaves ---------------------------------------------------------------------------------------------


def broken(items: int) -> Iterator[int]:
    yield from range(items)
    raise OSError("the disk is gone")


async def broken_later(items: int) -> AsyncIterator[int]:
    for item in range(items):
        await anyio.lowlevel.checkpoint()
        yield item
    raise OSError("the disk is gone")


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("size", [0, 1, 5])
@pytest.mark.parametrize("source", [broken, broken_later])
async def test_input_that_raises(source: Callable[[int], Any], size: int, ordered: bool) -> None:
    """The results of what was pulled come first, then the input's own error, unchanged."""
    found: list[int] = []
    with pytest.raises(OSError, match="the disk is gone") as raised:
        async with Results(source(size), Answers(), concurrency=2, ordered=ordered) as results:
            async for result in results:
                found.append(result.index)  # what came before the error counts
    assert type(raised.value) is OSError
    assert sorted(found) == list(range(size))
    assert await tasks_left() == 0


async def test_an_iteration_that_has_failed_stays_so() -> None:
    async with Results(broken(0), Answers(), concurrency=1, ordered=False) as results:
        for _ in range(3):
            with pytest.raises(OSError, match="the disk is gone"):
                await anext(results)


@pytest.mark.parametrize("ordered", [False, True])
async def test_ask_that_raises_ends_the_iteration(ordered: bool) -> None:
    """It may not: results carry their errors. If it does, the caller hears of it, and nothing hangs."""

    async def ask(index: int, item: object) -> Result:
        if index == 3:
            raise LookupError("no such thing")
        await anyio.lowlevel.checkpoint()
        return Result(index, None)

    items = Counted()
    found: list[int] = []
    with pytest.raises(LookupError, match="no such thing"):
        async with Results(items, ask, concurrency=2, ordered=ordered) as results:
            async for result in results:
                found.append(result.index)
    assert set(found) >= {0, 1}
    assert items.pulled <= 8
    assert await tasks_left() == 0


async def test_an_exhausted_input_is_not_asked_again() -> None:
    class Once(Counted):
        def __next__(self) -> int:
            if self.pulled == self.end:
                self.end = -1
                raise StopIteration
            assert self.end != -1, "asked again after its end"
            return super().__next__()

    async with Results(Once(5), Answers(), concurrency=3, ordered=False) as results:
        assert len([result async for result in results]) == 5
        for _ in range(2):
            with pytest.raises(StopAsyncIteration):
                await anext(results)


# -- leaving early -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ordered", [False, True])
async def test_leaving_cancels_the_rest(ordered: bool) -> None:
    ask = Answers(at_once=False)
    ask.finish(0)
    items = Counted()
    async with Results(items, ask, concurrency=3, ordered=ordered) as results:
        assert (await anext(results)).index == 0
        await settle()
    assert sorted(ask.cancelled) == [1, 2, 3]
    assert ask.running == set()
    assert await tasks_left() == 0


async def test_leaving_at_once() -> None:
    ask = Answers(at_once=False)
    async with Results(Counted(), ask, concurrency=3, ordered=False):
        pass
    assert await tasks_left() == 0
    assert ask.asked == []


async def test_leaving_with_an_error_hands_it_on_unchanged() -> None:
    ask = Answers(at_once=False)
    error = ValueError("the caller's own")
    with pytest.raises(ValueError, match="the caller's own") as raised:
        async with Results(Counted(), ask, concurrency=3, ordered=False):
            await settle()
            raise error
    assert raised.value is error
    assert error.__context__ is None
    assert sorted(ask.cancelled) == [0, 1, 2]


async def test_leaving_while_the_input_is_waited_for() -> None:
    async def never() -> AsyncIterator[int]:
        yield 0
        await anyio.sleep_forever()

    async with Results(never(), Answers(), concurrency=3, ordered=False) as results:
        assert (await anext(results)).index == 0
        await settle()
    assert await tasks_left() == 0


@pytest.mark.parametrize("steps", range(12))
async def test_the_callers_task_is_cancelled_at_each_step(steps: int) -> None:
    ask = Answers()

    async def consume() -> None:
        async with Results(Counted(), ask, concurrency=2, ordered=False) as results:
            async for _ in results:
                await anyio.lowlevel.checkpoint()

    task = asyncio.create_task(consume())
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel("by the test")
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert raised.value.args == ("by the test",)
    assert task.cancelled()
    assert ask.running == set()
    assert await tasks_left() == 0


async def test_the_callers_scope_is_cancelled() -> None:
    ask = Answers(at_once=False)
    with anyio.move_on_after(0.005) as scope:
        async with Results(Counted(), ask, concurrency=2, ordered=False) as results:
            await anext(results)
    assert scope.cancelled_caught
    assert sorted(ask.cancelled) == [0, 1]
    await anyio.lowlevel.checkpoint()  # nothing of the cancellation is left
    assert await tasks_left() == 0


async def test_inside_asyncio_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.005):
            async with Results(Counted(), Answers(at_once=False), concurrency=2, ordered=False) as results:
                await anext(results)
    current = asyncio.current_task()
    assert current is not None
    assert current.cancelling() == 0
    assert await tasks_left() == 0


# -- several consumers, misuse -----------------------------------------------------------------------------------------


async def test_several_tasks_may_share_the_results() -> None:
    found: list[int] = []

    async def consume(results: Results[Any]) -> None:
        async for result in results:
            found.append(result.index)
            await anyio.lowlevel.checkpoint()

    async with (
        Results(range(50), Answers(), concurrency=3, ordered=False) as results,
        anyio.create_task_group() as group,
    ):
        for _ in range(4):
            group.start_soon(consume, results)
    assert sorted(found) == list(range(50))


@pytest.mark.parametrize("items", ["one prompt", b"bytes", 5, None])
async def test_what_is_no_list_of_prompts(items: Any) -> None:
    with pytest.raises(
        ConfigurationError, match=f"prompts: a {type(items).__name__} is not a list of prompts; pass an "
    ):
        Results(items, Answers(), concurrency=1, ordered=False)


@pytest.mark.parametrize("concurrency", [0, -1, 1.5, True, "3", None])
async def test_what_is_no_concurrency(concurrency: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"concurrency: .* pass a whole number, 1 or more"):
        Results([], Answers(), concurrency=concurrency, ordered=False)


async def test_only_inside_its_block_and_only_once() -> None:
    results = Results([1], Answers(), concurrency=1, ordered=False)
    with pytest.raises(RuntimeError, match="the map is not open"):
        await anext(results)
    async with results:
        assert len([result async for result in results]) == 1
        with pytest.raises(RuntimeError, match="begun before"):
            await results.__aenter__()
    with pytest.raises(RuntimeError, match="begun before"):
        await results.__aenter__()
    with pytest.raises(StopAsyncIteration):
        await anext(results)


def test_it_may_be_made_outside_a_loop() -> None:
    results = Results([1, 2], Answers(), concurrency=1, ordered=True)

    async def run() -> list[int]:
        async with results:
            return [result.index async for result in results]

    assert asyncio.run(run()) == [0, 1]


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_a_result_with_a_completion() -> None:
    attempts = (Attempt("piapi", "…1234"),)
    completion = ChatCompletion("c-1", "chat.completion", 5, "gpt-4o", (), attempts=attempts)
    result = Result(3, ChatRequest("Hi"), completion)
    assert result.unwrap() is result.completion
    assert result.attempts == attempts


def test_a_result_with_an_error() -> None:
    error = APIConnectionError("no", attempts=(Attempt("piapi", "…"),))
    result = Result(0, ChatRequest("Hi"), error=error)
    with pytest.raises(APIConnectionError) as raised:
        result.unwrap()
    assert raised.value is error
    assert result.attempts == error.attempts
    assert Result(0, None, error=TypeError()).attempts == ()


def test_a_result_with_neither() -> None:
    with pytest.raises(RuntimeError, match="made with neither"):
        Result(0, None).unwrap()
    assert Result(0, None).attempts == ()


def test_a_result_is_frozen() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Result(0, None).index = 1  # type: ignore[misc]
