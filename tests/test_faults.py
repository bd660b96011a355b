"""`faults.md`, sections A to D, G and H: a test for each row, named after it, on a server that sends just those bytes.

Every error raised here must be one of this library's own, and is searched for the key and the prompt.
"""

from __future__ import annotations

import asyncio
import copy
import gzip
import json
import os
import pickle
import socket
import ssl
import stat
import threading
import traceback
from pathlib import Path
from typing import Any

import anyio
import attrs
import cattrs
import pytest
import trustme

from piapi_async import (
    APIConnectionError,
    APIResponseError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    BatchError,
    ChatCompletion,
    Client,
    ConfigurationError,
    FunctionCall,
    InvalidRequestError,
    Limits,
    Message,
    Provider,
    RateLimitError,
    StreamTruncatedError,
    Timeout,
    ToolCall,
    Usage,
    run_batch,
)
from piapi_async.errors import (
    BadRequestError,
    InsufficientQuotaError,
    InternalServerError,
    NotFoundError,
    StreamTooLargeError,
)
from piapi_async.pool import SessionPool
from piapi_async.testing import Close, RawServer, ReadRequest, Repeat, Reset, Send, Step, Wait, http_response
from tests.leaks import CANARIES, KEY, PROMPT, assert_tight
from tests.wires import (
    BOTH,
    DONE,
    ONCE,
    WHOLE,
    ask,
    chunk,
    completion,
    dialled,
    fails,
    failure,
    ok,
    quiet,  # noqa: F401  # a fixture of every test here
    read,
    sse,
    sse_closed,
    sse_cut,
)

pytestmark = pytest.mark.anyio

FIRING = Timeout(connect=5, first_event=0.05, progress=0.05, total=0.05)


# -- A. Connect and TLS ----------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port: int = bound.getsockname()[1]
        return port


@BOTH
async def test_A1_connect_refused(how: Any) -> None:
    async with Client(KEY, base_url=f"http://127.0.0.1:{closed_port()}", model="gpt-4o", retry=ONCE) as client:
        error = await failure(how(client))
    assert type(error) is APIConnectionError
    assert (error.kind, error.maybe_billed) == ("connect", False)


async def test_A2_dns_name_missing() -> None:
    async with Client(KEY, base_url="https://no-such-host.invalid", model="gpt-4o", retry=ONCE) as client:
        error = await failure(ask(client))
    assert type(error) is APIConnectionError
    assert (error.kind, error.maybe_billed) == ("dns", False)
    assert "base URL" in str(error)


async def test_A3_dns_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: ended.wait(60))
    async with Client(
        KEY, base_url="http://slow.localhost", model="gpt-4o", retry=ONCE, timeout=Timeout(connect=0.05)
    ) as client:
        error = await failure(ask(client))
    ended.set()
    assert type(error) is APITimeoutError
    assert (error.kind, error.maybe_billed) == ("connect", False)


async def test_A4_connect_hangs() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        fillers = [socket.socket() for _ in range(4)]  # fill the backlog: further SYNs are dropped
        try:
            for filler in fillers:
                filler.setblocking(False)
                filler.connect_ex(("127.0.0.1", port))
            await asyncio.sleep(0.01)
            timeout = Timeout(connect=0.05)
            async with Client(
                KEY, base_url=f"http://127.0.0.1:{port}", model="gpt-4o", retry=ONCE, timeout=timeout
            ) as client:
                error = await failure(ask(client))
        finally:
            for filler in fillers:
                filler.close()
    assert type(error) is APITimeoutError
    assert (error.kind, error.maybe_billed, error.timer) == ("connect", False, "connect")


async def test_A5_first_address_of_two_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    async with dialled([ReadRequest(), Send(ok())]) as (_, server):
        port = server.port

        def two(*_: object, **__: object) -> list[Any]:
            kind = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            return [(*kind, ("127.0.0.2", port)), (*kind, ("127.0.0.1", port))]

        monkeypatch.setattr(socket, "getaddrinfo", two)
        async with Client(KEY, base_url=f"http://two.localhost:{port}", model="gpt-4o", retry=ONCE) as client:
            answer = await ask(client)
    assert answer.text == "Hello!"
    assert len(answer.attempts) == 1


async def test_A6_tls_to_a_plain_port() -> None:
    async with RawServer([Send(b"HTTP/1.1 400 Bad Request\r\n\r\n"), Wait()]) as server:
        url = server.base_url.replace("http://", "https://")
        async with Client(KEY, base_url=url, model="gpt-4o", retry=ONCE) as client:
            error = await failure(ask(client))
        assert server.requests == []
    assert type(error) is APIConnectionError
    assert (error.kind, error.maybe_billed) == ("tls", False)


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


def _serving(authority: trustme.CA, name: str) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


@pytest.mark.parametrize("name", ["127.0.0.1", "other.example"])
async def test_A7_certificate_not_trusted(authority: trustme.CA, name: str) -> None:
    trusting = ssl.create_default_context()
    if name == "other.example":  # trusted, but for another host
        authority.configure_trust(trusting)
    async with RawServer([ReadRequest(), Send(ok())], ssl_context=_serving(authority, name)) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o", retry=ONCE, ssl=trusting) as client:
            error = await failure(ask(client))
        assert type(error) is APIConnectionError
        assert (error.kind, error.maybe_billed) == ("certificate", False)
        assert server.requests == []
        async with Client(KEY, base_url=server.base_url, model="gpt-4o", retry=ONCE, insecure=True) as client:
            assert (await ask(client)).text == "Hello!"


async def test_A7_certificate_trusted_by_the_callers_context(authority: trustme.CA) -> None:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with (
        RawServer([ReadRequest(), Send(ok())], ssl_context=_serving(authority, "127.0.0.1")) as server,
        Client(KEY, base_url=server.base_url, model="gpt-4o", retry=ONCE, ssl=context) as client,
    ):
        assert (await ask(client)).text == "Hello!"


