"""`faults.md`, sections E and F: what a status, a header, a redirect or a URL makes the client do.

Each status is met alone, with a healthy backup, and under a breaker that opens at the first failure that counts: that
shows whether it is sent again (R), goes to another provider (F), both (R/F) or neither (N), and whether it is held
against the provider. Long waits are not waited for: the loop's clock is set forward.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import traceback
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import attrs
import pytest
import trustme

from piapi_async import (
    APIConnectionError,
    APIError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    Client,
    ConfigurationError,
    Health,
    KeyStatistics,
    Provider,
    RateLimitError,
    Retry,
)
from piapi_async.errors import (
    BadRequestError,
    ConflictError,
    InsufficientQuotaError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RequestTooLargeError,
    UnprocessableEntityError,
)
from piapi_async.provider import check_base_url
from piapi_async.testing import RawServer, ReadRequest, Send, Step, Wait, http_response
from piapi_async.testing.raw import Connection
from tests.leaks import KEY, PROMPT, assert_tight
from tests.wires import (
    BOTH,
    DONE,
    ONCE,
    QUICK,
    WHOLE,
    ask,
    chunk,
    dialled,
    failure,
    ok,
    quiet,  # noqa: F401  # a fixture of every test here
    read,
    sse,
    sse_cut,
)

pytestmark = pytest.mark.anyio

SWIFT = Retry(base=0.001, cap=0.001, throttle_base=0.001, throttle_cap=0.001)
OVERLOAD_ONLY = Retry(attempts=1, base=0, cap=0, throttle_base=1000, throttle_cap=1000)
"""Waits, for long, only where the provider says that it is overloaded."""

FRAIL = Health(failure_threshold=1)
"""The first failure that counts opens the breaker."""

BACKUP_KEY = "sk-backup-B4cKuPB4cKuP"
PAGE = b"<!DOCTYPE html><html><title>Just a moment...</title></html>"
HTML = {"Content-Type": "text/html; charset=UTF-8"}


# -- tools -----------------------------------------------------------------------------------------------------------


@attrs.frozen
class Answers(Step):
    """Answer every request with the next of these, whichever connection it comes on; the last one stays."""

    answers: list[bytes]

    async def run(self, connection: Connection) -> None:
        while True:
            await ReadRequest().run(connection)
            await Send(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]).run(connection)


@attrs.frozen
class Pair:
    """A client with the servers that it may ask."""

    client: Client
    primary: RawServer
    backup: RawServer

    @property
    def asked(self) -> tuple[int, int]:
        """How many requests each server read."""
        return len(self.primary.requests), len(self.backup.requests)

    async def first_answer(self) -> None:
        """Wait until the primary has answered one request, and the client knows."""
        while self.asked[0] == 0 or self.key.in_flight:
            await asyncio.sleep(0.001)

    @property
    def key(self) -> KeyStatistics:
        """The state of the primary."""
        return self.client.statistics().keys[0]

    @property
    def breaker(self) -> str:
        """The state of the primary's breaker."""
        return self.key.breakers["gpt-4o"]


@asynccontextmanager
async def pair(
    *answers: bytes,
    backed: bool = False,
    second: list[bytes] | None = None,
    models: Mapping[str, str] | None = None,
    **options: Any,
) -> AsyncIterator[Pair]:
    """A primary with these answers, a backup that is healthy by default, and a client that may know of it."""
    async with RawServer([Answers(list(answers))]) as primary, RawServer([Answers(second or [ok()])]) as backup:
        backups = [Provider("backup", backup.base_url, BACKUP_KEY, models=models or {})] if backed else []
        options = {"model": "gpt-4o", "timeout": QUICK, "retry": SWIFT, "backups": backups, **options}
        async with Client(KEY, base_url=primary.base_url, **options) as client:
            yield Pair(client, primary, backup)


class Clock:
    """The event loop's clock, which can be set forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        real = loop.time
        self._ahead = 0.0
        monkeypatch.setattr(loop, "time", lambda: real() + self._ahead)

    async def skip(self, seconds: float) -> None:
        """Set it forward, and let what is due by then happen."""
        self._ahead += seconds
        await asyncio.sleep(0.02)


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def good(how: Any) -> bytes:
    """What a healthy server answers."""
    return ok() if how is ask else sse(WHOLE, DONE)


def refusal(status: int, headers: Mapping[str, str] | None = None, **error: object) -> bytes:
    """An error in the API's shape."""
    body = json.dumps({"error": {"message": "No.", "type": None, "param": None, "code": None, **error}}).encode()
    return http_response(status, body, {"Content-Type": "application/json", **(headers or {})})


def page(status: int) -> bytes:
    """An error as a proxy sends it."""
    return http_response(status, PAGE, HTML)


def limited(**headers: str) -> bytes:
    """A 429 with headers; an underscore in a name stands for a hyphen."""
    return refusal(429, {name.replace("_", "-"): value for name, value in headers.items()}, code="rate_limit_exceeded")


def with_lines(answer: bytes, *lines: bytes) -> bytes:
    """An answer with further header lines, as they are."""
    return answer.replace(b"\r\n", b"\r\n" + b"".join(line + b"\r\n" for line in lines), 1)


def longest(seconds: float) -> float:
    """A pause with all of its jitter."""
    return seconds + min(seconds, max(0.5, seconds / 10))


