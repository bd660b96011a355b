"""Bills above their reservations: booked, told, and the cap then stops the sending at once."""

from __future__ import annotations

import asyncio
import logging
from decimal import Decimal

import pytest

from piapi_async import BudgetExceededError, Client, Limits
from piapi_async.testing import RawServer, ReadRequest, Send, Wait
from tests.leaks import CANARIES, KEY, PROMPT
from tests.test_billing import answer, serving

pytestmark = pytest.mark.anyio

IN, OUT = Decimal("0.1125e-6"), Decimal("0.45e-6")
"""US dollars that a token costs with gpt-4o-mini."""

WORST = 17 * IN + 10 * OUT
"""What is reserved for a prompt of one letter and an answer of ten tokens."""


def at_least(client: Client, prompt: str = "x", model: str = "gpt-4o-mini") -> Decimal:
    """What the client would reserve now."""
    most = client.quote(prompt, model=model, max_tokens=10).most
    assert most is not None
    return most


async def test_a_bill_above_its_reservation(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(answer(17, 1000)) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="1") as client:
            assert at_least(client) == WORST
            found = await client.complete("x", max_tokens=10)
            assert found.cost == client.ledger.spent == 17 * IN + 1000 * OUT
            assert client.ledger.overrun == 990 * OUT
            assert client.ledger.reserved == 0
            assert client.ledger.entries[0].overrun == 990 * OUT
            (record,) = (record for record in caplog.records if record.name == "piapi_async")
            assert record.levelno == logging.WARNING
            assert "'gpt-4o-mini'" in record.getMessage()
            assert "$0.0004519125" in record.getMessage()
            assert "$0.0000064125" in record.getMessage()
            assert "bills above their reservations $0.0004455" in str(client.ledger)

            # Later ones grow by the share that it was above, those of this model only.
            assert at_least(client) == found.cost
            twice = client.quote("x" * 18, model="gpt-4o-mini", max_tokens=20).most
            assert twice == 2 * found.cost
            assert at_least(client, model="gpt-4o") == 17 * Decimal("1.875e-6") + 10 * Decimal("7.5e-6")
            caplog.clear()
            await client.complete("x", max_tokens=10)  # which is not above what is reserved by now
            assert client.ledger.overrun == 990 * OUT
            assert not caplog.records


async def test_the_larger_share_stays() -> None:
    bills = [answer(17, 100), answer(17, 1000), answer(17, 15)]
    async with serving(*bills) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="1") as client:
            for _ in bills:
                await client.complete("x", max_tokens=10)
            assert at_least(client) == 17 * IN + 1000 * OUT
            assert client.ledger.overrun == 90 * OUT + 900 * OUT


async def test_of_calls_under_way_the_larger_share_stays() -> None:
    scripts = [[ReadRequest(), Wait(0.01 * i), Send(answer(17, tokens))] for i, tokens in enumerate((1000, 100))]
    async with RawServer(*scripts) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="1") as client:
            await asyncio.gather(*(client.complete("x", max_tokens=10) for _ in scripts))
            assert at_least(client) == 17 * IN + 1000 * OUT
            assert client.ledger.overrun == 990 * OUT + 90 * OUT


async def test_the_warning_tells_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(answer(17, 1000)) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="1") as client:
            await client.complete(PROMPT, max_tokens=10)
    assert "reserved" in caplog.text
    assert not any(canary in caplog.text for canary in CANARIES)


async def test_without_a_budget_nothing_is_above(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(answer(17, 1000)) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini") as client:
            await client.complete("x", max_tokens=10)
            assert client.ledger.overrun == 0
            assert at_least(client) == WORST
    assert not caplog.records


async def test_the_cap_stops_the_sending_at_once() -> None:
    async with serving(answer(17, 10_000)) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="0.001") as client:
            await client.complete("x", max_tokens=10)
            assert client.ledger.left is not None
            assert client.ledger.left < 0
            with pytest.raises(BudgetExceededError, match=r"only \$0 is free"):
                await client.complete("x", max_tokens=1)
            assert client.ledger.spent + client.ledger.unknown - client.ledger.overrun <= Decimal("0.001")
        assert len(server.requests) == 1


async def test_calls_that_wait_for_a_place_are_not_sent_either() -> None:
    limits = Limits(concurrency=1)
    async with serving(answer(17, 10_000)) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="0.001", limits=limits) as client:
            calls = (client.complete("x", max_tokens=10) for _ in range(8))
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(each).__name__ for each in outcomes] == ["ChatCompletion"] + 7 * ["BudgetExceededError"]
            assert client.ledger.reserved == 0
            assert (client.statistics().in_flight, client.statistics().queued) == (0, 0)
        assert len(server.requests) == 1


async def test_what_waits_for_a_place_reserves_what_must_be_reserved_by_then() -> None:
    limits = Limits(concurrency=1)
    once = [ReadRequest(), Send(answer(17, 100))]
    async with RawServer([*once, ReadRequest(), Wait()]) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="1", limits=limits) as client:
            first, second = (asyncio.create_task(client.complete("x", max_tokens=10)) for _ in range(2))
            await first
            while len(server.requests) < 2:
                await asyncio.sleep(0.001)
            assert client.ledger.reserved == 17 * IN + 100 * OUT
            second.cancel()
            await asyncio.gather(second, return_exceptions=True)
            assert client.ledger.unknown == 17 * IN + 100 * OUT