async def test_A8_pool_full() -> None:
    timeout = Timeout(pool=0.02)
    script = [ReadRequest(), Send(sse_cut(chunk("Hel"))), Wait()]
    async with dialled(script, timeout=timeout, limits=Limits(concurrency=1)) as (client, server):
        async with client.stream(PROMPT):
            error = await failure(ask(client))
            assert type(error) is APITimeoutError
            assert (error.kind, error.maybe_billed) == ("pool", False)
        assert len(server.requests) == 1


# -- B. Before the first response byte -------------------------------------------------------------------------------


@BOTH
async def test_B1_fin_before_headers(how: Any) -> None:
    await fails(Close(), cls=APIConnectionError, kind="reset", how=how)


@BOTH
async def test_B2_rst_before_headers(how: Any) -> None:
    await fails(Reset(), cls=APIConnectionError, kind="reset", how=how)


@pytest.mark.parametrize("end", [Reset(), Close()])
@BOTH
async def test_B3_stale_keep_alive(how: Any, end: Step) -> None:
    answer = ok() if how is ask else sse(WHOLE + DONE)
    stale = [ReadRequest(), Send(answer), ReadRequest(), end]
    good = [ReadRequest(), Send(answer)]
    async with dialled(stale, good) as (client, server):
        await how(client)
        second = await how(client)
        assert second.text == "Hello!"
        assert [attempt.kind for attempt in second.attempts] == ["stale", "ok"]
        assert (server.connections, len(server.requests)) == (2, 3)


async def test_B3_stale_only_once_a_call() -> None:
    stale = [ReadRequest(), Send(ok()), ReadRequest(), Reset()]
    async with dialled(stale, [ReadRequest(), Reset()]) as (client, server):
        await ask(client)
        error = await failure(ask(client))
        assert (type(error), error.kind) == (APIConnectionError, "reset")
        assert len(server.requests) == 3


@BOTH
async def test_B4_fin_inside_headers(how: Any) -> None:
    await fails(Send(b"HTTP/1.1 200 OK\r\nX-Half: "), Close(), cls=APIConnectionError, kind="protocol", how=how)


async def test_B5_slow_loris_headers() -> None:
    slow = Send(b"HTTP/1.1 200 OK\r\nX: " + b"a" * 2000, piece=1, pause=0.001)
    await fails(slow, cls=APITimeoutError, kind="total", timeout=FIRING)
    await fails(slow, cls=APITimeoutError, kind="first_event", how=read, timeout=FIRING)


async def test_B6_endless_1xx() -> None:
    endless = Repeat([Send(b"HTTP/1.1 102 Processing\r\n\r\n"), Wait(0.002)])
    await fails(endless, cls=APITimeoutError, kind="total", timeout=FIRING)
    await fails(endless, cls=APITimeoutError, kind="first_event", how=read, timeout=FIRING)


@BOTH
async def test_B7_not_http(how: Any) -> None:
    await fails(Send(b"SSH-2.0-OpenSSH_9.2\r\n"), Wait(), cls=APIConnectionError, kind="protocol", how=how)


