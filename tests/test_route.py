"""The router, by plain calls: what is sent where, after what wait, and what the caller gets in the end.

The gates look at the event loop's clock, so the tests begin at its time; nothing here waits.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterable
from typing import Any

import pytest

from piapi_async import (
    AllProvidersFailedError,
    APIConnectionError,
    APIError,
    APIResponseError,
    APITimeoutError,
    ChatRequest,
    Health,
    Limits,
    Provider,
    Retry,
    StreamTruncatedError,
)
from piapi_async.billing import Billing
from piapi_async.ledger import Ledger
from piapi_async.policy import NEVER, Due
from piapi_async.route import SAMPLES, Call, Lane, Router, Sending, Site
from piapi_async.wire import decode_completion, error_from_response
from tests.leaks import PROMPT
from tests.wires import completion

pytestmark = pytest.mark.anyio

RETRY, HEALTH, LIMITS = Retry(), Health(), Limits()
WHOLE = decode_completion(completion())
KEYS = ("sk-first-key-0001", "sk-second-key-02")


@pytest.fixture
async def now() -> float:
    return asyncio.get_running_loop().time()


def make(
    *names: str,
    retry: Retry = RETRY,
    health: Health = HEALTH,
    limits: Limits = LIMITS,
    keys: Iterable[str] = KEYS[:1],
    models: dict[str, str] | None = None,
) -> Router:
    """A router of providers, of which all but the first map the models."""
    providers = [
        Provider(name, f"https://{name}.example", list(keys), models=(models or {}) if i else {})
        for i, name in enumerate(names or ("one", "two"))
    ]
    billing = Billing(providers[0], Ledger())
    return Router(providers, limits, retry, health, billing, random.Random(1))


def call(router: Router, now: float, deadline: float | None = None, **fields: Any) -> Call:
    due = Due() if deadline is None else Due(now + deadline, "deadline", deadline)
    request = ChatRequest(PROMPT, "gpt-4o", stream=fields.pop("stream", False))
    return Call(request, request.model or "", now, due, "key-1", router.sites, None, [], {}, **fields)


async def send(router: Router, call: Call, now: float, which: int = 0, key: int = 0) -> Sending:
    """Begin an attempt at a provider, through its gate."""
    site = router.sites[which]
    lane = site.lanes[key]
    assert await lane.gate.acquire(Due())
    return router.begin(call, site, lane, now)


def status(code: int, retry_after: float | None = None, word: str | None = None) -> APIError:
    body = b"{}" if word is None else b'{"error": {"message": "No.", "code": "%b"}}' % word.encode()
    error = error_from_response(code, body)
    error.retry_after = retry_after
    return error


async def fail(
    router: Router, call: Call, now: float, error: APIError | int = 503, which: int = 0, **fields: Any
) -> APIError:
    """An attempt that fails."""
    error = status(error) if isinstance(error, int) else error
    sending = await send(router, call, now, which)
    for name, value in fields.items():
        setattr(sending, name, value)
    router.failed(sending, now, error)
    return error


async def sicken(router: Router, now: float, which: int = 0) -> None:
    """Open a provider's breaker."""
    for _ in range(5):
        await fail(router, call(router, now), now, which=which)
    assert not router.sites[which].lanes[0].breaker("gpt-4o").admits(now)


def name(found: tuple[Site, Lane] | tuple[Site, Lane, float]) -> str:
    site, lane = found[:2]
    assert lane in site.lanes
    return site.provider.name


# -- lanes and sites ---------------------------------------------------------------------------------------------------


async def test_a_breaker_for_each_model() -> None:
    lane = make().sites[0].lanes[0]
    assert lane.breaker("a") is lane.breaker("a") is not lane.breaker("b")
    assert lane.breakers.keys() == {"a", "b"}


async def test_the_least_loaded_key(now: float) -> None:
    router = make(keys=KEYS)
    site = router.sites[0]
    first, second = site.lanes
    assert site.lane("gpt-4o", now) is first
    await first.gate.acquire(Due())
    assert site.lane("gpt-4o", now) is second
    assert (first.load, second.load) == (1, 0)
    assert router.choose(call(router, now), now) == (site, second)
    for _ in range(5):
        second.breaker("gpt-4o").end(now, good=False)
    assert site.lane("gpt-4o", now) is first  # healthy, if more loaded
    assert site.lane("gpt-4o-mini", now) is second  # a model's breaker says nothing of another
    first.gate.pause(10)
    assert site.lane("gpt-4o", now, patience=5) is None
    assert site.lane("gpt-4o", now) is first
    site.off_until = now + 1
    assert site.lane("gpt-4o", now) is None
    assert site.lane("gpt-4o", now + 1) is first