async def wants(
    answer: bytes,
    cls: type[APIError],
    *,
    sick: bool,
    status: int | None = None,
    kind: str = "status",
    code: str | None = None,
    billed: bool = False,
    how: Any = ask,
    **options: Any,
) -> tuple[APIError, KeyStatistics]:
    """The error that an answer is, and what it does to the provider's state."""
    async with pair(answer, **{"retry": ONCE, "health": FRAIL, **options}) as seen:
        error = await failure(how(seen.client))
        assert type(error) is cls, error
        assert (error.kind, error.maybe_billed, error.committed) == (kind, billed, False)
        assert (error.attempts[0].status, error.attempts[0].key) == (status, f"…{KEY[-4:]}")
        if isinstance(error, APIStatusError):
            assert (error.status_code, error.code) == (status, code)
        assert seen.asked == (1, 0)
        assert seen.breaker == ("open" if sick else "closed")
        assert "in_flight=0" in repr(seen.client)
        return error, seen.key


async def goes_nowhere(answer: bytes, how: Any = ask, **options: Any) -> None:
    """N: one request, backup or not."""
    for backed in (False, True):
        async with pair(answer, good(how), backed=backed, second=[good(how)], **options) as seen:
            await failure(how(seen.client))
            assert seen.asked == (1, 0)


async def goes_again(answer: bytes, how: Any = ask, *, backed: bool, **options: Any) -> None:
    """R: the same provider, once more."""
    async with pair(answer, good(how), backed=backed, second=[good(how)], **options) as seen:
        whole = await how(seen.client)
        assert (whole.text, whole.provider, seen.asked) == ("Hello!", "piapi", (2, 0))
        assert [attempt.provider for attempt in whole.attempts] == ["piapi", "piapi"]
        assert [attempt.kind for attempt in whole.attempts][1] == "ok"


async def goes_over(answer: bytes, how: Any = ask, **options: Any) -> None:
    """F: the other provider, at once."""
    async with pair(answer, good(how), backed=True, second=[good(how)], **options) as seen:
        whole = await how(seen.client)
        assert (whole.text, whole.provider, seen.asked) == ("Hello!", "backup", (1, 1))
        assert [attempt.provider for attempt in whole.attempts] == ["piapi", "backup"]
        assert seen.key.retries == 10  # a failover takes no retry token


async def stays(answer: bytes, how: Any = ask, **options: Any) -> None:
    """No R: without a backup it is one request."""
    async with pair(answer, good(how), **options) as seen:
        await failure(how(seen.client))
        assert seen.asked == (1, 0)


async def too_late(call: Any) -> APIError:
    """The error of a call whose deadline comes before the provider may be asked again: it is told at once."""
    with pytest.raises(APITimeoutError) as caught:
        await call
    assert_tight(caught.value)
    assert caught.value.kind == "deadline"
    assert caught.value.attempts[-1].kind != "deadline"
    return caught.value


# -- E. Status codes -------------------------------------------------------------------------------------------------


@BOTH
async def test_E1_400(how: Any) -> None:
    answer = refusal(400, code="invalid_value", param="n")
    error, _ = await wants(answer, BadRequestError, status=400, code="invalid_value", sick=False, how=how)
    assert getattr(error, "param", None) == "n"
    await goes_nowhere(answer, how)


@pytest.mark.parametrize("status", [400, 413])
@BOTH
async def test_E2_context_length_exceeded(how: Any, status: int) -> None:
    code = "context_length_exceeded"
    answer = refusal(status, code=code)
    await wants(answer, BadRequestError, status=status, code=code, sick=False, how=how)
    await goes_nowhere(answer, how)


@BOTH
async def test_E3_401(how: Any) -> None:
    answer = refusal(401, code="invalid_api_key")
    error, _ = await wants(answer, AuthenticationError, status=401, code="invalid_api_key", sick=False, how=how)
    assert KEY[-5:] not in repr(error.attempts)
    await goes_nowhere(answer, how)
    willing = attrs.evolve(SWIFT, failover_on_auth=True)
    await goes_over(answer, how, retry=willing)
    await stays(answer, how, retry=willing)


QUOTA = {
    "402": refusal(402),
    "error in a 200": ok(b'{"error": {"message": "No credit.", "code": "insufficient_quota"}}'),
}


@pytest.mark.parametrize("name", QUOTA)
@BOTH
async def test_E4_credit_used_up(how: Any, name: str) -> None:
    async with pair(QUOTA[name], retry=ONCE, health=FRAIL) as seen:
        error = await failure(how(seen.client))
        assert type(error) is InsufficientQuotaError
        assert error.status_code == 402
        assert seen.breaker == "closed"
    await stays(QUOTA[name], how)
    await goes_over(QUOTA[name], how)


@BOTH
async def test_E4_credit_used_up_in_a_resellers_words(how: Any) -> None:
    for status, code in ((403, "insufficient_user_quota"), (429, "1113"), (400, "Arrearage")):
        await wants(refusal(status, code=code), InsufficientQuotaError, status=status, code=code, sick=False, how=how)
        await stays(refusal(status, code=code), how)


async def test_E4_the_provider_is_left_alone_for_ten_minutes(clock: Clock) -> None:
    async with pair(refusal(402), ok(), backed=True) as seen:
        for calls, seconds in ((1, 290), (2, 290), (3, 30)):
            assert (await ask(seen.client)).provider == "backup"
            assert seen.asked == (1, calls)
            await clock.skip(seconds)
        assert (await ask(seen.client)).provider == "piapi"
        assert seen.asked == (2, 3)


@BOTH
async def test_E5_plan(how: Any) -> None:
    answer = refusal(403, message="Only for Creator Plan or above")
    await wants(answer, PermissionDeniedError, status=403, sick=False, how=how)
    await goes_nowhere(answer, how)
    await goes_over(answer, how, models={"gpt-4o": "openai/gpt-4o"})