@BOTH
async def test_B8_header_line_too_long(how: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nX: " + b"a" * 20_000 + b"\r\n\r\n"
    await fails(Send(head), Wait(), cls=APIConnectionError, kind="protocol", how=how)


@BOTH
async def test_B9_too_many_headers(how: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(5000)) + b"\r\n"
    await fails(Send(head), Wait(), cls=APIConnectionError, kind="protocol", how=how)


@BOTH
async def test_B10_two_content_lengths(how: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}"
    await fails(Send(head), Wait(), cls=APIConnectionError, kind="protocol", how=how)


async def test_B11_no_answer_at_all() -> None:
    await fails(Wait(), cls=APITimeoutError, kind="total", timeout=FIRING)
    await fails(Wait(), cls=APITimeoutError, kind="first_event", how=read, timeout=FIRING)
    reasoning = Timeout(first_event=5, first_event_reasoning=0.05)
    async with dialled([ReadRequest(), Wait()], timeout=reasoning) as (client, _):
        assert (await failure(read(client, model="o1-mini"))).kind == "first_event"


# -- C. Body, not streaming ------------------------------------------------------------------------------------------

BROKEN_OFF = {"cls": APIConnectionError, "kind": "truncated body"}
MALFORMED = {"cls": APIResponseError, "kind": "response"}
SHORT = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n" + b'{"id"'


async def test_C1_fin_short_of_content_length() -> None:
    await fails(Send(SHORT), Close(), **BROKEN_OFF)  # type: ignore[arg-type]


async def test_C2_rst_in_body() -> None:
    await fails(Send(SHORT), Reset(), **BROKEN_OFF)  # type: ignore[arg-type]


@pytest.mark.parametrize("cut", [5, 30])
async def test_C3_fin_inside_a_chunk_or_before_the_last(cut: int) -> None:
    whole = http_response(200, chunks=[completion()])
    await fails(Send(whole[:-cut]), Close(), **BROKEN_OFF)  # type: ignore[arg-type]


async def test_C4_bad_chunk_size() -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    await fails(Send(head + b"ZZ\r\n{}\r\n"), Wait(), cls=APIConnectionError, kind="protocol")
    # Behind the headers, aiohttp 3.14.5 closes the connection and tells nobody: a timer must end the wait.
    later = [Send(head), Wait(0.01), Send(b"ZZ\r\n{}\r\n"), Wait()]
    await fails(*later, cls=APITimeoutError, kind="progress", timeout=Timeout(progress=0.05))


async def test_C5_close_delimited_body_cut() -> None:
    error = await fails(
        Send(http_response(200, completion()[:-20], close_delimited=True)),
        Close(),
        cls=APIResponseError,
        kind="truncated",
    )
    assert "cut" in str(error)


async def test_C6_body_longer_than_content_length() -> None:
    glued = ok(completion("first")) + ok(completion("not asked for"))
    async with dialled([ReadRequest(), Send(glued), Wait()], [ReadRequest(), Send(ok(completion("second")))]) as (
        client,
        server,
    ):
        assert (await ask(client)).text == "first"
        assert (await ask(client)).text == "second"
        assert server.connections == 2


async def test_C7_stalled_body() -> None:
    half = [Send(SHORT), Wait()]
    await fails(*half, cls=APITimeoutError, kind="progress", timeout=Timeout(progress=0.05))
    await fails(*half, cls=APITimeoutError, kind="total", timeout=Timeout(total=0.05))


async def test_C8_gzip_bomb() -> None:
    bomb = gzip.compress(b"a" * (40 << 20))
    head = {"Content-Encoding": "gzip", "Content-Type": "application/json"}
    error = await fails(Send(http_response(200, bomb, head)), Wait(), cls=StreamTooLargeError, kind="too large")
    assert "bytes" in str(error)
    async with dialled([ReadRequest(), Send(ok())]) as (client, server):
        await ask(client)
        assert b"accept-encoding: identity" in server.requests[0].lower()


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "foo"])
async def test_C9_broken_encoding(encoding: str) -> None:
    head = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    await fails(Send(http_response(200, b"\x00compressed?", head)), Wait(), cls=APIResponseError, kind="encoding")


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, GZIP", "foo", "none", "UTF-8", "identity, identity", ""])
async def test_C9_text_that_is_labelled_as_encoded(encoding: str) -> None:
    whole = http_response(200, completion(), {"Content-Encoding": encoding})
    stream = http_response(200, headers={"Content-Encoding": encoding}, chunks=[WHOLE, DONE])
    async with dialled([ReadRequest(), Send(whole), ReadRequest(), Send(stream)]) as (client, server):
        assert (await ask(client)).text == "Hello!"
        assert (await read(client)).text == "Hello!"
        assert len(server.requests) == 2


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip", "GZip, gzip"])
async def test_C9_an_encoding_that_nobody_asked_for(encoding: str) -> None:
    head = {"Content-Encoding": encoding}
    whole, stream, refused = gzip.compress(completion()), gzip.compress(WHOLE + DONE), gzip.compress(b'{"error": "no"}')
    if "," in encoding:
        whole, stream, refused = map(gzip.compress, (whole, stream, refused))
    answers = [(200, whole), (200, stream), (400, refused)]
    script = [step for status, body in answers for step in (ReadRequest(), Send(http_response(status, body, head)))]
    async with dialled(script) as (client, server):
        assert (await ask(client)).text == "Hello!"
        assert (await read(client)).text == "Hello!"
        error = await failure(ask(client))
        assert type(error) is BadRequestError
        assert "answered 400: no;" in str(error)
        assert len(server.requests) == 3


async def test_C9_a_compressed_body_that_is_cut() -> None:
    head = {"Content-Encoding": "gzip"}
    whole = http_response(200, gzip.compress(completion())[:-10], head)
    await fails(Send(whole), Wait(), cls=APIConnectionError, kind="truncated body")


@BOTH
async def test_C10_html_page_as_200(how: Any) -> None:
    page = b"<!doctype html><title>Just a moment</title>" + KEY.encode() + b"x" * 5000
    for media in ("text/html", "application/json"):
        error = await fails(
            Send(http_response(200, page, {"Content-Type": media})), cls=APIResponseError, kind="edge page", how=how
        )
        assert "Just a moment" in str(error)
        assert len(str(error)) < 2500


async def test_C11_json_as_text_plain() -> None:
    async with dialled([ReadRequest(), Send(http_response(200, completion(), {"Content-Type": "text/plain"}))]) as (
        c,
        _,
    ):
        assert (await ask(c)).text == "Hello!"


@BOTH
@pytest.mark.parametrize(
    ("error", "cls", "status"),
    [
        ({"message": "no", "code": "invalid_api_key"}, AuthenticationError, 401),
        ({"message": "no", "type": "insufficient_quota"}, InsufficientQuotaError, 402),
        ({"message": "no", "code": 429}, RateLimitError, 429),
        ({"message": "no", "code": "404"}, NotFoundError, 404),
        ({"message": "no", "type": "invalid_request_error", "param": "n"}, BadRequestError, 400),
        ({"message": "no"}, InternalServerError, 500),
        ("no", InternalServerError, 500),
    ],
)
async def test_C12_200_with_an_error_object(how: Any, error: object, cls: type[APIStatusError], status: int) -> None:
    body = json.dumps({"error": error}).encode()
    found = await fails(Send(ok(body)), cls=cls, kind="status", how=how, maybe_billed=False)
    assert isinstance(found, APIStatusError)
    assert found.status_code == status
    assert "no" in str(found)


async def test_C12_an_empty_error_object_beside_an_answer() -> None:
    nothing = {"message": "", "type": "", "param": None, "code": 0}
    async with dialled([ReadRequest(), Send(ok(completion(error=nothing)))]) as (client, _):
        assert (await ask(client)).text == "Hello!"
    events = chunk("Hello!", error=nothing), chunk(finish="stop", error={}), b"data: [DONE]\n\n"
    async with dialled([ReadRequest(), Send(sse(*events))]) as (client, _):
        assert (await read(client)).text == "Hello!"


@BOTH
async def test_C13_200_with_a_task_error(how: Any) -> None:
    for code, cls in ((403, "PermissionDeniedError"), (10001, "InternalServerError")):
        body = json.dumps({"code": code, "message": "no", "data": None}).encode()
        async with dialled([ReadRequest(), Send(ok(body))]) as (client, _):
            assert type(await failure(how(client))).__name__ == cls


