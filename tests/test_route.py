"""The router, by plain calls: where a call goes, after what wait, and what the caller gets in the end.

It decides, and neither sends nor waits nor keeps count. So these tests put the state there, and the time is one that
they set.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping

import attrs
import pytest

from piapi_async import (
    AllProvidersFailedError,
    APIConnectionError,
    APIError,
    APIResponseError,
    APITimeoutError,
    Attempt,
    ChatRequest,
    Health,
    Limits,
    Provider,
    Retry,
    StreamTruncatedError,
)
from piapi_async.gate import Gate
from piapi_async.policy import NEVER, Deadline, retry_rule
from piapi_async.route import SAMPLES, Call, Failure, Route, Router, Upstream, UpstreamKey
from piapi_async.wire import error_from_response
from tests.leaks import PROMPT

NOW = 1000.0
RETRY, HEALTH, LIMITS = Retry(), Health(), Limits()
MODEL = "gpt-4o"
ONE_KEY, TWO_KEYS = ("sk-first-key-0001",), ("sk-first-key-0001", "sk-second-key-02")


class NoChance(random.Random):
    """Always the lowest."""

    def uniform(self, a: float, b: float) -> float:
        return a


@attrs.frozen
class World:
    """A router, and the providers that it may choose from."""

    router: Router
    upstreams: list[Upstream]

    @property
    def one(self) -> Upstream:
        return self.upstreams[0]

    @property
    def two(self) -> Upstream:
        return self.upstreams[1]

    def call(self, deadline: float | None = None) -> Call:
        due = Deadline() if deadline is None else Deadline(NOW + deadline, "deadline", deadline)
        return Call(ChatRequest(PROMPT, MODEL), MODEL, NOW, due, "key-1", self.upstreams, [], {})


def make(
    *names: str,
    retry: Retry = RETRY,
    keys: Iterable[str] = ONE_KEY,
    models: Mapping[str, str] | None = None,
    seed: int = 1,
) -> World:
    """Providers, of which all but the first map the models; a jittered pause is exactly as long as asked."""
    upstreams: list[Upstream] = []
    for i, name in enumerate(names or ("one", "two")):
        mapped = models if models and i else {}
        provider = Provider(name, f"https://{name}.example", list(keys), models=mapped)
        gates = [
            UpstreamKey(endpoint, Gate(name, LIMITS, NoChance(), lambda: NOW), HEALTH, random.Random(1))
            for endpoint in provider.endpoints()
        ]
        upstreams.append(Upstream(provider, gates, retry.budget))
    return World(Router(retry, random.Random(seed)), upstreams)


def status(code: int, retry_after: float | None = None) -> APIError:
    error = error_from_response(code, b"{}")
    error.retry_after = retry_after
    return error


def fail(
    call: Call,
    upstream: Upstream,
    error: APIError | int = 503,
    *,
    latency: float = 0.0,
    should_retry: bool | None = None,
    code: int | None = None,
) -> APIError:
    """Note on a call that an attempt has failed just now, as dispatch does."""
    error = status(error) if isinstance(error, int) else error
    error.provider = upstream.provider.name
    before = call.failures.pop(upstream, None)
    times = 1 if before is None else before.times + 1
    rule = retry_rule(error, should_retry=should_retry, may_switch=call.may_switch)
    call.failures[upstream] = Failure(error, rule, times, upstream.keys[0], NOW - latency)
    call.attempts.append(Attempt(error.provider, "…0001", code, error.kind, 0.0, latency))
    error.attempts = tuple(call.attempts)
    call.begun += 1
    return error


def sicken(key: UpstreamKey, now: float = NOW) -> None:
    """Open the breaker of a provider's key."""
    breaker = key.breaker(MODEL)
    for _ in range(HEALTH.failure_threshold):
        breaker.record(now, good=False)
    assert not key.admits(MODEL, now)


def name(route: Route) -> str:
    assert route.key in route.upstream.keys
    return route.upstream.provider.name


def after(world: World, call: Call, now: float = NOW) -> Route:
    return world.router.after_failure(call, now)


def ends(world: World, call: Call, now: float = NOW) -> APIError:
    """What the caller gets."""
    with pytest.raises(APIError) as caught:
        world.router.after_failure(call, now)
    return caught.value


