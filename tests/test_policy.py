"""Limits, timers and waits: the ranges of what may be set, and the pure functions on it."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from piapi_async import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    InsufficientQuotaError,
    Limits,
    PermissionDeniedError,
    RateLimitError,
    Retry,
    StreamTooLargeError,
    StreamTruncatedError,
    Timeout,
)
from piapi_async.policy import NEVER, PAUSE_CAP, Due, Health, Verdict, judge, pause, retry_after, timed_out
from piapi_async.wire import error_from_response

# -- ranges ------------------------------------------------------------------------------------------------------------

NUMBERS: list[tuple[type[Any], str]] = [
    (Limits, "requests_per_minute"),
    (Limits, "tokens_per_minute"),
    *((Health, name) for name in ("window", "open", "open_cap")),
    *((Timeout, field.name) for field in attrs.fields(Timeout)),
]
"""Above 0."""

FROM_ZERO: list[tuple[type[Any], str]] = [
    (Limits, "ramp"),
    *(
        (Retry, field.name)
        for field in attrs.fields(Retry)
        if field.name not in ("attempts", "failover_on_auth", "hedge")
    ),
]

SHARES: list[tuple[type[Any], str]] = [(Limits, "throttle"), (Health, "ratio")]
"""Above 0, up to 1."""

WHOLE: list[tuple[type[Any], str]] = [
    (Limits, "concurrency"),
    (Retry, "attempts"),
    *((Health, name) for name in ("failures", "minimum", "closes")),
]

NO_NUMBERS: list[Any] = [-1, -0.5, math.nan, math.inf, -math.inf, True, "5", b"", [1], 1j]


def test_every_setting_is_tested() -> None:
    named = {(Retry, "failover_on_auth"), (Retry, "hedge"), *NUMBERS, *FROM_ZERO, *SHARES, *WHOLE}
    assert named == {(cls, field.name) for cls in (Limits, Retry, Health, Timeout) for field in attrs.fields(cls)}


def refuse(cls: type[Any], name: str, value: object) -> None:
    with pytest.raises(ConfigurationError) as raised:
        cls(**{name: value})
    shown = repr(value) if isinstance(value, (int, float)) else f"a {type(value).__name__}"
    assert str(raised.value).startswith(f"{name}: {shown} is out of range; pass a ")


@pytest.mark.parametrize(("cls", "name"), NUMBERS)
def test_numbers_above_zero(cls: type[Any], name: str) -> None:
    for value in (0.001, 1, 5.5, 10**9):
        assert getattr(cls(**{name: value}), name) == value
    for value in (0, 0.0, *NO_NUMBERS):
        refuse(cls, name, value)


@pytest.mark.parametrize(("cls", "name"), FROM_ZERO)
def test_numbers_from_zero(cls: type[Any], name: str) -> None:
    for value in (0, 0.0, 1, 5.5):
        assert getattr(cls(**{name: value}), name) == value
    for value in (*NO_NUMBERS, None):
        refuse(cls, name, value)


@pytest.mark.parametrize(("cls", "name"), SHARES)
def test_shares(cls: type[Any], name: str) -> None:
    for value in (0.001, 0.5, 1):
        assert getattr(cls(**{name: value}), name) == value
    for value in (0, 1.001, 2, *NO_NUMBERS, None):
        refuse(cls, name, value)


@pytest.mark.parametrize(("cls", "name"), WHOLE)
def test_whole_numbers(cls: type[Any], name: str) -> None:
    for value in (1, 2, 10**6):
        assert getattr(cls(**{name: value}), name) == value
    for value in (0, 1.0, *NO_NUMBERS, None):
        refuse(cls, name, value)


@pytest.mark.parametrize("name", [field.name for field in attrs.fields(Timeout)])
def test_a_timer_may_be_never(name: str) -> None:
    assert getattr(Timeout(**{name: None}), name) is None


def test_hedge_is_a_small_share() -> None:
    shares: list[tuple[Any, float]] = [(True, 0.05), (0.0, 0), (0, 0), (0.05, 0.05)]
    for given_, share in shares:
        assert Retry(hedge=given_).hedge == share
    for value in (0.051, 1, -0.1, math.nan, "yes", None):
        refuse(Retry, "hedge", value)


def test_the_defaults_are_the_designs() -> None:
    assert (Limits().concurrency, Limits().requests_per_minute, Limits().tokens_per_minute) == (256, None, None)
    retry = Retry()
    assert (retry.attempts, retry.base, retry.cap, retry.throttle_base, retry.throttle_cap) == (3, 0.5, 8, 1, 20)
    assert (retry.honour, retry.patience, retry.cool_down, retry.tokens, retry.refill) == (120, 2, 300, 10, 0.1)
    assert (retry.hedge, retry.failover_on_auth) == (0, False)
    health = Health()
    assert (health.failures, health.ratio, health.minimum, health.window) == (5, 0.5, 20, 10)
    assert (health.open, health.open_cap, health.closes) == (5, 30, 2)
    timers = Timeout()
    assert (timers.connect, timers.first_event, timers.first_event_reasoning) == (5, 120, 600)
    assert (timers.progress, timers.total, timers.pool) == (60, 600, None)


@pytest.mark.parametrize("cls", [Limits, Retry, Health, Timeout])
def test_settings_are_frozen_values(cls: type[Any]) -> None:
    assert cls() == cls()
    assert hash(cls()) == hash(cls())
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        cls().attempts = 1


# -- moments -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "seconds"),
    [
        ("o1-mini", 600),
        ("o1-preview", 600),
        ("O3", 600),
        ("openai/o4-mini", 600),
        ("deepseek-r1", 600),
        ("deepseek/deepseek-reasoner", 600),
        ("gpt-4o", 120),
        ("omni", 120),
        ("foo-o1", 120),
        ("", 120),
    ],
)
def test_models_that_think_first(model: str, seconds: float) -> None:
    assert Timeout().first_event_of(model) == seconds


def test_due_is_the_earlier_of_two_moments() -> None:
    never = Due()
    assert never.at == NEVER
    assert never.after(10, "total", None) is never
    assert never.after(10, "total", 5) == Due(15, "total", 5)
    deadline = Due(12, "deadline", 2)
    assert deadline.after(10, "total", 5) is deadline
    assert deadline.after(10, "total", 2) is deadline
    assert deadline.after(10, "progress", 1) == Due(11, "progress", 1)


@pytest.mark.parametrize("kind", ["connect", "pool", "first_event", "progress", "total", "deadline"])
@pytest.mark.parametrize("sent", [True, False])
def test_a_timeout_says_which_timer_and_what_to_do(kind: str, sent: bool) -> None:
    error = timed_out(Due(5, kind, 1.5), "piapi", sent=sent)
    assert type(error) is APITimeoutError
    assert (error.kind, error.timer, error.maybe_billed) == (kind, kind, sent)
    assert "piapi" in str(error)
    assert "1.5 s" in str(error)
    assert "; " in str(error)


# -- waits -------------------------------------------------------------------------------------------------------------


@given(retries=st.integers(0, 500), throttled=st.booleans(), seed=st.integers())
def test_property_backoff_is_full_jitter_under_a_doubling_bound(retries: int, throttled: bool, seed: int) -> None:
    wait = Retry().wait(retries, random.Random(seed), throttled=throttled)
    base, cap = (1, 20) if throttled else (0.5, 8)
    assert 0 <= wait <= min(cap, base * 2**retries)


def test_backoff_fills_its_range() -> None:
    dice = random.Random(0)
    waits = [Retry().wait(3, dice) for _ in range(2000)]
    assert min(waits) < 0.1
    assert max(waits) > 3.9
    assert 1.9 < sum(waits) / len(waits) < 2.1
    assert Retry(base=0).wait(5, dice) == 0


# -- verdicts ----------------------------------------------------------------------------------------------------------


def seen(error: APIError, **options: Any) -> str:
    """A verdict in short: how often again, whether elsewhere, and what it says of the provider."""
    verdict = judge(error, options.pop("retry", Retry()), **options)
    again = "always" if verdict.again > 100 else str(verdict.again)
    flags = [name for name in ("sick", "throttled", "off") if getattr(verdict, name)]
    return " ".join([again, verdict.other, *flags])


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        *(
            (APIConnectionError("", kind=kind), "always yes sick")
            for kind in ("connect", "dns", "reset", "truncated body")
        ),
        (APIConnectionError("", kind="protocol"), "1 yes sick"),
        *((APIConnectionError("", kind=kind), "0 yes sick") for kind in ("tls", "certificate", "proxy")),
        *((APIConnectionError("", kind=kind), "0 no") for kind in ("local", "closed", "a new one")),
        (APITimeoutError("", kind="connect"), "0 yes sick"),
        *((APITimeoutError("", kind=kind), "always yes sick") for kind in ("first_event", "progress", "total")),
        *((APITimeoutError("", kind=kind), "0 no") for kind in ("pool", "deadline")),
        (APIResponseError("", kind="empty"), "always yes sick"),
        (APIResponseError("", kind="edge page"), "1 yes sick"),
        (APIResponseError("", kind="not a completion"), "1 yes sick"),
        (APIResponseError(""), "0 no"),
        (StreamTruncatedError(""), "always yes sick"),
        (StreamTooLargeError(""), "0 no sick"),
        (APIError(""), "0 no"),
        *(
            (error_from_response(status, b"{}"), "0 no")
            for status in (400, 401, 405, 406, 410, 411, 413, 415, 418, 422)
        ),
        *((error_from_response(status, b"{}"), "0 no") for status in (501, 505, 206, 302)),
        *((error_from_response(status, b"{}"), "0 mapped") for status in (403, 404)),
        (error_from_response(402, b"{}"), "0 yes off"),
        (error_from_response(408, b"{}"), "always yes"),
        (error_from_response(409, b"{}"), "always no"),
        *((error_from_response(status, b"{}"), "1 no") for status in (421, 425)),
        (error_from_response(429, b"{}"), "always yes throttled"),
        (error_from_response(429, b'{"error": {"code": "insufficient_quota"}}'), "0 yes off"),
        *((error_from_response(status, b"{}"), "always yes sick") for status in (500, 502, 503, 504, 520, 530, 599)),
        (error_from_response(524, b"{}"), "0 yes sick"),
        (error_from_response(529, b"{}"), "always yes sick throttled"),
    ],
)
def test_verdicts(error: APIError, verdict: str) -> None:
    assert seen(error) == verdict


def test_credit_used_up_as_403_needs_a_mapped_model() -> None:
    error = InsufficientQuotaError("", status_code=403)
    assert seen(error) == "0 mapped off"
    assert seen(PermissionDeniedError("", status_code=403)) == "0 mapped"


def test_a_refused_key_goes_elsewhere_only_when_told() -> None:
    error = AuthenticationError("", status_code=401)
    assert seen(error) == "0 no"
    assert seen(error, retry=Retry(failover_on_auth=True)) == "0 yes"
    assert seen(APIStatusError("", status_code=400), retry=Retry(failover_on_auth=True)) == "0 no"


def test_an_edge_page_waits() -> None:
    assert judge(APIResponseError("", kind="edge page"), Retry()).wait == 5


def test_x_should_retry() -> None:
    assert seen(error_from_response(503, b""), should_retry="false") == "0 yes sick"
    assert seen(error_from_response(400, b""), should_retry="true") == "always no"
    assert seen(error_from_response(421, b""), should_retry="true") == "1 no"
    assert seen(error_from_response(503, b""), should_retry="maybe") == "always yes sick"
    assert Verdict() == judge(APIError(""), Retry(), should_retry=None)


# -- headers that speak of time ----------------------------------------------------------------------------------------

DATE = ("Date", "Sun, 22 Nov 2026 18:00:00 GMT")


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ([], None),
        ([("Retry-After", "3")], 3),
        ([("retry-after", "0")], 0),
        ([("Retry-After", " 3\t")], 3),
        ([("Retry-After", "1.5")], 1.5),
        ([("Retry-After", "86400")], 86400),
        *(
            ([("Retry-After", text)], None)
            for text in ("-5", "", "abc", "1e9", "1_0", "٣", "nan", "inf", "1234567", "3 s", ".5", "5.")
        ),
        ([DATE, ("Retry-After", "Sun, 22 Nov 2026 18:00:07 GMT")], 7),
        ([DATE, ("Retry-After", "Sunday, 22-Nov-26 18:00:07 GMT")], 7),
        ([DATE, ("Retry-After", "Sun Nov 22 18:00:07 2026")], 7),
        ([DATE, ("Retry-After", "Sun, 22 Nov 2026 17:00:00 GMT")], 0),
        ([DATE, ("Retry-After", "Fri, 31 Dec 9999 23:59:59 GMT")], 251606930399),
        ([DATE, ("Retry-After", "Sun, 99 Nov 2026 18:00:07 GMT")], None),
        ([("Retry-After", "Sun, 22 Nov 2026 18:00:07 GMT")], None),
        ([("Date", "today"), ("Retry-After", "Sun, 22 Nov 2026 18:00:07 GMT")], None),
        ([("retry-after-ms", "250"), ("Retry-After", "9")], 0.25),
        ([("retry-after-ms", "nan"), ("Retry-After", "9")], 9),
        ([("retry-after-ms", "100"), ("retry-after-ms", "300")], 0.3),
        ([("Retry-After", "1"), ("Retry-After", "x"), ("Retry-After", "4")], 4),
    ],
)
def test_retry_after(headers: list[tuple[str, str]], seconds: float | None) -> None:
    found = retry_after(CIMultiDict(headers))
    assert found == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=12) | st.text("0123456789.e-+naif ", max_size=8))
def test_property_retry_after_is_never_odd(text: str) -> None:
    for name in ("Retry-After", "retry-after-ms"):
        seconds = retry_after(CIMultiDict([DATE, (name, text)]))
        assert seconds is None or 0 <= seconds < math.inf


@pytest.mark.parametrize(
    ("headers", "refused", "seconds"),
    [
        ({}, False, 0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1s"}, False, 1),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "1s"}, False, 0),
        ({"x-ratelimit-remaining-requests": " 0 ", "x-ratelimit-reset-requests": "250ms"}, False, 0.25),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6m0s"}, False, PAUSE_CAP),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1h2m3.5s"}, False, PAUSE_CAP),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1s500ms"}, False, 1.5),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "7"}, False, 7),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "soon"}, False, 0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": ""}, False, 0),
        ({"x-ratelimit-remaining-requests": "0"}, False, 0),
        ({"x-ratelimit-reset-tokens": "2s"}, False, 0),
        ({"x-ratelimit-reset-tokens": "2s"}, True, 2),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "2s"}, True, 0),
        ({"x-ratelimit-reset-tokens": "2s", "x-ratelimit-reset-requests": "3s"}, True, 3),
        ({"RateLimit": '"default";r=0;t=30'}, False, 30),
        ({"RateLimit": '"default";r=5;t=30'}, False, 0),
        ({"RateLimit": '"a";r=1;t=9, "b"; r=0; t=4'}, False, 4),
        ({"RateLimit": '"default";r=0;t=900'}, False, PAUSE_CAP),
        ({"RateLimit": '"default";r=0;t=x'}, False, 0),
        ({"RateLimit": '"default";r=0;t=30', "Retry-After": "5"}, False, 5),
        ({"Retry-After": "5"}, False, 0),
    ],
)
def test_pause(headers: dict[str, str], refused: bool, seconds: float) -> None:
    assert pause(CIMultiDict(headers), refused=refused) == seconds


@given(st.text("0123456789hms. ", max_size=12))
def test_property_a_pause_is_never_odd(text: str) -> None:
    headers = CIMultiDict({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": text})
    assert 0 <= pause(headers) <= PAUSE_CAP


def test_a_429_may_say_it_in_any_header() -> None:
    assert isinstance(error_from_response(429, b""), RateLimitError)


# -- at the edges ------------------------------------------------------------------------------------------------------


@pytest.fixture(params=["UTC", "Asia/Tokyo"])
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    """This machine's time zone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        time.tzset()
        yield request.param
    time.tzset()