@BOTH
async def test_C14_empty_200(how: Any) -> None:
    await fails(Send(ok(b"")), cls=APIResponseError, kind="empty", how=how)


@BOTH
async def test_C15_204(how: Any) -> None:
    await fails(Send(b"HTTP/1.1 204 No Content\r\n\r\n"), cls=APIResponseError, kind="empty", how=how)


@pytest.mark.parametrize("status", [206, 299, 304, 399])
@BOTH
async def test_C16_other_2xx_and_3xx(how: Any, status: int) -> None:
    kind = "redirect" if status >= 300 else "status"
    error = await fails(
        Send(http_response(status, b"" if status == 304 else completion())),
        cls=APIStatusError,
        kind=kind,
        how=how,
        maybe_billed=False,
    )
    assert isinstance(error, APIStatusError)
    assert error.status_code == status


async def test_C17_bom_in_front() -> None:
    async with dialled([ReadRequest(), Send(ok(b"\xef\xbb\xbf" + completion()))]) as (client, _):
        assert (await ask(client)).text == "Hello!"


async def test_C18_charset_lie() -> None:
    head = {"Content-Type": "application/json; charset=utf-16"}
    async with dialled([ReadRequest(), Send(http_response(200, completion("Grüße"), head))]) as (client, _):
        assert (await ask(client)).text == "Grüße"


async def test_C19_invalid_utf8() -> None:
    body = completion("a?b").replace(b"a?b", b"a\xffb")
    stream = WHOLE.replace(b"lo!", b"l\xff")
    async with dialled([ReadRequest(), Send(ok(body)), ReadRequest(), Send(sse(stream + DONE))]) as (client, _):
        assert (await ask(client)).text == "a\ufffdb"
        assert (await read(client)).text == "Hell\ufffd"


# -- D. Stream -------------------------------------------------------------------------------------------------------


async def test_D1_stall_between_tokens() -> None:
    stalled = [Send(sse_cut(chunk("Hel"))), Wait()]
    await fails(*stalled, cls=APITimeoutError, kind="progress", how=read, partial="Hel", timeout=Timeout(progress=0.05))


async def test_D2_comments_forever() -> None:
    comments = Repeat([Send(b"6\r\n: ka\n\n\r\n"), Wait(0.002)])
    started = [Send(sse_cut(chunk("Hel"))), comments]
    await fails(*started, cls=APITimeoutError, kind="progress", how=read, partial="Hel", timeout=Timeout(progress=0.05))


async def test_D3_first_event_never_comes() -> None:
    await fails(Send(sse_cut()), Wait(), cls=APITimeoutError, kind="first_event", how=read, timeout=FIRING)


async def test_D4_chunked_cut() -> None:
    cut = [Send(sse_cut(chunk("Hel"))), Close()]
    await fails(*cut, cls=StreamTruncatedError, kind="truncated", how=read, partial="Hel")
    await fails(
        Send(sse_cut(chunk("Hel"))), Reset(), cls=StreamTruncatedError, kind="truncated", how=read, partial="Hel"
    )


async def test_D5_close_delimited_cut() -> None:
    cut = Send(sse_closed(chunk("Hel"), chunk("lo!")))
    await fails(cut, Close(), cls=StreamTruncatedError, kind="truncated", how=read, partial="Hello!")
    async with dialled([ReadRequest(), Send(sse_closed(WHOLE))]) as (client, _):
        assert (await read(client)).finish_reason == "stop"  # no terminator, but finished


async def test_D6_a_long_stream_has_no_total() -> None:
    pieces: list[Step] = [step for _ in range(20) for step in (Send(b"".join([_chunked(chunk("x"))])), Wait(0.005))]
    script = [ReadRequest(), Send(sse_cut()), *pieces, Send(_chunked(chunk(finish="stop") + DONE) + b"0\r\n\r\n")]
    async with dialled(script, timeout=Timeout(total=0.05, first_event=5, progress=5)) as (client, _):
        assert (await read(client)).text == "x" * 20


def _chunked(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LARGEST_EVENT = 16 << 20


async def test_D7_a_line_of_a_mebibyte() -> None:
    frame = len(chunk("")) - len(b"data: \n\n")
    for size in (3 << 19, LARGEST_EVENT):  # a picture in base64, and the most that is taken
        text = "a" * (size - frame)
        async with dialled([ReadRequest(), Send(sse(chunk(text), chunk(finish="stop"), DONE))]) as (client, _):
            assert (await read(client)).text == text
    await fails(
        Send(sse_cut(chunk("Hel"), chunk(text + "a"))), Wait(), cls=StreamTooLargeError, kind="too large", how=read,
        partial="Hel",
    )  # fmt: skip


async def test_D8_endless_line() -> None:
    endless = Send(sse_cut(b"data: " + b"a" * (LARGEST_EVENT + 1)))
    await fails(endless, Wait(), cls=StreamTooLargeError, kind="too large", how=read)


async def test_D9_error_object_first() -> None:
    event = b'data: {"error": {"message": "no", "code": "model_not_found"}}\n\n'
    error = await fails(Send(sse(event)), cls=NotFoundError, kind="status", how=read, maybe_billed=False)
    assert not error.committed


async def test_D10_error_object_in_the_middle() -> None:
    event = b'data: {"error": {"message": "no", "type": null, "code": "500"}}\n\n'
    error = await fails(Send(sse(chunk("Hel"), event)), cls=InternalServerError, kind="status", how=read, partial="Hel")
    assert error.committed


async def test_D11_json_though_a_stream_was_asked_for() -> None:
    async with dialled([ReadRequest(), Send(ok()), ReadRequest(), Send(ok())]) as (client, _):
        async with client.stream(PROMPT) as stream:
            assert [token async for token in stream] == ["Hello!"]
        async with client.stream(PROMPT) as stream:
            assert [c.choices[0].finish_reason async for c in stream.chunks()] == ["stop"]
            whole = await stream.completion()
    assert (whole.text, whole.usage is not None) == ("Hello!", True)


@pytest.mark.parametrize("end", ["[none]", "[DONE]", "[NONE]", " [done] ", "[none]\n\ndata: [DONE]"])
async def test_D12_terminators(end: str) -> None:
    late = b"data: " + end.encode() + b"\n\n" + chunk("late") + b'data: {"error": "late"}\n\n'
    script = [ReadRequest(), Send(sse(WHOLE + late)), ReadRequest(), Send(sse(WHOLE + late))]
    async with dialled(script) as (client, server):
        for _ in range(2):
            assert (await read(client)).text == "Hello!"
        assert server.connections == 1  # the connection was drained, and used again


@pytest.mark.parametrize("nothing", [b"", b": ka\n\n: ka\n\n", DONE, b"data: [none]\n\n", b"data:\n\n"])
async def test_D13_empty_stream(nothing: bytes) -> None:
    error = await fails(Send(sse(nothing) if nothing else sse()), cls=APIResponseError, kind="empty", how=read)
    assert not error.committed


async def test_D14_only_usage() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 0, "total_tokens": 9}
    event = b"data: " + json.dumps({"choices": [], "usage": usage}).encode() + b"\n\n"
    async with dialled([ReadRequest(), Send(sse(event, DONE))]) as (client, _):
        answer = await read(client, model="gpt-4o")
    assert (answer.text, answer.finish_reason, answer.cost_estimated) == ("", None, False)
    assert str(answer.cost) == "0.000016875"


