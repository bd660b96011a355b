"""What the caller may set, as values: `Limits`, `Retry`, `Health`, `Timeout`; and pure functions on them.

No IO, no clock: times are in seconds, and None means never.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import attrs

from piapi_async.errors import (
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    ErrorKind,
    InsufficientQuotaError,
)
from piapi_async.models.checks import plain_number

__all__ = [
    "NEVER",
    "Deadline",
    "Health",
    "Limits",
    "Retry",
    "RetryRule",
    "Timeout",
    "check_whole",
    "retry_rule",
    "timed_out",
    "wants_new_connection",
]

if TYPE_CHECKING:
    import random

NEVER = math.inf
"""A moment that does not come."""

_LARGEST = 1e15
"""A larger number is a mistake, or no number; as seconds it is 30 million years (ours)."""


def _check_number(name: str, value: object, low: float, high: float = math.inf, *, above: bool = True) -> None:
    """Refuse what is not a finite number from `low` to `high`; `low` itself too where it must be above."""
    number = plain_number(value)
    if number is None or not abs(number) <= _LARGEST or not low <= number <= high or (above and number == low):
        bound = f"more than {low:g}" if above else f"{low:g} or more"
        top = "" if high == math.inf else f", at most {high:g}"
        raise ConfigurationError(f"{name}: {_shown(value)} is out of range; pass a number, {bound}{top}")


def check_whole(name: str, value: object, low: int) -> int:
    """Return a whole number, whatever library made it.

    Raises:
        ConfigurationError: It is none, or below `low`.
    """
    number = plain_number(value)
    if not isinstance(number, int) or number < low:
        raise ConfigurationError(f"{name}: {_shown(value)} is out of range; pass a whole number, {low} or more")
    return number


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, (int, float)) else f"a {type(value).__name__}"


@attrs.frozen(slots=False)
class Limits:
    """How much one provider key may be asked at once.

    Attributes:
        concurrency: Most requests in flight, streams included; 1 or more. 256 keeps a process busy without using up
            the 1,024 open files that many systems allow (ours).
        requests_per_minute: Most requests in any 60 seconds, above 0; None for no limit.
        tokens_per_minute: Most tokens in any 60 seconds, prompt and answer together, above 0; None for no limit.
        decrease: What a 429 multiplies the concurrency by, 0 to 1. (0.7: the AWS SDKs' adaptive mode.)
        ramp: Seconds over which the concurrency grows to its whole width again after a cool-down. (2: ours.)

    Raises:
        ConfigurationError: A value out of its range.
    """

    concurrency: int = 256
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    decrease: float = attrs.field(default=0.7, kw_only=True)
    ramp: float = attrs.field(default=2.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "concurrency", check_whole("concurrency", self.concurrency, 1))
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), 0)
        _check_number("decrease", self.decrease, 0, 1)
        _check_number("ramp", self.ramp, 0, above=False)


def _hedge_share(share: float) -> float:
    return 0.05 * share if isinstance(share, bool) else share


@attrs.frozen(slots=False)
class Retry:
    """How often, after what wait, and where a failed request is sent again. Times in seconds.

    Attributes:
        attempts: Most requests sent for one call, over all providers; 1 or more. 1 means never again. (3: the SRE book,
            the AWS SDKs.)
        base: The first wait is random between 0 and this, each further one up to twice the last. (0.5: the OpenAI SDK.)
        cap: The longest such wait. (8: the OpenAI SDK.)
        throttle_base: As `base`, for a provider that says it is overloaded. (1: AWS 2026.)
        throttle_cap: As `cap`, for the same. (20: AWS 2026.)
        max_retry_after: The longest Retry-After that a call waits for. (120: ours.)
        failover_after: With a healthy backup, a cool-down longer than this sends the call there. (2: ours.)
        max_cool_down: The longest that one answer can make all callers of a key wait. (300: ours.)
        quota_cool_down: How long a provider whose credit is used up is left alone. (600: ours.)
        budget: Retries that a provider may get in a burst: each takes one from this retry budget. (10: gRPC A6.)
        budget_ratio: What each first attempt gives back to the retry budget, so that retries add at most a tenth to
            the load. (0.1: the SRE book.)
        failover_on_auth: Whether a refused key sends the call to a backup; else the caller is told at once.
        hedge: Share of calls, 0 to 0.05, that are also sent to a second provider when the first has not begun to
            answer within the time in which 95 of 100 calls had; both may bill. True means 0.05, 0 never. (The Tail at
            Scale.)

    Raises:
        ConfigurationError: A value out of its range.
    """

    attempts: int = 3
    base: float = attrs.field(default=0.5, kw_only=True)
    cap: float = attrs.field(default=8.0, kw_only=True)
    throttle_base: float = attrs.field(default=1.0, kw_only=True)
    throttle_cap: float = attrs.field(default=20.0, kw_only=True)
    max_retry_after: float = attrs.field(default=120.0, kw_only=True)
    failover_after: float = attrs.field(default=2.0, kw_only=True)
    max_cool_down: float = attrs.field(default=300.0, kw_only=True)
    quota_cool_down: float = attrs.field(default=600.0, kw_only=True)
    budget: float = attrs.field(default=10.0, kw_only=True)
    budget_ratio: float = attrs.field(default=0.1, kw_only=True)
    failover_on_auth: bool = attrs.field(default=False, kw_only=True)
    hedge: float = attrs.field(default=0.0, kw_only=True, converter=_hedge_share)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "attempts", check_whole("attempts", self.attempts, 1))
        for field in attrs.fields(Retry):
            if field.name not in ("attempts", "failover_on_auth"):
                high = 0.05 if field.name == "hedge" else math.inf
                _check_number(field.name, getattr(self, field.name), 0, high, above=False)

    def backoff(self, retries: int, rng: random.Random, *, throttled: bool = False) -> float:
        """A random wait before another attempt: full jitter under a bound that doubles.

        Args:
            retries: Retries of this call so far.
            rng: The randomness.
            throttled: Whether the provider said that it is overloaded.
        """
        base, cap = (self.throttle_base, self.throttle_cap) if throttled else (self.base, self.cap)
        return rng.uniform(0, min(cap, base * 2 ** min(retries, 64)))


@attrs.frozen(slots=False)
class Health:
    """When a provider counts as sick, and when as healthy again. Times in seconds.

    Attributes:
        failure_threshold: Failures in a row that open the breaker. (5: Envoy.)
        failure_ratio: Share of failures that opens it, 0 to 1. (0.5: ours.)
        minimum_calls: Calls in the window below which the share says nothing. (20: ours.)
        window: Length of the window. (10: ours.)
        open: How long it stays open the first time; doubled each time. (5: ours.)
        open_cap: How long at most, jittered downwards. (30: ours.)
        success_threshold: Good probes that close it. (2: ours.)

    Raises:
        ConfigurationError: A value out of its range.
    """

    failure_threshold: int = 5
    failure_ratio: float = 0.5
    minimum_calls: int = 20
    window: float = 10.0
    open: float = 5.0
    open_cap: float = 30.0
    success_threshold: int = 2

    def __attrs_post_init__(self) -> None:
        for name in ("failure_threshold", "minimum_calls", "success_threshold"):
            object.__setattr__(self, name, check_whole(name, getattr(self, name), 1))
        _check_number("failure_ratio", self.failure_ratio, 0, 1)
        for name in ("window", "open", "open_cap"):
            _check_number(name, getattr(self, name), 0)


@attrs.frozen(slots=False)
class Timeout:
    """The timers of one request, in seconds above 0; each None for never.

    Attributes:
        connect: Name lookup, TCP and TLS together. (5 s: the OpenAI SDK.)
        first_event: From sending a request for a stream to its first event; comments don't count. (120 s: ours.)
        first_event_reasoning: The same for models that think first: names that begin with `o` and a digit, or with
            `deepseek-r`. (600 s: ours.)
        progress: From one event of a stream to the next, or from one piece of a body to the next, without the time that
            the caller takes in between; comments don't count. (60 s: ours.)
        total: A whole answer that is not streamed. A stream has no total. (600 s: the OpenAI SDK.)
        pool: Waiting for a place at the gate. None: a fan-out may queue for as long as it takes.

    Raises:
        ConfigurationError: A value out of its range.
    """

    connect: float | None = 5.0
    first_event: float | None = 120.0
    first_event_reasoning: float | None = 600.0
    progress: float | None = 60.0
    total: float | None = 600.0
    pool: float | None = None

    def __attrs_post_init__(self) -> None:
        for field in attrs.fields(Timeout):
            if getattr(self, field.name) is not None:
                _check_number(field.name, getattr(self, field.name), 0)

    def first_event_of(self, model: str) -> float | None:
        """The first-event timer for a model."""
        return self.first_event_reasoning if re.match(_REASONING, model) else self.first_event


_REASONING = r"(?i)(.*/)?(o\d|deepseek-r)"

Timer = Literal["connect", "deadline", "first_event", "pool", "progress", "total"]


@attrs.define(slots=False)
class Deadline:
    """When a wait ends in `APITimeoutError`.

    Attributes:
        at: The moment, on the event loop's clock.
        timer: The timer that it is.
        seconds: What that timer was set to, for the error.
        progress: Most seconds that a single wait before that moment may take; None for any.
    """

    at: float = NEVER
    timer: Timer = "total"
    seconds: float = NEVER
    progress: float | None = None

    def or_within(self, now: float, timer: Timer, seconds: float | None, progress: float | None = None) -> Deadline:
        """This moment, or `seconds` from now if that comes first; single waits before it end after `progress`."""
        if seconds is None or now + seconds >= self.at:
            return self if progress is None else self.with_progress(progress)
        return Deadline(now + seconds, timer, seconds, progress)

    def with_progress(self, progress: float | None) -> Deadline:
        """The same moment, with another bound on each single wait before it."""
        return Deadline(self.at, self.timer, self.seconds, progress)

    def of_a_wait(self, now: float) -> float:
        """The moment at which a wait that begins now must end."""
        if self.progress is None:
            return self.at
        ends = now + self.progress
        return ends if ends < self.at else self.at


def timed_out(deadline: Deadline, host: str, *, sent: bool = True) -> APITimeoutError:
    """Make the error of a wait that a deadline ended."""
    text = _WAITS[deadline.timer].format(host=host, seconds=deadline.seconds)
    return APITimeoutError(text, kind=deadline.timer, maybe_billed=sent)


_WAITS: Mapping[Timer, str] = {
    "connect": "no connection to {host} within {seconds:g} s; check the base URL, or use a backup",
    "pool": "no place at the gate of {host} within {seconds:g} s; raise Limits(concurrency=…) or send less at once",
    "first_event": "no event came from {host} within {seconds:g} s; raise Timeout(first_event=…), or use a backup",
    "progress": "nothing more came from {host} for {seconds:g} s; raise Timeout(progress=…), or use a backup",
    "total": "no whole answer came from {host} within {seconds:g} s; raise Timeout(total=…), or ask by stream",
    "deadline": "the call's deadline of {seconds:g} s passed while waiting for {host}; raise deadline=…",
}


# -- what an error means for the next attempt --------------------------------------------------------------------------


@attrs.frozen(slots=False)
class RetryRule:
    """What may follow a failed attempt.

    Attributes:
        retries: How often the same provider may be asked again for one call; 0 for never.
        failover: Whether another provider may be asked: `"yes"`, `"mapped"` (one that maps the model to a name of its
            own), `"no"`.
        unhealthy: Whether it counts as a failure of the provider's health.
        throttled: Whether the provider said that it is overloaded.
        out_of_credit: Whether the provider is of no use for a while, as its credit is used up.
        wait: Seconds to wait at least before it is asked again.
        by_stream: Whether it must be asked by stream then.
    """

    retries: int = 0
    failover: Literal["yes", "mapped", "no"] = "no"
    unhealthy: bool = False
    throttled: bool = False
    out_of_credit: bool = False
    wait: float = 0.0
    by_stream: bool = False


_ALWAYS = 1_000
_FAULT = RetryRule(retries=_ALWAYS, failover="yes", unhealthy=True)
_ELSEWHERE = RetryRule(failover="yes", unhealthy=True)
_ONCE = RetryRule(retries=1, failover="yes", unhealthy=True)
_NEVER = RetryRule()

_BY_KIND: Mapping[ErrorKind, RetryRule] = {
    # APIConnectionError
    "connect": _FAULT,
    "dns": _FAULT,
    "reset": _FAULT,
    "stale": _FAULT,
    "truncated body": _FAULT,
    "protocol": _ONCE,
    "tls": _ELSEWHERE,
    "certificate": _ELSEWHERE,
    "proxy": _ELSEWHERE,
    "local": _NEVER,
    "closed": _NEVER,
    # APITimeoutError; a connection that could not be made in time is not tried again on the same path
    "first_event": _FAULT,
    "progress": _FAULT,
    "total": _FAULT,
    "pool": _NEVER,
    "deadline": _NEVER,
    # APIResponseError
    "empty": _FAULT,
    "truncated": _FAULT,
    "encoding": RetryRule(failover="yes", unhealthy=True),  # the same provider would send the same again
    "edge page": RetryRule(retries=1, failover="yes", unhealthy=True, wait=5.0),
    "not a completion": _ONCE,
    "response": _NEVER,
    "too large": RetryRule(unhealthy=True),
}

_BY_STATUS: Mapping[int, RetryRule] = {
    403: RetryRule(failover="mapped"),
    404: RetryRule(failover="mapped"),
    408: RetryRule(retries=_ALWAYS, failover="yes"),
    409: RetryRule(retries=_ALWAYS),
    421: RetryRule(retries=1),
    425: RetryRule(retries=1),
    429: RetryRule(retries=_ALWAYS, failover="yes", throttled=True),
    501: _NEVER,
    505: _NEVER,
    524: _ELSEWHERE,
    529: RetryRule(retries=_ALWAYS, failover="yes", unhealthy=True, throttled=True),
}


_GATEWAY_TIMEOUTS = (504, 524)
"""Statuses of a gateway that had no patience left: a stream, which begins at once, is not cut off so."""


def retry_rule(
    error: APIError, *, failover_on_auth: bool = False, should_retry: bool | None = None, may_switch: bool = False
) -> RetryRule:
    """Say what may follow an error. The table is that of the project's list of faults.

    Args:
        error: What ended the attempt.
        failover_on_auth: As in `Retry`.
        should_retry: The answer's `x-should-retry` header: False wins over all, True adds a retry.
        may_switch: Whether the next try may be by stream where this one was not.
    """
    rule = _rule_of(error, failover_on_auth=failover_on_auth)
    if should_retry is False:
        return attrs.evolve(rule, retries=0)
    if may_switch and isinstance(error, APIStatusError) and error.status_code in _GATEWAY_TIMEOUTS:
        return attrs.evolve(rule, retries=_ALWAYS, by_stream=True)
    if should_retry and not rule.retries:
        return attrs.evolve(rule, retries=_ALWAYS)
    return rule


def _rule_of(error: APIError, *, failover_on_auth: bool) -> RetryRule:
    if isinstance(error, APITimeoutError) and error.kind == "connect":
        return _ELSEWHERE
    if not isinstance(error, APIStatusError):
        return _BY_KIND.get(error.kind, _NEVER)
    if isinstance(error, InsufficientQuotaError):
        return RetryRule(failover="mapped" if error.status_code == 403 else "yes", out_of_credit=True)
    if isinstance(error, AuthenticationError) and failover_on_auth:
        return RetryRule(failover="yes")
    return _BY_STATUS.get(error.status_code, _FAULT if error.status_code >= 500 else _NEVER)


def wants_new_connection(error: APIError) -> bool:
    """Whether the next attempt must not use a kept connection: 421 and 425 say so."""
    return isinstance(error, APIStatusError) and error.status_code in (421, 425)