@BOTH
async def test_E6_challenge_page(how: Any, clock: Clock) -> None:
    await wants(page(403), APIResponseError, status=403, kind="edge page", sick=True, how=how)
    await goes_over(page(403), how)
    async with pair(page(403)) as seen:
        call = asyncio.create_task(how(seen.client))
        await seen.first_answer()
        await clock.skip(4.0)
        assert seen.asked == (1, 0)
        await clock.skip(1.1)
        assert (await failure(call)).kind == "edge page"
        assert seen.asked == (2, 0)  # once, after 5 s
        await too_late(how(seen.client, deadline=4))
        assert seen.asked == (3, 0)


@BOTH
async def test_E6_the_page_of_a_web_server(how: Any) -> None:
    for status, cls in ((401, AuthenticationError), (403, PermissionDeniedError), (413, RequestTooLargeError)):
        answer = http_response(status, b"<html><title>nginx says no</title></html>", HTML)
        error, _ = await wants(answer, cls, status=status, sick=False, how=how)
        assert ": a web page;" in str(error)
        assert "nginx" not in str(error)
        await goes_nowhere(answer, how)
    _, key = await wants(page(429), RateLimitError, status=429, sick=False, how=how)
    assert key.bound < 256


@BOTH
async def test_E7_no_such_path(how: Any) -> None:
    for answer in (page(404), http_response(404, b"404 page not found", {"Content-Type": "text/plain"})):
        error, _ = await wants(answer, NotFoundError, status=404, sick=False, how=how)
        assert "; check the base URL; it usually ends in /v1." in str(error)
        await goes_nowhere(answer, how)


@BOTH
async def test_E7_no_such_model(how: Any) -> None:
    answer = refusal(404, code="model_not_found")
    await wants(answer, NotFoundError, status=404, code="model_not_found", sick=False, how=how)
    await goes_nowhere(answer, how)
    await goes_over(answer, how, models={"gpt-4o": "openai/gpt-4o"})


@pytest.mark.parametrize("status", [405, 406, 410, 411, 415, 501, 505])
@BOTH
async def test_E8_not_our_way_to_ask(how: Any, status: int) -> None:
    cls = APIStatusError if status < 500 else InternalServerError
    await wants(refusal(status), cls, status=status, sick=False, how=how)
    await goes_nowhere(refusal(status), how)


@BOTH
async def test_E9_408(how: Any) -> None:
    await wants(refusal(408), APIStatusError, status=408, sick=False, how=how)
    await goes_again(refusal(408), how, backed=False)
    await goes_over(refusal(408), how)


@BOTH
async def test_E10_409(how: Any) -> None:
    await wants(refusal(409), ConflictError, status=409, sick=False, how=how)
    await goes_again(refusal(409), how, backed=False)
    await goes_again(refusal(409), how, backed=True)


@pytest.mark.parametrize("status", [413, 414, 431])
@BOTH
async def test_E11_too_large(how: Any, status: int) -> None:
    await wants(refusal(status), RequestTooLargeError, status=status, sick=False, how=how)
    await goes_nowhere(refusal(status), how)


@BOTH
async def test_E12_422(how: Any) -> None:
    detail = {"detail": [{"loc": ["body", "n"], "msg": "too many", "type": "value_error"}]}
    answer = http_response(422, json.dumps(detail).encode())
    error, _ = await wants(answer, UnprocessableEntityError, status=422, sick=False, how=how)
    assert "too many" in str(error)
    await goes_nowhere(answer, how)


@pytest.mark.parametrize("status", [421, 425])
@BOTH
async def test_E13_new_connection(how: Any, status: int) -> None:
    await wants(refusal(status), APIStatusError, status=status, sick=False, how=how)
    for backed in (False, True):
        async with pair(refusal(status), good(how), backed=backed) as seen:
            assert (await how(seen.client)).text == "Hello!"
            assert (seen.primary.connections, seen.asked) == (2, (2, 0))
        async with pair(refusal(status), refusal(status), good(how), backed=backed) as seen:
            await failure(how(seen.client))
            assert seen.asked == (2, 0)  # once


@BOTH
async def test_E14_429_without_retry_after(how: Any) -> None:
    for retry, most in ((Retry(attempts=1), longest(1)), (OVERLOAD_ONLY, 300)):
        error, key = await wants(
            limited(), RateLimitError, status=429, code="rate_limit_exceeded", sick=False, how=how, retry=retry
        )
        assert error.retry_after is None
        assert key.pause <= most
        assert key.bound == 179  # 0.7 of 256
    assert key.pause > 0
    await goes_again(limited(), how, backed=False)
    await goes_again(limited(), how, backed=True)  # a short pause at the preferred provider is worth it


RESETS = {"x-ratelimit-reset-requests": "30s"}


@BOTH
async def test_E14_429_with_a_reset(how: Any, clock: Clock) -> None:
    for more in ({}, {"x-ratelimit-remaining-requests": "0"}):
        error, key = await wants(refusal(429, {**RESETS, **more}), RateLimitError, status=429, sick=False, how=how)
        assert error.retry_after is None
        assert 28 < key.pause <= longest(30)
    await goes_over(refusal(429, RESETS), how)  # longer than 2 s
    async with pair(refusal(429, RESETS), good(how)) as seen:
        call = asyncio.create_task(how(seen.client))
        await seen.first_answer()
        await clock.skip(29.0)
        assert seen.asked == (1, 0)
        await clock.skip(4.1)
        assert (await call).text == "Hello!"