async def test_D15_no_usage_at_all() -> None:
    async with dialled([ReadRequest(), Send(sse(WHOLE, DONE))]) as (client, _):
        answer = await read(client)
    assert answer.usage is None
    assert answer.cost_estimated
    assert answer.cost is not None
    assert answer.cost > 0


async def test_D16_slow_consumer() -> None:
    flood = b"".join(_chunked(chunk("x" * 1000) * 50) for _ in range(20))
    sent = 0

    class Flood(Step):
        async def run(self, connection: Any) -> None:
            nonlocal sent
            for _ in range(50):
                connection.writer.write(flood)
                await connection.writer.drain()
                sent += len(flood)
            connection.writer.write(_chunked(chunk(finish="stop") + DONE) + b"0\r\n\r\n")

    timeout = Timeout(first_event=5, progress=0.05)
    async with dialled([ReadRequest(), Send(sse_cut()), Flood()], timeout=timeout) as (client, _):
        async with client.stream(PROMPT) as stream:
            assert await anext(stream)
            await asyncio.sleep(0.1)  # longer than the progress timer: it does not run while we hold the item
            before = sent
            await asyncio.sleep(0.02)
            assert sent == before < 50 * len(flood)  # reading is paused: the server waits
            assert len((await stream.completion()).text) == 50 * 20 * 50 * 1000


async def test_D17_server_never_closes_after_the_terminator() -> None:
    async with dialled([ReadRequest(), Send(sse_cut(WHOLE, DONE)), Wait()]) as (client, _):
        answer = await asyncio.wait_for(read(client), 1)
        assert answer.text == "Hello!"
        await asyncio.sleep(0.15)
        assert "open=0" in repr(client)


async def test_D18_retry_and_id_fields() -> None:
    events = b"retry: 1\nid: 7\n" + WHOLE
    await fails(
        Send(sse_closed(events.replace(b'"stop"', b"null"))), Close(), cls=StreamTruncatedError, kind="truncated",
        how=read, partial="Hello!",
    )  # fmt: skip
    async with dialled([ReadRequest(), Send(sse(events, DONE))]) as (client, server):
        assert (await read(client)).text == "Hello!"
        assert b"last-event-id" not in server.requests[0].lower()


# -- G. Key handling -------------------------------------------------------------------------------------------------


def refused_key(key: Any) -> str:
    for make in (lambda: Client(key), lambda: Provider("backup", "https://example.com", key)):
        with pytest.raises(ConfigurationError) as caught:
            make()
        assert_tight(caught.value)
        assert "api_key" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("bad", ["\r\nX: 1", "\n", "\0", "\x7f", "\t"])
def test_G1_key_with_control_characters(bad: str) -> None:
    refused_key(f"{KEY}{bad}{KEY}")


async def test_G2_key_with_a_line_end_from_a_file() -> None:
    async with RawServer([ReadRequest(), Send(ok())]) as server:
        async with Client(f"{KEY}\n", base_url=server.base_url, model="m") as client:
            await ask(client)
        assert f"Authorization: Bearer {KEY}\r\n".encode() in server.requests[0]


@pytest.mark.parametrize(
    "bad", ["", "  ", f"Bearer {KEY}", "schlüssel", "\ud83d", "\U0001f511", "a b", "a" * 513, 5, b"key", []]
)
def test_G3_key_that_can_be_none(bad: Any) -> None:
    refused_key(bad)


async def test_G4_nothing_shows_the_key() -> None:
    provider = Provider("backup", "https://example.com", [KEY, KEY], headers={"X-Team": "blue"})
    pool = SessionPool(provider.endpoints())
    async with Client(KEY, transport=pool) as client:
        seen: list[object] = [provider, attrs.asdict(provider), cattrs.unstructure(provider), copy.copy(provider)]
        seen += [copy.deepcopy(provider), *provider.endpoints(), client, vars(client), pool, vars(pool)]
        for each in seen:
            assert KEY not in f"{each!r} {each!s} {each}"


def test_G5_a_client_is_not_pickled() -> None:
    for spread in (pickle.dumps, copy.deepcopy, copy.copy):
        with pytest.raises(TypeError):
            spread(Client(KEY))
    with pytest.raises(TypeError):
        pickle.dumps(Provider("backup", "https://example.com", KEY))