@pytest.mark.parametrize(
    ("until", "seconds"),
    [
        ("Sun, 22 Nov 2026 18:00:03 GMT", 3),
        ("Sunday, 22-Nov-26 18:00:03 GMT", 3),
        ("Sun Nov 22 18:00:03 2026", 3),
        ("Sun, 22 Nov 2026 19:00:03 +0100", 3),
        ("Sun, 22 Nov 2026 18:00:03 -0000", 3),
        ("Fri, 31 Dec 99999 23:59:59 GMT", None),
        ("Sun, 22 Nov 99999999999999999999 18:00:03 GMT", None),
        ("1 Jan 2030", None),
    ],
)
def test_a_date_means_the_same_in_any_zone(until: str, seconds: float | None, zone: str) -> None:
    assert retry_after(CIMultiDict([DATE, ("Retry-After", until)])) == seconds


@pytest.mark.parametrize("reset", ["junk", "1d", "-1s", "1e3s", "nan", "inf", "s", "1s1m", "٣s", "1m 2s"])
def test_a_reset_that_is_no_duration(reset: str) -> None:
    for refused in (False, True):
        headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": reset}
        assert pause(CIMultiDict(headers), refused=refused) == 0


def test_several_ratelimit_fields_are_one_list() -> None:
    fields = [("RateLimit", '"a";r=1;t=1'), ("RateLimit", '"b";r=0;t=20, "c";r=0;t=10')]
    assert pause(CIMultiDict(fields)) == 20