@BOTH
async def test_E14_429_and_the_deadline(how: Any) -> None:
    short = limited(Retry_After="1.5")
    async with pair(short, good(how), backed=True, second=[good(how)]) as seen:
        assert (await how(seen.client, deadline=1)).provider == "backup"
        assert seen.asked == (1, 1)
    async with pair(short, good(how)) as seen:
        error = await too_late(how(seen.client, deadline=1))
        assert (error.retry_after, seen.asked) == (1.5, (1, 0))


async def test_E14_the_last_attempt_is_for_the_backup() -> None:
    async with pair(limited(), backed=True) as seen:
        assert (await ask(seen.client)).provider == "backup"
        assert seen.asked == (2, 1)


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
@BOTH
async def test_E15_429_that_means_the_credit(how: Any, code: str) -> None:
    answer = refusal(429, code=code)
    _, key = await wants(answer, InsufficientQuotaError, status=429, code=code, sick=False, how=how)
    assert (key.pause, key.bound) == (0, 256)  # no rate to narrow
    await goes_over(answer, how)
    await stays(answer, how)


@pytest.mark.parametrize("status", [500, 502, 503, 504])
@BOTH
async def test_E16_5xx(how: Any, status: int) -> None:
    answer = refusal(status)
    _, key = await wants(answer, InternalServerError, status=status, sick=True, billed=status == 504, how=how)
    assert (key.pause, key.bound) == (0, 256)
    await goes_again(answer, how, backed=False)
    await goes_over(answer, how)


@BOTH
async def test_E17_503_with_retry_after(how: Any, clock: Clock) -> None:
    answer = refusal(503, {"Retry-After": "5"})
    error, key = await wants(answer, InternalServerError, status=503, sick=True, how=how)
    assert error.retry_after == 5
    assert 4 < key.pause <= longest(5)
    await goes_over(answer, how)
    async with pair(answer, good(how)) as seen:
        call = asyncio.create_task(how(seen.client))
        await seen.first_answer()
        await clock.skip(4.4)
        assert seen.asked == (1, 0)
        await clock.skip(1.2)
        assert (await call).text == "Hello!"
        assert seen.asked == (2, 0)


@pytest.mark.parametrize("status", [520, 521, 522, 523, 525, 526, 527, 530])
@BOTH
async def test_E18_edge(how: Any, status: int) -> None:
    for answer in (page(status), http_response(status, b"error code: %d" % status, {"Content-Type": "text/plain"})):
        error, _ = await wants(answer, InternalServerError, status=status, kind="edge", sick=True, how=how)
        assert "<" not in str(error)
    await goes_again(page(status), how, backed=False)
    await goes_over(page(status), how)


@BOTH
async def test_E19_524(how: Any) -> None:
    answer = page(524)
    await wants(answer, InternalServerError, status=524, kind="edge", sick=True, billed=True, how=how)
    await goes_over(answer, how)
    async with pair(answer, good(how), backed=True, second=[refusal(503), good(how)]) as seen:
        assert (await how(seen.client)).provider == "backup"
        assert seen.asked == (1, 2)  # not the same provider again, even when the other one fails


@pytest.mark.parametrize("status", [504, 524])
async def test_E19_one_more_try_by_stream(status: int) -> None:
    async with pair(page(status), good(read)) as seen:
        answer = await ask(seen.client, max_tokens=10)
        assert (answer.text, [each.status for each in answer.attempts]) == ("Hello!", [status, 200])
        plain, streamed = (json.loads(request.partition(b"\r\n\r\n")[2]) for request in seen.primary.requests)
        assert streamed == {**plain, "stream": True}
        assert seen.client.ledger.unknown > 0  # the first bill


async def test_E19_no_other_try() -> None:
    await stays(page(524), read)  # which was by stream
    await stays(page(524), partial(ask, via_stream=False))
    async with pair(page(524)) as seen:
        error = await failure(ask(seen.client))
        assert (error.maybe_billed, seen.asked) == (True, (2, 0))


@BOTH
async def test_E20_529_overloaded(how: Any) -> None:
    answer = refusal(529, type="overloaded_error")
    _, key = await wants(answer, InternalServerError, status=529, sick=True, how=how, retry=OVERLOAD_ONLY)
    assert key.pause > 0
    assert key.bound == 256
    await goes_again(answer, how, backed=False)
    await goes_over(answer, how)


@BOTH
async def test_E21_statuses_that_are_none(how: Any) -> None:
    for status in (599, 999):  # RFC 9110, 15: what is not known to be better counts as 5xx
        await wants(refusal(status), InternalServerError, status=status, sick=True, how=how)
        await goes_again(refusal(status), how, backed=False)
        await goes_over(refusal(status), how)
    nothing = refusal(200).replace(b"HTTP/1.1 200 OK", b"HTTP/1.1 000 Nothing")
    await wants(nothing, APIStatusError, status=0, sick=False, how=how)
    await goes_nowhere(nothing, how)


@BOTH
async def test_E22_retry_after(how: Any, clock: Clock) -> None:
    three = limited(Retry_After="3")
    async with pair(three, good(how)) as seen:
        call = asyncio.create_task(how(seen.client))
        await seen.first_answer()
        assert 2 < seen.key.pause <= longest(3)
        await clock.skip(2.4)
        assert seen.asked == (1, 0)  # never earlier
        await clock.skip(1.2)
        assert (await call).text == "Hello!"
    await goes_over(three, how)
    _, key = await wants(
        limited(Retry_After="0"), RateLimitError, status=429, code="rate_limit_exceeded", sick=False, how=how
    )
    assert key.pause == 0
    await goes_again(limited(Retry_After="0"), how, backed=False)
    await goes_again(limited(Retry_After="0"), how, backed=True)


