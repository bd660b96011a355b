"""What the headers of an answer say: how long to wait, whether to try again, the id of the request."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async.errors import Secret
from piapi_async.wire import (
    PAUSE_CAP,
    Headers,
    read_pause,
    read_request_id,
    read_retry_after,
    read_should_retry,
)
from tests.wire.samples import KEY


def as_read(sent: Iterable[tuple[str, str]]) -> Headers:
    """Headers as `pool` hands them on: names in lower case, the values of equal names on lines of their own."""
    headers: dict[str, str] = {}
    for name, value in sent:
        key = name.lower()
        headers[key] = f"{headers[key]}\n{value}" if key in headers else value
    return headers


# -- the id of the request ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sent", "read"),
    [
        ("req_0123-AbC.:/=+", "req_0123-AbC.:/=+"),
        ("", ""),
        (f"req-{KEY.reveal()}", "req-[key]"),
        ("sk-0123456789", "[key]"),
        ("Bearer 0123456789", "Bearer [key]"),
        ("a\x1bb é\n", "a\\x1bb é"),
        ("one\ntwo", "one\\ntwo"),
        ("x" * 128, "x" * 128),
        ("x" * 200, "x" * 128),
    ],
)
def test_a_request_id(sent: str, read: str) -> None:
    assert read_request_id({"x-request-id": sent}, [KEY]) == read
    assert read_request_id({}, [KEY]) is None


@given(st.text(st.characters(exclude_categories=())) | st.text("sk-Bearer abcdef0123456789", max_size=30))
def test_property_a_request_id_is_fit_for_an_error(sent: str) -> None:
    secret = Secret("k-a")
    read = read_request_id({"x-request-id": sent}, [secret])
    assert read is not None
    assert read.isprintable()
    assert len(read) <= 128
    assert "k-a" not in read


# -- how long to wait --------------------------------------------------------------------------------------------------

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
    found = read_retry_after(as_read(headers))
    assert found == (None if seconds is None else pytest.approx(seconds))


@given(st.text(max_size=12) | st.text("0123456789.e-+naif ", max_size=8))
def test_property_retry_after_is_never_odd(text: str) -> None:
    for name in ("Retry-After", "retry-after-ms"):
        seconds = read_retry_after(as_read([DATE, (name, text)]))
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
    assert read_pause(as_read(headers.items()), refused=refused) == seconds


@given(st.text("0123456789hms. ", max_size=12))
def test_property_a_pause_is_never_odd(text: str) -> None:
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": text}
    assert 0 <= read_pause(headers) <= PAUSE_CAP


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
    assert read_retry_after(as_read([DATE, ("Retry-After", until)])) == seconds


@pytest.mark.parametrize("reset", ["junk", "1d", "-1s", "1e3s", "nan", "inf", "s", "1s1m", "٣s", "1m 2s"])
def test_a_reset_that_is_no_duration(reset: str) -> None:
    for refused in (False, True):
        headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": reset}
        assert read_pause(as_read(headers.items()), refused=refused) == 0


def test_several_ratelimit_fields_are_one_list() -> None:
    fields = [("RateLimit", '"a";r=1;t=1'), ("RateLimit", '"b";r=0;t=20, "c";r=0;t=10')]
    assert read_pause(as_read(fields)) == 20
    assert read_pause(as_read([("RateLimit", '"b";r=0;t=20'), ("RateLimit", '"a";r=1;t=30')])) == 20


def test_a_retry_after_that_is_too_long_is_capped_too() -> None:
    assert read_pause({"ratelimit": '"a";r=0;t=1', "retry-after": "86400"}) == PAUSE_CAP


# -- whether to try again ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sent", "read"), [("true", True), ("false", False), ("maybe", None), ("", None)])
def test_x_should_retry_says_one_of_two_words(sent: str, read: bool | None) -> None:
    assert read_should_retry({"x-should-retry": sent}) is read
    assert read_should_retry({}) is None
