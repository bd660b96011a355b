"""Decides which provider is next, and when. It sends nothing, changes nothing and never waits.

An `Upstream` is a provider as the client sees it while it runs: its keys, each with a gate and breakers, and its retry
budget. The `Router` says where a call's first attempt goes, and what may follow a failed one: another provider at once,
the same one after a wait, or the error that the caller gets. `dispatch` carries that out and keeps the state.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import attrs

from piapi_async.billing import Account
from piapi_async.breaker import Breaker
from piapi_async.catalog import CATALOG
from piapi_async.errors import AllProvidersFailedError, APIError
from piapi_async.gate import Gate
from piapi_async.models import Attempt, ChatRequest
from piapi_async.policy import NEVER, Deadline, Health, Limits, Retry, RetryRule, timed_out
from piapi_async.provider import Endpoint, Provider

__all__ = ["Call", "Failure", "Route", "Router", "Upstream", "UpstreamKey"]

SAMPLES = 200
"""How many of the last answers' times the hedge learns its delay from, and (a tenth) needs at least (ours)."""

_OURS = ("deadline", "closed", "local")
"""Kinds of errors that end a call, whatever other providers there are: they come from this side."""


@attrs.define(eq=False, repr=False, slots=False)
class UpstreamKey:
    """One key of a provider, with the state that belongs to it.

    Attributes:
        endpoint: Where its requests go.
        gate: What bounds them.
        health: When a breaker opens and closes.
        rng: For jitter.
        breakers: By the caller's name of the model.
    """

    endpoint: Endpoint
    gate: Gate
    health: Health
    rng: random.Random
    breakers: dict[str, Breaker] = attrs.field(factory=dict[str, Breaker])

    def breaker(self, model: str) -> Breaker:
        """The breaker of a model."""
        breaker = self.breakers.get(model)
        if breaker is None:
            breaker = self.breakers[model] = Breaker(self.health, self.rng)
        return breaker

    def admits(self, model: str, now: float) -> bool:
        """Whether a call for a model may be sent: the model's breaker is closed, or this call can be its probe."""
        breaker = self.breakers.get(model)
        return breaker is None or breaker.closed or breaker.admits(now)