def dated(seconds: float, form: str = "%a, %d %b %Y %H:%M:%S GMT") -> bytes:
    """A 429 of a server whose clock is decades behind, which names a moment so many seconds from its own."""
    now = datetime(1994, 11, 6, 8, 49, 37, tzinfo=UTC)
    return limited(
        Date=format_datetime(now, usegmt=True), Retry_After=(now + timedelta(seconds=seconds)).strftime(form)
    )


@BOTH
async def test_E23_date(how: Any) -> None:
    for form in ("%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"):
        error, key = await wants(
            dated(3, form), RateLimitError, status=429, code="rate_limit_exceeded", sick=False, how=how
        )
        assert error.retry_after == 3
        assert 2 < key.pause <= longest(3)
    await goes_over(dated(3), how)
    await goes_again(dated(-3600), how, backed=False)
    await goes_again(dated(-3600), how, backed=True)


@pytest.mark.parametrize(
    ("answer", "seconds"),
    [(limited(Retry_After="86400"), 86400), (dated(253402300799 - 784111777), 253402300799 - 784111777)],
    ids=["a day", "year 9999"],
)
@BOTH
async def test_E24_too_long_to_wait(how: Any, answer: bytes, seconds: float, clock: Clock) -> None:
    await goes_over(answer, how)
    async with pair(answer, good(how), backed=True, second=[good(how)]) as seen:
        await how(seen.client)
        assert 290 < seen.key.pause <= 300
        assert (await how(seen.client)).provider == "backup"  # as long as the cool-down lasts
        assert seen.asked == (1, 2)
        await clock.skip(300)
        assert (await how(seen.client)).provider == "piapi"
    async with pair(answer, good(how)) as seen:
        error = await failure(how(seen.client))
        assert (type(error), error.retry_after) == (RateLimitError, seconds)
        assert seen.asked == (1, 0)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"-5", None),
        (b"", None),
        (b"abc", None),
        (b"1e9", None),
        (b"1_0", None),
        ("٣".encode(), None),
        (b"1000000", None),
        (b".5", None),
        (b"+1", None),
        (b"0x1", None),
        (b"1,2", None),
        (b" 3 ", 3.0),
        (b"\t2.5\t", 2.5),
    ],
)
async def test_E25_retry_after_that_is_no_number(value: bytes, seconds: float | None) -> None:
    answer = with_lines(limited(), b"Retry-After:" + value)
    error, key = await wants(answer, RateLimitError, status=429, code="rate_limit_exceeded", sick=False, retry=ONCE)
    assert error.retry_after == seconds
    assert key.pause <= longest(1 if seconds is None else seconds)
    if seconds is None:
        await goes_again(answer, backed=False)


@pytest.mark.parametrize("value", ["nan", "NaN", "inf", "-inf", "Infinity"])
async def test_E26_nan(value: str) -> None:
    for answer in (limited(Retry_After=value), limited(retry_after_ms=value)):
        error, key = await wants(answer, RateLimitError, status=429, code="rate_limit_exceeded", sick=False)
        assert error.retry_after is None
        assert key.pause <= longest(1)
        await goes_again(answer, backed=False)


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ([b"retry-after-ms: 5"], 0.005),
        ([b"retry-after-ms: 5", b"Retry-After: 60"], 0.005),
        ([b"Retry-After: 60", b"Retry-After-Ms: 7.5"], 0.0075),
        ([b"retry-after-ms: 3", b"retry-after-ms: 5", b"retry-after-ms: 4"], 0.005),
        ([b"Retry-After: 0", b"Retry-After: 0.005"], 0.005),
        ([b"Retry-After: soon", b"Retry-After: 0.005"], 0.005),
        ([b"retry-after-ms: soon", b"Retry-After: 0.005"], 0.005),
    ],
)
async def test_E27_retry_after_ms_and_copies(lines: list[bytes], seconds: float) -> None:
    answer = with_lines(limited(), *lines)
    error, key = await wants(answer, RateLimitError, status=429, code="rate_limit_exceeded", sick=False)
    assert error.retry_after == seconds
    assert key.pause <= longest(seconds)
    await goes_again(answer, backed=False)
    await goes_again(answer, backed=True)


@BOTH
async def test_E28_x_should_retry(how: Any) -> None:
    no, yes = refusal(503, {"x-should-retry": "false"}), refusal(400, {"x-should-retry": "true"})
    await stays(no, how)
    await goes_over(no, how)  # the other provider said nothing of the kind
    await goes_again(yes, how, backed=False)
    await goes_again(yes, how, backed=True)
    async with pair(yes) as seen:
        await failure(how(seen.client))
        assert seen.asked == (3, 0)  # the attempts bound it,
    async with pair(yes, retry=attrs.evolve(SWIFT, budget=1.0)) as seen:
        await failure(how(seen.client))
        await failure(how(seen.client))
        assert seen.asked == (3, 0)  # and the budget
        assert seen.breaker == "closed"


def left(what: str, remaining: str, reset: str, answer: bytes) -> bytes:
    lines = (f"x-ratelimit-remaining-{what}: {remaining}", f"x-ratelimit-reset-{what}: {reset}")
    return with_lines(answer, *(line.encode() for line in lines))


