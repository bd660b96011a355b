"""Which provider next, and when. It decides and keeps count; it sends nothing and never waits.

A `Lane` is one key of one provider, with its gate and breakers; a `Site` is a provider with its lanes and its budget of
retries. The `Router` chooses the lane of a call's first attempt, notes how each attempt ended, and says what may
follow: another provider at once, the same one after a wait, or the error that the caller gets.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from decimal import Decimal

import msgspec

from piapi_async.billing import Account, Billing
from piapi_async.breaker import Breaker
from piapi_async.errors import AllProvidersFailedError, APIError, APIStatusError
from piapi_async.gate import Gate
from piapi_async.models import Attempt, ChatRequest, Usage
from piapi_async.policy import NEVER, PAUSE_CAP, Due, Headers, Health, Limits, Retry, Verdict, judge, timed_out
from piapi_async.pool import Endpoint
from piapi_async.provider import Provider
from piapi_async.wire import WireCompletion

__all__ = ["Call", "Lane", "LaneStatistics", "Router", "Sending", "Site", "Statistics"]

SAMPLES = 200
"""How many of the last answers' times the hedge learns its delay from, and (a tenth) needs at least (ours)."""

_NEW_CONNECTION = (421, 425)

_OURS = ("deadline", "closed", "local")
"""Kinds of errors that end a call, whatever other providers there are: they come from this side."""


class Lane(msgspec.Struct, eq=False):
    """One key of one provider, with what belongs to it."""

    provider: Provider
    endpoint: Endpoint
    gate: Gate
    health: Health
    dice: random.Random
    breakers: dict[str, Breaker] = msgspec.field(default_factory=dict[str, Breaker])
    accounts: dict[str, Account] = msgspec.field(default_factory=dict[str, Account])

    def breaker(self, model: str) -> Breaker:
        """The breaker of a model."""
        breaker = self.breakers.get(model)
        if breaker is None:
            breaker = self.breakers[model] = Breaker(self.health, self.dice)
        return breaker

    def admits(self, model: str, now: float) -> bool:
        """Whether a call for a model may be sent: the model's breaker is closed, or this call can be its probe."""
        breaker = self.breakers.get(model)
        return breaker is None or breaker.closed or breaker.admits(now)

    @property
    def load(self) -> int:
        """Callers in flight and waiting."""
        return self.gate.in_flight + self.gate.queued