def test_a_retry_after_that_is_too_long_is_capped_too() -> None:
    assert pause(CIMultiDict({"RateLimit": '"a";r=0;t=1', "Retry-After": "86400"})) == PAUSE_CAP


@pytest.mark.parametrize(("throttled", "cap"), [(False, 8), (True, 20)])
def test_a_wait_does_not_overflow(throttled: bool, cap: float) -> None:
    assert 0 <= Retry().wait(100_000, random.Random(1), throttled=throttled) <= cap


def test_hedging_turned_off_by_name() -> None:
    assert Retry(hedge=False).hedge == 0


def test_codes_that_mean_the_credit() -> None:
    for status, code in ((429, "billing_hard_limit_reached"), (400, "insufficient_credits"), (403, "quota_exceeded")):
        error = error_from_response(status, b'{"error": {"message": "No.", "code": "%b"}}' % code.encode())
        assert seen(error) == ("0 mapped off" if status == 403 else "0 yes off")


def test_statuses_that_http_does_not_know() -> None:
    assert seen(error_from_response(999, b"")) == "always yes sick"
    assert seen(error_from_response(0, b"")) == "0 no"


@pytest.mark.parametrize("status", [400, 402, 408, 429, 500, 524, 529])
def test_x_should_retry_changes_one_thing(status: int) -> None:
    error = error_from_response(status, b"{}")
    plain = judge(error, Retry())
    assert judge(error, Retry(), should_retry="false") == msgspec.structs.replace(plain, again=0)
    told = judge(error, Retry(), should_retry="true")
    assert told.again > 0
    assert msgspec.structs.replace(told, again=plain.again) == plain