@pytest.mark.parametrize(
    ("what", "remaining", "reset", "seconds"),
    [
        ("tokens", "0", "6m0s", 60),
        ("tokens", "0", "3s", 3),
        ("requests", "0", "2500ms", 2.5),
        ("requests", " 0 ", "1m0.5s", 60),
        ("tokens", "0", "12", 12),
        ("tokens", "0", "junk", 0),
        ("tokens", "0", "1e3s", 0),
        ("tokens", "0", "-1s", 0),
        ("tokens", "1", "6m0s", 0),
        ("tokens", "none", "6m0s", 0),
    ],
)
@BOTH
async def test_E29_x_ratelimit_reset(how: Any, what: str, remaining: str, reset: str, seconds: float) -> None:
    async with pair(left(what, remaining, reset, good(how))) as seen:
        assert (await how(seen.client)).text == "Hello!"
        assert seconds - 1 <= seen.key.pause <= min(60, longest(seconds))
    _, key = await wants(
        left(what, remaining, reset, limited()),
        RateLimitError,
        status=429,
        code="rate_limit_exceeded",
        sick=False,
        how=how,
    )
    assert key.pause <= longest(max(seconds, 1))


async def test_E29_a_stream_delays_the_next_send_from_its_headers_on() -> None:
    head = left("tokens", "0", "20s", sse_cut(chunk("Hel")))
    async with dialled([ReadRequest(), Send(head), Wait()]) as (client, _):
        async with client.stream(PROMPT) as stream:
            await anext(aiter(stream))
            assert 19 < client.statistics().keys[0].pause <= longest(20)
        assert 19 < client.statistics().keys[0].pause <= longest(20)


async def test_E29_the_next_send_is_delayed(clock: Clock) -> None:
    async with pair(left("requests", "0", "20s", ok()), ok()) as seen:
        await ask(seen.client)
        call = asyncio.create_task(ask(seen.client))
        await clock.skip(19.0)
        assert seen.asked == (1, 0)
        await clock.skip(3.1)
        await call
        assert seen.asked == (2, 0)


@pytest.mark.parametrize(
    ("lines", "seconds"),
    [
        ([b'RateLimit: "default";r=0;t=30'], 30),
        ([b'RateLimit: "default"; r=0; t=90'], 60),
        ([b'RateLimit: "default";r=1;t=30'], 0),
        ([b'RateLimit: "default";r=0'], 0),
        ([b'RateLimit: "default";r=0;t=soon'], 0),
        ([b'RateLimit: "burst";r=5;t=1, "day";r=0;t=20'], 20),
        ([b'RateLimit: "burst";r=5;t=1', b'RateLimit: "day";r=0;t=20'], 20),
        ([b"RateLimit: limit=100, remaining=0, reset=50"], 0),
        ([b'RateLimit: "default";r=0;t=30', b"Retry-After: 4"], 4),
    ],
)
@BOTH
async def test_E30_ratelimit_field(how: Any, lines: list[bytes], seconds: float) -> None:
    async with pair(with_lines(good(how), *lines)) as seen:
        assert (await how(seen.client)).text == "Hello!"
        assert seconds - 1 <= seen.key.pause <= min(60, longest(seconds))
    _, key = await wants(
        with_lines(limited(), *lines), RateLimitError, status=429, code="rate_limit_exceeded", sick=False, how=how
    )
    assert key.pause <= longest(max(seconds, 1))


# -- F. Redirects, URL, proxy, TLS policy ----------------------------------------------------------------------------


async def is_not_followed(status: int, location: str, host: str, how: Any, **options: Any) -> None:
    """One request on the wire, and an error that names the host and nothing else of the address."""
    answer = http_response(status, b"", {"Location": location})
    script = [ReadRequest(), Send(answer), ReadRequest(), Send(good(how)), Wait()]
    async with dialled(script, retry=SWIFT, health=FRAIL, **options) as (client, server):
        error = await failure(how(client))
        assert type(error) is APIStatusError
        assert (error.kind, error.status_code, error.maybe_billed) == ("redirect", status, False)
        assert host in str(error)
        assert "secret" not in str(error)
        assert (len(server.requests), server.connections) == (1, 1)
        assert client.statistics().keys[0].breakers == {"gpt-4o": "closed"}


@pytest.mark.parametrize("status", [301, 302, 303])
@BOTH
async def test_F1_redirect_of_a_post(how: Any, status: int) -> None:
    await is_not_followed(status, "/v1/elsewhere?secret", "another path", how)
    answers = [b""]
    async with RawServer([Answers(answers)]) as server:
        answers[:] = [http_response(status, b"", {"Location": f"{server.base_url}/elsewhere"})]
        async with Client(KEY, base_url=server.base_url, model="gpt-4o", retry=SWIFT) as client:
            error = await failure(how(client))
        assert "127.0.0.1" in str(error)
        assert [request.split(b" ")[0] for request in server.requests] == [b"POST"]
    await goes_nowhere(http_response(status, b"", {"Location": "/v1/elsewhere"}), how)


@pytest.mark.parametrize("status", [307, 308])
@BOTH
async def test_F2_redirect_to_another_host(how: Any, status: int) -> None:
    async with RawServer([Answers([good(how)])]) as evil:
        await is_not_followed(status, f"http://localhost:{evil.port}/secret", "localhost", how)
        assert (evil.connections, evil.requests) == (0, [])


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@BOTH
async def test_F3_redirect_to_another_scheme_port_or_user(how: Any, authority: trustme.CA) -> None:
    serving, trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    authority.issue_cert("127.0.0.1").configure_cert(serving)
    authority.configure_trust(trusting)
    async with RawServer([Answers([good(how)])]) as evil:
        there = f"127.0.0.1:{evil.port}/secret"
        await is_not_followed(307, f"http://{there}", "127.0.0.1", how, tls=serving, ssl=trusting)
        for location in (f"http://{there}", f"http://user:secret@{there}", f"//{there}"):
            await is_not_followed(307, location, "127.0.0.1", how)
        assert evil.connections == 0
    await is_not_followed(307, "//[secret", "another path", how)


