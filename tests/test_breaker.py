"""The breaker, by plain calls: the time is an argument."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import Health
from piapi_async.breaker import Breaker

HEALTH = Health()


def make(health: Health = HEALTH, seed: int = 1) -> Breaker:
    return Breaker(health, random.Random(seed))


def fail(breaker: Breaker, now: float, times: int = 1) -> None:
    for _ in range(times):
        breaker.start(now)
        breaker.record(now, good=False)


def opened(health: Health = HEALTH, now: float = 0.0) -> Breaker:
    breaker = make(health)
    fail(breaker, now, health.failure_threshold)
    assert breaker.state(now) == "open"
    return breaker


def opens_until(breaker: Breaker, now: float) -> float:
    """When an open breaker will be half-open, to the microsecond; nothing but time passes until then."""
    assert breaker.state(now) == "open"
    low, high = now, now + 1000.0
    assert breaker.state(high) == "half-open"
    while high - low > 1e-6:
        middle = (low + high) / 2
        if breaker.state(middle) == "open":
            low = middle
        else:
            high = middle
    assert not breaker.admits(low)
    assert breaker.admits(high)
    return high


def probe(breaker: Breaker, now: float, good: bool | None) -> None:
    assert breaker.admits(now)
    assert breaker.start(now)
    breaker.record(now, good, probe=True, began=now)


# -- closed ------------------------------------------------------------------------------------------------------------


def test_new() -> None:
    breaker = make()
    assert breaker.state(0) == "closed"
    assert breaker.admits(0)
    assert not breaker.start(0)  # no probe


def test_five_failures_in_a_row_open_it() -> None:
    breaker = make()
    fail(breaker, 0, 4)
    assert breaker.state(0) == "closed"
    fail(breaker, 0)
    assert breaker.state(0) == "open"
    assert not breaker.admits(0)


def test_a_good_answer_ends_the_row() -> None:
    breaker = make()
    for _ in range(4):
        fail(breaker, 0, 4)
        breaker.record(0, good=True)
    assert breaker.state(0) == "closed"


def test_what_says_nothing_of_the_health_changes_nothing() -> None:
    breaker = make()
    fail(breaker, 0, 4)
    for _ in range(1000):
        breaker.record(0, good=None)
    assert breaker.state(0) == "closed"
    fail(breaker, 0)
    assert breaker.state(0) == "open"


def test_half_of_twenty_open_it() -> None:
    breaker = make(Health(failure_threshold=100))
    for second in range(9):  # 9 good and 9 bad ones within the window
        breaker.record(second, good=False)
        breaker.record(second, good=True)
    breaker.record(9, good=True)
    assert breaker.state(9) == "closed"
    breaker.record(9, good=False)  # the 20th: 10 of 20
    assert breaker.state(9) == "open"


def test_fewer_than_twenty_say_nothing() -> None:
    breaker = make(Health(failure_threshold=100))
    for _ in range(19):
        breaker.record(0, good=False)
    assert breaker.state(0) == "closed"
    breaker.record(0, good=False)
    assert breaker.state(0) == "open"


def test_less_than_half_leave_it_closed() -> None:
    breaker = make(Health(failure_threshold=100))
    for call in range(10_000):  # 49 % of a second's 100 calls
        breaker.record(call // 100, good=call % 100 >= 49)
    assert breaker.state(100) == "closed"


def test_what_is_older_than_the_window_is_forgotten() -> None:
    breaker = make(Health(failure_threshold=100))
    for _ in range(19):
        breaker.record(0, good=False)
    breaker.record(10, good=False)  # 19 failures are 10 s old
    assert breaker.state(10) == "closed"
    for _ in range(18):
        breaker.record(10, good=False)
    assert breaker.state(10) == "closed"  # 19 within the window
    breaker.record(10, good=False)
    assert breaker.state(10) == "open"


def test_a_good_answer_opens_nothing() -> None:
    breaker = make(Health(failure_threshold=100))
    for _ in range(19):
        breaker.record(0, good=False)
    breaker.record(0, good=True)
    assert breaker.state(0) == "closed"


# -- open --------------------------------------------------------------------------------------------------------------


def spans(health: Health, seed: int, times: int) -> list[float]:
    """How long the breaker stays open, time after time."""
    breaker, now, found = make(health, seed), 0.0, []
    fail(breaker, now, health.failure_threshold)
    for _ in range(times):
        until = opens_until(breaker, now)
        found.append(until - now)
        now = until
        probe(breaker, now, good=False)
    return found


def test_it_stays_open_for_longer_each_time() -> None:
    for seed in range(100):
        for span, longest in zip(spans(HEALTH, seed, 6), (5, 10, 20, 30, 30, 30), strict=True):
            assert 0.8 * longest <= span <= longest + 1e-6
    assert len({spans(HEALTH, seed, 1)[0] for seed in range(100)}) == 100  # clients don't come back at once


def test_an_outage_of_a_day() -> None:
    assert 24 <= spans(HEALTH, 1, 3600)[-1] <= 30 + 1e-6


def test_half_open_when_the_time_is_over() -> None:
    breaker = opened()
    until = opens_until(breaker, 0)
    assert 4 <= until <= 5
    assert breaker.state(until - 0.001) == "open"
    assert breaker.state(until + 1000) == "half-open"
    assert breaker.admits(until + 1000)


def test_one_probe_at_a_time() -> None:
    breaker = opened()
    assert breaker.start(5)
    assert not breaker.admits(5)
    assert not breaker.start(5)  # sent all the same, but no probe
    breaker.record(6, good=True, probe=True, began=5)
    assert breaker.state(6) == "half-open"
    assert breaker.admits(6)


def test_two_good_probes_close_it() -> None:
    breaker = opened()
    probe(breaker, 5, good=True)
    probe(breaker, 5, good=True)
    assert breaker.state(5) == "closed"
    fail(breaker, 5, 4)  # and all is forgotten: the row, the window, the length of the last opening
    assert breaker.state(5) == "closed"
    fail(breaker, 5)
    assert 9 <= opens_until(breaker, 5) <= 10


def test_a_failed_probe_opens_it_again() -> None:
    breaker = opened()
    probe(breaker, 5, good=True)
    probe(breaker, 6, good=False)
    assert breaker.state(6) == "open"
    assert 14 <= opens_until(breaker, 6) <= 16
    probe(breaker, 16, good=True)
    assert breaker.state(16) == "half-open"  # the good one before counts no more


def test_a_cancelled_probe_gives_its_place_back() -> None:
    breaker = opened()
    probe(breaker, 5, good=None)
    assert breaker.state(5) == "half-open"
    assert breaker.admits(5)


def test_sent_while_open() -> None:
    breaker = opened(now=0)
    assert not breaker.start(1)
    until = opens_until(breaker, 1)
    breaker.record(2, good=False, began=1)
    assert opens_until(breaker, 2) == pytest.approx(until, abs=1e-5)  # its failure changes nothing
    assert not breaker.start(2)
    breaker.record(3, good=True, began=2)  # when nobody is healthy: as good as a probe
    assert breaker.state(3) == "half-open"
    assert until > 3
    assert breaker.admits(3)
    probe(breaker, 3, good=True)
    assert breaker.state(3) == "closed"


def test_an_answer_to_what_was_sent_before_does_not_close_it() -> None:
    breaker = opened(now=10)
    for _ in range(10):
        breaker.record(11, good=True, began=9)
        breaker.record(11, good=False, began=9)
    assert breaker.state(11) == "open"
    assert opens_until(breaker, 11) <= 15 + 1e-6


@given(
    st.lists(st.tuples(st.floats(0, 20), st.sampled_from([True, False, None]), st.integers(0, 3))),
    st.integers(0, 1000),
)
def test_property_never_two_probes(steps: list[tuple[float, bool | None, int]], seed: int) -> None:
    """Whatever happens: no two probes at once, none while open, and no opening longer than the cap."""
    breaker, now = make(seed=seed), 0.0
    under_way: list[tuple[bool, float]] = []
    for seconds, good, which in steps:
        now += seconds
        state, admits = breaker.state(now), breaker.admits(now)
        assert admits or state != "closed"
        assert not (admits and state == "open")
        under_way.append((breaker.start(now), now))
        assert sum(is_probe for is_probe, _ in under_way) <= 1
        if which < len(under_way):
            is_probe, began = under_way.pop(which)
            breaker.record(now, good, probe=is_probe, began=began)
        assert breaker.state(now + 30) != "open"
