"""The price list applied: preflight, worst case, cost, the budget under concurrency; `faults.md` K15 to K20."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from typing import Any, cast

import pytest

from piapi_async import (
    APITimeoutError,
    BudgetExceededError,
    ChatRequest,
    Client,
    ConfigurationError,
    InvalidRequestError,
    Limits,
    Message,
    PiAPIError,
    Provider,
    Retry,
    Timeout,
)
from piapi_async.billing import Billing
from piapi_async.catalog import ModelInfo
from piapi_async.errors import InternalServerError, NotFoundError
from piapi_async.ledger import Books
from piapi_async.testing import Cut, LocalServer, RawServer, ReadRequest, Repeat, Send, Stall, Status, http_response
from tests.leaks import KEY, PROMPT

pytestmark = pytest.mark.anyio

ONE_MILLION = 10**6
NOTHING = Decimal(0)


def answer(prompt: int = 10, completion: int = 10, **fields: Any) -> bytes:
    usage = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    message = {"role": "assistant", "content": "one two three"}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage, **fields}
    return http_response(200, json.dumps(body).encode())


def serving(*answers: bytes) -> RawServer:
    return RawServer([Repeat([step for each in answers for step in (ReadRequest(), Send(each))])])


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(api_key=KEY, faults=[]) as server:
        yield server


# -- cost ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "prompt", "completion", "cost"),
    [
        ("gpt-4o-mini", ONE_MILLION, ONE_MILLION, "0.5625"),
        ("gpt-4o-mini", 1, 0, "0.0000001125"),
        ("o1-preview", 1, 1, "0.00005625"),
        ("gpt-4-gizmo-g-gFt1ghYJl", 1000, 1000, "0.0125"),
        ("gpt-3.5-turbo", 10, 10, None),
    ],
)
async def test_cost_to_the_last_digit(model: str, prompt: int, completion: int, cost: str | None) -> None:
    async with serving(answer(prompt, completion)) as server, Client(KEY, base_url=server.base_url) as client:
        found = await client.complete("x", model=model)
    assert found.cost == (None if cost is None else Decimal(cost))
    assert not found.cost_estimated


async def test_estimates_are_flagged() -> None:
    async with serving(answer(usage=None)) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini") as client:
            found = await client.complete("four words of prompt")
            assert found.cost == 6 * Decimal("0.1125e-6") + 4 * Decimal("0.45e-6")  # 4 and 3 words, 0.75 word a token
            assert found.cost_estimated
            (entry,) = client.ledger.entries
            assert entry.estimated == entry.spent == found.cost
        async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", tokenizer=len) as client:
            found = await client.complete("four words of prompt")
            assert found.cost == 20 * Decimal("0.1125e-6") + 13 * Decimal("0.45e-6")
            assert found.cost_estimated


async def test_prices_of_ones_own() -> None:
    mine = {"gpt-4o-mini": ModelInfo("gpt-4o-mini", "1", "2"), "new-*": ModelInfo("new-*", "3", "4")}
    async with serving(answer(ONE_MILLION, 0)) as server:
        async with Client(KEY, base_url=server.base_url, prices=mine) as client:
            assert (await client.complete("x", model="gpt-4o-mini")).cost == 1
            assert (await client.complete("x", model="new-model")).cost == 3
            assert (await client.complete("x", model="gpt-4o")).cost == Decimal("1.875")


async def test_a_backup_has_its_own_prices() -> None:
    prices = {"their-4o": ModelInfo("their-4o", "5", "10")}
    async with serving(answer(ONE_MILLION, 0)) as server:
        backups = [
            Provider("known", server.base_url, KEY, models={"gpt-4o": "their-4o"}, prices=prices),
            Provider("unknown", server.base_url, KEY),
        ]
        gone = "http://127.0.0.1:9/v1"
        async with Client(KEY, base_url=gone, backups=backups[:1]) as client:
            assert (await client.complete("x", model="gpt-4o")).cost == 5
            assert client.ledger.by_provider == {"known": 5}
            assert client.ledger.saved == 0
        async with Client(KEY, base_url=gone, backups=backups[1:]) as client:
            assert (await client.complete("x", model="gpt-4o")).cost is None  # PiAPI's list is not theirs
            assert client.ledger.entries[0].unpriced == 1


async def test_what_was_saved() -> None:
    async with serving(answer(ONE_MILLION, ONE_MILLION)) as server, Client(KEY, base_url=server.base_url) as client:
        await client.complete("x", model="gpt-4o")
        assert client.ledger.spent == Decimal("9.375")
        assert client.ledger.saved == Decimal("3.125")  # of the vendor's 2.50 + 10.00
        assert "gpt-4o" in str(client.ledger)


async def test_every_attempt_that_may_be_billed_is_booked() -> None:
    script = [ReadRequest(), Send(http_response(504, b"{}")), ReadRequest(), Send(http_response(503, b"{}"))]
    retry = Retry(base=0, cap=0)
    async with RawServer([*script, ReadRequest(), Send(answer())]) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", retry=retry) as client:
            found = await client.complete("x", max_tokens=100)
            (entry,) = client.ledger.entries
            assert (entry.calls, entry.spent) == (1, found.cost)
            # the 504, not the 503: 17 tokens of prompt at most, and 100 of answer
            assert entry.unknown == 17 * Decimal("0.1125e-6") + 100 * Decimal("0.45e-6")


async def test_restarts_are_booked() -> None:
    async with LocalServer(api_key=KEY, faults=[Cut(2)]) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini") as client:
            async with client.stream("x", max_tokens=100, on_interrupt="restart") as stream:
                whole = await stream.completion()
            assert len(whole.attempts) == 2
            (entry,) = client.ledger.entries
            assert (entry.calls, entry.spent) == (1, whole.cost)
            assert entry.unknown == 17 * Decimal("0.1125e-6") + 100 * Decimal("0.45e-6")


async def test_hedges_are_booked() -> None:
    async with LocalServer(api_key=KEY) as primary, LocalServer(api_key=KEY) as backup:
        backups = [Provider("backup", backup.base_url, KEY, prices={"gpt-4o": ModelInfo("gpt-4o", "2", "8")})]
        async with Client(
            KEY, base_url=primary.base_url, model="gpt-4o", backups=backups, retry=Retry(hedge=True)
        ) as client:
            for _ in range(20):  # so many must be known, and of so many one may be hedged
                await client.complete(PROMPT, max_tokens=10)
            primary.latency = 30
            hedged = await client.complete(PROMPT, max_tokens=10)
            assert hedged.provider == "backup"
            spent = {entry.provider: entry for entry in client.ledger.entries}
            assert spent["backup"].spent == hedged.cost
            assert spent["piapi"].unknown > 0


# -- preflight -------------------------------------------------------------------------------------------------------


async def test_system_messages_are_folded(server: LocalServer) -> None:
    system, user = Message("system", "Be brief."), Message("user", "Hi!")
    async with Client(KEY, base_url=server.base_url, model="o1-mini", system_role="fold") as client:
        for messages, folded in (
            ([system, user, Message("assistant", "Yes?")], ("Be brief.\n\nHi!", "Yes?")),
            ([Message("assistant", "Hi!"), system], ("Be brief.", "Hi!")),
            ([system, Message("user", ({"type": "text", "text": "Hi!"},))], None),
            ([system, user, system, Message("user", "Bye!")], ("Be brief.\n\nBe brief.\n\nHi!", "Bye!")),
        ):
            assert (await client.complete(messages)).text
            sent = server.requests[-1].body["messages"]
            assert "system" not in {message["role"] for message in sent}
            if folded:
                assert tuple(message["content"] for message in sent) == folded
            else:
                assert sent[0]["content"] == [
                    {"type": "text", "text": "Be brief.\n\n"},
                    {"type": "text", "text": "Hi!"},
                ]
        await client.complete([system, user], model="gpt-4o")  # which takes them
        assert server.requests[-1].body["messages"][0]["role"] == "system"
    with pytest.raises(ConfigurationError, match="system_role"):
        Client(KEY, system_role="drop")  # type: ignore[arg-type]  # that is the point


async def test_system_messages_are_refused_by_default(server: LocalServer) -> None:
    async with Client(KEY, base_url=server.base_url) as client:
        with pytest.raises(InvalidRequestError, match=r"'system'.*fold"):
            await client.complete([Message("system", "Be brief."), Message("user", "Hi!")], model="o1-mini")
    assert server.requests == []


async def test_the_plan(server: LocalServer) -> None:
    server.plan = "free"
    async with Client(KEY, base_url=server.base_url, plan="free") as client:
        assert (await client.complete("x", model="gpt-4o-mini")).text
        with pytest.raises(InvalidRequestError, match="plan 'creator'"):
            await client.complete("x", model="gpt-4o")
        assert len(server.requests) == 1
    async with LocalServer(api_key=KEY, models=["their-4o"]) as other:
        backups = [
            Provider("plain", server.base_url, KEY),
            Provider("mapped", other.base_url, KEY, models={"gpt-4o": "their-4o"}),
        ]
        async with Client(KEY, base_url=server.base_url, plan="free", backups=backups) as client:
            assert (await client.complete("x", model="gpt-4o")).provider == "mapped"
            assert (await client.complete("x", model="gpt-4o-mini")).provider == "piapi"
            assert other.requests[0].body["model"] == "their-4o"
        async with Client(KEY, base_url=server.base_url, backups=backups) as client:  # unknown: the provider decides
            found = await client.complete("x", model="gpt-4o")
            assert [a.status for a in found.attempts] == [403, 200]


async def test_a_near_miss_gets_a_suggestion(server: LocalServer) -> None:
    async with Client(KEY, base_url=server.base_url, budget="1") as client:
        with pytest.raises(InvalidRequestError, match="did you mean 'gpt-4o-mini'"):
            await client.complete("x", model="gpt-4o-mni")
    async with Client(KEY, base_url=server.base_url) as client:
        with pytest.raises(NotFoundError, match="did you mean 'gpt-4o-mini'"):
            await client.complete("x", model="gpt-4o-mni")


async def test_no_suggestion_where_the_name_is_known_or_nothing_is_near() -> None:
    async with serving(http_response(404, b"{}")) as server:
        for name, provider in (("gpt-4o", None), ("qqqqqqqq", None), ("gpt-4o-mni", "backup")):
            backups = [Provider("backup", server.base_url, KEY, models={name: name})] if provider else []
            base_url = "http://127.0.0.1:9/v1" if provider else server.base_url
            async with Client(KEY, base_url=base_url, backups=backups, retry=Retry(attempts=2)) as client:
                with pytest.raises(PiAPIError) as caught:
                    await client.complete("x", model=name)
                assert "did you mean" not in str(caught.value)


def test_the_tokens_that_a_call_may_use() -> None:
    billing = Billing(Provider("piapi", "https://one.example", KEY), Books(), tokenizer=len)
    prompt = "x" * 50
    assert billing.tokens(ChatRequest(prompt, "gpt-4o")) == 50
    assert billing.tokens(ChatRequest(prompt, "gpt-4o", max_tokens=10)) == 60
    assert billing.tokens(ChatRequest(prompt, "gpt-4o", max_tokens=10, n=3)) == 80
    assert billing.tokens(ChatRequest(prompt, "gpt-4o", max_completion_tokens=7)) == 57
    calls = [{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]
    called = {"role": "assistant", "content": None, "tool_calls": calls}
    assert billing.tokens(ChatRequest([called], "gpt-4o")) == len("f {}")


# -- a quote ---------------------------------------------------------------------------------------------------------


def test_a_quote() -> None:
    dear = ModelInfo("gpt-4o-mini", "100", "100")
    backup = Provider("dear", "https://backup.example", KEY, prices={"gpt-4o-mini": dear})
    mine = {"gpt-4o-mini": ModelInfo("gpt-4o-mini", "1", "1")}
    prompt = "four words of prompt"  # 6 tokens by the page's rule, 20 bytes
    found = Client(KEY, model="gpt-4o-mini").quote(prompt, max_tokens=100)
    assert (found.model, found.tokens) == ("gpt-4o-mini", 6)
    assert found.least == 6 * Decimal("0.1125e-6")
    assert found.most == 36 * Decimal("0.1125e-6") + 100 * Decimal("0.45e-6")
    found = Client(KEY, model="gpt-4o-mini", backups=[backup], tokenizer=len).quote(prompt, max_tokens=100, n=2)
    assert (found.tokens, found.least) == (20, 20 * Decimal("0.1125e-6"))
    assert found.most == (36 + 200) * Decimal("100e-6")  # at the dearest provider
    found = Client(KEY, model="gpt-4o-mini", prices=mine).quote(prompt)
    assert (found.least, found.most) == (Decimal("6e-6"), None)  # nothing bounds the answer
    found = Client(KEY, model="unknown").quote(prompt, max_tokens=100)
    assert (found.least, found.most) == (None, None)


def test_a_quote_where_the_plan_sends_it() -> None:
    prices = {"theirs": ModelInfo("theirs", "10", "10")}
    backup = Provider("backup", "https://backup.example", KEY, models={"gpt-4o": "theirs"}, prices=prices)
    found = Client(KEY, model="gpt-4o", plan="free", backups=[backup]).quote("x", max_tokens=1)
    assert (found.least, found.most) == (2 * Decimal("10e-6"), 18 * Decimal("10e-6"))
    with pytest.raises(InvalidRequestError, match="plan"):
        Client(KEY, model="gpt-4o", plan="free").quote("x")


# -- the budget ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["0", "-1", "NaN", "Infinity", "much", 1.5, True, b"5"])
def test_a_budget_that_is_none(bad: Any) -> None:
    with pytest.raises(ConfigurationError, match="budget"):
        Client(KEY, budget=bad)


async def test_a_budget_is_reserved_and_settled(server: LocalServer) -> None:
    server.latency = 0.02
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget=Decimal("5.00")) as client:
        call = asyncio.create_task(client.complete("x", max_tokens=1000))
        await asyncio.sleep(0.01)
        assert client.ledger.reserved == 17 * Decimal("0.1125e-6") + 1000 * Decimal("0.45e-6")
        found = await call
        assert (client.ledger.reserved, client.ledger.spent) == (NOTHING, found.cost or NOTHING)
        async with client.stream("x", max_tokens=1000) as stream:
            assert client.ledger.reserved > 0
            streamed = await stream.completion()
        assert streamed.cost is not None
        assert (client.ledger.reserved, client.ledger.spent) == (NOTHING, (found.cost or NOTHING) + streamed.cost)


async def test_the_dearest_provider_is_reserved_for(server: LocalServer) -> None:
    server.latency = 0.02
    dear = Provider("dear", server.base_url, KEY, prices={"gpt-4o-mini": ModelInfo("gpt-4o-mini", "100", "100")})
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="5", backups=[dear]) as client:
        call = asyncio.create_task(client.complete("x", max_tokens=83, n=2))
        await asyncio.sleep(0.01)
        assert client.ledger.reserved == (17 + 2 * 83) * Decimal("100e-6")
        await call


async def test_a_usage_that_the_caller_changes_before_the_end_changes_no_bill(server: LocalServer) -> None:
    spent: list[Decimal] = []
    for change in (False, True):
        async with (
            Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="5", stream_usage=True) as client,
            client.stream(PROMPT) as stream,
        ):
            async for chunk in stream.chunks():
                if chunk.usage and change:
                    chunk.usage.prompt_tokens = chunk.usage.completion_tokens = 0
            await stream.completion()
        spent.append(client.ledger.spent)
    assert spent[0] == spent[1] > 0


async def test_without_max_tokens_the_models_cap_is_reserved(server: LocalServer) -> None:
    server.latency = 0.02
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="5") as client:
        call = asyncio.create_task(client.complete("x"))
        await asyncio.sleep(0.01)
        assert client.ledger.reserved == 17 * Decimal("0.1125e-6") + 16_384 * Decimal("0.45e-6")
        await call
    mine = {"gpt-4o-mini": ModelInfo("gpt-4o-mini", "1", "1")}
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="5", prices=mine) as client:
        with pytest.raises(InvalidRequestError, match="max_tokens"):
            await client.complete("x")


async def test_functions_count_too(server: LocalServer) -> None:
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="0.0001") as client:
        await client.complete("x", max_tokens=10)
        with pytest.raises(BudgetExceededError):
            await client.complete("x", max_tokens=10, functions=[{"name": "f", "description": "y" * 1000}])


async def test_a_picture_counts_whatever_its_address(server: LocalServer) -> None:
    picture = {"type": "image_url", "image_url": {"url": "https://example.com/p.png"}}
    words = {"type": "text", "text": "What is it?"}
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="0.005") as client:
        await client.complete([Message("user", (words,))], max_tokens=10)
        with pytest.raises(BudgetExceededError):  # 50,000 tokens at $0.1125 a million are more than half a cent
            await client.complete([Message("user", (words, picture))], max_tokens=10)
        assert len(server.requests) == 1


def most(*content: str | Mapping[str, object], **others: Any) -> Decimal:
    """What a budget reserves for a message."""
    quote = Client(KEY).quote([Message("user", content, **others)], model="gpt-4o", max_tokens=10)
    assert quote.most is not None
    return quote.most


@pytest.mark.parametrize("wrap", [lambda url: {"url": url}, str])
def test_the_bytes_of_a_picture_are_no_text(wrap: Any) -> None:
    small, large = ({"type": "image_url", "image_url": wrap("data:image/png;base64," + "A" * n)} for n in (4, 40_000))
    assert most("What is it?", small) == most("What is it?", large) > most("What is it?")
    as_text = {"type": "text", "text": "x", "image_url": {"url": "data:," + "A" * 40_000}}
    assert most(as_text) > most({"type": "text", "text": "x"})


def test_what_goes_along_with_a_message_counts_as_text() -> None:
    assert most("Hi", extra={"reasoning_content": "x" * 1000}) > most("Hi", refusal="No") > most("Hi")


async def test_what_was_not_sent_is_not_reserved(server: LocalServer) -> None:
    server.latency = 0.1
    limits = Limits(concurrency=1)
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="5", limits=limits) as client:
        first = asyncio.create_task(client.complete("x"))
        await asyncio.sleep(0.01)
        held = client.ledger.reserved
        waiting = asyncio.create_task(client.complete("x"))
        with pytest.raises(APITimeoutError):
            await client.complete("x", deadline=0.01)
        waiting.cancel()
        await asyncio.sleep(0.001)
        assert client.ledger.reserved == held
        await first
        assert (client.ledger.reserved, client.ledger.unknown) == (NOTHING, NOTHING)


async def test_a_hedge_that_does_not_fit_is_not_sent() -> None:
    async with LocalServer(api_key=KEY) as primary, LocalServer(api_key=KEY) as backup:
        dear = {"gpt-4o": ModelInfo("gpt-4o", "2", "8")}
        async with Client(
            KEY,
            base_url=primary.base_url,
            model="gpt-4o",
            backups=[Provider("backup", backup.base_url, KEY, prices=dear)],
            retry=Retry(hedge=True),
            budget="0.01",
        ) as client:
            for _ in range(20):  # so many must be known, and of so many one may be hedged
                await client.complete("x", max_tokens=1)
            primary.latency = 0.05
            assert (await client.complete("x", max_tokens=1000)).provider == "piapi"
            assert backup.requests == []


# -- K15 to K20 ------------------------------------------------------------------------------------------------------


async def test_K15_a_map_hits_its_cap(server: LocalServer) -> None:
    server.latency = 0.005
    async with Client(KEY, base_url=server.base_url, model="gpt-4o", budget="0.05") as client:
        async with client.map([f"Question {i}?" for i in range(300)], concurrency=64, max_tokens=100) as results:
            found = [result async for result in results]
        answered = [result for result in found if result.completion]
        refused = [result for result in found if isinstance(result.error, BudgetExceededError)]
        assert len(answered) + len(refused) == 300
        assert len(answered) == len(server.requests) > 0
        assert refused
        spent = sum((result.unwrap().cost or 0 for result in answered), Decimal(0))
        assert client.ledger.spent == spent <= Decimal("0.05")
        assert client.ledger.reserved == 0


async def test_K16_unknown_bill_keeps_its_reservation(server: LocalServer) -> None:
    cast("list[Any]", server.faults).append(Stall())
    timeout = Timeout(total=0.03)
    async with Client(
        KEY, base_url=server.base_url, model="gpt-4o-mini", budget="5", timeout=timeout, retry=Retry(attempts=1)
    ) as client:
        with pytest.raises(APITimeoutError):
            await client.complete("x", max_tokens=100)
        worst = 17 * Decimal("0.1125e-6") + 100 * Decimal("0.45e-6")
        assert (client.ledger.unknown, client.ledger.reserved, client.ledger.spent) == (worst, NOTHING, NOTHING)
        assert client.ledger.left == 5 - worst
        cast("list[Any]", server.faults).append(Status(503))
        with pytest.raises(InternalServerError):
            await client.complete("x", max_tokens=100)
        assert client.ledger.unknown == worst  # a 503 bills nothing


@pytest.mark.parametrize("seed", range(5))
async def test_K17_two_race_for_the_last_of_the_budget(server: LocalServer, seed: int) -> None:
    rng = random.Random(seed)
    worst = 17 * Decimal("0.1125e-6") + 100 * Decimal("0.45e-6")
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget=worst * 3 / 2) as client:

        async def caller() -> bool:
            await asyncio.sleep(rng.uniform(0, 0.001))
            try:
                await client.complete("x", max_tokens=100)
            except BudgetExceededError:
                return False
            return True

        server.latency = 0.02
        assert sorted(await asyncio.gather(caller(), caller())) == [False, True]
        assert len(server.requests) == 1


async def test_K19_a_call_without_a_price(server: LocalServer) -> None:
    async with Client(KEY, base_url=server.base_url, budget="5") as client:
        with pytest.raises(InvalidRequestError, match=r"gpt-3\.5-turbo"):
            await client.complete("x", model="gpt-3.5-turbo")
        assert server.requests == []
    async with Client(KEY, base_url=server.base_url) as client:
        assert (await client.complete("x", model="gpt-3.5-turbo")).cost is None
        server.faults = [Status(504)]
        again = await client.complete(ChatRequest("x", "gpt-3.5-turbo"))
        assert ([attempt.status for attempt in again.attempts], again.cost) == ([504, 200], None)
        assert client.ledger.unknown == 0  # nothing is known of it


async def test_K20_minimum_charge() -> None:
    async with serving(answer(1, 1)) as server, Client(KEY, base_url=server.base_url) as client:
        assert (await client.complete("x", model="gpt-4-gizmo-g-1")).cost == Decimal("0.005")
        assert client.ledger.saved <= 0