# -- providers and their keys ------------------------------------------------------------------------------------------


def test_a_provider_begins_healthy_and_idle() -> None:
    provider = Provider("one", "https://one.example", list(TWO_KEYS))
    upstream = Upstream.of(provider, Limits(concurrency=3), Retry(budget=7), HEALTH, random.Random(1))
    assert upstream.retry_budget == 7
    assert [key.endpoint.url for key in upstream.keys] == ["https://one.example/v1/chat/completions"] * 2
    assert [key.endpoint.secret.fingerprint for key in upstream.keys] == ["…0001", "…y-02"]
    assert [key.gate.bound for key in upstream.keys] == [3, 3]
    assert all(key.admits(MODEL, NOW) for key in upstream.keys)
    bounded = Provider("two", "https://two.example", "sk-first-key-0001", limits=Limits(concurrency=1))
    assert Upstream.of(bounded, LIMITS, RETRY, HEALTH, random.Random(1)).keys[0].gate.bound == 1


def test_a_breaker_for_each_model() -> None:
    key = make().one.keys[0]
    assert key.breaker("a") is key.breaker("a") is not key.breaker("b")
    assert key.breakers.keys() == {"a", "b"}


def test_a_key_on_probation_admits_one() -> None:
    key = make().one.keys[0]
    sicken(key)
    assert key.admits(MODEL, NOW + 5)
    assert key.breaker(MODEL).start(NOW + 5)
    assert not key.admits(MODEL, NOW + 5)
    assert key.admits("another", NOW)


def test_the_least_loaded_key() -> None:
    world = make(keys=TWO_KEYS)
    upstream = world.one
    first, second = upstream.keys
    assert upstream.healthy_key(MODEL, NOW) is first
    assert first.gate.try_enter(0, NOW)
    assert upstream.healthy_key(MODEL, NOW) is second
    route = world.router.choose(world.call(), NOW)
    assert (route.upstream, route.key, route.panic) == (upstream, second, False)
    sicken(second)
    assert upstream.healthy_key(MODEL, NOW) is first  # healthy, if more loaded
    assert upstream.healthy_key("gpt-4o-mini", NOW) is second  # a model's breaker says nothing about another
    assert upstream.least_loaded_key() is second  # healthy or not
    first.gate.pause(10)
    assert upstream.healthy_key(MODEL, NOW, max_pause=5) is None
    assert upstream.healthy_key(MODEL, NOW) is first


def test_a_provider_that_is_off() -> None:
    upstream = make().one
    upstream.off_until = NOW + 1
    assert upstream.healthy_key(MODEL, NOW) is None
    assert upstream.healthy_key(MODEL, NOW + 1) is upstream.keys[0]


