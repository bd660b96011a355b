"""What callers do with a client, and what they must see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from piapi_async import (
    APIConnectionError,
    BudgetExceededError,
    ChatStream,
    PiAPIError,
    Restarted,
    Result,
    Text,
)
from tests.simulation.history import Caller
from tests.simulation.loop import Strike
from tests.simulation.world import EPSILON, World, prompt_of


class OwnError(Exception):
    """What a caller's own code raises."""


class EnoughError(Exception):
    """A caller has read enough, and leaves a block by this."""


async def call(world: World, name: str, caller: Caller) -> None:
    """Let a caller do what it does, and judge how it ended."""
    await asyncio.sleep(caller.begins)
    cancel = caller.cancel
    strike = Strike(cancel.at, cancel.how, lambda: world.note(f"{name} is cancelled")) if cancel else Strike(0)
    world.note(f"{name} begins: {caller.kind}")
    began = world.loop.time()
    if caller.kind != "map":
        world.began[name] = began
    task = strike.start(_DOINGS[caller.kind](world, name, caller))
    await asyncio.wait([task])
    took = world.loop.time() - began
    if caller.deadline is not None and caller.has_no_rest and took > caller.deadline + EPSILON:
        world.wrong(f"{name} took {took} s, and its deadline was {caller.deadline}")
    if task.cancelled():
        world.note(f"{name} was cancelled")
        if not strike.struck:
            world.wrong(f"{name} raised CancelledError, and nobody cancelled it")
    elif error := task.exception():
        world.note(f"{name} raised {error!r}")
        judge(world, name, caller, error)
    else:
        world.note(f"{name} is done")


def judge(world: World, name: str, caller: Caller, error: BaseException) -> None:
    """Say whether a caller may see an error."""
    closes = bool(world.history.closings)
    if isinstance(error, OwnError):
        may = caller.stumbles or caller.input == "raises"
    elif isinstance(error, TimeoutError):
        may = caller.reading == "impatient"
    elif isinstance(error, BudgetExceededError):
        may = world.history.budget is not None
    elif isinstance(error, APIConnectionError) and error.kind == "closed":
        may = closes
    elif isinstance(error, RuntimeError):
        may = closes and "the client is closed" in str(error)
    else:
        may = isinstance(error, PiAPIError)
    if not may:
        world.wrong(f"{name} raised {error!r}")


def stumble(caller: Caller) -> Callable[[], None] | None:
    """Code of the caller's own, that raises when it is called for the nth time; None for none."""
    left = caller.stumbles

    def step() -> None:
        nonlocal left
        left -= 1
        if not left:
            raise OwnError("a step of the caller's own")

    return step if left else None


# -- one whole answer --------------------------------------------------------------------------------------------------


async def complete(world: World, name: str, caller: Caller) -> None:
    """Ask for a whole answer."""
    completion = await world.client.complete(
        prompt_of(name),
        n=caller.choices,
        max_tokens=caller.most,
        deadline=caller.deadline,
        via_stream=caller.via_stream,
        on_send=stumble(caller),
    )
    world.check_whole(name, completion)


# -- a stream ----------------------------------------------------------------------------------------------------------


async def stream(world: World, name: str, caller: Caller) -> None:
    """Read a stream in the caller's way."""
    reader: asyncio.Task[None] | None = None
    with suppress(EnoughError):
        async with world.client.stream(
            prompt_of(name),
            n=caller.choices,
            max_tokens=caller.most,
            deadline=caller.deadline,
            on_interrupt="restart" if caller.reading == "restart" else "raise",
            on_send=stumble(caller),
        ) as answer:
            if caller.reading == "left by another":
                reader = asyncio.create_task(_read_until_closed(world, name, answer))
                await asyncio.sleep(caller.patience)
                raise EnoughError
            try:
                text = await _WAYS[caller.reading](answer, caller)
            except EnoughError:
                raise
            except Exception:
                await _check_stays_failed(world, name, answer)
                raise
            await _check_read(world, name, answer, text)
    if reader is not None:
        await reader


async def _check_read(world: World, name: str, answer: ChatStream, text: str | None) -> None:
    """An iteration that ended by itself has read a whole answer."""
    completion = await answer.completion()
    world.check_whole(name, completion)
    if text is not None and text != completion.text:
        world.wrong(f"{name} read {text!r} of {completion.text!r}")


async def _check_stays_failed(world: World, name: str, answer: ChatStream) -> None:
    """After an error, every further read raises."""
    with suppress(PiAPIError, RuntimeError):
        await answer.completion()
        world.wrong(f"{name} read a whole answer behind an error")
    with suppress(PiAPIError, RuntimeError):
        async for _ in answer:
            pass
        world.wrong(f"{name}: an iteration behind an error ended as if the answer were whole")