@pytest.mark.parametrize("host", ["169.254.169.254", "localhost"])
@BOTH
async def test_F4_redirect_into_the_local_network(how: Any, host: str) -> None:
    await is_not_followed(302, f"http://{host}/latest/meta-data/secret", host, how)


@BOTH
async def test_F5_redirect_loop(how: Any) -> None:
    await is_not_followed(302, "/v1/chat/completions", "another path", how)


def refused_url(base_url: Any, says: str, **options: Any) -> None:
    for make in (
        lambda: Client(KEY, base_url=base_url, **options),
        lambda: Provider("backup", base_url, KEY, **options),
    ):
        with pytest.raises(ConfigurationError, match=says) as caught:
            make()
        assert_tight(caught.value)
        assert "hunter2" not in str(caught.value)


async def test_F6_http_to_another_machine() -> None:
    for host in ("api.example.com", "10.0.0.1", "localhost.example.com", "127.0.0.1.example.com", "[::2]"):
        refused_url(f"http://{host}/v1", "allow_http")
        assert Client(KEY, base_url=f"http://{host}/v1", allow_http=True)
    for host in ("localhost", "127.0.0.1", "127.1.2.3", "[::1]", "piapi.localhost"):
        assert Client(KEY, base_url=f"http://{host}/v1")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("https://bob:hunter2@api.example.com", "user name or password"),
        ("https://bob@api.example.com", "user name or password"),
        ("https://api.example.com/v1?key=hunter2", "query"),
        ("https://api.example.com/v1?", "query"),
        ("https://api.example.com/v1#hunter2", "fragment"),
        ("https://api.example.com/v1 ", "blank"),
        ("https://api example.com", "blank"),
        ("https://api.example.com/\r\nX-Evil: 1", "line break"),
        ("https://api.example.com\t", "line break"),
        ("https://käse.example", "ASCII"),
        ("ftp://api.example.com", "https://"),
        ("api.example.com/v1", "https://"),
        ("file:///etc/passwd", "https://"),
        ("https://", "no host"),
        ("https:///v1", "no host"),
        ("https://api.example.com:port", "not a URL"),
        ("https://[::1", "not a URL"),
        ("https://api.example.com/v1/chat/completions", "it ends in /chat/completions, which the client adds itself"),
        ("https://api.example.com/v1/chat/completions/", "pass what stands before it"),
        (b"https://api.example.com", "bytes"),
    ],
)
def test_F7_base_url_that_can_be_none(url: Any, says: str) -> None:
    refused_url(url, says)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "//v1//", "///"])
async def test_F8_one_way_to_join(path: str) -> None:
    async with RawServer([Answers([ok()])]) as server:
        url = server.base_url.removesuffix("/v1") + path
        backup = Provider("backup", url, KEY)
        async with Client(KEY, base_url=url, model="gpt-4o") as client:
            await ask(client)
        assert backup.base_url == server.base_url
        assert server.requests[0].startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("url", "whole"),
    [
        ("https://api.example.com/api/v1/", "https://api.example.com/api/v1"),
        ("https://api.example.com/openai", "https://api.example.com/openai/v1"),
        ("https://api.example.com/v1beta/openai/", "https://api.example.com/v1beta/openai"),
        ("HTTPS://API.example.com:8443", "https://API.example.com:8443/v1"),
    ],
)
def test_F8_other_paths(url: str, whole: str) -> None:
    assert check_base_url(url) == whole


def test_F9_base_url_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for url, says in (("http://evil.example", "allow_http"), ("https://x:hunter2@evil.example", "user name")):
        monkeypatch.setenv("PIAPI_BASE_URL", url)
        with pytest.raises(ConfigurationError, match=says) as caught:
            Client(KEY)
        assert_tight(caught.value)
        assert "hunter2" not in str(caught.value)
        assert "api.example.com" in repr(Client(KEY, base_url="https://api.example.com"))  # code goes first
    assert "PIAPI_BASE_URL" in (Client.__doc__ or "")


def shown(error: BaseException) -> str:
    """All that an error shows, the local variables of its traceback included."""
    whole = traceback.TracebackException.from_exception(error, capture_locals=True)
    ours = [repr(frame.locals) for frame in whole.stack if "piapi_async" in frame.filename]
    return "".join([str(error), repr(error), repr(vars(error)), *ours])


@pytest.fixture
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without proxies, whatever that of the test run is."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "NETRC"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    return monkeypatch


@BOTH
async def test_F10_the_environment_does_not_count(how: Any, no_proxy: pytest.MonkeyPatch, tmp_path: Path) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login bob password hunter2\n")  # a file of this test
    netrc.chmod(0o600)
    no_proxy.setenv("HOME", str(tmp_path))
    async with RawServer([Answers([refusal(407)])]) as proxy, RawServer([Answers([good(how)])]) as server:
        for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"):
            no_proxy.setenv(name, f"http://bob:hunter2@127.0.0.1:{proxy.port}")
        async with Client(KEY, base_url=server.base_url, model="gpt-4o") as client:
            await how(client)
        assert proxy.connections == 0
        assert f"Authorization: Bearer {KEY}\r\n".encode() in server.requests[0]