async def test_slow_start() -> None:
    site = make().sites[0]
    assert site.slow_start(stream=True) is None
    site.starts[True].extend(float(i) for i in range(SAMPLES // 10 - 1))
    assert site.slow_start(stream=True) is None
    site.starts[True].append(19.0)
    assert site.slow_start(stream=True) == 19
    site.starts[True].extend(float(i) for i in range(SAMPLES))
    assert site.slow_start(stream=True) == 190
    assert site.slow_start(stream=False) is None


# -- choosing ----------------------------------------------------------------------------------------------------------


async def test_the_first_healthy_provider(now: float) -> None:
    router = make("one", "two", "three")
    first = call(router, now)
    assert name(router.choose(first, now)) == "one"
    await sicken(router, now, 0)
    assert name(router.choose(first, now)) == "two"
    await sicken(router, now, 1)
    assert name(router.choose(first, now)) == "three"
    assert not first.panic


async def test_a_pause_longer_than_the_patience(now: float) -> None:
    router = make()
    router.sites[0].lanes[0].gate.pause(1.5)
    assert name(router.choose(call(router, now), now)) == "one"
    router.sites[0].lanes[0].gate.pause(30)
    assert name(router.choose(call(router, now), now)) == "two"
    router.sites[1].lanes[0].gate.pause(30)
    assert name(router.choose(call(router, now), now)) == "one"  # all are paused: the preferred one is waited for


async def test_nobody_is_healthy(now: float) -> None:
    router = make()
    asked = call(router, now)
    await sicken(router, now, 0)
    await sicken(router, now, 1)
    assert name(router.choose(asked, now)) == "one"
    assert asked.panic
    again = call(router, now)
    await fail(router, again, now)
    assert name(router.choose(again, now)) == "two"  # a first attempt each
    await fail(router, again, now, which=1)
    assert name(router.choose(again, now)) == "one"


async def test_a_provider_that_must_not_be_asked_again_is_not_chosen_again(now: float) -> None:
    router = make()
    asked = call(router, now)
    assert not asked.spent(router.sites[0])
    await fail(router, asked, now, 503)
    assert not asked.spent(router.sites[0])
    assert name(router.choose(asked, now)) == "one"
    await fail(router, asked, now, 524)
    assert asked.spent(router.sites[0])
    assert name(router.choose(asked, now)) == "two"
    other = call(router, now)
    assert name(router.choose(other, now)) == "one"
    for times in (1, 2):
        await fail(router, other, now, 421)
        assert other.spent(router.sites[0]) == (times == 2)


async def test_patience(now: float) -> None:
    one, two = make("one"), make()
    assert one.patience(call(one, now), one.sites[0], now) is None
    asked = call(two, now)
    assert two.patience(asked, two.sites[0], now) == 2
    two.sites[1].lanes[0].gate.pause(30)
    assert two.patience(asked, two.sites[0], now) is None  # the backup is paused too
    assert two.patience(asked, two.sites[1], now) == 2
    await fail(two, asked, now)
    assert two.patience(asked, two.sites[1], now) is None  # the other one failed


async def test_begin(now: float) -> None:
    router = make(retry=Retry(tokens=1))
    site, asked = router.sites[0], call(router, now)
    site.tokens = 0.5
    sending = await send(router, asked, now)
    assert (asked.sent, sending.probe, sending.began) == (1, False, now)
    assert site.tokens == 0.6
    router.failed(sending, now, status(503))
    await send(router, asked, now)
    assert (asked.sent, site.tokens) == (2, 0.6)  # a retry gives nothing back
    for _ in range(10):
        await send(router, call(router, now), now)
    assert site.tokens == 1


# -- noting how it ended -----------------------------------------------------------------------------------------------


async def test_turned_away(now: float) -> None:
    router = make()
    asked = call(router, now - 1)
    error = APITimeoutError("late", kind="pool")
    router.turned_away(asked, router.sites[0].lanes[0], now - 0.5, now, error)
    (attempt,) = asked.attempts
    assert (attempt.provider, attempt.key, attempt.status, attempt.kind) == ("one", "…0001", None, "pool")
    assert (attempt.started, attempt.latency) == (0.5, 0.5)
    assert (error.provider, error.attempts) == ("one", (attempt,))
    assert router.outcomes == {"pool": 1}
    assert router.sites[0].lanes[0].breakers == {}


async def test_succeeded(now: float) -> None:
    router = make(limits=Limits(concurrency=4), retry=Retry(hedge=True))
    asked = call(router, now)
    gate = router.sites[0].lanes[0].gate
    gate.bound = 1
    sending = await send(router, asked, now)
    sending.status, sending.request_id, sending.first_token = 200, "r-1", 0.25
    router.succeeded(sending, now + 1, WHOLE)
    (attempt,) = asked.attempts
    assert (attempt.kind, attempt.status, attempt.latency, attempt.time_to_first_token) == ("ok", 200, 1, 0.25)
    assert (attempt.request_id, attempt.usage) == ("r-1", WHOLE.usage)
    assert (gate.in_flight, gate.bound, gate.pause_left(now)) == (0, 2, 0)
    assert [list(starts) for starts in router.sites[0].starts] == [[], [0.25]]
    assert router.outcomes == {"ok": 1}


async def test_succeeded_with_nothing_left(now: float) -> None:
    router = make(retry=Retry(hedge=True))
    for pause, longest in ((30.0, 33.0), (60.0, 60.0)):
        sending = await send(router, call(router, now), now)
        sending.pause = pause
        router.opened(sending)
        gate = router.sites[0].lanes[0].gate
        left = gate.pause_left(now)
        router.succeeded(sending, now + 2, WHOLE)
        assert gate.pause_left(now) == left  # it counts from the headers, however long the answer takes
        assert pause - 1 <= router.sites[0].lanes[0].gate.pause_left(now) <= longest + 1
        router.sites[0].lanes[0].gate.paused_until = -NEVER
    assert list(router.sites[0].starts[False]) == [2, 2]  # no stream: the whole answer counts


async def test_abandoned(now: float) -> None:
    router = make()
    asked = call(router, now)
    await fail(router, call(router, now), now)
    router.abandoned(await send(router, asked, now), now)
    assert [attempt.kind for attempt in asked.attempts] == ["cancelled"]
    assert router.outcomes == {"status": 1, "cancelled": 1}
    assert router.sites[0].lanes[0].gate.in_flight == 0


async def test_an_abandoned_probe_gives_its_place_back(now: float) -> None:
    router = make(health=Health(failures=1))
    await fail(router, call(router, now), now)
    sending = await send(router, call(router, now), now + 5)
    assert sending.probe
    breaker = router.sites[0].lanes[0].breaker("gpt-4o")
    assert not breaker.admits(now + 5)
    router.abandoned(sending, now + 6)
    assert breaker.admits(now + 6)


async def test_a_streaming_probe_is_good_with_its_first_event(now: float) -> None:
    router = make(health=Health(failures=1))
    await fail(router, call(router, now), now)
    breaker = router.sites[0].lanes[0].breaker("gpt-4o")
    first = await send(router, call(router, now), now + 5)
    router.answered(first, now + 5.5)
    assert first.first_token == 0.5
    assert breaker.admits(now + 6)  # while the first one goes on
    second = await send(router, call(router, now), now + 6)
    router.answered(second, now + 6)
    assert breaker.state(now + 6) == "closed"
    third = await send(router, call(router, now), now + 6)
    router.answered(third, now + 6)  # no probe: it counts when it ends
    for sending in (first, second, third):
        router.succeeded(sending, now + 7, WHOLE)
    router.failed(await send(router, call(router, now), now + 7), now + 8, status(503))
    assert breaker.state(now + 8) == "open"


@pytest.mark.parametrize("reserved", [None, 10**12])
async def test_what_a_failed_attempt_may_have_cost(reserved: int | None, now: float) -> None:
    router = make()
    ledger = router._billing.ledger
    unknown = ledger.unknown
    for error, billed in ((status(503), False), (status(504), True), (None, True)):
        lane = router.sites[0].lanes[0]
        await lane.gate.acquire(Due(), patience=None)
        if reserved is not None:
            ledger.reserve(reserved)
        sending = router.begin(call(router, now), router.sites[0], lane, now, reserved)
        if error is None:
            router.abandoned(sending, now)
        else:
            router.failed(sending, now, error)
        assert ledger.reserved == 0
        assert (ledger.unknown > unknown) == billed
        unknown = ledger.unknown


async def test_failed(now: float) -> None:
    router = make(health=Health(failures=1))
    asked = call(router, now)
    error = await fail(router, asked, now, request_id="r-1", status=503)
    assert (error.provider, error.request_id, error.attempts) == ("one", "r-1", tuple(asked.attempts))
    assert [(attempt.kind, attempt.status) for attempt in asked.attempts] == [("status", 503)]
    assert router.sites[0].lanes[0].breaker("gpt-4o").state(now) == "open"
    assert (asked.fresh, asked.last is not None, router.outcomes) == (False, True, {"status": 1})
    await fail(router, asked, now, 400, which=1)
    assert router.sites[1].lanes[0].breaker("gpt-4o").state(now) == "closed"
    assert [site.provider.name for site in asked.failures] == ["one", "two"]
    await fail(router, asked, now, 421)
    assert asked.fresh
    assert [site.provider.name for site in asked.failures] == ["two", "one"]  # in the order of the last failures
    await fail(router, asked, now, APIConnectionError("no"))
    assert not asked.fresh


async def test_credit_used_up(now: float) -> None:
    router = make()
    await fail(router, call(router, now), now, 402)
    assert name(router.choose(call(router, now), now + 599)) == "two"
    assert name(router.choose(call(router, now), now + 600)) == "one"


@pytest.mark.parametrize(
    ("error", "pause", "least", "most", "bound"),
    [
        (status(503), 0.0, 0, 0, 256),
        (status(503, 5.0), 0.0, 5, 5.5, 256),
        (status(503), 7.0, 7, 7.7, 256),  # what the headers say is left
        (status(503, 5.0), 50.0, 5, 5.5, 256),  # Retry-After wins
        (status(503, 0.0), 50.0, 0, 0, 256),
        (status(503, 86400.0), 0.0, 300, 300, 256),
        (status(429, 3.0), 0.0, 3, 3.5, 179),
        (status(429), 30.0, 30, 33, 179),
        (status(429), 0.0, 0, 1.5, 179),
        (status(429, 86400.0), 0.0, 300, 300, 179),
        (status(429, None, "insufficient_quota"), 0.0, 0, 0, 256),
        (status(529), 0.0, 0, 1.5, 256),
        (status(529, 4.0), 0.0, 4, 4.5, 256),
        (APIConnectionError("no"), 0.0, 0, 0, 256),
    ],
)
async def test_the_cool_down(error: APIError, pause: float, least: float, most: float, bound: int, now: float) -> None:
    router = make()
    gate = router.sites[0].lanes[0].gate
    await fail(router, call(router, now), now, error, pause=pause)
    late = asyncio.get_running_loop().time() - now
    assert least <= gate.pause_left(now) <= most + late
    assert gate.bound == bound


async def test_the_backoff_of_a_throttle_grows_with_each_of_a_call(now: float) -> None:
    router = make(retry=Retry(throttle_base=8, throttle_cap=1000))
    gate = router.sites[0].lanes[0].gate
    longest = [0.0] * 4
    for _ in range(200):
        asked = call(router, now)
        for i in range(4):
            gate.paused_until = -NEVER
            await send_through(router, asked, now)
            longest[i] = max(longest[i], gate.pause_left(now))
    for i, seconds in enumerate(longest):
        assert 0.85 * 8 * 2**i < seconds <= 1.1 * 8 * 2**i + 10


async def send_through(router: Router, call: Call, now: float) -> None:
    router.failed(await send(router, call, now), now, status(429))


# -- what may follow ---------------------------------------------------------------------------------------------------


async def ends(router: Router, call: Call, now: float, error: APIError, *, sent: int | None = None) -> APIError:
    """What the caller gets."""
    if sent is not None:
        call.sent = sent
    with pytest.raises(APIError) as caught:
        router.after(call, now, error)
    return caught.value


async def test_nothing_was_sent(now: float) -> None:
    error = APITimeoutError("late", kind="pool")
    router = make()
    assert await ends(router, call(router, now), now, error) is error


async def test_no_attempt_is_left(now: float) -> None:
    router = make()
    asked = call(router, now)
    error = await fail(router, asked, now)
    assert await ends(router, asked, now, error, sent=3) is error


async def test_committed(now: float) -> None:
    router = make()
    asked = call(router, now)
    cut = StreamTruncatedError("cut", committed=True, partial="Hel")
    await fail(router, asked, now, cut)
    assert await ends(router, asked, now, cut) is cut
    asked.restart = True
    assert name(router.after(asked, now, cut)) == "two"


async def test_another_provider_at_once(now: float) -> None:
    router = make("one", "two", "three")
    asked = call(router, now)
    error = await fail(router, asked, now)
    site, lane, wait = router.after(asked, now, error)
    assert (name((site, lane)), wait) == ("two", 0)
    assert router.sites[0].tokens == router.sites[1].tokens == 10
    error = await fail(router, asked, now, which=1)
    assert name(router.after(asked, now, error)) == "three"


async def test_another_provider_must_be_healthy_and_ready(now: float) -> None:
    router = make("one", "two", "three")
    asked = call(router, now)
    await sicken(router, now, 1)
    error = await fail(router, asked, now)
    assert name(router.after(asked, now, error)) == "three"
    router.sites[2].lanes[0].gate.pause(30)
    assert name(router.after(asked, now, error)) == "one"  # a retry is sooner


async def test_only_a_provider_that_maps_the_model(now: float) -> None:
    for code in (403, 404):
        router = make(models={"gpt-4": "theirs"})
        asked = call(router, now)
        error = await fail(router, asked, now, code)
        assert await ends(router, asked, now, error) is error
        router = make(models={"gpt-4o": "theirs"})
        asked = call(router, now)
        error = await fail(router, asked, now, code)
        assert name(router.after(asked, now, error)) == "two"


async def test_never_again(now: float) -> None:
    router = make()
    asked = call(router, now)
    error = await fail(router, asked, now, 400)
    assert await ends(router, asked, now, error) is error


async def test_the_same_provider_after_a_wait(now: float) -> None:
    for sent, longest in ((1, 0.5), (2, 1.0)):
        waits = []
        for seed in range(200):
            router = make("one")
            asked = call(router, now)
            router._dice.seed(seed)
            error = await fail(router, asked, now)
            asked.sent = sent
            site, _, wait = router.after(asked, now, error)
            waits.append(wait)
            assert (site.provider.name, site.tokens) == ("one", 9)
        assert 0.9 * longest < max(waits) <= longest


async def test_an_edge_page_waits_five_seconds(now: float) -> None:
    router = make("one")
    asked = call(router, now)
    error = await fail(router, asked, now, error_from_response(403, b"<html>"))
    assert router.after(asked, now, error)[2] == 5
    error = await fail(router, asked, now, error_from_response(403, b"<html>"))
    assert await ends(router, asked, now, error) is error


async def test_no_token_no_retry(now: float) -> None:
    router = make("one", retry=Retry(tokens=1))
    asked = call(router, now)
    error = await fail(router, asked, now)
    router.after(asked, now, error)
    assert router.sites[0].tokens == 0
    error = await fail(router, asked, now)
    assert await ends(router, asked, now, error) is error


async def test_what_is_too_long_to_wait(now: float) -> None:
    for seconds, again in ((120.0, True), (120.5, False), (86400.0, False)):
        for code in (429, 503):
            router = make("one")
            asked = call(router, now)
            error = await fail(router, asked, now, status(code, seconds))
            if again:
                assert name(router.after(asked, now, error)) == "one"
            else:
                assert await ends(router, asked, now, error) is error


async def test_a_sick_provider_is_not_asked_again(now: float) -> None:
    router = make("one", health=Health(failures=1))
    asked = call(router, now)
    error = await fail(router, asked, now)
    assert await ends(router, asked, now, error) is error


async def test_a_retry_goes_where_it_failed_last_or_else_before(now: float) -> None:
    router = make()
    asked = call(router, now)
    await fail(router, asked, now)
    error = await fail(router, asked, now, which=1)
    assert name(router.after(asked, now, error)) == "two"
    router = make()
    asked = call(router, now)
    await fail(router, asked, now)
    error = await fail(router, asked, now, 524, which=1)
    assert name(router.after(asked, now, error)) == "one"


async def test_a_short_pause_is_worth_the_wait(now: float) -> None:
    router = make()
    asked = call(router, now)
    error = await fail(router, asked, now, status(429, 1.0))
    site, lane, wait = router.after(asked, now, error)
    assert (name((site, lane)), wait, site.tokens) == ("one", 0, 9)  # the wait is at the gate


@pytest.mark.parametrize("why", ["long", "deadline", "tokens", "last attempt", "told not to", "overloaded", "panic"])
async def test_it_is_not_worth_the_wait(why: str, now: float) -> None:
    router = make(retry=Retry(attempts=2 if why == "last attempt" else 3))
    asked = call(router, now, deadline=1.0 if why == "deadline" else None)
    asked.panic = why == "panic"
    if why == "tokens":
        router.sites[0].tokens = 0
    error = status(529 if why == "overloaded" else 429, 2.5 if why == "long" else 1.5)
    await fail(router, asked, now, error, headers={"x-should-retry": "false"} if why == "told not to" else None)
    assert name(router.after(asked, now, error)) == "two"


async def test_no_attempt_starts_that_cannot_end_in_time(now: float) -> None:
    async def after(deadline: float, latency: float, error: APIError, seed: int = 1) -> Any:
        router = make("one", retry=Retry(base=0))
        asked = call(router, now, deadline)
        sending = await send(router, asked, now)
        router.failed(sending, now + latency, error)
        try:
            return router.after(asked, now + latency, error)
        except APITimeoutError as late:
            return late

    assert name(await after(10, 2, status(503))) == "one"
    assert name(await after(10, 2, status(503, 3.0))) == "one"
    for deadline, latency, error in ((3.9, 2, status(503)), (5.9, 2, status(503, 4.0)), (5.9, 2, status(429, 4.0))):
        late = await after(deadline, latency, error)
        assert (type(late), late.kind, late.provider) == (APITimeoutError, "deadline", "one")
        assert (late.retry_after, late.attempts, late.maybe_billed) == (error.retry_after, error.attempts, False)


async def test_the_deadline_error_knows_of_the_bill(now: float) -> None:
    router = make("one", retry=Retry(base=0))
    asked = call(router, now, deadline=3)
    sending = await send(router, asked, now)
    error = StreamTruncatedError("cut", maybe_billed=True, partial="Hel", request_id=None)
    router.failed(sending, now + 2, error)
    late = await ends(router, asked, now + 2, error)
    assert (late.kind, late.maybe_billed, late.partial) == ("deadline", True, "Hel")


async def test_panic(now: float) -> None:
    router = make()
    await sicken(router, now, 0)
    await sicken(router, now, 1)
    asked = call(router, now)
    router.choose(asked, now)
    error = await fail(router, asked, now)
    assert name(router.after(asked, now, error)) == "two"
    error = await fail(router, asked, now, which=1)
    assert isinstance(await ends(router, asked, now, error), AllProvidersFailedError)  # and no retries


async def test_the_last_resort(now: float) -> None:
    router = make(retry=Retry(tokens=0))
    asked = call(router, now)
    await sicken(router, now, 1)
    error = await fail(router, asked, now)
    assert name(router.after(asked, now, error)) == "two"  # it may have healed
    assert asked.panic
    router = make(models={"gpt-4o": "theirs"})
    asked = call(router, now)
    await sicken(router, now, 1)
    error = await fail(router, asked, now, 404)
    assert await ends(router, asked, now, error) is error  # worth no call to a sick provider


async def test_all_failed(now: float) -> None:
    router = make(retry=Retry(attempts=2))
    asked = call(router, now)
    first = await fail(router, asked, now, status(503, 9.0), status=503)
    second = await fail(router, asked, now, APIResponseError("no", kind="truncated", maybe_billed=True), 1, status=200)
    final = await ends(router, asked, now, second)
    assert type(final) is AllProvidersFailedError
    assert final.errors == (first, second)
    assert (final.provider, final.retry_after, final.maybe_billed) == ("two", 9, True)
    assert final.attempts == tuple(asked.attempts)
    assert [line.strip().split(" after")[0] for line in str(final).splitlines()[1:]] == ["one: 503", "two: truncated"]


async def test_all_failed_with_nothing_to_wait_for(now: float) -> None:
    router = make(retry=Retry(attempts=2))
    asked = call(router, now)
    await fail(router, asked, now)
    error = await fail(router, asked, now, APIConnectionError("no"), 1)
    final = await ends(router, asked, now, error)
    assert (final.retry_after, final.maybe_billed) == (None, False)
    assert "two: connect after" in str(final)


@pytest.mark.parametrize(
    "error",
    [
        APITimeoutError("late", kind="deadline"),
        APIConnectionError("closed", kind="closed"),
        APIConnectionError("no socket", kind="local"),
        StreamTruncatedError("cut", committed=True),
    ],
)
async def test_what_is_told_as_it_is(error: APIError, now: float) -> None:
    router = make()
    asked = call(router, now)
    await fail(router, asked, now)
    await fail(router, asked, now, error, which=1)
    assert await ends(router, asked, now, error) is error


# -- hedging -----------------------------------------------------------------------------------------------------------


async def test_hedge(now: float) -> None:
    router = make(retry=Retry(hedge=0.05))
    asked = call(router, now)
    sending = await send(router, asked, now)
    assert router.hedge(sending, now) is None  # nothing is known yet
    router.sites[0].starts[False].extend([0.2] * SAMPLES)
    for _ in range(18):
        assert router.hedge(sending, now) is None  # 1 of 20 would be more than the share
    found = router.hedge(sending, now)
    assert found is not None
    assert (name(found), found[2]) == ("two", 0.2)
    router.hedged()
    for _ in range(19):
        assert router.hedge(sending, now) is None
    assert router.hedge(sending, now) is not None


async def test_no_hedge(now: float) -> None:
    plain, alone, paused, failed = make(), make("one"), make(), make()
    for router in (plain, alone, paused, failed):
        router.sites[0].starts[False].extend([0.2] * SAMPLES)
        router._calls = 1000
        router._retry = Retry(hedge=0.0 if router is plain else 0.05)
    paused.sites[1].lanes[0].gate.pause(1)
    asked = call(failed, now)
    await fail(failed, asked, now, which=1)
    assert failed.hedge(await send(failed, asked, now), now) is None
    for router in (plain, alone, paused):
        assert router.hedge(await send(router, call(router, now), now), now) is None
    sending = await send(plain, call(plain, now, stream=True), now)
    plain._retry = Retry(hedge=True)
    assert plain.hedge(sending, now) is None  # of streams nothing is known


# -- telling -----------------------------------------------------------------------------------------------------------


async def test_statistics(now: float) -> None:
    router = make(keys=KEYS)
    await fail(router, call(router, now), now, status(429, 3.0))
    await send(router, call(router, now), now, which=1, key=1)
    seen = router.statistics(now)
    assert [(lane.provider, lane.key) for lane in seen.lanes] == [
        ("one", "…0001"),
        ("one", "…y-02"),
        ("two", "…0001"),
        ("two", "…y-02"),
    ]
    assert (seen.in_flight, seen.queued, seen.outcomes) == (1, 0, {"status": 1})
    assert [lane.in_flight for lane in seen.lanes] == [0, 0, 0, 1]
    assert [lane.bound for lane in seen.lanes] == [179, 256, 256, 256]
    assert [lane.pause > 0 for lane in seen.lanes] == [True, False, False, False]
    assert seen.lanes[0].breakers == {"gpt-4o": "closed"}
    assert seen.lanes[1].breakers == {}
    assert [lane.retries for lane in seen.lanes] == [10, 10, 10, 10]


def test_endpoints() -> None:
    endpoints = make(keys=KEYS).endpoints
    assert [endpoint.url for endpoint in endpoints] == [
        *["https://one.example/v1/chat/completions"] * 2,
        *["https://two.example/v1/chat/completions"] * 2,
    ]
    assert [endpoint.secret.fingerprint for endpoint in endpoints] == ["…0001", "…y-02"] * 2