@attrs.define(eq=False, repr=False, slots=False)
class Upstream:
    """A provider, with its keys and what all of them share.

    Attributes:
        provider: The provider.
        keys: At least one.
        retry_budget: Retries that it may get now; first attempts refill it.
        off_until: Until when it is left alone, as its credit is used up.
        accounts: By the caller's name of the model.
        has_stream_only: Whether any of its models may answer by stream only; else no call needs to look its own up.
        starts: How long the last plain answers took, and how long the last streams took to begin, in seconds.
    """

    provider: Provider
    keys: Sequence[UpstreamKey]
    retry_budget: float
    off_until: float = -NEVER
    accounts: dict[str, Account] = attrs.field(factory=dict[str, Account])
    has_stream_only: bool = False
    starts: tuple[deque[float], deque[float]] = attrs.field(
        factory=lambda: (deque[float](maxlen=SAMPLES), deque[float](maxlen=SAMPLES))
    )

    @classmethod
    def of(cls, provider: Provider, limits: Limits, retry: Retry, health: Health, rng: random.Random) -> Upstream:
        """Make one in a state in which nothing has happened yet."""
        bounds = provider.limits or limits
        keys = [
            UpstreamKey(endpoint, Gate(provider.name, bounds, rng), health, rng) for endpoint in provider.endpoints()
        ]
        has_stream_only = any(info.stream_only for info in (*CATALOG.values(), *provider.prices.values()))
        return cls(provider, keys, retry.budget, has_stream_only=has_stream_only)

    def healthy_key(self, model: str, now: float, max_pause: float = NEVER) -> UpstreamKey | None:
        """The least loaded key that is healthy and not paused for longer than that; None if none is."""
        if now < self.off_until:
            return None
        best = None
        for key in self.keys:
            breaker = key.breakers.get(model)
            healthy = breaker is None or breaker.closed or breaker.admits(now)
            fits = healthy and key.gate.paused_until - now <= max_pause
            if fits and (best is None or key.gate.callers < best.gate.callers):
                best = key
        return best

    def least_loaded_key(self) -> UpstreamKey:
        """The least loaded key, healthy or not."""
        return min(self.keys, key=lambda key: key.gate.callers)

    def slow_start(self, *, stream: bool) -> float | None:
        """The time within which 95 of 100 streams began, or other answers came; None while too few were seen."""
        seen = sorted(self.starts[stream])
        return seen[len(seen) * 95 // 100] if len(seen) >= SAMPLES // 10 else None


@attrs.define(eq=False, repr=False, slots=False)
class Failure:
    """How a call's attempts at one provider failed.

    Attributes:
        error: The last error.
        rule: What may follow it.
        times: How often this provider failed for this call.
        key: The key that was used.
        began: When the attempt began.
    """

    error: APIError
    rule: RetryRule
    times: int
    key: UpstreamKey
    began: float

    @property
    def is_final(self) -> bool:
        """Whether this call must not ask this provider again."""
        return self.times > self.rule.retries


@attrs.define(eq=False, repr=False, slots=False)
class Call:
    """One call of the caller, over all its attempts. Its `repr` does not show what is asked.

    Attributes:
        request: What is asked.
        model: The model, by the caller's name.
        began: When, on the loop's clock.
        deadline: When all must be over.
        idempotency_key: The same for every attempt.
        upstreams: The providers that may serve it, in order of preference.
        attempts: The records of its attempts.
        failures: By provider, in the order in which they failed last.
        worst: What an attempt may cost at most, in picodollars; None without a budget.
        tokens: What it may use, for `Limits.tokens_per_minute`; 0 where no gate counts tokens.
        via_stream: Whether a call for the whole answer asks by stream; None: as the model needs it. It becomes True
            when a gateway's timeout makes the call ask so.
        waits_for_room: Whether it waits for room in the budget, as long as calls under way may make some.
        live: Whether the caller gets the answer as it comes, and so part of one that breaks off.
        restart: Whether a stream that breaks off after its first text begins anew.
        on_send: What the caller wants to be called right before each request.
        on_settled: What is to be called once a request that brought no answer is on the books.
        begun: Attempts begun, without resends after a stale connection.
        sent: Requests handed to the transport, resends and hedges included.
        resent: Whether the one free resend is used up.
        fresh: Whether the next attempt needs a new connection.
        panic: Whether no provider was healthy: then each gets a first attempt, and no retries.
        interrupted: What broke a stream off after its first text, until the new one begins.
        closings: How often its client had been closed when it began.
    """

    request: ChatRequest
    model: str
    began: float
    deadline: Deadline
    idempotency_key: str
    upstreams: Sequence[Upstream]
    attempts: list[Attempt]
    failures: dict[Upstream, Failure]
    worst: int | None = None
    tokens: int = 0
    via_stream: bool | None = None
    waits_for_room: bool = False
    live: bool = False
    restart: bool = False
    on_send: Callable[[], object] | None = None
    on_settled: Callable[[], object] | None = None
    begun: int = 0
    sent: int = 0
    resent: bool = False
    fresh: bool = False
    panic: bool = False
    interrupted: APIError | None = None
    closings: int = 0

    @property
    def untried(self) -> list[Upstream]:
        """The providers that have not failed for this call."""
        return [upstream for upstream in self.upstreams if upstream not in self.failures]

    @property
    def may_switch(self) -> bool:
        """Whether it may ask by stream after a plain try: nobody said how to ask, and no backup can take over."""
        return self.via_stream is None and len(self.upstreams) == 1


@attrs.define(eq=False, repr=False, slots=False)
class Route:
    """Where an attempt goes.

    Attributes:
        upstream: The provider.
        key: Which of its keys.
        wait: Seconds to wait first.
        retry: Whether it is a retry, which takes one from the provider's retry budget.
        panic: Whether no provider is healthy.
        by_stream: Whether the call asks by stream from now on.
    """

    upstream: Upstream
    key: UpstreamKey
    wait: float = 0.0
    retry: bool = False
    panic: bool = False
    by_stream: bool = False


class Router:
    """Decides where attempts go.

    Args:
        retry: How often, after what wait and where a failed request is sent again.
        rng: For the waits.
    """

    def __init__(self, retry: Retry, rng: random.Random) -> None:
        self._retry = retry
        self._rng = rng

    # -- a first attempt, or one that found its provider sick or paused ------------------------------------------------

    def choose(self, call: Call, now: float) -> Route:
        """The preferred healthy provider; with none healthy, the preferred one."""
        upstreams = call.upstreams
        if call.failures:
            finals = {upstream for upstream, failure in call.failures.items() if failure.is_final}
            upstreams = [upstream for upstream in upstreams if upstream not in finals]
        found = self._healthy(call, now, upstreams, self._retry.failover_after) or self._healthy(call, now, upstreams)
        return found or self._preferred(call.untried or call.upstreams)

    def _healthy(self, call: Call, now: float, upstreams: Iterable[Upstream], max_pause: float = NEVER) -> Route | None:
        for upstream in upstreams:
            key = upstream.healthy_key(call.model, now, max_pause)
            if key is not None:
                return Route(upstream, key)
        return None

    def _preferred(self, upstreams: Sequence[Upstream]) -> Route:
        """The first of them, healthy or not."""
        return Route(upstreams[0], upstreams[0].least_loaded_key(), panic=True)

    def max_pause(self, call: Call, upstream: Upstream, now: float) -> float:
        """How long a cool-down of a provider is worth waiting for: not long where a backup is healthy."""
        if len(call.upstreams) == 1:
            return NEVER
        others = [other for other in call.untried if other is not upstream]
        return self._retry.failover_after if self._healthy(call, now, others, self._retry.failover_after) else NEVER

    # -- what follows a failed attempt ---------------------------------------------------------------------------------

    def after_failure(self, call: Call, now: float) -> Route:
        """Say where a call goes whose last attempt failed.

        Raises:
            APIError: Nowhere: what the caller gets.
        """
        upstream, failure = list(call.failures.items())[-1]
        error, rule = failure.error, failure.rule
        over = call.begun >= self._retry.attempts or error.kind in _OURS
        refused = not rule.retries and rule.failover == "no"  # the request itself is at fault, or the key
        if over or refused or (error.committed and not call.restart):
            raise self._final(call, error)
        elsewhere = self._elsewhere(call, upstream, failure, now)
        if elsewhere is not None:
            return elsewhere
        again = None if call.panic else self._again(call, upstream, now)
        if again is None:
            return self._last_resort(call, failure)
        latency = now - failure.began
        if max(now + again.wait, now + again.key.gate.pause_left(now)) + latency > call.deadline.at:
            raise self._too_late(call, error)
        return again

    def _elsewhere(self, call: Call, upstream: Upstream, failure: Failure, now: float) -> Route | None:
        """Another provider, at once."""
        if failure.rule.failover == "no" or self._is_worth_waiting(call, upstream, failure, now):
            return None
        others = call.untried
        if failure.rule.failover == "mapped":
            others = [other for other in others if call.model in other.provider.models]
        if call.panic and others:
            return self._preferred(others)
        return self._healthy(call, now, others, self._retry.failover_after)

    def _is_worth_waiting(self, call: Call, upstream: Upstream, failure: Failure, now: float) -> bool:
        """Whether a 429 asks for so short a pause that the preferred provider may have another try.

        The last attempt is not for that: where a backup is healthy, no call is lost to 429s.
        """
        if not failure.rule.throttled or failure.rule.unhealthy or call.panic or failure.is_final:
            return False
        if upstream.retry_budget < 1 or call.begun >= self._retry.attempts - 1:
            return False
        pause = failure.key.gate.pause_left(now)
        return pause <= self._retry.failover_after and now + pause < call.deadline.at

    def _last_resort(self, call: Call, failure: Failure) -> Route:
        """A provider that is not healthy, once, when no other is left: it may have healed."""
        if not call.untried or failure.rule.failover != "yes":
            raise self._final(call, failure.error)
        return self._preferred(call.untried)

    def _again(self, call: Call, last: Upstream, now: float) -> Route | None:
        """A retry, at the provider that failed last or else at another that failed before."""
        for upstream in sorted(call.failures, key=lambda each: each is not last):
            failure = call.failures[upstream]
            too_long = (failure.error.retry_after or 0) > self._retry.max_retry_after
            if failure.is_final or too_long or upstream.retry_budget < 1:
                continue
            key = upstream.healthy_key(call.model, now)
            if key is None:
                continue
            wait = 0.0  # the callers of an overloaded provider all wait at its gate
            if not failure.rule.throttled:
                wait = max(failure.rule.wait, self._retry.backoff(call.begun - 1, self._rng))
            return Route(upstream, key, wait, retry=True, by_stream=failure.rule.by_stream)
        return None

    def _too_late(self, call: Call, error: APIError) -> APIError:
        late = timed_out(call.deadline, error.provider)
        late.provider, late.request_id, late.attempts = error.provider, error.request_id, tuple(call.attempts)
        late.retry_after, late.partial, late.committed = error.retry_after, error.partial, error.committed
        late.maybe_billed = any(failure.error.maybe_billed for failure in call.failures.values())
        return late

    def _final(self, call: Call, error: APIError) -> APIError:
        """The error itself, or, where several providers failed, one that holds each one's own."""
        errors = [failure.error for failure in call.failures.values()]
        if len(errors) < 2 or error.committed or error.kind in _OURS:
            return error
        lines = [
            f"{a.provider}: {a.kind if a.status in (None, 200) else a.status} after {a.latency * 1000:.0f} ms"
            for a in call.attempts
        ]
        final = AllProvidersFailedError(
            "\n  ".join(["every provider failed; try again later, or add a backup", *lines]),
            provider=error.provider,
            attempts=tuple(call.attempts),
            request_id=error.request_id,
            maybe_billed=any(each.maybe_billed for each in errors),
            retry_after=min((e.retry_after for e in errors if e.retry_after is not None), default=None),
            partial=error.partial,
        )
        final.errors = tuple(errors)
        return final

    # -- a hedge -------------------------------------------------------------------------------------------------------

    def hedge(self, call: Call, upstream: Upstream, now: float) -> Route | None:
        """Say where a second request may go beside one that is slow to begin; None for nowhere."""
        others = [other for other in call.untried if other is not upstream]
        return self._healthy(call, now, others, 0.0)