class Site(msgspec.Struct, eq=False):
    """A provider, with its lanes and what all of them share."""

    provider: Provider
    lanes: list[Lane]
    tokens: float
    off_until: float = -NEVER
    starts: tuple[deque[float], deque[float]] = msgspec.field(
        default_factory=lambda: (deque[float](maxlen=SAMPLES), deque[float](maxlen=SAMPLES))
    )

    def lane(self, model: str, now: float, patience: float = NEVER) -> Lane | None:
        """The least loaded lane that is healthy and not paused for longer than the patience; None if none is."""
        if now < self.off_until:
            return None
        best = None
        for lane in self.lanes:
            breaker = lane.breakers.get(model)  # as `admits`; it and `Provider.model` called take 2,400 instructions
            healthy = breaker is None or breaker.closed or breaker.admits(now)
            if healthy and lane.gate.paused_until - now <= patience and (best is None or lane.load < best.load):
                best = lane
        return best

    def slow_start(self, *, stream: bool) -> float | None:
        """What 95 of 100 streams were quicker to begin than, or other answers to come; None while too few were seen."""
        seen = sorted(self.starts[stream])
        return seen[len(seen) * 95 // 100] if len(seen) >= SAMPLES // 10 else None


def _headers(provider: Provider) -> dict[str, str]:
    """What nearly all requests to a provider have in common."""
    return {**provider.headers, "X-Attempt": "1"}


def _load(lane: Lane) -> int:
    return lane.load


class Call(msgspec.Struct, eq=False):
    """One call of the caller, over all its attempts.

    Attributes:
        request: What is asked.
        model: The model, by the caller's name.
        began: When, on the loop's clock.
        deadline: When all must be over.
        idempotency_key: The same for every attempt.
        sites: The providers that may serve it, in order of preference.
        worst: What an attempt may cost at most, in picodollars; None without a budget.
        attempts: The records of its attempts.
        failures: Each provider's last error with its verdict and how often it failed, in the order they failed.
        restart: Whether a stream that breaks off after its first text begins anew.
        on_send: What the caller wants to be called right before each request.
        sent: Attempts begun, without resends after a stale connection.
        resent: Whether the one free resend is used up.
        fresh: Whether the next attempt needs a new connection.
        panic: Whether no provider was healthy: then each gets a first attempt, and no retries.
        interrupted: What broke a stream off after its first text, until the new one begins.
        last: The attempt that failed last.
    """

    request: ChatRequest
    model: str
    began: float
    deadline: Due
    idempotency_key: str
    sites: Sequence[Site]
    worst: int | None
    attempts: list[Attempt]
    failures: dict[Site, tuple[APIError, Verdict, int]]
    restart: bool = False
    on_send: Callable[[], object] | None = None
    sent: int = 0
    resent: bool = False
    fresh: bool = False
    panic: bool = False
    interrupted: APIError | None = None
    last: Sending | None = None

    __repr__ = object.__repr__  # it would show what is asked

    def spent(self, site: Site) -> bool:
        """Whether a provider failed in a way, or so often, that this call must not ask it again."""
        _, verdict, times = self.failures.get(site, (None, Verdict(), 0))
        return times > verdict.again


class Sending(msgspec.Struct, eq=False):
    """One attempt under way."""

    call: Call
    site: Site
    lane: Lane
    breaker: Breaker
    began: float
    probe: bool
    reserved: int | None
    judged: bool = False
    status: int | None = None
    request_id: str | None = None
    first_token: float | None = None
    headers: Headers | None = None
    pause: float = 0.0
    cost: Decimal | None = None
    ended: bool = False

    __repr__ = object.__repr__  # as above

    def record(self, now: float, kind: str = "ok", usage: Usage | None = None) -> None:
        """Put the attempt on the call's record."""
        self.call.attempts.append(
            Attempt(
                self.lane.provider.name,
                self.lane.endpoint.secret.fingerprint,
                self.status,
                kind,
                self.began - self.call.began,
                now - self.began,
                self.first_token,
                self.request_id,
                usage,
            )
        )


class LaneStatistics(msgspec.Struct, frozen=True):
    """The state of one key of a provider.

    Attributes:
        provider: Its name.
        key: Fingerprint of the key.
        in_flight: Requests under way.
        queued: Callers waiting at the gate.
        bound: Most requests in flight now, as narrowed by 429s.
        pause: Seconds of cool-down left.
        breakers: The state of each model's breaker: `"closed"`, `"open"`, `"half-open"`.
        retries: Retries that the provider may get at once.
    """

    provider: str
    key: str
    in_flight: int
    queued: int
    bound: int
    pause: float
    breakers: Mapping[str, str]
    retries: int


class Statistics(msgspec.Struct, frozen=True):
    """The state of a client.

    Attributes:
        in_flight: Requests under way.
        queued: Callers waiting at a gate.
        outcomes: Attempts by how they ended: `"ok"`, `"cancelled"`, or an error's kind.
        lanes: Each provider's keys.
    """

    in_flight: int
    queued: int
    outcomes: Mapping[str, int]
    lanes: tuple[LaneStatistics, ...]


class Router:
    """Chooses lanes for calls.

    Args:
        providers: In order of preference.
        limits: The bounds of a provider that has none of its own.
        retry: What may follow a failure.
        health: When a provider counts as sick.
        billing: Where every attempt is booked.
        dice: Source of all jitter.
    """

    def __init__(
        self,
        providers: Iterable[Provider],
        limits: Limits,
        retry: Retry,
        health: Health,
        billing: Billing,
        dice: random.Random,
    ) -> None:
        self._billing = billing
        self._retry = retry
        self._dice = dice
        self._calls = 0
        self._hedges = 0
        self.outcomes: Counter[str] = Counter()
        self.sites = [
            Site(
                provider,
                [
                    Lane(
                        provider,
                        Endpoint(provider.name, f"{provider.base_url}/chat/completions", secret, _headers(provider)),
                        Gate(provider.name, provider.limits or limits, dice),
                        health,
                        dice,
                    )
                    for secret in provider.api_key
                ],
                retry.tokens,
            )
            for provider in providers
        ]

    # -- choosing ----------------------------------------------------------------------------------------------------

    def choose(self, call: Call, now: float) -> tuple[Site, Lane]:
        """The lane of a first attempt: the preferred healthy provider's, or, with none healthy, the preferred one's."""
        sites = call.sites
        if call.failures:
            sites = [site for site in sites if not call.spent(site)]
        elif lane := sites[0].lane(call.model, now, self._retry.patience):  # as nearly always
            return sites[0], lane
        found = self._healthy(call, now, sites, self._retry.patience) or self._healthy(call, now, sites)
        if found is None:
            call.panic = True
            found = self._any([site for site in call.sites if site not in call.failures] or call.sites)
        return found

    def _healthy(
        self, call: Call, now: float, sites: Iterable[Site], patience: float = NEVER
    ) -> tuple[Site, Lane] | None:
        for site in sites:
            lane = site.lane(call.model, now, patience)
            if lane is not None:
                return site, lane
        return None

    def _any(self, sites: Sequence[Site]) -> tuple[Site, Lane]:
        """The first of them, healthy or not."""
        return sites[0], min(sites[0].lanes, key=_load)

    def patience(self, call: Call, site: Site, now: float) -> float | None:
        """How long a cool-down is worth waiting for: a backup that is healthy makes it short."""
        if len(call.sites) == 1:
            return None
        others = [other for other in call.sites if other is not site and other not in call.failures]
        return self._retry.patience if self._healthy(call, now, others, self._retry.patience) else None

    def begin(self, call: Call, site: Site, lane: Lane, now: float, reserved: int | None = None) -> Sending:
        """Note that an attempt begins, its place at the gate taken; `succeeded`, `failed` or `abandoned` ends it."""
        breaker = lane.breakers.get(call.model) or lane.breaker(call.model)
        probe = not breaker.closed and breaker.begin(now)
        call.sent += 1
        if site.tokens < self._retry.tokens and site not in call.failures:
            site.tokens = min(self._retry.tokens, site.tokens + self._retry.refill)
        return Sending(call, site, lane, breaker, now, probe, reserved)

    # -- noting how it ended -----------------------------------------------------------------------------------------

    def turned_away(self, call: Call, lane: Lane, began: float, now: float, error: APIError) -> None:
        """Note that a call gave up at the gate; that says nothing of the provider."""
        call.attempts.append(
            Attempt(
                lane.provider.name, lane.endpoint.secret.fingerprint, None, error.kind, began - call.began, now - began
            )
        )
        self.outcomes[error.kind] += 1
        error.provider = lane.provider.name
        error.attempts = tuple(call.attempts)

    def _end(self, sending: Sending, now: float, kind: str, usage: Usage | None = None, *, good: bool | None) -> None:
        sending.ended = True
        sending.record(now, kind, usage)
        self.outcomes[kind] += 1
        sending.breaker.end(now, good, sending.probe, sending.began)
        sending.lane.gate.release()

    def succeeded(self, sending: Sending, now: float, found: WireCompletion) -> None:
        """Note a good answer, book it, and give the place at the gate back, as the next two do."""
        call, lane = sending.call, sending.lane
        self._end(sending, now, "ok", found.usage, good=None if sending.judged else True)
        account = lane.accounts.get(call.model) or self._account(lane, call.model)
        sending.cost = self._billing.book(account, sending.reserved or 0, call.request, found)
        if lane.gate.bound < lane.gate.widest:
            lane.gate.good()
        if self._retry.hedge:
            begin = sending.first_token
            sending.site.starts[begin is not None].append(now - sending.began if begin is None else begin)

    def _account(self, lane: Lane, model: str) -> Account:
        account = lane.accounts.get(model)
        if account is None:
            account = lane.accounts[model] = self._billing.account(lane.provider, model)
        return account

    def opened(self, sending: Sending) -> None:
        """Note an answer that begins well, but is the last one for a while: nobody sends until then."""
        sending.lane.gate.pause(sending.pause, PAUSE_CAP)
        sending.pause = 0.0

    def answered(self, sending: Sending, now: float) -> None:
        """Note the first event of a stream: a provider on probation has then shown what it was asked to show."""
        sending.first_token = now - sending.began
        if sending.probe:
            sending.probe = False
            sending.judged = True
            sending.breaker.end(now, True, True, sending.began)

    def abandoned(self, sending: Sending, now: float) -> None:
        """Note that the caller left, or that the other of two hedged attempts won."""
        self._end(sending, now, "cancelled", good=None)
        self._lose(sending)

    def failed(self, sending: Sending, now: float, error: APIError) -> None:
        """Note a failure, and tell the error what only the call knows."""
        error.provider = sending.lane.provider.name
        error.request_id = sending.request_id
        should_retry = None if sending.headers is None else sending.headers.get("x-should-retry")
        verdict = judge(error, self._retry, should_retry=should_retry)
        self._end(sending, now, error.kind, good=False if verdict.sick else None)
        if error.maybe_billed:
            self._lose(sending)
        elif sending.reserved is not None:
            self._billing.ledger.release(sending.reserved)
        times = sending.call.failures.pop(sending.site, (None, None, 0))[2]
        sending.call.failures[sending.site] = (error, verdict, times + 1)
        self._cool(sending, error, verdict, times)
        if verdict.off:
            sending.site.off_until = now + self._retry.quota_off
        sending.call.last = sending
        sending.call.fresh = isinstance(error, APIStatusError) and error.status_code in _NEW_CONNECTION
        error.attempts = tuple(sending.call.attempts)

    def _lose(self, sending: Sending) -> None:
        call, lane = sending.call, sending.lane
        self._billing.lose(self._account(lane, call.model), sending.reserved, call.request, call.model, lane.provider)

    def _cool(self, sending: Sending, error: APIError, verdict: Verdict, times: int) -> None:
        """Make all callers of a key wait for as long as one of them was told to."""
        seconds = error.retry_after
        if seconds is None:
            seconds = sending.pause
            if verdict.throttled and not seconds:
                seconds = self._retry.wait(times, self._dice, throttled=True)
        gate = sending.lane.gate
        if verdict.throttled and isinstance(error, APIStatusError) and error.status_code == 429:
            gate.throttled(seconds, self._retry.cool_down)
        elif seconds:
            gate.pause(seconds, self._retry.cool_down)

    # -- what may follow ---------------------------------------------------------------------------------------------

    def after(self, call: Call, now: float, error: APIError) -> tuple[Site, Lane, float]:
        """Say where a failed call goes next, and after what wait.

        Raises:
            APIError: Nowhere: what the caller gets.
        """
        sending = call.last
        over = call.sent >= self._retry.attempts or error.kind in _OURS
        if sending is None or over or (error.committed and not call.restart):
            raise self._final(call, error)
        verdict = call.failures[sending.site][1]
        if not verdict.again and verdict.other == "no":
            raise self._final(call, error)  # the request itself is at fault, or the key: nobody else is asked either
        elsewhere = self._elsewhere(call, sending, now, verdict)
        if elsewhere is not None:
            return (*elsewhere, 0.0)
        again = None if call.panic else self._again(call, sending, now)
        if again is None:
            return (*self._last_resort(call, sending, error), 0.0)
        site, lane, wait = again
        last = now - sending.began
        if max(now + wait, now + lane.gate.pause_left(now)) + last > call.deadline.at:
            raise self._late(call, error)
        site.tokens -= 1
        return again

    def _elsewhere(self, call: Call, sending: Sending, now: float, verdict: Verdict) -> tuple[Site, Lane] | None:
        if verdict.other == "no":
            return None
        if self._is_worth_waiting(call, sending, now, verdict):
            return None
        others = [site for site in call.sites if site not in call.failures]
        if verdict.other == "mapped":
            others = [site for site in others if call.model in site.provider.models]
        if call.panic and others:
            return self._any(others)
        return self._healthy(call, now, others, self._retry.patience)

    def _last_resort(self, call: Call, sending: Sending, error: APIError) -> tuple[Site, Lane]:
        """A provider that is not healthy, once, when no other is left: it may have healed."""
        others = [site for site in call.sites if site not in call.failures]
        if not others or call.failures[sending.site][1].other != "yes":
            raise self._final(call, error)
        call.panic = True
        return self._any(others)

    def _is_worth_waiting(self, call: Call, sending: Sending, now: float, verdict: Verdict) -> bool:
        """Whether a 429 asks for so short a pause that the preferred provider may have another try.

        The last attempt is not for that: where a backup is healthy, no call is lost to 429s.
        """
        if not verdict.throttled or verdict.sick or call.panic or call.spent(sending.site):
            return False
        if sending.site.tokens < 1 or call.sent >= self._retry.attempts - 1:
            return False
        pause = sending.lane.gate.pause_left(now)
        return pause <= self._retry.patience and now + pause < call.deadline.at

    def _again(self, call: Call, sending: Sending, now: float) -> tuple[Site, Lane, float] | None:
        """A retry, at the provider that failed last or else at another that failed before."""
        tried = sorted(call.failures, key=lambda site: site is not sending.site)
        for site in tried:
            error, verdict, _ = call.failures[site]
            if call.spent(site) or site.tokens < 1 or (error.retry_after or 0) > self._retry.honour:
                continue
            lane = site.lane(call.model, now)
            if lane is None:
                continue
            wait = 0.0  # an overloaded provider's callers all wait at its gate
            if not verdict.throttled:
                wait = max(verdict.wait, self._retry.wait(call.sent - 1, self._dice))
            return site, lane, wait
        return None

    def _late(self, call: Call, error: APIError) -> APIError:
        late = timed_out(call.deadline, error.provider)
        late.provider, late.request_id, late.attempts = error.provider, error.request_id, tuple(call.attempts)
        late.retry_after, late.partial, late.committed = error.retry_after, error.partial, error.committed
        late.maybe_billed = any(each.maybe_billed for each, _, _ in call.failures.values())
        return late

    def _final(self, call: Call, error: APIError) -> APIError:
        """The error itself, or, where several providers failed, one that holds each one's own."""
        errors = [each for each, _, _ in call.failures.values()]
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

    # -- hedging -----------------------------------------------------------------------------------------------------

    def hedge(self, sending: Sending, now: float) -> tuple[Site, Lane, float] | None:
        """Where, and after how long, a second attempt may be sent beside one that is slow to begin; None for not."""
        self._calls += 1
        delay = sending.site.slow_start(stream=sending.call.request.stream)
        if delay is None or self._hedges + 1 > self._retry.hedge * self._calls:
            return None
        others = [site for site in sending.call.sites if site is not sending.site and site not in sending.call.failures]
        found = self._healthy(sending.call, now, others, 0.0)
        return None if found is None else (*found, delay)

    def hedged(self) -> None:
        """Note that a hedge is sent."""
        self._hedges += 1

    # -- telling -----------------------------------------------------------------------------------------------------

    def statistics(self, now: float) -> Statistics:
        """The state of all lanes."""
        lanes = tuple(
            LaneStatistics(
                provider=site.provider.name,
                key=lane.endpoint.secret.fingerprint,
                in_flight=lane.gate.in_flight,
                queued=lane.gate.queued,
                bound=lane.gate.bound,
                pause=lane.gate.pause_left(now),
                breakers={model: breaker.state(now) for model, breaker in lane.breakers.items()},
                retries=int(site.tokens),
            )
            for site in self.sites
            for lane in site.lanes
        )
        return Statistics(
            in_flight=sum(lane.in_flight for lane in lanes),
            queued=sum(lane.queued for lane in lanes),
            outcomes=dict(self.outcomes),
            lanes=lanes,
        )

    @property
    def endpoints(self) -> Sequence[Endpoint]:
        """Of every lane."""
        return [lane.endpoint for site in self.sites for lane in site.lanes]
