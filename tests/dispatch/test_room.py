"""Waiting for room in the budget: `Client.map`, `Client.complete(wait_for_room=True)`, `run_batch`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from piapi_async import APITimeoutError, BudgetExceededError, ChatCompletion, Client, Limits, Provider, Retry
from piapi_async.catalog import ModelInfo
from piapi_async.dispatch.room import Room
from piapi_async.ledger import Books
from piapi_async.policy import Deadline
from piapi_async.testing import LocalServer, Stall, Status
from tests.leaks import KEY, PROMPT, assert_tight
from tests.test_billing import answer, serving

pytestmark = pytest.mark.anyio

WORST = 17 * Decimal("0.1125e-6") + 100 * Decimal("0.45e-6")
"""What is reserved for a prompt of one letter and an answer of a hundred tokens."""


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(api_key=KEY, faults=[], latency=0.005) as server:
        yield server


def client_of(server: LocalServer, budget: Decimal, **options: Any) -> Client:
    options = {"model": "gpt-4o-mini", "retry": Retry(attempts=1), **options}
    return Client(KEY, base_url=server.base_url, budget=budget, **options)


def ask(client: Client, prompt: str = "x", **options: Any) -> asyncio.Task[ChatCompletion]:
    return asyncio.create_task(client.complete(prompt, max_tokens=100, wait_for_room=True, **options))


async def until_sent(server: LocalServer, count: int) -> None:
    while len(server.requests) < count:
        await asyncio.sleep(0.001)


async def outcomes(*tasks: asyncio.Task[ChatCompletion]) -> list[str]:
    ended = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
    return [type(each).__name__ for each in ended]


def assert_idle(client: Client) -> None:
    assert client.ledger.reserved == 0
    assert (client.statistics().in_flight, client.statistics().queued) == (0, 0)


async def test_a_map_answers_all_that_fit_in_the_end(server: LocalServer) -> None:
    async with client_of(server, Decimal(1)) as probe:
        one, most = (await probe.complete("Question 0?")).cost, probe.quote("Question 0?", max_tokens=4000).most
    assert one is not None
    assert most is not None
    async with client_of(server, 220 * one) as client:
        assert most < 220 * one < 4 * most  # all that are asked cost less than what four of them reserve
        async with client.map([f"Question {i}?" for i in range(200)], concurrency=64, max_tokens=4000) as results:
            async with asyncio.timeout(10):
                found = [result async for result in results]
        assert [result.error for result in found] == [None] * 200
        assert client.ledger.spent <= 220 * one
        assert_idle(client)


async def test_an_error_comes_where_nothing_can_make_room(server: LocalServer) -> None:
    async with client_of(server, WORST * 3 / 2) as client:
        async with client.map(["x", "x" * 1000, "x"], concurrency=3, max_tokens=100, ordered=True) as results:
            async with asyncio.timeout(10):
                found = [type(result.error).__name__ async for result in results]
        assert found == ["NoneType", "BudgetExceededError", "NoneType"]  # a small one passes a large one
        assert len(server.requests) == 2
        assert_idle(client)


async def test_a_call_that_does_not_wait_is_refused_at_once(server: LocalServer) -> None:
    async with client_of(server, WORST * 3 / 2) as client:
        first = ask(client)
        await until_sent(server, 1)
        with pytest.raises(BudgetExceededError):
            await client.complete("x", max_tokens=100)
        assert await outcomes(first, ask(client)) == ["ChatCompletion"] * 2


@pytest.mark.parametrize("fault", [Status(503), Stall()])
async def test_whatever_ends_a_call_wakes_those_that_wait(server: LocalServer, fault: Any) -> None:
    server.faults = [fault]
    async with client_of(server, WORST * 3 / 2) as client:
        first = ask(client)
        await until_sent(server, 1)
        second = ask(client)
        await asyncio.sleep(0.01)
        first.cancel()  # a 503 has come by then
        # A 503 bills nothing. The other may have been billed: its reservation stays, and nothing can make room.
        expected = "ChatCompletion" if isinstance(fault, Status) else "BudgetExceededError"
        assert (await outcomes(first, second))[1] == expected
        assert_idle(client)


async def test_the_deadline_covers_the_wait(server: LocalServer) -> None:
    server.faults = [Stall()]
    async with client_of(server, WORST * 3 / 2) as client:
        first = ask(client)
        await until_sent(server, 1)
        with pytest.raises(APITimeoutError, match="room in the budget") as caught:
            await ask(client, PROMPT, deadline=0.01)
        error = caught.value
        assert_tight(error)
        assert (error.kind, error.maybe_billed, error.provider, len(error.attempts)) == ("deadline", False, "piapi", 1)
        first.cancel()
        await outcomes(first)
        assert_idle(client)


async def test_one_that_is_cancelled_leaves_nothing(server: LocalServer) -> None:
    server.latency = 0.02
    async with client_of(server, WORST * 3 / 2) as client:
        first = ask(client)
        await until_sent(server, 1)
        gone, second = ask(client, deadline=5), ask(client)
        await asyncio.sleep(0.001)
        gone.cancel()
        assert await outcomes(first, gone, second) == ["ChatCompletion", "CancelledError", "ChatCompletion"]
        assert len(server.requests) == 2
        assert_idle(client)


async def test_one_that_is_cancelled_as_it_gets_room_hands_it_on() -> None:
    books = Books(10)
    room = Room(books)
    books.reserve(10)
    gone, second = (asyncio.create_task(room.reserve(lambda: 6, Deadline())) for _ in range(2))
    await asyncio.sleep(0)
    books.release(10)
    room.changed()
    gone.cancel()
    await asyncio.wait_for(asyncio.gather(gone, second, return_exceptions=True), 5)
    assert (gone.cancelled(), second.result(), books.reserved) == (True, 6, 6)


async def test_one_that_was_cancelled_is_told_nothing() -> None:
    books = Books(10)
    room = Room(books)
    books.reserve(10)
    gone, second = (asyncio.create_task(room.reserve(lambda: 11, Deadline())) for _ in range(2))
    await asyncio.sleep(0)
    gone.cancel()
    books.release(10)
    room.changed()
    await asyncio.wait_for(asyncio.gather(gone, second, return_exceptions=True), 5)
    assert gone.cancelled()
    assert isinstance(second.exception(), BudgetExceededError)
    assert books.reserved == 0


async def test_a_later_attempt_waits_too(server: LocalServer) -> None:
    """Its first one may have been billed, so that the budget has room for one at a time."""
    prices = {"gpt-4o-mini": ModelInfo("gpt-4o-mini", "0.1125", "0.45")}
    async with LocalServer(api_key=KEY) as other:
        backup = Provider("backup", other.base_url, KEY, prices=prices)
        server.faults = [Status(504)]
        server.latency = 0.02
        async with client_of(server, WORST * 5 / 2, backups=[backup], retry=Retry()) as client:
            first = ask(client)
            await until_sent(server, 1)
            assert await outcomes(first, ask(client), ask(client)) == ["ChatCompletion"] * 3
            assert client.ledger.unknown == WORST
            assert_idle(client)


async def test_a_call_at_the_gate_waits_again_where_a_bill_was_above_its_reservation() -> None:
    """The budget has room for two of the first price, and after a bill above its reservation for one at a time."""
    async with serving(answer(17, 150), answer(17, 10)) as server:
        limits, budget = Limits(concurrency=1), WORST * 7 / 2
        async with Client(
            KEY, base_url=server.base_url, model="gpt-4o-mini", budget=budget, limits=limits, retry=Retry(attempts=1)
        ) as client:
            calls = [ask(client) for _ in range(4)]
            found = await outcomes(*calls)
            assert found[:2] == ["ChatCompletion"] * 2
            assert set(found[2:]) <= {"ChatCompletion", "BudgetExceededError"}
            assert client.ledger.spent - client.ledger.overrun <= budget
            assert_idle(client)


async def test_a_closed_client_lets_none_wait(server: LocalServer) -> None:
    server.faults = [Stall()]
    client = client_of(server, WORST * 3 / 2)
    await client.open()
    first = ask(client)
    await until_sent(server, 1)
    second = ask(client)
    await asyncio.sleep(0.001)
    await client.aclose()
    assert await outcomes(first, second) == ["APIConnectionError", "BudgetExceededError"]