async def test_G6_error_chain() -> None:
    for steps in ([Send(b"SSH-2.0\r\n"), Wait()], [Send(http_response(401, b"{}"))], [Close()], [Send(ok(b"{"))]):
        async with dialled([ReadRequest(), *steps]) as (client, _):
            error = await failure(ask(client))
            assert error.__cause__ is None
            assert error.__context__ is None


async def test_G7_traceback_with_locals() -> None:
    async with dialled([ReadRequest(), Send(ok(b'{"choices": 1}'))]) as (client, _):
        with pytest.raises(APIResponseError) as caught:
            await client.complete(PROMPT)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    frames = [frame for frame in shown.stack if "piapi_async" in frame.filename]
    assert frames
    assert all(canary not in repr(frame.locals) for frame in frames for canary in CANARIES)


async def test_G8_logs_and_debug_mode(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 0.0  # every step of a task is logged
    try:
        async with dialled([ReadRequest(), Send(ok()), ReadRequest(), Send(sse(WHOLE, DONE)), Wait()]) as (client, _):
            await ask(client)
            await read(client)
    finally:
        loop.set_debug(False)
    assert caplog.records
    assert all(canary not in caplog.text for canary in CANARIES)


@BOTH
async def test_G9_server_echoes_the_key(how: Any) -> None:
    for status in (401, 500, 302, 200):
        body = json.dumps({"error": {"message": f"bad key {KEY}", "code": KEY, "param": KEY, "type": KEY}}).encode()
        head = {"Content-Type": "application/json", "Location": f"https://{KEY}@{KEY}.example/", "x-request-id": KEY}
        async with dialled([ReadRequest(), Send(http_response(status, body, head))]) as (client, _):
            error = await failure(how(client))
            assert isinstance(error, APIStatusError)
    event = b"event: error\ndata: no such key: " + KEY.encode() + b"\n\n"
    await fails(Send(sse(chunk("Hel"), event)), cls=InternalServerError, kind="status", how=read, partial="Hel")


@BOTH
async def test_G10_huge_and_dirty_error_body(how: Any) -> None:
    dirty = b"\x1b[31mred\x1b[0m\nline\x00 \xff" + b"x" * (10 << 20)
    async with dialled([ReadRequest(), Send(http_response(500, dirty)), Wait()]) as (client, _):
        error = await failure(how(client))
    assert isinstance(error, InternalServerError)
    assert len(error.body) <= 2000
    assert len(str(error)) < 1000
    for text in (str(error), error.body):
        assert text.isprintable()
        assert "red" in text


async def test_G11_no_file_is_written_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    async with dialled([ReadRequest(), Send(ok())]) as (client, _):
        await ask(client)
    assert files(tmp_path) == {}


def files(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Mode and content of each file."""
    return {path.name: (stat.S_IMODE(path.stat().st_mode), path.read_bytes()) for path in directory.iterdir()}


async def test_G11_files_of_a_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The server names the key in an error: what goes into a file is scrubbed as what is shown is.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    umask = os.umask(0)
    bad = json.dumps({"error": {"message": f"bad key {KEY}", "code": KEY, "param": KEY, "type": KEY}}).encode()
    script = [ReadRequest(), Send(ok()), ReadRequest(), Send(http_response(400, bad)), ReadRequest(), Wait()]
    ending, found = anyio.Event(), dict[str, tuple[int, bytes]]()
    try:
        async with dialled(script) as (client, server):

            async def look() -> None:
                while len(server.requests) < 3:
                    await anyio.sleep(0.001)
                found.update(files(tmp_path))
                ending.set()

            async with anyio.create_task_group() as group:
                group.start_soon(look)
                status = await run_batch(["x"] * 3, "out.jsonl", client=client, concurrency=1, ending=ending, grace=0)
    finally:
        os.umask(umask)
    assert (status.done, status.cut) == (1, ("row-3",))
    assert found.keys() == files(tmp_path).keys() == {"out.jsonl", "out.jsonl.inflight"}
    for mode, content in (*found.values(), *files(tmp_path).values()):
        assert mode == 0o600
        assert content
        assert KEY.encode() not in content


@pytest.mark.parametrize("name", ["out.jsonl", "out.jsonl.inflight"])
async def test_G11_no_link_is_followed(tmp_path: Path, name: str) -> None:
    (tmp_path / "target").write_bytes(b"precious")
    (tmp_path / name).symlink_to(tmp_path / "target")
    async with dialled([]) as (client, server):
        with pytest.raises(BatchError):
            await run_batch(["x"], tmp_path / "out.jsonl", client=client)
    assert server.requests == []
    assert files(tmp_path)["target"][1] == b"precious"


# -- H. JSON and types -----------------------------------------------------------------------------------------------


async def answers(body: bytes) -> ChatCompletion:
    async with dialled([ReadRequest(), Send(ok(body))]) as (client, _):
        return await ask(client)


async def malformed(body: bytes, kind: str = "response") -> str:
    return str(await fails(Send(ok(body)), cls=APIResponseError, kind=kind))


@pytest.mark.parametrize("body", [completion() + b" x", b"{'choices': []}", b"nonsense", b'{"choices": [', b"{}{}"])
async def test_H1_invalid_json(body: bytes) -> None:
    async with dialled([ReadRequest(), Send(ok(body))]) as (client, _):
        error = await failure(ask(client))
    assert type(error) is APIResponseError
    assert len(str(error)) < 1000


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
async def test_H2_nan(number: str) -> None:
    await malformed(completion(extra="?").replace(b'"?"', number.encode()))
    body = completion().replace(b'"prompt_tokens": 3', b'"prompt_tokens": 1e999')
    assert (await answers(body)).usage is None
    async with dialled([ReadRequest(), Send(sse(b'data: {"choices": [], "x": NaN}\n\n'))]) as (client, _):
        assert type(await failure(read(client))) is APIResponseError


async def test_H3_integer_of_5000_digits() -> None:
    answer = await answers(completion(created="?").replace(b'"?"', b"9" * 5000))
    assert (answer.created, answer.text) == (0, "Hello!")
    assert answer.raw["created"] == "9" * 5000


@pytest.mark.parametrize("depth", [990, 100_000])
async def test_H4_depth(depth: int) -> None:
    await malformed(b"[" * depth, "response")
    nested = b"[" * depth + b"]" * depth
    assert "deep" in await malformed(completion(extra="?").replace(b'"?"', nested))
    event = b'data: {"choices": [], "x": ' + nested + b"}\n\n"
    async with dialled([ReadRequest(), Send(sse(event))]) as (client, _):
        assert type(await failure(read(client))) is APIResponseError


async def test_H5_duplicate_keys() -> None:
    assert (await answers(b'{"choices": [], ' + completion()[1:])).text == "Hello!"


async def test_H6_surrogates() -> None:
    body = completion("?").replace(b'"?"', rb'"\ud83d\ude00 \ud83d \ude00"')
    answer = await answers(body)
    assert answer.text == "\U0001f600 \ufffd \ufffd"
    assert json.dumps(answer.raw, ensure_ascii=False).encode()
    halves = [chunk("?").replace(b'"?"', half) for half in (rb'"a\ud83d"', rb'"\ude00b"', rb'"c\ud83d"', rb'"d\ud83d"')]
    async with dialled([ReadRequest(), Send(sse(*halves, chunk(finish="stop"), DONE))]) as (client, _):
        async with client.stream(PROMPT) as stream:
            tokens = [token async for token in stream]
            whole = await stream.completion()
    assert "".join(tokens) == whole.text == "a\U0001f600bc\ufffdd\ufffd"
    assert all(token.encode() for token in tokens)


@pytest.mark.parametrize("body", [b"[]", b'"text"', b"null", b"1"])
async def test_H7_top_level(body: bytes) -> None:
    assert "object" in await malformed(body, "not a completion")


@pytest.mark.parametrize("choices", [[], None, {}, "abc", 1, [1]])
async def test_H8_choices(choices: object) -> None:
    await malformed(completion(choices=choices), "not a completion")
    await malformed(b'{"id": "c-1"}', "not a completion")
    event = b'data: {"choices": []}\n\n'
    async with dialled([ReadRequest(), Send(sse(event, WHOLE, DONE))]) as (client, _):
        assert (await read(client)).text == "Hello!"


async def test_H9_message() -> None:
    assert (await answers(completion(None))).choices[0].message.content is None
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo!"}, {"type": "image_url"}]
    answer = await answers(completion(parts))
    assert (answer.choices[0].message.content, answer.text) == (tuple(parts), "Hello!")
    assert "$.choices[0]" in await malformed(completion(choices=[{"index": 0}]), "not a completion")
    await malformed(completion(choices=[{"index": 0, "message": None}]), "not a completion")


@pytest.mark.parametrize(
    ("choice", "path"),
    [
        ({"index": 0, "message": {"role": "assistant", "content": 5}}, "content"),
        ({"index": 0, "message": {"role": "assistant", "content": ["x"]}}, "content"),
        ({"index": 0, "message": {"role": "assistant", "function_call": {"name": 5}}}, "name"),
    ],
)
async def test_H10_no_coercion_of_text(choice: object, path: str) -> None:
    assert path in await malformed(completion(choices=[choice]), "not a completion")


@pytest.mark.parametrize(
    "changes",
    [
        {"message": {"role": None, "content": "x"}},
        {"message": {"role": 7, "content": "x", "name": 5, "refusal": False}},
        {"index": "0"},
        {"index": True},
        {"index": None},
        {"index": [0]},
        {"finish_reason": 1},
        {"finish_reason": "null"},
        {"message": {"role": "assistant", "content": "x", "tool_calls": {}, "function_call": ""}},
        {"message": {"role": "assistant", "content": "x", "tool_calls": [None]}},
        {"message": {"role": "assistant", "content": "x", "tool_calls": ""}},
        {"message": None, "delta": {"content": "x"}},
        {"message": "", "text": "x"},
    ],
)
async def test_H10_what_no_text_depends_on_is_mended(changes: dict[str, object]) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": None, **changes}
    answer = await answers(completion(choices=[choice]))
    mended = answer.choices[0]
    assert (mended.index, mended.message.role, mended.message.content) == (0, "assistant", "x")
    assert (mended.finish_reason, mended.message.tool_calls or None) == (None, None)
    assert answer.raw["choices"] == [choice]


async def test_H10_ids_and_arguments_of_calls_are_mended() -> None:
    calls = [
        {"index": "0", "id": 7, "function": {"name": "f", "arguments": {"a": 1}}},
        {"index": None, "id": "", "type": 5, "name": "g", "arguments": "{}"},
    ]
    choice = {"index": 0, "message": {"role": "assistant", "content": None, "tool_calls": calls}}
    message = (await answers(completion(choices=[choice]))).choices[0].message
    assert message.tool_calls == (
        ToolCall(FunctionCall("f", '{"a": 1}'), "7", index=0),
        ToolCall(FunctionCall("g", "{}"), None),
    )


async def test_H10_indexes_that_are_doubled_are_positions() -> None:
    choices = [{"index": 0, "message": {"role": "assistant", "content": text}} for text in "ab"]
    answer = await answers(completion(choices=choices))
    assert [(choice.index, choice.message.text) for choice in answer.choices] == [(0, "a"), (1, "b")]


async def test_H11_unknown_values_are_kept() -> None:
    message = {"role": "oracle", "content": "x", "refusal": None}
    choice = {"index": 0, "message": message, "finish_reason": "tired", "stop_reason": 7}
    answer = await answers(completion(choices=[choice], model="gpt-9", timings={"x": 1}))
    assert (answer.finish_reason, answer.choices[0].message.role, answer.model) == ("tired", "oracle", "gpt-9")
    assert answer.raw["timings"] == {"x": 1}
    assert answer.raw["choices"] == [choice]


@pytest.mark.parametrize("reason", ["length", "content_filter"])
async def test_H12_length_and_content_filter(reason: str) -> None:
    choice = {"index": 0, "message": {"role": "assistant", "content": "x"}, "finish_reason": reason}
    answer = await answers(completion(choices=[choice]))
    assert (answer.finish_reason, len(answer.attempts)) == (reason, 1)


@pytest.mark.parametrize(
    "usage",
    [
        None,
        "many",
        [],
        {},
        {"prompt_tokens": -3, "completion_tokens": 2, "total_tokens": -1},
        {"prompt_tokens": 3.5, "completion_tokens": 2, "total_tokens": 5.5},
        {"prompt_tokens": 10**12, "completion_tokens": 2, "total_tokens": 10**12 + 2},
        {"prompt_tokens": [3], "completion_tokens": 2, "total_tokens": 5},
        {"prompt_tokens": True, "completion_tokens": 2, "total_tokens": 3},
    ],
)
async def test_H13_usage_that_is_none(usage: object) -> None:
    answer = await answers(completion(usage=usage))
    assert answer.usage is None
    assert answer.cost_estimated
    assert answer.cost is not None
    assert answer.cost > 0


@pytest.mark.parametrize(
    ("usage", "seen"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 2}, (3, 2, 5)),
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": None}, (3, 2, 5)),
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 0}, (3, 2, 5)),
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 4}, (3, 2, 5)),
        ({"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 9}, (3, 2, 9)),
        ({"prompt_tokens": 3.0, "completion_tokens": "2", "total_tokens": "9.0"}, (3, 2, 9)),
        ({"input_tokens": 3, "output_tokens": 2}, (3, 2, 5)),
    ],
)
async def test_H13_usage_that_is_mended(usage: dict[str, object], seen: tuple[int, int, int]) -> None:
    answer = await answers(completion(usage=usage))
    assert answer.usage is not None
    counts = answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens
    assert (counts, answer.cost_estimated) == (seen, False)
    billed = await answers(completion(usage={"prompt_tokens": seen[0], "completion_tokens": seen[2] - seen[0]}))
    assert answer.cost == billed.cost


async def test_H13_usage_in_other_places() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hello!"}, "finish_reason": "stop"}
    for body in (
        completion(usage=None, x_groq={"id": "r-1", "usage": usage}),
        completion(usage=None, choices=[{**choice, "usage": usage}]),
    ):
        assert (await answers(body)).usage == Usage(3, 2, 5)


async def test_H13_details() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 2}, "completion_tokens_details": {"reasoning_tokens": 1}}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "cost": 0.5, **details}
    assert (await answers(completion(usage=usage))).usage == Usage(3, 2, 5, 2, 1, extra={**details, "cost": 0.5})
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5, "prompt_cache_hit_tokens": 1}
    read = (await answers(completion(usage=usage))).usage
    assert read is not None
    assert (read.cached_tokens, read.reasoning_tokens) == (1, None)


async def test_H14_another_model_answers() -> None:
    answer = await answers(completion(model="gpt-4o-mini-2024-07-18"))
    assert answer.model == "gpt-4o-mini-2024-07-18"
    assert str(answer.cost) == "0.000020625"  # of the model that was asked


@pytest.mark.parametrize(("created", "seen"), [("1695900828", 1695900828), (1.5, 1), (None, 0), ("soon", 0), ([], 0)])
async def test_H15_created_and_id(created: object, seen: int) -> None:
    body = json.loads(completion(created=created))
    del body["id"]
    answer = await answers(json.dumps(body).encode())
    assert (answer.created, answer.id, answer.text) == (seen, "", "Hello!")


def _circular() -> list[object]:
    ring: list[object] = []
    ring.append(ring)
    return ring


@pytest.mark.parametrize(
    ("prompt", "params"),
    [
        ("x", {"temperature": float("nan")}),
        ("x", {"n": 0}),
        ("x", {"stop": list("abcde")}),
        ("x", {"extra_body": {"a": {1, 2}}}),
        ("x", {"extra_body": {"a": float("inf")}}),
        ("x", {"functions": [{"name": "f", "parameters": _circular()}]}),
        ("\ud83d", {}),
        (PROMPT.encode(), {}),
        (PROMPT * ((50 << 20) // len(PROMPT)), {}),
        ([], {}),
    ],
    ids=["nan", "n", "stop", "set", "inf", "circular", "surrogate", "bytes", "50MB", "empty"],
)
@BOTH
async def test_H16_callers_input(how: Any, prompt: Any, params: dict[str, Any]) -> None:
    async with dialled([ReadRequest(), Send(ok())]) as (client, server):
        with pytest.raises(InvalidRequestError) as caught:
            if how is ask:
                await client.complete(prompt, **params)
            else:
                async with client.stream(prompt, **params):
                    pass
        assert isinstance(caught.value, ValueError)
        if isinstance(prompt, str) and len(prompt) < 100:
            assert_tight(caught.value)
        assert server.requests == []


@pytest.mark.parametrize("model", ["o1-preview", "o1-mini"])
async def test_H17_system_role_with_o1(model: str) -> None:
    async with dialled([ReadRequest(), Send(ok())]) as (client, server):
        with pytest.raises(InvalidRequestError, match="system"):
            await client.complete([Message("system", "Be brief."), Message("user", PROMPT)], model=model)
        assert server.requests == []