@BOTH
async def test_F10_netrc_never_stands_in_the_way_of_the_key(
    how: Any, no_proxy: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login bob password hunter2\n")  # a file of this test
    no_proxy.setenv("NETRC", str(netrc))
    async with RawServer([Answers([good(how)])]) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o", trust_env=True, retry=ONCE) as client:
            await how(client)
        assert f"Authorization: Bearer {KEY}\r\n".encode() in server.requests[0]


@BOTH
async def test_F10_trust_env(how: Any, no_proxy: pytest.MonkeyPatch) -> None:
    async with RawServer([Answers([refusal(407), page(502), b"garbage"])]) as proxy:
        async with RawServer([Answers([good(how)])]) as server:
            no_proxy.setenv("HTTP_PROXY", f"http://bob:hunter2@127.0.0.1:{proxy.port}")
            for cls in (APIStatusError, InternalServerError, APIConnectionError):
                async with Client(KEY, base_url=server.base_url, model="gpt-4o", trust_env=True, retry=ONCE) as client:
                    error = await failure(how(client))
                assert type(error) is cls
                assert "hunter2" not in shown(error)
            assert server.connections == 0
            no_proxy.setenv("NO_PROXY", "127.0.0.1")
            async with Client(KEY, base_url=server.base_url, model="gpt-4o", trust_env=True) as client:
                await how(client)
            assert server.connections == 1
    assert all(request.startswith(b"POST http://127.0.0.1") for request in proxy.requests)


@BOTH
async def test_F10_a_proxy_of_the_callers(how: Any, no_proxy: pytest.MonkeyPatch) -> None:
    async with RawServer([Answers([good(how)])]) as proxy:
        url = f"http://bob:hunter2@127.0.0.1:{proxy.port}"
        there = "http://piapi.localhost/v1"
        async with Client(KEY, base_url=there, model="gpt-4o", proxy=url, retry=ONCE) as client:
            assert (await how(client)).text == "Hello!"
            assert "hunter2" not in repr(client)
        assert b"\r\nProxy-Authorization: Basic " in proxy.requests[0]
        await proxy.close()
        async with Client(KEY, base_url=there, model="gpt-4o", proxy=url, retry=ONCE) as client:
            error = await failure(how(client))
        assert (type(error), error.kind) == (APIConnectionError, "proxy")
        assert "hunter2" not in shown(error)


async def test_F11_the_key_is_no_default_of_a_session(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions: list[aiohttp.ClientSession] = []
    make = aiohttp.ClientSession.__init__

    def note(session: aiohttp.ClientSession, *args: Any, **options: Any) -> None:
        sessions.append(session)
        make(session, *args, **options)

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", note)
    async with RawServer([Answers([ok()])]) as other, pair(refusal(421), ok()) as seen:
        await ask(seen.client)
        assert len(sessions) == 2  # a 421 asks for a new connection, which another session makes
        for session in sessions:
            async with session.post(f"{other.base_url}/chat/completions", data=b"{}") as response:
                await response.read()
        assert len(other.requests) == 2
        for request in other.requests:
            assert b"authorization" not in request.lower()
            assert KEY.encode() not in request


@BOTH
async def test_F12_the_backup_sees_what_is_its_own(how: Any) -> None:
    cookie = with_lines(refusal(503), b"Set-Cookie: session=canary; Path=/")
    async with RawServer([Answers([cookie])]) as primary, RawServer([Answers([good(how)])]) as second:
        backup = Provider(
            "backup",
            f"{second.base_url}/own",
            BACKUP_KEY,
            models={"gpt-4o": "theirs/gpt-4o"},
            headers={"X-Backup": "green"},
        )
        headers = {"OpenAI-Organization": "org-1", "X-Team": "blue", "Cookie": "team=blue"}
        async with Client(KEY, base_url=primary.base_url, model="gpt-4o", headers=headers, backups=[backup]) as client:
            assert (await how(client)).provider == "backup"
    ((first,), (then,)) = primary.requests, second.requests
    assert b"OpenAI-Organization: org-1\r\n" in first
    assert b"X-Backup" not in first
    head, body = then.split(b"\r\n\r\n", 1)
    lines = head.decode().split("\r\n")
    fields = dict(line.split(": ", 1) for line in lines[1:])
    assert lines[0] == "POST /v1/own/chat/completions HTTP/1.1"
    assert fields.pop("Authorization") == f"Bearer {BACKUP_KEY}"
    assert fields.pop("Host") == f"127.0.0.1:{second.port}"
    assert fields.pop("X-Backup") == "green"
    assert fields.keys() == {
        "Content-Type", "Accept-Encoding", "User-Agent", "Accept", "Idempotency-Key", "X-Attempt", "Content-Length"
    }  # fmt: skip
    assert json.loads(body)["model"] == "theirs/gpt-4o"
    assert json.loads(first.split(b"\r\n\r\n", 1)[1])["model"] == "gpt-4o"
    for secret in (KEY, "org-1", "blue", "canary; Path"):
        assert secret.encode() not in then


@BOTH
async def test_F13_no_cookie_is_kept(how: Any) -> None:
    answer = with_lines(good(how), b"Set-Cookie: session=1; Path=/", b"Set-Cookie: other=2")
    async with pair(answer) as seen:
        await how(seen.client)
        await how(seen.client)
        assert seen.asked == (2, 0)
        assert all(b"\r\ncookie:" not in request.lower() for request in seen.primary.requests)
