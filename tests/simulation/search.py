"""Runs histories, tells what is wrong with one, and leaves out of it what does not matter."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import attrs

from tests.simulation.batches import run_batches
from tests.simulation.callers import call
from tests.simulation.history import Caller, History, draw
from tests.simulation.loop import StuckError, VirtualLoop, scopes_in_order
from tests.simulation.provider import ScriptedProvider
from tests.simulation.world import World, budget_of

Value = TypeVar("Value", History, Caller)


@attrs.frozen
class Outcome:
    """How a history ended.

    Attributes:
        history: The history.
        wrongs: What must not be; empty where all is right.
        events: What happened, where it was kept.
        faulty: Requests that were answered badly, by provider and number.
    """

    history: History
    wrongs: tuple[str, ...]
    events: tuple[str, ...]
    faulty: frozenset[tuple[str, int]]


def happen(history: History, *, keep: bool = False, states: set[int] | None = None) -> Outcome:
    """Let a history happen."""
    loop = VirtualLoop()
    provider = ScriptedProvider(
        history.seed,
        history.providers,
        faults=history.faults,
        words=history.budget is None,
        tell=lambda what, request: world.hear(what, request),
        mended=history.mended,
    )
    world = World(history, loop, provider, keep, states)
    try:
        with _listening(world):
            loop.run_until_complete(live(world))
    except StuckError as error:
        world.wrong(str(error))
    except Exception as error:
        world.wrong(f"the simulation raised {error!r}")
        if keep:
            raise
    finally:
        _end(loop)
    faulty = frozenset((each.provider, each.number) for each in provider.requests if each.answer.fault)
    return Outcome(history, tuple(world.wrongs), tuple(world.events), faulty)


@contextmanager
def _listening(world: World) -> Iterator[None]:
    """Hand the log and all warnings to the history instead of to the terminal."""
    log, handler = logging.getLogger("piapi_async"), logging.Handler()
    handler.emit = world.hear_log  # type: ignore[method-assign]
    level, log.propagate = log.level, False
    log.addHandler(handler)
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: world.wrong(f"Python warns: {message}")
            yield
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = True


async def live(world: World) -> None:
    """Let all callers of a history live."""
    with scopes_in_order():
        await _live(world, world.history)


async def _live(world: World, history: History) -> None:
    world.budget = budget_of(history)
    world.client = world.make_client()
    if history.callers[0].kind == "batch":
        await run_batches(world, history.callers[0])
        return
    await world.client.open()
    jobs = [asyncio.create_task(call(world, f"c{i}", caller)) for i, caller in enumerate(history.callers)]
    jobs += [asyncio.create_task(world.close(closing)) for closing in history.closings]
    await asyncio.gather(*jobs)
    await world.check_idle()
    await world.check_healed()
    await world.client.aclose()
    await world.check_idle()


def _end(loop: VirtualLoop) -> None:
    tasks = loop.tasks()
    for task in tasks:
        task.cancel()
    if tasks:
        loop.run_until_complete(asyncio.wait(tasks, timeout=1))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


def search(seeds: Iterable[int], *, states: set[int] | None = None, short: bool = True) -> Outcome | None:
    """Return the first seed whose history is wrong, shortened and told whole if wished; None where all are right."""
    with no_collection():
        for count, seed in enumerate(seeds):
            history = draw(seed)
            outcome = happen(history, states=states)
            if outcome.wrongs:
                return happen(shorten(history), keep=True) if short else outcome
            if not count % 100:
                gc.collect()
    return None


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect no garbage: when that happens depends on what ran before, and it may end what a task has left."""
    gc.collect()
    gc.freeze()  # what is here by now need not be looked at
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


# -- shorter -----------------------------------------------------------------------------------------------------------


def shorten(history: History) -> History:
    """Leave out of a wrong history what it is wrong without."""
    sort = _sort_of(happen(history))
    while True:
        for shorter in _shorter(history):
            if _sort_of(happen(shorter)) == sort:
                history = shorter
                break
        else:
            return history


def _sort_of(outcome: Outcome) -> str | None:
    """What is wrong first, without its figures: what is left out must not make another fault of it."""
    return re.sub(r"\d[\d.e-]*", "#", outcome.wrongs[0]) if outcome.wrongs else None


def _shorter(history: History) -> Iterator[History]:
    """Histories with one thing less, the large things first."""
    callers, closings = history.callers, history.closings
    for i in range(len(callers)):
        if len(callers) > 1:
            yield attrs.evolve(history, callers=callers[:i] + callers[i + 1 :])
    for i in range(len(closings)):
        yield attrs.evolve(history, closings=closings[:i] + closings[i + 1 :])
    for i, caller in enumerate(callers):
        for changed in _plainer(caller, Caller(caller.kind), ("kind", "items", "ending")):
            yield attrs.evolve(history, callers=(*callers[:i], changed, *callers[i + 1 :]))
        for items in range(1, caller.items):
            yield attrs.evolve(history, callers=(*callers[:i], attrs.evolve(caller, items=items), *callers[i + 1 :]))
    for plainer in _plainer(history, History(0), ("seed", "callers", "closings", "mended", "faults")):
        if plainer.backups or not plainer.hedge:
            yield plainer
    for request in happen(history).faulty - history.mended:
        yield attrs.evolve(history, mended=history.mended | {request})


def _plainer(value: Value, usual: Value, kept: tuple[str, ...]) -> Iterator[Value]:
    for name in (field.name for field in attrs.fields(type(value)) if field.name not in kept):
        if getattr(value, name) != getattr(usual, name):
            yield attrs.evolve(value, **{name: getattr(usual, name)})


def told(outcome: Outcome) -> str:
    """A wrong history, as a person reads it."""
    return "\n".join(
        [
            f"seed {outcome.history.seed} is wrong:",
            *(f"  {wrong}" for wrong in outcome.wrongs),
            "shortened to:",
            str(outcome.history),
            "events (seconds):",
            *outcome.events,
        ]
    )