async def _read_until_closed(world: World, name: str, answer: ChatStream) -> None:
    try:
        text = "".join([token async for token in answer])
    except (PiAPIError, RuntimeError) as error:
        world.note(f"the other reader of {name} got {error!r}")
    else:
        await _check_read(world, name, answer, text)


async def _tokens(answer: ChatStream, caller: Caller) -> str:
    return "".join([token async for token in answer])


async def _chunks(answer: ChatStream, caller: Caller) -> str:
    choices = [choice async for chunk in answer.chunks() for choice in chunk.choices]
    return "".join(choice.delta.content or "" for choice in choices if choice.index == 0)


async def _events(answer: ChatStream, caller: Caller) -> str:
    got: list[str] = []
    async for event in answer.events():
        if isinstance(event, Restarted):
            got.clear()
        elif isinstance(event, Text) and event.choice == 0:
            got.append(event.text)
        await asyncio.sleep(caller.patience)
    return "".join(got)


async def _completion(answer: ChatStream, caller: Caller) -> None:
    await answer.completion()


async def _anext(answer: ChatStream, caller: Caller) -> str:
    got: list[str] = []
    with suppress(StopAsyncIteration):
        while True:
            got.append(await anext(answer))
    return "".join(got)


async def _impatient(answer: ChatStream, caller: Caller) -> str:
    got: list[str] = []
    tokens = aiter(answer)
    with suppress(StopAsyncIteration):
        while True:
            got.append(await asyncio.wait_for(anext(tokens), caller.patience))
    return "".join(got)


async def _left_early(answer: ChatStream, caller: Caller) -> str:
    async for _ in answer:
        raise EnoughError
    return ""


_WAYS: Mapping[str, Callable[[ChatStream, Caller], Awaitable[str | None]]] = {
    "tokens": _tokens,
    "chunks": _chunks,
    "events": _events,
    "restart": _events,
    "completion": _completion,
    "anext": _anext,
    "impatient": _impatient,
    "left early": _left_early,
}
"""By `history.READINGS`, but for the one that needs two tasks."""


# -- many --------------------------------------------------------------------------------------------------------------


async def map_(world: World, name: str, caller: Caller) -> None:
    """Ask for many answers, and maybe leave before all are there."""
    seen: list[int] = []
    prompts: list[Any] = [prompt_of(f"{name}-{i}") for i in range(caller.items)]
    if caller.input == "keyed":
        prompts = [(f"key of {prompt}", prompt) for prompt in prompts]
    source = inputs(caller, prompts)
    mapped = world.client.map(
        source,
        n=caller.choices,
        max_tokens=caller.most,
        deadline=caller.deadline,
        concurrency=caller.width,
        ordered=caller.ordered,
    )
    try:
        async with mapped as results:
            async for result in results:
                seen.append(result.index)
                _check_result(world, f"{name}-{result.index}", caller, result)
                key = prompts[result.index][0] if caller.input == "keyed" else result.index
                if result.key != key:
                    world.wrong(f"{name} got the key {result.key!r} with the result of {key!r}")
                if caller.leaves is not None and len(seen) >= caller.leaves:
                    return
    finally:
        if getattr(source, "gi_frame", None) or getattr(source, "ag_frame", None):
            world.wrong(f"{name} left its input open")
        if len(set(seen)) < len(seen) or (caller.ordered and seen != list(range(len(seen)))):
            world.wrong(f"{name} got the results {seen}")
    if sorted(seen) != list(range(caller.items)):
        world.wrong(f"{name} got the results {seen} of {caller.items} items")


def _check_result(world: World, prompt: str, caller: Caller, result: Result) -> None:
    if result.completion is not None:
        world.check_whole(prompt, result.completion)
    else:
        judge(world, prompt, caller, result.error or ValueError("neither an answer nor an error"))


def inputs(caller: Caller, items: list[Any]) -> Iterable[Any] | AsyncIterable[Any]:
    """What a caller passes for the input of many."""
    if caller.input in ("list", "keyed"):
        return items
    return _generate_slowly(items) if caller.input == "async generator" else _generate(caller, items)


def _generate(caller: Caller, items: list[Any]) -> Iterator[Any]:
    yield from items
    if caller.input == "raises":
        raise OwnError("the input")


async def _generate_slowly(items: list[Any]) -> AsyncIterator[Any]:
    for item in items:
        async with asyncio.timeout(3600):  # which wants to be left by the task that entered it
            await asyncio.sleep(0.01)
            yield item


_DOINGS: Mapping[str, Callable[[World, str, Caller], Any]] = {"complete": complete, "stream": stream, "map": map_}
