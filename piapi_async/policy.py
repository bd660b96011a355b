"""What the caller may set, as values: `Limits`, `Retry`, `Health`, `Timeout`; and pure functions on them.

No IO, no clock: times are in seconds, and None means never.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Literal, Protocol, cast, overload

import attrs
import msgspec

from piapi_async.errors import (
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    InsufficientQuotaError,
)

__all__ = [
    "Due",
    "Health",
    "Limits",
    "Retry",
    "Timeout",
    "Verdict",
    "judge",
    "pause",
    "retry_after",
    "timed_out",
]

if TYPE_CHECKING:
    import random

NEVER = math.inf
"""A moment that does not come."""


_LARGEST = 1e15
"""A larger number is a mistake, or no number; as seconds it is 30 million years (ours)."""


def _check_number(name: str, value: object, low: float, high: float = math.inf, *, open_: bool = True) -> None:
    """Refuse what is not a finite number from `low` to `high`, or is `low` itself where the range is open."""
    good = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) <= _LARGEST
    number = cast("float", value)
    if not good or not low <= number <= high or (open_ and number == low):
        bound = f"more than {low:g}" if open_ else f"{low:g} or more"
        top = "" if high == math.inf else f", at most {high:g}"
        raise ConfigurationError(f"{name}: {_shown(value)} is out of range; pass a number, {bound}{top}")


def _check_whole(name: str, value: object, low: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < low:
        raise ConfigurationError(f"{name}: {_shown(value)} is out of range; pass a whole number, {low} or more")


def _shown(value: object) -> str:
    return repr(value) if isinstance(value, (int, float)) else f"a {type(value).__name__}"


@attrs.frozen
class Limits:
    """How much one provider key may be asked at once.

    Attributes:
        concurrency: Most requests in flight, streams included; 1 or more. 256 keeps a process busy without using up
            the 1,024 open files that many systems allow (ours).
        requests_per_minute: Most requests in any 60 seconds, above 0; None for no limit.
        tokens_per_minute: Most tokens in any 60 seconds, prompt and answer together, above 0; None for no limit.
        throttle: What a 429 multiplies the concurrency by, 0 to 1. (0.7: the AWS SDKs' adaptive mode.)
        ramp: Seconds over which the concurrency grows to its whole width again after a cool-down. (2: ours.)

    Raises:
        ConfigurationError: A value out of its range.
    """

    concurrency: int = 256
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    throttle: float = attrs.field(default=0.7, kw_only=True)
    ramp: float = attrs.field(default=2.0, kw_only=True)

    def __attrs_post_init__(self) -> None:
        _check_whole("concurrency", self.concurrency, 1)
        for name in ("requests_per_minute", "tokens_per_minute"):
            if getattr(self, name) is not None:
                _check_number(name, getattr(self, name), 0)
        _check_number("throttle", self.throttle, 0, 1)
        _check_number("ramp", self.ramp, 0, open_=False)


def _hedge(share: float) -> float:
    return 0.05 * share if isinstance(share, bool) else share


@attrs.frozen
class Retry:
    """How often, after what wait, and where a failed request is sent again. Times in seconds.

    Attributes:
        attempts: Most requests sent for one call, over all providers; 1 or more. 1 means never again. (3: the SRE book,
            the AWS SDKs.)
        base: The first wait is random between 0 and this, each further one up to twice the last. (0.5: the OpenAI SDK.)
        cap: The longest such wait. (8: the OpenAI SDK.)
        throttle_base: As `base`, for a provider that says it is overloaded. (1: AWS 2026.)
        throttle_cap: As `cap`, for the same. (20: AWS 2026.)
        honour: The longest Retry-After that is waited for. (120: ours.)
        patience: A longer wait than this is not waited for where a backup is healthy. (2: ours.)
        cool_down: The longest that one answer can make everybody wait. (300: ours.)
        quota_off: How long a provider whose credit is used up is left alone. (600: ours.)
        tokens: Retries that a provider may get in a burst: each takes one token. (10: gRPC A6.)
        refill: Tokens that each first attempt gives back: retries add a tenth to the load at most. (0.1: the SRE book.)
        failover_on_auth: Whether a refused key makes the backup answer, instead of being told at once.
        hedge: Share of calls, 0 to 0.05, that are asked of a second provider too when the first is slower to begin
            than 95 of 100 were; both may bill. True means 0.05, 0 never. (The Tail at Scale.)

    Raises:
        ConfigurationError: A value out of its range.
    """

    attempts: int = 3
    base: float = attrs.field(default=0.5, kw_only=True)
    cap: float = attrs.field(default=8.0, kw_only=True)
    throttle_base: float = attrs.field(default=1.0, kw_only=True)
    throttle_cap: float = attrs.field(default=20.0, kw_only=True)
    honour: float = attrs.field(default=120.0, kw_only=True)
    patience: float = attrs.field(default=2.0, kw_only=True)
    cool_down: float = attrs.field(default=300.0, kw_only=True)
    quota_off: float = attrs.field(default=600.0, kw_only=True)
    tokens: float = attrs.field(default=10.0, kw_only=True)
    refill: float = attrs.field(default=0.1, kw_only=True)
    failover_on_auth: bool = attrs.field(default=False, kw_only=True)
    hedge: float = attrs.field(default=0.0, kw_only=True, converter=_hedge)

    def __attrs_post_init__(self) -> None:
        _check_whole("attempts", self.attempts, 1)
        for field in attrs.fields(Retry):
            if field.name not in ("attempts", "failover_on_auth"):
                high = 0.05 if field.name == "hedge" else math.inf
                _check_number(field.name, getattr(self, field.name), 0, high, open_=False)

    def wait(self, retries: int, dice: random.Random, *, throttled: bool = False) -> float:
        """A random wait before another attempt: full jitter under a bound that doubles.

        Args:
            retries: Retries of this call so far.
            dice: The randomness.
            throttled: Whether the provider said that it is overloaded.
        """
        base, cap = (self.throttle_base, self.throttle_cap) if throttled else (self.base, self.cap)
        return dice.uniform(0, min(cap, base * 2 ** min(retries, 64)))


@attrs.frozen
class Health:
    """When a provider counts as sick, and when as healthy again. Times in seconds.

    Attributes:
        failures: Failures in a row that open the breaker. (5: Envoy.)
        ratio: Share of failures that opens it, 0 to 1. (0.5: ours.)
        minimum: Calls in the window below which the share says nothing. (20: ours.)
        window: Length of the window. (10: ours.)
        open: How long it stays open the first time; doubled each time. (5: ours.)
        open_cap: How long at most, jittered downwards. (30: ours.)
        closes: Good probes that close it. (2: ours.)

    Raises:
        ConfigurationError: A value out of its range.
    """

    failures: int = 5
    ratio: float = 0.5
    minimum: int = 20
    window: float = 10.0
    open: float = 5.0
    open_cap: float = 30.0
    closes: int = 2

    def __attrs_post_init__(self) -> None:
        for name in ("failures", "minimum", "closes"):
            _check_whole(name, getattr(self, name), 1)
        _check_number("ratio", self.ratio, 0, 1)
        for name in ("window", "open", "open_cap"):
            _check_number(name, getattr(self, name), 0)


@attrs.frozen
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


class Due(msgspec.Struct, frozen=True, gc=False):
    """When a wait ends in `APITimeoutError`.

    Attributes:
        at: The moment, on the event loop's clock.
        kind: The timer that it is.
        seconds: What that timer was set to, for the error.
        progress: Most seconds that a single wait before that moment may take; None for any.
    """

    at: float = NEVER
    kind: str = "total"
    seconds: float = NEVER
    progress: float | None = None

    def after(self, now: float, kind: str, seconds: float | None, progress: float | None = None) -> Due:
        """This moment, or `seconds` from now if that comes first; single waits before it end after `progress`."""
        if seconds is None or now + seconds >= self.at:
            return self if progress is None else self.each(progress)
        return Due(now + seconds, kind, seconds, progress)

    def each(self, progress: float | None) -> Due:
        """The same moment, with another bound of each single wait before it."""
        return Due(self.at, self.kind, self.seconds, progress)

    def ends(self, now: float) -> float:
        """When a wait that begins now must end."""
        if self.progress is None:
            return self.at
        ends = now + self.progress
        return ends if ends < self.at else self.at


def timed_out(due: Due, host: str, *, sent: bool = True) -> APITimeoutError:
    """Make the error of a wait that ended at `due`."""
    return APITimeoutError(_WAITS[due.kind].format(host=host, seconds=due.seconds), kind=due.kind, maybe_billed=sent)


_WAITS = {
    "connect": "no connection to {host} within {seconds:g} s; check the base URL, or use a backup",
    "pool": "no place at the gate of {host} within {seconds:g} s; raise Limits(concurrency=…) or send less at once",
    "first_event": "no event came from {host} within {seconds:g} s; raise Timeout(first_event=…), or use a backup",
    "progress": "nothing more came from {host} for {seconds:g} s; raise Timeout(progress=…), or use a backup",
    "total": "no whole answer came from {host} within {seconds:g} s; raise Timeout(total=…), or stream the answer",
    "deadline": "the call's deadline of {seconds:g} s passed while waiting for {host}; raise deadline=…",
}


# -- what an error means for the next attempt ------------------------------------------------------------------------


class Verdict(msgspec.Struct, frozen=True):
    """What may follow a failed attempt.

    Attributes:
        again: How often the same provider may be asked again for one call; 0 for never.
        other: Whether another provider may be asked: `"yes"`, `"mapped"` (one that maps the model to a name of its
            own), `"no"`.
        sick: Whether it counts as a failure of the provider's health.
        throttled: Whether the provider said that it is overloaded.
        off: Whether the provider is of no use for a while: its credit is used up.
        wait: Seconds to wait at least before it is asked again.
    """

    again: int = 0
    other: Literal["yes", "mapped", "no"] = "no"
    sick: bool = False
    throttled: bool = False
    off: bool = False
    wait: float = 0.0


_ALWAYS = 1_000
_FAULT = Verdict(again=_ALWAYS, other="yes", sick=True)
_ELSEWHERE = Verdict(other="yes", sick=True)
_ONCE = Verdict(again=1, other="yes", sick=True)
_NEVER = Verdict()

_BY_KIND: Mapping[str, Verdict] = {
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
    "encoding": _FAULT,
    "edge page": Verdict(again=1, other="yes", sick=True, wait=5.0),
    "not a completion": _ONCE,
    "response": _NEVER,
    "too large": Verdict(sick=True),
}

_BY_STATUS: Mapping[int, Verdict] = {
    403: Verdict(other="mapped"),
    404: Verdict(other="mapped"),
    408: Verdict(again=_ALWAYS, other="yes"),
    409: Verdict(again=_ALWAYS),
    421: Verdict(again=1),
    425: Verdict(again=1),
    429: Verdict(again=_ALWAYS, other="yes", throttled=True),
    501: _NEVER,
    505: _NEVER,
    524: _ELSEWHERE,
    529: Verdict(again=_ALWAYS, other="yes", sick=True, throttled=True),
}


def judge(error: APIError, retry: Retry, *, should_retry: str | None = None) -> Verdict:
    """Say what may follow an error. The table is that of the project's list of faults.

    Args:
        error: What ended the attempt.
        retry: For `failover_on_auth`.
        should_retry: The answer's `x-should-retry` header: `"false"` wins over all, `"true"` adds a retry.
    """
    verdict = _judge(error, retry)
    if should_retry == "false":
        return msgspec.structs.replace(verdict, again=0)
    if should_retry == "true" and not verdict.again:
        return msgspec.structs.replace(verdict, again=_ALWAYS)
    return verdict


def _judge(error: APIError, retry: Retry) -> Verdict:
    if isinstance(error, APITimeoutError) and error.kind == "connect":
        return _ELSEWHERE
    if not isinstance(error, APIStatusError):
        return _BY_KIND.get(error.kind, _NEVER)
    if isinstance(error, InsufficientQuotaError):
        return Verdict(other="mapped" if error.status_code == 403 else "yes", off=True)
    if isinstance(error, AuthenticationError) and retry.failover_on_auth:
        return Verdict(other="yes")
    return _BY_STATUS.get(error.status_code, _FAULT if error.status_code >= 500 else _NEVER)


# -- what a provider's headers say about time --------------------------------------------------------------------------

_SECONDS = r"[0-9]{1,6}(\.[0-9]+)?"
_DURATION = r"(?:([0-9]{1,6})h)?(?:([0-9]{1,6})m(?!s))?(?:([0-9]{1,6}(?:\.[0-9]+)?)s)?(?:([0-9]{1,9}(?:\.[0-9]+)?)ms)?"

PAUSE_CAP = 60.0
"""Longest pause that a count of what is left asks for: most such windows are a minute (ours)."""


def retry_after(headers: Headers) -> float | None:
    """Seconds that an answer asks to wait; None if it asks for nothing that makes sense.

    `retry-after-ms` wins over `Retry-After`; of two copies the longer counts. A date counts from the answer's `Date`.
    """
    milliseconds = [float(v) / 1000 for v in _values(headers, "retry-after-ms") if re.fullmatch(_SECONDS, v)]
    if milliseconds:
        return max(milliseconds)
    waits = [wait for v in _values(headers, "Retry-After") if (wait := _wait_of(v, headers)) is not None]
    return max(waits, default=None)


def _values(headers: Headers, name: str) -> list[str]:
    return [value.strip(" \t") for value in headers.getall(name, [])]


def _wait_of(value: str, headers: Headers) -> float | None:
    if re.fullmatch(_SECONDS, value):
        return float(value)
    until, since = _date(value), _date(headers.get("Date") or "")
    return None if until is None or since is None else max(0.0, until - since)


def _date(text: str) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None
    # Two of HTTP's three forms of a date may come without a zone, which is GMT then and not the local one.
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def pause(headers: Headers, *, refused: bool = False) -> float:
    """Seconds to send nothing to a provider that says how much is left: 0 unless nothing is.

    At most `PAUSE_CAP`. `Retry-After`, where it comes too, says how long instead.

    Args:
        headers: The answer's.
        refused: Whether the answer is a 429: then a reset counts too of which it is not said how much is left.
    """
    requests = headers.get("x-ratelimit-remaining-requests", "")
    tokens = headers.get("x-ratelimit-remaining-tokens", "")
    if not refused and requests.strip() != "0" and tokens.strip() != "0" and headers.get("RateLimit") is None:
        return 0.0  # as nearly always
    waits: list[float] = []
    for what, left in (("requests", requests), ("tokens", tokens)):
        if left.strip() == "0" or (refused and not left):
            waits.append(_duration(headers.get(f"x-ratelimit-reset-{what}", "")))
    if headers.get("RateLimit") is not None:
        for item in ",".join(_values(headers, "RateLimit")).split(","):
            # IETF draft, a structured field: "default";r=0;t=30
            fields = [part.strip() for part in item.split(";")]
            if "r=0" in fields:
                waits += [float(f[2:]) for f in fields if f.startswith("t=") and re.fullmatch(_SECONDS, f[2:])]
    if not waits or not (longest := max(waits)):
        return 0.0
    asked = retry_after(headers)
    return min(PAUSE_CAP, longest if asked is None else asked)


def _duration(text: str) -> float:
    """`6m0s`, `1s`, `250ms`, or plain seconds; 0 for anything else."""
    text = text.strip()
    if re.fullmatch(_SECONDS, text):
        return float(text)
    match = re.fullmatch(_DURATION, text)
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups()) if match else (0.0,) * 4
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000


class Headers(Protocol):
    """An answer's headers, names in any case, which may come more than once."""

    @overload
    def get(self, name: str, /) -> str | None: ...
    @overload
    def get(self, name: str, default: str, /) -> str: ...
    def get(self, name: str, default: str | None = None, /) -> str | None:
        """The first value of a header."""
        ...

    def getall(self, name: str, default: list[str], /) -> list[str]:
        """Every value of a header."""
        ...
