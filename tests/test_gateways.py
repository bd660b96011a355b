"""What gateways that bend the format send, over real sockets: nothing of an answer is lost, made up, or bought twice.

Each kind has its section here, 9 to 13 in `test_gateways_kept.py`; `test_gateways_more.py` mixes them. Other files
hold the details:

| Kind                         | Tests             | More of it                                         |
|------------------------------|-------------------|----------------------------------------------------|
| 1. The end of a stream       | `test_end_…`      | `wire/test_join.py`, `stream/test_reading.py`      |
| 2. Tool calls                | `test_calls_…`    | `wire/test_join.py`, `test_faults.py` (H10)        |
| 3. Choices                   | `test_choices_…`  | `wire/test_indexes.py`, `wire/test_chunks.py`      |
| 4. A field of a wrong type   | `test_field_…`    | `test_faults.py` (H10), `wire/test_completion.py`  |
| 5. Events that say nothing   | `test_event_…`    | `wire/test_chunks.py`, `test_sse.py`               |
| 6. Content encodings         | `test_encoding_…` | `pool/test_encoding.py`, `test_faults.py` (C9)     |
| 7. The other form than asked | `test_form_…`     | `wire/test_completion.py`, `test_faults.py` (D11)  |
| 8. Shapes of errors          | `test_error_…`    | `wire/test_failure.py`, `test_faults_status.py`    |
| 9. Large events              | `test_large_…`    | `test_sse.py`, `test_faults.py` (D7, D8)           |
| 10. Usage                    | `test_usage_…`    | `test_faults.py` (H13), `wire/test_completion.py`  |
| 11. Fields that are kept     | `test_kept_…`     | `stream/test_events.py`, `wire/test_join.py`       |
| 12. An answer sent back      | `test_history_…`  | `models/test_requests.py`, `wire/test_call_ids.py` |
| 13. An answer by stream      | `test_long_…`     | `dispatch/test_via_stream.py`                      |
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from typing import Any

import pytest

from piapi_async import (
    APIResponseError,
    APIStatusError,
    ChatCompletion,
    FunctionCall,
    Provider,
    RateLimitError,
    Retry,
    StreamTruncatedError,
    ToolCall,
    Usage,
)
from piapi_async.errors import InsufficientQuotaError, InternalServerError
from piapi_async.stream import CallDelta, Text
from piapi_async.testing import Close, RawServer, ReadRequest, Send, http_response
from tests.gateways import COUNTS, answer, event, events_of, named, part, plain
from tests.leaks import PROMPT
from tests.wires import (
    BOTH,
    DONE,
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

# -- 1. The end of a stream --------------------------------------------------------------------------------------------

CUT = {
    "no word ends it: empty": [part(0, "", content="The sea"), part(0, "", content=" sleeps")],
    "no word ends it: the word null": [part(0, "null", content="The sea"), part(0, "NULL", content=" sleeps")],
    "no word ends it: a number": [part(0, 1, content="The sea"), part(0, 1, content=" sleeps")],
    "no word ends it: true": [part(0, True, content="The sea"), part(0, True, content=" sleeps")],
    "text goes on behind its end": [part(0, "stop", content="The sea"), part(content=" sleeps")],
    "text begins behind the end of the reasoning": [
        part(0, "stop", reasoning="Waves…"),
        part(content="The sea"),
        part(content=" sleeps"),
    ],
    "another choice has no end": [part(content="The sea sleeps"), part(1, content="Oh"), part(0, "stop")],
    "the last event breaks off": [part(content="The sea sleeps"), part(0, "stop")[:-9]],
    "the terminator breaks off": [part(content="The sea sleeps"), DONE[:-5]],
}


@named(CUT)
async def test_end_of_an_answer_that_is_cut(case: Sequence[bytes]) -> None:
    kinds = {"cls": StreamTruncatedError, "kind": "truncated", "partial": "The sea sleeps"}
    await fails(Send(sse_closed(*case)), Close(), how=read, **kinds)  # type: ignore[arg-type]


WHOLE_ENDS = {
    "a word": ([part(content="The sea"), part(0, "stop")], "stop"),
    "a word that nobody knows": ([part(content="The sea"), part(0, "tide_out")], "tide_out"),
    "text behind an end has an end too": (
        [part(0, "stop", content="The "), part(0, "length", content="sea")],
        "length",
    ),
    "an event without its blank line": ([part(content="The "), part(0, "stop", content="sea").rstrip()], "stop"),
    "an event with one line end": ([part(content="The "), part(0, "stop", content="sea")[:-1]], "stop"),
    "a terminator without its blank line": ([part(content="The sea"), DONE.rstrip()], None),
    "a terminator in quotes": ([part(content="The sea"), b'data: "[DONE]"\n\n'], None),
    "a terminator in the event of the last chunk": ([part(0, "stop", content="The sea")[:-2] + b" [DONE]"], "stop"),
    "no word, and a terminator": ([part(0, "", content="The sea"), DONE], None),
}


@named(WHOLE_ENDS)
async def test_end_of_an_answer_that_is_whole(case: tuple[list[bytes], str | None]) -> None:
    events, finish_reason = case
    whole = await answer(sse_closed(*events))
    assert (whole.text, whole.finish_reason) == ("The sea", finish_reason)


async def test_end_of_an_answer_whose_connection_broke_behind_it() -> None:
    assert (await answer(sse_cut(part(0, "stop", content="The sea")))).text == "The sea"


async def test_end_of_as_many_choices_as_were_asked_for() -> None:
    first, second = part(0, "stop", content="a"), part(1, "stop", content="b")
    both = await answer(sse_closed(first, second), n=2)
    assert [choice.message.text for choice in both.choices] == ["a", "b"]
    assert len((await answer(sse_closed(first, DONE), n=2)).choices) == 1  # a server that knows no n said that it ended

    async def two(client: Any) -> ChatCompletion:
        return await read(client, n=2)

    await fails(
        Send(sse_closed(first)), Close(), cls=StreamTruncatedError, kind="truncated", how=two, partial="a"
    )  # the other one may be on its way


BROKEN = {
    "the word error": ({"finish_reason": "error"}, InternalServerError, 500),
    "an error with its code": (
        {"finish_reason": "error", "error": {"code": 429, "message": "slower"}},
        RateLimitError,
        429,
    ),
    "an error of a choice that ended well": (
        {"finish_reason": "stop", "error": {"code": 503, "message": "upstream is gone"}},
        InternalServerError,
        503,
    ),
}


@named(BROKEN)
@BOTH
async def test_end_by_an_error_in_a_choice(how: Any, case: tuple[dict[str, Any], type[APIStatusError], int]) -> None:
    fields, cls, status = case
    if how is ask:
        sent = ok(completion(choices=[{"index": 0, "message": {"role": "assistant", "content": "The"}, **fields}]))
    else:
        sent = sse(part(content="The"), event(choices=[{"index": 0, "delta": {}, **fields}]), DONE)
    async with dialled([ReadRequest(), Send(sent)]) as (client, _):
        error = await failure(how(client))
    assert isinstance(error, APIStatusError)
    assert (type(error), error.status_code) == (cls, status)
    assert error.partial == ("" if how is ask else "The")


# -- 2. Tool calls -----------------------------------------------------------------------------------------------------

OSLO, NOON = FunctionCall("weather", '{"city": "Oslo"}'), FunctionCall("clock", '{"zone": "UTC"}')
TWO = (ToolCall(OSLO, "a"), ToolCall(NOON, "b"))
TWO_WITHOUT_IDS = (ToolCall(OSLO), ToolCall(NOON))


def call(name: str | None = None, arguments: object = None, /, **fields: Any) -> dict[str, Any]:
    function = {"name": name, "arguments": arguments}
    return {**fields, "function": {key: value for key, value in function.items() if value is not None}}


WEATHER, CLOCK = ("weather", '{"city": "Oslo"}'), ("clock", '{"zone": "UTC"}')

STREAMED: dict[str, tuple[list[list[dict[str, Any]]], tuple[ToolCall, ...]]] = {
    "whole calls that all have the index 0": (
        [[call(*WEATHER, index=0, id="a")], [call(*CLOCK, index=0, id="b")]],
        TWO,
    ),
    "pieces of calls that all have the index 0": (
        [
            [call("weather", '{"city": ', index=0, id="a")],
            [call(None, '"Oslo"}', index=0)],
            [call("clock", '{"zone": ', index=0, id="b")],
            [call(None, '"UTC"}', index=0, id="b")],
        ],
        TWO,
    ),
    "two at once, without index and id": ([[call(*WEATHER), call(*CLOCK)]], TWO_WITHOUT_IDS),
    "one behind the other, without index and id": ([[call(*WEATHER)], [call(*CLOCK)]], TWO_WITHOUT_IDS),
    "two at once, with null for an index": (
        [[call(*WEATHER, index=None, id="a"), call(*CLOCK, index=None, id="b")]],
        TWO,
    ),
    "blank ids on later pieces": (
        [
            [call("weather", '{"city": ', id="a")],
            [call("", '"Oslo"}', id="")],
            [call("clock", "", id="b")],
            [call(None, '{"zone": "UTC"}', id=" ")],
        ],
        TWO,
    ),
    "indexes that are strings, interleaved": (
        [
            [call("weather", '{"city": ', index="0", id="a")],
            [call("clock", '{"zone": ', index="1", id="b")],
            [call(None, '"Oslo"}', index="0")],
            [call(None, '"UTC"}', index="1")],
        ],
        TWO,
    ),
    "an id without a name that changes while a call is open": (
        [
            [call("weather", '{"city": ', index=0, id="a")],
            [call(None, '"Oslo"}', index=0, id="chunk-2")],
            [call(*CLOCK, index=1, id="b")],
        ],
        TWO,
    ),
    "arguments that are objects": (
        [[call("weather", {"city": "Oslo"}, index=0, id="a")], [call("clock", {"zone": "UTC"}, index=1, id="b")]],
        TWO,
    ),
    "an empty object first, the arguments behind it": (
        [
            [call("weather", "{}", index=0, id="a")],
            [call(None, '{"city": "Oslo"}', index=0)],
            [call("clock", "{}", index=1, id="b")],
            [call(None, '{"zone": "UTC"}', index=1)],
        ],
        TWO,
    ),
    "name and arguments without an object around them": (
        [
            [{"index": 0, "id": "a", "name": "weather", "arguments": '{"city": "Oslo"}'}],
            [{"index": 1, "id": "b", "name": "clock", "arguments": {"zone": "UTC"}}],
        ],
        TWO,
    ),
}


@named(STREAMED)
async def test_calls_of_a_stream(case: tuple[list[list[dict[str, Any]]], tuple[ToolCall, ...]]) -> None:
    lists, calls = case
    parts = [part(tool_calls=each) for each in lists]
    whole = await answer(sse(*parts, part(0, "tool_calls"), DONE))
    assert whole.choices[0].message.tool_calls == calls
    assert (whole.text, whole.finish_reason) == ("", "tool_calls")
    told = [each for each in await events_of(*parts, part(0, "tool_calls"), DONE) if isinstance(each, CallDelta)]
    for index, each in enumerate(calls):  # pieces of one call have its index, whatever the server said
        arguments = "".join(piece.arguments for piece in told if piece.index == index)
        assert arguments.removeprefix("{}") == each.function.arguments


PLAIN: dict[str, tuple[object, tuple[ToolCall, ...]]] = {
    "arguments that are objects": (
        [call("weather", {"city": "Oslo"}, id="a"), call("clock", {"zone": "UTC"}, id="b")],
        TWO,
    ),
    "no ids": ([call(*WEATHER), call(*CLOCK)], TWO_WITHOUT_IDS),
    "blank ids": ([call(*WEATHER, id=""), call(*CLOCK, id=" ")], TWO_WITHOUT_IDS),
    "a null among them": ([call(*WEATHER, id="a"), None, call(*CLOCK, id="b")], TWO),
    "one call that is not in a list": (call(*WEATHER, id="a"), TWO[:1]),
    "an id that is a number": ([call(*WEATHER, id=7)], (ToolCall(OSLO, "7"),)),
}


@named(PLAIN)
async def test_calls_of_a_plain_answer(case: tuple[object, tuple[ToolCall, ...]]) -> None:
    sent, calls = case
    assert (await answer(ok(plain(tool_calls=sent)), ask)).choices[0].message.tool_calls == calls


async def test_calls_by_the_older_name_with_an_object_for_arguments() -> None:
    function_call = {"name": "weather", "arguments": {"city": "Oslo"}}
    assert (await answer(ok(plain(function_call=function_call)), ask)).choices[0].message.function_call == OSLO
    streamed = await answer(sse(part(function_call=function_call), part(0, "function_call"), DONE))
    assert streamed.choices[0].message.function_call == OSLO


# -- 3. Choices --------------------------------------------------------------------------------------------------------

CHOICES: dict[str, list[object]] = {
    "message instead of delta": [[{"index": 0, "message": {"content": "Hi, sea"}}]],
    "message beside an empty delta": [[{"index": 0, "delta": {}, "message": {"content": "Hi, sea"}}]],
    "message beside a null": [[{"index": 0, "delta": None, "message": {"content": "Hi, sea"}}]],
    "the whole message behind its deltas": [
        [{"index": 0, "delta": {"content": "Hi, "}}],
        [{"index": 0, "delta": {"content": "sea"}}],
        [{"index": 0, "message": {"content": "Hi, sea"}, "finish_reason": "stop"}],
    ],
    "text instead of either": [[{"index": 0, "text": "Hi, "}], [{"index": 0, "text": "sea"}]],
    "an index that counts chunks": [[{"index": i, "delta": {"content": c}}] for i, c in enumerate("Hi, sea")],
    "an index that is null": [[{"index": None, "delta": {"content": c}}] for c in ("Hi, ", "sea")],
    "an index that is a string": [[{"index": "0", "delta": {"content": c}}] for c in ("Hi, ", "sea")],
    "no index": [[{"delta": {"content": c}}] for c in ("Hi, ", "sea")],
    "one object instead of a list": [{"index": 0, "delta": {"content": c}} for c in ("Hi, ", "sea")],
    "a null before the choice": [[None, {"index": 0, "delta": {"content": "Hi, sea"}}]],
    "parts of text": [[{"index": 0, "delta": {"content": [{"type": "text", "text": c}]}}] for c in ("Hi, ", "sea")],
}


@named(CHOICES)
async def test_choices_of_a_stream(case: list[object]) -> None:
    events = [event(choices=choices) for choices in case]
    whole = await answer(sse(*events, DONE))
    assert [(choice.index, choice.message.content) for choice in whole.choices] == [(0, "Hi, sea")]
    async with dialled([ReadRequest(), Send(sse(*events, DONE))]) as (client, _), client.stream(PROMPT) as stream:
        assert "".join([token async for token in stream]) == "Hi, sea"


async def test_choices_of_which_the_second_has_one_chunk() -> None:
    """Its index may count chunks as well; only one of them ended says that there are two."""
    whole = await answer(sse(part(0, "stop", content="a"), part(1, "stop", content="b"), DONE))
    assert [choice.message.text for choice in whole.choices] == ["a", "b"]
    whole = await answer(sse(part(content="a"), part(1, "stop", content="b"), DONE))
    assert [choice.message.text for choice in whole.choices] == ["ab"]


PLAIN_CHOICES: dict[str, object] = {
    "delta instead of message": [{"index": 0, "delta": {"content": "Hi, sea"}}],
    "text instead of either": [{"index": 0, "text": "Hi, sea"}],
    "one object instead of a list": {"index": 0, "message": {"content": "Hi, sea"}},
    "an index that is a string": [{"index": "0", "message": {"content": "Hi, sea"}}],
    "an index that is null": [{"index": None, "message": {"content": "Hi, sea"}}],
    "a null before the choice": [None, {"index": 0, "message": {"content": "Hi, sea"}}],
}


@named(PLAIN_CHOICES)
async def test_choices_of_a_plain_answer(case: object) -> None:
    whole = await answer(ok(completion(choices=case)), ask)
    assert [(choice.index, choice.message.content) for choice in whole.choices] == [(0, "Hi, sea")]


# -- 4. A field of a wrong type ----------------------------------------------------------------------------------------

FIELDS: dict[str, dict[str, Any]] = {
    "an id that is a number": {"id": 17},
    "a model that is null": {"model": None},
    "a model that is an object": {"model": {"name": "gpt-4o"}},
    "a time that is text": {"created": "today"},
    "a time that is broken": {"created": 1700000000.25},
    "an object that is a number": {"object": 3},
    "usage that is a list": {"usage": [3, 2, 5]},
    "usage of half a token": {"usage": {"prompt_tokens": 3.5, "completion_tokens": 2}},
}


@named(FIELDS)
@BOTH
async def test_field_of_an_answer_is_mended(how: Any, case: dict[str, Any]) -> None:
    sent = ok(completion(**case)) if how is ask else sse(chunk("Hello!", "stop", **case), DONE)
    whole = await answer(sent, how)
    assert (whole.text, whole.finish_reason) == ("Hello!", "stop")


MESSAGE_FIELDS: dict[str, dict[str, Any]] = {
    "a role that is a number": {"role": 1},
    "a name that is an object": {"name": {}},
    "a refusal that is false": {"refusal": False},
    "calls that are text": {"tool_calls": ""},
    "a call that is false": {"function_call": False},
}


@named(MESSAGE_FIELDS)
@BOTH
async def test_field_of_a_message_is_mended(how: Any, case: dict[str, Any]) -> None:
    sent = ok(plain(content="Hello!", **case)) if how is ask else sse(part(0, "stop", content="Hello!", **case), DONE)
    message = (await answer(sent, how)).choices[0].message
    assert (message.role, message.content, message.refusal, message.tool_calls) == ("assistant", "Hello!", None, None)


@BOTH
async def test_field_that_the_text_depends_on_is_asked_for_once_more_and_elsewhere(how: Any) -> None:
    bad = ok(plain(content=5)) if how is ask else sse(part(content=5), DONE)
    good = ok() if how is ask else sse(WHOLE, DONE)
    twice = [ReadRequest(), Send(bad), ReadRequest(), Send(bad)]
    async with dialled(twice, retry=Retry(5, base=0)) as (client, server):
        error = await failure(how(client))
        assert (type(error), len(server.requests)) == (APIResponseError, 2)
        assert "content" in str(error)
    async with RawServer([ReadRequest(), Send(good)]) as second:
        backup = Provider("second", second.base_url, "sk-second-0123")
        async with dialled([ReadRequest(), Send(bad)], backups=[backup], retry=Retry(5, base=0)) as (client, server):
            whole = await how(client)
            assert (whole.text, whole.provider) == ("Hello!", "second")
            assert (len(server.requests), len(second.requests)) == (1, 1)


# -- 5. Events that say nothing, odd framing ---------------------------------------------------------------------------

SILENT = {
    "null": b"data: null\n\n",
    "nothing": b"data:\n\n",
    "an empty text": b'data: ""\n\n',
    "a comment sent as data": b"data: : OPENROUTER PROCESSING\n\n",
    "a comment": b": OPENROUTER PROCESSING\n\n",
    "ping as data": b"data: ping\n\n",
    "ping as a name": b"event: ping\ndata: 1700000000\n\n",
    "ping as an object": b'data: {"type": "ping", "cost": "0"}\n\n',
    "a number": b"data: 1700000000\n\n",
    "an empty object": b"data: {}\n\n",
    "a list of nothing": b"data: []\n\n",
    "an object without choices": b'data: {"id": "c-1", "status": "queued", "position": 3}\n\n',
    "choices that are null": b'data: {"id": "c-1", "choices": null}\n\n',
    "usage that is null": b'data: {"choices": [], "usage": null}\n\n',
}


@named(SILENT)
async def test_event_that_says_nothing_is_passed_over(case: bytes) -> None:
    events = (case, chunk("Hel"), case, chunk("lo!"), chunk(finish="stop"), case)
    assert (await answer(sse(*events, DONE))).text == "Hello!"
    assert (await answer(sse_closed(*events))).text == "Hello!"
    tokens = [each for each in await events_of(*events, DONE) if isinstance(each, Text)]
    assert tokens == [Text("Hel"), Text("lo!")]


LINES = [each.removeprefix(b"data: ").rstrip() for each in (chunk("Hel"), chunk("lo!"), chunk(finish="stop"))]
FRAMED = {
    "the field's name twice": [b"data: data: " + line + b"\n\n" for line in LINES] + [b"data: data: [DONE]\n\n"],
    "lines of JSON without a field": [line + b"\n" for line in LINES],
    "lines of JSON that end in CRLF": [line + b"\r\n" for line in LINES] + [b"[DONE]\r\n"],
    "lines of JSON, the last without its end": [b"\n".join(LINES)],
    "lines of JSON that come in halves": [piece for line in LINES for piece in (line[:30], line[30:] + b"\n", b"\n")],
    "all objects in one event, a line each": [b"".join(b"data: " + line + b"\n" for line in LINES) + b"\n"],
    "all objects in one line": [b"data: " + b" ".join(LINES) + b" [DONE]\n\n"],
    "a list of objects": [b"data: [" + b", ".join(LINES) + b"]\n\n", DONE],
    "no blank after the colon": [b"data:" + line + b"\n\n" for line in LINES] + [b"data:[DONE]\n\n"],
}


@named(FRAMED)
async def test_event_in_an_odd_frame_is_read(case: list[bytes]) -> None:
    if not case[0].startswith(b"{"):
        return await hello(sse_closed(*case))
    await hello(sse(*case))  # one read brings what one chunk of HTTP had
    return await hello(sse_closed(*case))


async def hello(sent: bytes) -> None:
    whole = await answer(sent)
    assert (whole.text, whole.finish_reason) == ("Hello!", "stop")


NO_EVENTS = {
    "a text": (b'data: "the model is busy"\n\n', "it is a text"),
    "words": (b"data: the model is busy\n\n", "not JSON"),
    "a web page": (b"data: <html>Busy</html>\n\n", "web page"),
}


@named(NO_EVENTS)
async def test_event_that_is_something_else_is_refused(case: tuple[bytes, str]) -> None:
    sent, says = case
    async with dialled([ReadRequest(), Send(sse(chunk("Hel"), sent, DONE))]) as (client, _):
        error = await failure(read(client))
    assert (type(error), error.partial) == (APIResponseError, "Hel")
    assert says in str(error)


# -- 6. Content encodings ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["none", "utf-8", "identity, identity", "aws-chunked"])
async def test_encoding_that_is_none(label: str) -> None:
    assert (await answer(http_response(200, completion(), {"Content-Encoding": label}), ask)).text == "Hello!"


async def test_encoding_of_several_members() -> None:
    packed = gzip.compress(WHOLE) + gzip.compress(DONE)
    assert (await answer(http_response(200, packed, {"Content-Encoding": "gzip"}))).text == "Hello!"


# -- 7. Events for a plain request, JSON for one by stream -------------------------------------------------------------

ALL = WHOLE + event(choices=[], usage=COUNTS)
AS_EVENTS = {
    "events": ALL + DONE,
    "events without a terminator": ALL,
    "events behind a comment": b": hello\n\n" + ALL + DONE,
    "events that begin with a name": b"event: message\n" + ALL + DONE,
    "the last event without its blank line": ALL.rstrip(),
    "lines of JSON": b"\n".join(line.removeprefix(b"data: ") for line in ALL.split(b"\n\n")),
}


@named(AS_EVENTS)
@pytest.mark.parametrize("label", ["text/event-stream", "application/json"])
async def test_form_of_events_for_a_plain_request(case: bytes, label: str) -> None:
    whole = await answer(http_response(200, case, {"Content-Type": label}), ask)
    assert (whole.text, whole.finish_reason, whole.usage) == ("Hello!", "stop", Usage(3, 2, 5))


async def test_form_of_events_that_are_cut_for_a_plain_request() -> None:
    body = http_response(200, chunk("Hel") + chunk("lo!"))
    await fails(Send(body), cls=StreamTruncatedError, kind="truncated", partial="Hello!")
    body = http_response(200, chunk("Hel") + event(error={"message": "slower", "code": 429}))
    await fails(Send(body), cls=RateLimitError, kind="status", maybe_billed=False, partial="Hel")


@pytest.mark.parametrize(
    "start", [b"", b"\n\n \n", b"\xef\xbb\xbf"], ids=["at once", "behind blank lines", "behind a BOM"]
)
@pytest.mark.parametrize("piece", [1 << 16, 7])
async def test_form_of_json_for_a_stream(start: bytes, piece: int) -> None:
    body = start + completion()
    pieces = [body[at : at + piece] for at in range(0, len(body), piece)]
    whole = await answer(sse(*pieces))
    assert (whole.text, whole.finish_reason, whole.usage) == ("Hello!", "stop", Usage(3, 2, 5))


# -- 8. Shapes of errors -----------------------------------------------------------------------------------------------


@BOTH
async def test_error_of_an_empty_account_at_a_reseller(how: Any) -> None:
    body = b'{"error": {"message": "top up", "type": "new_api_error", "code": "pre_consume_token_quota_failed"}}'
    await fails(
        Send(http_response(403, body)), cls=InsufficientQuotaError, kind="status", how=how, maybe_billed=False
    )  # fmt: skip