def test_slow_start() -> None:
    upstream = make().one
    streams, answers = upstream.starts[True], upstream.starts[False]
    assert upstream.slow_start(stream=True) is None
    streams.extend(float(i) for i in range(SAMPLES // 10 - 1))
    assert upstream.slow_start(stream=True) is None
    streams.append(19.0)
    assert upstream.slow_start(stream=True) == 19
    streams.extend(float(i) for i in range(SAMPLES))
    assert upstream.slow_start(stream=True) == 190
    assert upstream.slow_start(stream=False) is None
    answers.extend([0.5] * SAMPLES)
    assert upstream.slow_start(stream=False) == 0.5


def test_a_call_shows_nothing_of_what_is_asked() -> None:
    assert PROMPT not in repr(make().call())


# -- choosing ----------------------------------------------------------------------------------------------------------


def test_the_first_healthy_provider() -> None:
    world = make("one", "two", "three")
    call = world.call()
    assert name(world.router.choose(call, NOW)) == "one"
    sicken(world.one.keys[0])
    assert name(world.router.choose(call, NOW)) == "two"
    sicken(world.two.keys[0])
    route = world.router.choose(call, NOW)
    assert (name(route), route.panic, route.wait, route.retry) == ("three", False, 0, False)


def test_a_pause_longer_than_a_failover_takes() -> None:
    world = make()
    world.one.keys[0].gate.pause(2)
    assert name(world.router.choose(world.call(), NOW)) == "one"
    world.one.keys[0].gate.pause(30)
    assert name(world.router.choose(world.call(), NOW)) == "two"
    world.two.keys[0].gate.pause(30)
    assert name(world.router.choose(world.call(), NOW)) == "one"  # all are paused: the preferred one is waited for


def test_nobody_is_healthy() -> None:
    world = make()
    for upstream in world.upstreams:
        sicken(upstream.keys[0])
    call = world.call()
    route = world.router.choose(call, NOW)
    assert (name(route), route.panic) == ("one", True)
    fail(call, world.one)
    assert name(world.router.choose(call, NOW)) == "two"  # a first attempt each
    fail(call, world.two)
    assert name(world.router.choose(call, NOW)) == "one"


def test_a_provider_that_must_not_be_asked_again_is_not_chosen_again() -> None:
    world = make()
    call = world.call()
    fail(call, world.one, 503)
    assert not call.failures[world.one].is_final
    assert name(world.router.choose(call, NOW)) == "one"
    fail(call, world.one, 524)
    assert call.failures[world.one].is_final
    assert name(world.router.choose(call, NOW)) == "two"
    other = world.call()
    assert name(world.router.choose(other, NOW)) == "one"  # that was between the other call and its provider
    for times in (1, 2):
        fail(other, world.one, 421)  # once more, no oftener
        assert other.failures[world.one].is_final == (times == 2)


def test_how_long_a_pause_is_worth_waiting_for() -> None:
    alone, world = make("one"), make()
    assert alone.router.max_pause(alone.call(), alone.one, NOW) == NEVER
    call = world.call()
    assert world.router.max_pause(call, world.one, NOW) == 2
    world.two.keys[0].gate.pause(30)
    assert world.router.max_pause(call, world.one, NOW) == NEVER  # the backup is paused too
    assert world.router.max_pause(call, world.two, NOW) == 2
    fail(call, world.one)
    assert world.router.max_pause(call, world.two, NOW) == NEVER  # the other one failed


# -- what may follow ---------------------------------------------------------------------------------------------------


def test_no_attempt_is_left() -> None:
    world = make()
    call = world.call()
    error = fail(call, world.one)
    call.begun = 3
    assert ends(world, call) is error


def test_committed() -> None:
    world = make()
    call = world.call()
    cut = fail(call, world.one, StreamTruncatedError("cut", committed=True, partial="Hel"))
    assert ends(world, call) is cut
    call.restart = True
    assert name(after(world, call)) == "two"


def test_another_provider_at_once() -> None:
    world = make("one", "two", "three")
    call = world.call()
    fail(call, world.one)
    route = after(world, call)
    assert (name(route), route.wait, route.retry, route.panic) == ("two", 0, False, False)
    fail(call, world.two)
    assert name(after(world, call)) == "three"


def test_another_provider_must_be_healthy_and_ready() -> None:
    world = make("one", "two", "three")
    call = world.call()
    sicken(world.two.keys[0])
    fail(call, world.one)
    assert name(after(world, call)) == "three"
    world.upstreams[2].keys[0].gate.pause(30)
    assert name(after(world, call)) == "one"  # a retry is sooner


@pytest.mark.parametrize("code", [403, 404])
def test_only_a_provider_that_maps_the_model(code: int) -> None:
    world = make(models={"gpt-4": "theirs"})
    call = world.call()
    error = fail(call, world.one, code)
    assert ends(world, call) is error
    world = make(models={"gpt-4o": "theirs"})
    call = world.call()
    fail(call, world.one, code)
    assert name(after(world, call)) == "two"


@pytest.mark.parametrize("code", [400, 401, 413, 422])
def test_never_again(code: int) -> None:
    world = make()
    call = world.call()
    error = fail(call, world.one, code)
    assert ends(world, call) is error


def test_the_same_provider_after_a_wait() -> None:
    for begun, longest in ((1, 0.5), (2, 1.0)):
        waits: list[float] = []
        for seed in range(200):
            world = make("one", seed=seed)
            call = world.call()
            fail(call, world.one)
            call.begun = begun
            route = after(world, call)
            waits.append(route.wait)
            assert (name(route), route.retry) == ("one", True)
        assert 0.9 * longest < max(waits) <= longest
        assert min(waits) < 0.1 * longest


def test_deciding_changes_nothing() -> None:
    world = make("one")
    call = world.call()
    fail(call, world.one)
    before = attrs.asdict(call, recurse=False), world.one.retry_budget, world.one.keys[0].gate.callers
    for _ in range(100):
        assert name(after(world, call)) == "one"
    assert (attrs.asdict(call, recurse=False), world.one.retry_budget, world.one.keys[0].gate.callers) == before


def test_an_edge_page_waits_five_seconds() -> None:
    world = make("one")
    call = world.call()
    fail(call, world.one, error_from_response(403, b"<html>Just a moment"))
    assert after(world, call).wait == 5
    error = fail(call, world.one, error_from_response(403, b"<html>Just a moment"))
    assert ends(world, call) is error


def test_no_retry_budget_no_retry() -> None:
    world = make("one")
    call = world.call()
    world.one.retry_budget = 1.0
    error = fail(call, world.one)
    assert after(world, call).retry
    world.one.retry_budget = 0.9
    assert ends(world, call) is error


@pytest.mark.parametrize("code", [429, 503])
def test_what_is_too_long_to_wait(code: int) -> None:
    for seconds, again in ((120.0, True), (120.5, False), (86400.0, False)):
        world = make("one")
        call = world.call()
        error = fail(call, world.one, status(code, seconds))
        if again:
            assert name(after(world, call)) == "one"
        else:
            assert ends(world, call) is error


def test_a_sick_provider_is_not_asked_again() -> None:
    world = make("one")
    call = world.call()
    error = fail(call, world.one)
    sicken(world.one.keys[0])
    assert ends(world, call) is error


def test_a_retry_goes_where_it_failed_last_or_else_before() -> None:
    for code, found in ((503, "two"), (524, "one")):
        world = make()
        call = world.call()
        fail(call, world.one)
        fail(call, world.two, code)
        assert name(after(world, call)) == found


@pytest.mark.parametrize("code", [504, 524])
def test_a_gateways_timeout_without_a_backup_is_asked_again_by_stream(code: int) -> None:
    world = make("one")
    call = world.call()
    fail(call, world.one)
    assert not after(world, call).by_stream
    fail(call, world.one, code)
    route = after(world, call)
    assert (route.retry, route.by_stream) == (True, True)
    assert (call.via_stream, call.may_switch) == (None, True)  # it decides, and changes nothing
    call.via_stream = True  # as dispatch notes
    assert not call.may_switch


@pytest.mark.parametrize("via_stream", [False, True])
def test_a_call_that_was_told_how_to_ask_does_not_switch(via_stream: bool) -> None:
    world = make("one")
    call = world.call()
    call.via_stream = via_stream
    error = fail(call, world.one, 524)
    assert ends(world, call) is error


def test_a_gateways_timeout_with_a_backup_goes_there() -> None:
    world = make("one", "two")
    call = world.call()
    fail(call, world.one, 524)
    route = after(world, call)
    assert (name(route), route.by_stream) == ("two", False)
    error = fail(call, world.two, 524)
    final = ends(world, call)
    assert isinstance(final, AllProvidersFailedError)
    assert error in final.errors


def test_a_short_pause_is_worth_the_wait() -> None:
    world = make()
    call = world.call()
    fail(call, world.one, status(429, 1.0))
    world.one.keys[0].gate.pause(1)
    route = after(world, call)
    assert (name(route), route.wait, route.retry) == ("one", 0, True)  # the wait is at the gate


@pytest.mark.parametrize("why", ["long", "deadline", "budget", "last attempt", "told not to", "overloaded", "panic"])
def test_it_is_not_worth_the_wait(why: str) -> None:
    world = make(retry=Retry(attempts=2 if why == "last attempt" else 3))
    call = world.call(deadline=1.0 if why == "deadline" else None)
    call.panic = why == "panic"
    if why == "budget":
        world.one.retry_budget = 0
    world.one.keys[0].gate.pause(2.5 if why == "long" else 1.5)
    error = status(529 if why == "overloaded" else 429)
    fail(call, world.one, error, should_retry=False if why == "told not to" else None)
    assert name(after(world, call)) == "two"


def test_no_attempt_starts_that_cannot_end_in_time() -> None:
    def follow(deadline: float, error: APIError) -> Route | APIError:
        """What follows an attempt that took two seconds."""
        world = make("one", retry=Retry(base=0))
        call = world.call(deadline)
        fail(call, world.one, error, latency=2)
        if error.retry_after:
            world.one.keys[0].gate.pause(error.retry_after)
        try:
            return after(world, call)
        except APITimeoutError as late:
            return late

    for deadline, error in ((2.0, status(503)), (5.0, status(503, 3.0))):
        assert isinstance(follow(deadline, error), Route)
    for deadline, error in ((1.9, status(503)), (5.9, status(503, 4.0)), (5.9, status(429, 4.0))):
        late = follow(deadline, error)
        assert isinstance(late, APITimeoutError)
        assert (late.kind, late.maybe_billed, late.provider) == ("deadline", False, "one")
        assert (late.retry_after, late.attempts) == (error.retry_after, error.attempts)


def test_the_deadline_error_knows_of_the_bill() -> None:
    world = make("one", retry=Retry(base=0))
    call = world.call(deadline=1)
    fail(call, world.one, StreamTruncatedError("cut", maybe_billed=True, partial="Hel"), latency=2)
    late = ends(world, call)
    assert (late.kind, late.maybe_billed, late.partial) == ("deadline", True, "Hel")


def test_panic() -> None:
    world = make()
    for upstream in world.upstreams:
        sicken(upstream.keys[0])
    call = world.call()
    call.panic = world.router.choose(call, NOW).panic
    fail(call, world.one)
    assert name(after(world, call)) == "two"
    fail(call, world.two)
    assert isinstance(ends(world, call), AllProvidersFailedError)  # and no retries


def test_the_last_resort() -> None:
    world = make(retry=Retry(budget=0))
    call = world.call()
    sicken(world.two.keys[0])
    fail(call, world.one)
    route = after(world, call)
    assert (name(route), route.panic) == ("two", True)  # it may have healed
    world = make(models={"gpt-4o": "theirs"})
    call = world.call()
    sicken(world.two.keys[0])
    error = fail(call, world.one, 404)
    assert ends(world, call) is error  # worth no call to a sick provider


def test_all_failed() -> None:
    world = make(retry=Retry(attempts=2))
    call = world.call()
    first = fail(call, world.one, status(503, 9.0), code=503)
    second = fail(call, world.two, APIResponseError("no", kind="truncated", maybe_billed=True), code=200)
    final = ends(world, call)
    assert isinstance(final, AllProvidersFailedError)
    assert final.errors == (first, second)
    assert (final.provider, final.retry_after, final.maybe_billed) == ("two", 9, True)
    assert final.attempts == tuple(call.attempts)
    assert [line.strip().split(" after")[0] for line in str(final).splitlines()[1:]] == ["one: 503", "two: truncated"]


def test_all_failed_with_nothing_to_wait_for() -> None:
    world = make(retry=Retry(attempts=2))
    call = world.call()
    fail(call, world.one)
    fail(call, world.two, APIConnectionError("no"))
    final = ends(world, call)
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
def test_what_is_told_as_it_is(error: APIError) -> None:
    world = make()
    call = world.call()
    fail(call, world.one)
    fail(call, world.two, error)
    assert ends(world, call) is error


@pytest.mark.parametrize("kind", ["deadline", "closed", "local"])
def test_what_comes_from_this_side_ends_the_call_whatever_the_header_says(kind: str) -> None:
    world = make()
    call = world.call()
    error = fail(call, world.one, APIConnectionError("no", kind=kind), should_retry=True)  # type: ignore[arg-type]
    assert ends(world, call) is error


# -- hedging -----------------------------------------------------------------------------------------------------------


def test_a_hedge_goes_to_another_provider_that_is_ready_now() -> None:
    world = make("one", "two", "three")
    call = world.call()
    found = world.router.hedge(call, world.one, NOW)
    assert found is not None
    assert name(found) == "two"
    world.two.keys[0].gate.pause(1)  # a hedge does not wait
    found = world.router.hedge(call, world.one, NOW)
    assert found is not None
    assert name(found) == "three"
    fail(call, world.upstreams[2])
    assert world.router.hedge(call, world.one, NOW) is None
    assert world.router.hedge(call, world.one, NOW + 1) is not None


def test_no_hedge_without_another_provider() -> None:
    world = make("one")
    assert world.router.hedge(world.call(), world.one, NOW) is None
    world = make()
    sicken(world.two.keys[0])
    assert world.router.hedge(world.call(), world.one, NOW) is None
