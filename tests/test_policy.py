"""What may be set and in what range: limits, timers, retries, health; and the pure functions on them."""

from __future__ import annotations

import math
import random
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    ConfigurationError,
    Health,
    Limits,
    Retry,
    StreamTruncatedError,
    Timeout,
)
from piapi_async.errors import InsufficientQuotaError, PermissionDeniedError, StreamTooLargeError
from piapi_async.policy import (
    NEVER,
    Deadline,
    RetryRule,
    Timer,
    check_whole,
    retry_rule,
    timed_out,
    wants_new_connection,
)
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

SHARES: list[tuple[type[Any], str]] = [(Limits, "decrease"), (Health, "failure_ratio")]
"""Above 0, up to 1."""

WHOLE: list[tuple[type[Any], str]] = [
    (Limits, "concurrency"),
    (Retry, "attempts"),
    *((Health, name) for name in ("failure_threshold", "minimum_calls", "success_threshold")),
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
    limits = Limits()
    assert (limits.concurrency, limits.requests_per_minute, limits.tokens_per_minute) == (256, None, None)
    assert (limits.decrease, limits.ramp) == (0.7, 2)
    retry = Retry()
    assert (retry.attempts, retry.base, retry.cap, retry.throttle_base, retry.throttle_cap) == (3, 0.5, 8, 1, 20)
    assert (retry.max_retry_after, retry.failover_after, retry.max_cool_down, retry.quota_cool_down) == (
        120,
        2,
        300,
        600,
    )
    assert (retry.budget, retry.budget_ratio, retry.hedge, retry.failover_on_auth) == (10, 0.1, 0, False)
    health = Health()
    assert (health.failure_threshold, health.failure_ratio, health.minimum_calls, health.window) == (5, 0.5, 20, 10)
    assert (health.open, health.open_cap, health.success_threshold) == (5, 30, 2)
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


def test_a_deadline_is_the_earlier_of_two_moments() -> None:
    never = Deadline()
    assert never.at == NEVER
    assert never.or_within(10, "total", None) is never
    assert never.or_within(10, "total", 5) == Deadline(15, "total", 5)
    deadline = Deadline(12, "deadline", 2)
    assert deadline.or_within(10, "total", 5) is deadline
    assert deadline.or_within(10, "total", 2) is deadline
    assert deadline.or_within(10, "progress", 1) == Deadline(11, "progress", 1)


def test_a_deadline_bounds_single_waits_too() -> None:
    never, deadline = Deadline(), Deadline(12, "deadline", 2)
    assert (never.of_a_wait(10), deadline.of_a_wait(10)) == (NEVER, 12)
    assert never.with_progress(3) == never.or_within(0, "total", None, 3) == Deadline(progress=3)
    assert deadline.or_within(10, "total", 5, 1) == deadline.with_progress(1)
    assert deadline.or_within(10, "total", 1.5, 1) == Deadline(11.5, "total", 1.5, 1)
    assert [deadline.with_progress(1).of_a_wait(now) for now in (5, 10, 11, 11.5, 20)] == [6, 11, 12, 12, 12]
    assert deadline.with_progress(1).with_progress(None) == deadline


@pytest.mark.parametrize("kind", ["connect", "pool", "first_event", "progress", "total", "deadline"])
@pytest.mark.parametrize("sent", [True, False])
def test_a_timeout_says_which_timer_and_what_to_do(kind: Timer, sent: bool) -> None:
    error = timed_out(Deadline(5, kind, 1.5), "piapi", sent=sent)
    assert type(error) is APITimeoutError
    assert (error.kind, error.timer, error.maybe_billed) == (kind, kind, sent)
    assert "piapi" in str(error)
    assert "1.5 s" in str(error)
    assert "; " in str(error)


# -- waits -------------------------------------------------------------------------------------------------------------


@given(retries=st.integers(0, 500), throttled=st.booleans(), seed=st.integers())
def test_property_backoff_is_full_jitter_under_a_doubling_bound(retries: int, throttled: bool, seed: int) -> None:
    wait = Retry().backoff(retries, random.Random(seed), throttled=throttled)
    base, cap = (1, 20) if throttled else (0.5, 8)
    assert 0 <= wait <= min(cap, base * 2**retries)


def test_backoff_fills_its_range() -> None:
    rng = random.Random(0)
    waits = [Retry().backoff(3, rng) for _ in range(2000)]
    assert min(waits) < 0.1
    assert max(waits) > 3.9
    assert 1.9 < sum(waits) / len(waits) < 2.1
    assert Retry(base=0).backoff(5, rng) == 0


# -- what may follow an error ------------------------------------------------------------------------------------------


def seen(error: APIError, **options: Any) -> str:
    """A rule in short: how often again, whether elsewhere, and what it says of the provider."""
    rule = retry_rule(error, **options)
    again = "always" if rule.retries > 100 else str(rule.retries)
    flags = [name for name in ("unhealthy", "throttled", "out_of_credit", "by_stream") if getattr(rule, name)]
    return " ".join([again, rule.failover, *flags])


@pytest.mark.parametrize(
    ("error", "rule"),
    [
        *(
            (APIConnectionError("", kind=kind), "always yes unhealthy")
            for kind in ("connect", "dns", "reset", "stale", "truncated body")
        ),
        (APIConnectionError("", kind="protocol"), "1 yes unhealthy"),
        *((APIConnectionError("", kind=kind), "0 yes unhealthy") for kind in ("tls", "certificate", "proxy")),
        *((APIConnectionError("", kind=kind), "0 no") for kind in ("local", "closed")),
        (APIConnectionError("", kind="a new one"), "0 no"),  # type: ignore[arg-type]  # as meant
        (APITimeoutError("", kind="connect"), "0 yes unhealthy"),
        *((APITimeoutError("", kind=kind), "always yes unhealthy") for kind in ("first_event", "progress", "total")),
        *((APITimeoutError("", kind=kind), "0 no") for kind in ("pool", "deadline")),
        *((APIResponseError("", kind=kind), "always yes unhealthy") for kind in ("empty", "truncated")),
        (APIResponseError("", kind="encoding"), "0 yes unhealthy"),
        (APIResponseError("", kind="edge page"), "1 yes unhealthy"),
        (APIResponseError("", kind="not a completion"), "1 yes unhealthy"),
        (APIResponseError(""), "0 no"),
        (StreamTruncatedError(""), "always yes unhealthy"),
        (StreamTooLargeError(""), "0 no unhealthy"),
        (APIError(""), "0 no"),
        *(
            (error_from_response(status, b"{}"), "0 no")
            for status in (400, 401, 405, 406, 410, 411, 413, 415, 418, 422)
        ),
        *((error_from_response(status, b"{}"), "0 no") for status in (501, 505, 206, 302)),
        *((error_from_response(status, b"{}"), "0 mapped") for status in (403, 404)),
        (error_from_response(402, b"{}"), "0 yes out_of_credit"),
        (error_from_response(408, b"{}"), "always yes"),
        (error_from_response(409, b"{}"), "always no"),
        *((error_from_response(status, b"{}"), "1 no") for status in (421, 425)),
        (error_from_response(429, b"{}"), "always yes throttled"),
        (error_from_response(429, b'{"error": {"code": "insufficient_quota"}}'), "0 yes out_of_credit"),
        *(
            (error_from_response(status, b"{}"), "always yes unhealthy")
            for status in (500, 502, 503, 504, 520, 530, 599)
        ),
        (error_from_response(524, b"{}"), "0 yes unhealthy"),
        (error_from_response(529, b"{}"), "always yes unhealthy throttled"),
    ],
)
def test_what_may_follow(error: APIError, rule: str) -> None:
    assert seen(error) == rule


def test_credit_used_up_as_403_needs_a_mapped_model() -> None:
    error = InsufficientQuotaError("", status_code=403)
    assert seen(error) == "0 mapped out_of_credit"
    assert seen(PermissionDeniedError("", status_code=403)) == "0 mapped"


def test_a_refused_key_goes_elsewhere_only_when_told() -> None:
    error = AuthenticationError("", status_code=401)
    assert seen(error) == "0 no"
    assert seen(error, failover_on_auth=True) == "0 yes"
    assert seen(APIStatusError("", status_code=400), failover_on_auth=True) == "0 no"


def test_an_edge_page_waits() -> None:
    assert retry_rule(APIResponseError("", kind="edge page")).wait == 5


def test_x_should_retry() -> None:
    assert seen(error_from_response(503, b""), should_retry=False) == "0 yes unhealthy"
    assert seen(error_from_response(400, b""), should_retry=True) == "always no"
    assert seen(error_from_response(421, b""), should_retry=True) == "1 no"
    assert seen(error_from_response(503, b""), should_retry=None) == "always yes unhealthy"
    assert retry_rule(APIError("")) == RetryRule()


@pytest.mark.parametrize("status", [504, 524])
def test_a_gateways_timeout_is_worth_a_try_by_stream(status: int) -> None:
    error = error_from_response(status, b"")
    assert seen(error, may_switch=True) == "always yes unhealthy by_stream"
    assert seen(error, may_switch=True, should_retry=True) == "always yes unhealthy by_stream"
    assert seen(error, may_switch=True, should_retry=False) == "0 yes unhealthy"


def test_what_a_stream_does_not_mend() -> None:
    errors = [error_from_response(status, b"") for status in (400, 408, 500, 502, 503, 520, 522, 529)]
    errors += [APITimeoutError("", kind="total"), APIConnectionError("", kind="reset")]
    for error in errors:
        assert retry_rule(error, may_switch=True) == retry_rule(error)


# -- at the edges ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("throttled", "cap"), [(False, 8), (True, 20)])
def test_a_wait_does_not_overflow(throttled: bool, cap: float) -> None:
    assert 0 <= Retry().backoff(100_000, random.Random(1), throttled=throttled) <= cap


def test_a_whole_number_of_any_library() -> None:
    assert check_whole("tries", 3, 1) == 3
    for value in (0, 1.0, True, "1", None):
        with pytest.raises(ConfigurationError, match=r"tries: .* is out of range; pass a whole number, 1 or more"):
            check_whole("tries", value, 1)


def test_hedging_turned_off_by_name() -> None:
    assert Retry(hedge=False).hedge == 0


def test_codes_that_mean_the_credit() -> None:
    for status, code in ((429, "billing_hard_limit_reached"), (400, "insufficient_credits"), (403, "quota_exceeded")):
        error = error_from_response(status, b'{"error": {"message": "No.", "code": "%b"}}' % code.encode())
        assert seen(error) == ("0 mapped out_of_credit" if status == 403 else "0 yes out_of_credit")


def test_statuses_that_http_does_not_know() -> None:
    assert seen(error_from_response(999, b"")) == "always yes unhealthy"
    assert seen(error_from_response(0, b"")) == "0 no"


@pytest.mark.parametrize("status", [400, 402, 408, 429, 500, 524, 529])
def test_x_should_retry_changes_one_thing(status: int) -> None:
    error = error_from_response(status, b"{}")
    plain = retry_rule(error)
    assert retry_rule(error, should_retry=False) == attrs.evolve(plain, retries=0)
    told = retry_rule(error, should_retry=True)
    assert told.retries > 0
    assert attrs.evolve(told, retries=plain.retries) == plain


def test_two_statuses_ask_for_a_new_connection() -> None:
    statuses = (400, 408, 421, 425, 429, 500)
    assert [s for s in statuses if wants_new_connection(error_from_response(s, b"{}"))] == [421, 425]
    assert not wants_new_connection(APIConnectionError("", kind="reset"))
