"""Requests to bytes; bytes to completions, chunks and errors; by both ways to read JSON."""

from __future__ import annotations

import enum
import json
import pickle
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from piapi_async import (
    APIError,
    APIResponseError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Choice,
    ChunkChoice,
    ConflictError,
    Delta,
    FunctionCall,
    InsufficientQuotaError,
    InternalServerError,
    InvalidRequestError,
    Message,
    NotFoundError,
    PermissionDeniedError,
    PiAPIError,
    RateLimitError,
    RequestTooLargeError,
    ServerSentEvent,
    SSEDecoder,
    ToolCall,
    UnprocessableEntityError,
    Usage,
    wire,
)
from piapi_async.errors import Secret
from piapi_async.wire import (
    MAX_REQUEST_BYTES,
    SHALLOW,
    ChunkDecoder,
    WireChunk,
    as_chunk,
    encode_request,
    error_from_response,
    read_id,
)

CAPTURES = Path(__file__).parent / "data" / "captures"
KEY = Secret("canary-0123456789-key")

# -- requests ----------------------------------------------------------------------------------------------------------

WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOL = {"type": "function", "function": WEATHER}

PARAMETERS: dict[str, Any] = {
    "functions": [WEATHER],
    "function_call": {"name": "get_weather"},
    "temperature": 0.5,
    "top_p": 0,
    "n": 2,
    "stop": ["a", "b"],
    "max_tokens": 10,
    "presence_penalty": -2.0,
    "frequency_penalty": 2,
    "logit_bias": {"50256": -100},
    "tools": [TOOL],
    "tool_choice": "required",
    "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
    "seed": -1,
    "user": "someone",
    "max_completion_tokens": 10,
    "reasoning_effort": "low",
    "stream_options": {"include_usage": False},
    "logprobs": False,
    "top_logprobs": 0,
    "stream": True,
}


def sent(request: ChatRequest, **options: Any) -> dict[str, Any]:
    fields = json.loads(encode_request(request, "gpt-4o", **options).content)
    assert isinstance(fields, dict)
    return fields


def messages_sent(*messages: Message | Mapping[str, object]) -> Any:
    return sent(ChatRequest(messages))["messages"]


def test_a_request_sends_what_is_set_and_nothing_else() -> None:
    assert sent(ChatRequest("Hi")) == {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_parameter_is_sent(name: str) -> None:
    fields = sent(ChatRequest("Hi", **{name: PARAMETERS[name]}))
    assert fields.pop("messages") == [{"role": "user", "content": "Hi"}]
    assert fields == {"model": "gpt-4o", name: PARAMETERS[name]}


def test_every_parameter_is_tested() -> None:
    known = {field.name for field in attrs.fields(ChatRequest)}
    assert set(PARAMETERS) == known - {"messages", "model", "extra_body"}


def test_all_parameters_at_once_make_equal_bytes() -> None:
    bodies = {
        encode_request(ChatRequest("Hé \u2028 😀", extra_body={"b": [1, {"c": None}], "a": 1.5}, **kept), "m").content
        for kept in (PARAMETERS, dict(reversed(PARAMETERS.items())), PARAMETERS)
    }
    (body,) = bodies
    assert "Hé \u2028 😀".encode() in body
    assert set(json.loads(body)) == {"model", "messages", "a", "b", *PARAMETERS}


def test_the_model_sent_is_the_providers() -> None:
    assert sent(ChatRequest("Hi", "mine"))["model"] == "gpt-4o"


def test_extra_body_is_merged_as_it_is() -> None:
    request = ChatRequest("Hi", temperature=1, extra_body={"temperature": None, "repetition": {"penalty": [1, 2]}})
    fields = sent(request)
    assert fields["temperature"] is None
    assert fields["repetition"] == {"penalty": [1, 2]}
    assert "extra_body" not in fields


def test_usage_is_asked_for_in_streams_only_when_told() -> None:
    stream = ChatRequest("Hi", stream=True)
    assert sent(stream, include_usage=True)["stream_options"] == {"include_usage": True}
    assert "stream_options" not in sent(stream)
    assert "stream_options" not in sent(ChatRequest("Hi"), include_usage=True)
    told = ChatRequest("Hi", stream=True, stream_options={"include_usage": False})
    assert sent(told, include_usage=True)["stream_options"] == {"include_usage": False}


@pytest.mark.parametrize("name", ["type", "name", "index", "id", "stream", "model"])
def test_a_functions_name_is_kept(name: str) -> None:
    function = {"name": name, "parameters": {"type": "object", "properties": {name: {}, "type": {}}}}
    fields = sent(ChatRequest("Hi", functions=[function], tools=[{"type": "function", "function": function}]))
    assert fields["functions"] == [function]
    assert fields["tools"] == [{"type": "function", "function": function}]


def test_a_tool_calling_conversation_is_sent_back() -> None:
    call = ToolCall(FunctionCall("type", "{}"), id="call_1", index=0)
    assert messages_sent(
        Message("user", "Hi", name="bob"),
        Message("assistant", tool_calls=(call,)),
        {"role": "assistant", "content": None, "tool_calls": [{"id": "2", "function": {"name": "f", "arguments": ""}}]},
        Message("tool", "sunny", tool_call_id="call_1"),
        Message("assistant", function_call=FunctionCall("f", "")),
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        Message("function", "rain", name="f"),
    ) == [
        {"role": "user", "content": "Hi", "name": "bob"},
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "type", "arguments": "{}"}, "id": "call_1", "type": "function"}],
        },
        {
            "role": "assistant",
            "tool_calls": [{"function": {"name": "f", "arguments": ""}, "id": "2", "type": "function"}],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        {"role": "assistant", "function_call": {"name": "f", "arguments": ""}},
        {"role": "assistant", "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "content": "rain", "name": "f"},
    ]


def test_an_answer_is_sent_back() -> None:
    call = {"index": 0, "id": "call_1", "type": None, "function": {"name": "f", "arguments": "{}"}}
    sent = {"role": "assistant", "content": None, "function_call": None, "tool_calls": [call]}
    (message,) = messages_sent(decode_completion(completion(sent)).choices[0].message)
    tools = [{"function": {"name": "f", "arguments": "{}"}, "id": "call_1", "type": "function"}]
    assert message == {"role": "assistant", "tool_calls": tools}
    sent |= {"content": "Hello!", "tool_calls": None}
    (message,) = messages_sent(decode_completion(completion(sent)).choices[0].message)
    assert message == {"role": "assistant", "content": "Hello!"}


def test_content_may_be_parts() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    assert messages_sent({"role": "user", "content": parts}) == [{"role": "user", "content": parts}]


class Text(str):
    __slots__ = ()


class Number(float):
    __slots__ = ()


class Whole(int):
    __slots__ = ()


class Role(enum.StrEnum):
    USER = "user"


class Width(enum.IntEnum):
    TWO = 2


def test_subclasses_of_builtins_are_sent_as_the_builtins() -> None:
    """NumPy's floats, and enums for names, are common."""
    request = ChatRequest(
        [Message(Role.USER, Text("Hi"))],
        temperature=Number(0.5),
        n=Width.TWO,
        seed=Whole(3),
        user=Role.USER,
        extra_body={Text("a"): [Text("b"), Number(1.5), Whole(4)]},
    )
    assert sent(request) == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "Hi"}],
        "temperature": 0.5,
        "n": 2,
        "seed": 3,
        "user": "user",
        "a": ["b", 1.5, 4],
    }


def test_a_request_that_is_too_large() -> None:
    room = MAX_REQUEST_BYTES - len(encode_request(ChatRequest(""), "m").content)
    assert len(encode_request(ChatRequest("x" * room), "m").content) == MAX_REQUEST_BYTES
    with pytest.raises(InvalidRequestError, match="33,554,433 bytes, more than 33,554,432") as raised:
        encode_request(ChatRequest("x" * (room + 1)), "m")
    traceback = raised.value.__traceback__
    assert traceback is not None
    assert traceback.tb_next is not None
    assert not {"request", "body"} & set(traceback.tb_next.tb_frame.f_locals)


def test_a_body_shows_nothing() -> None:
    assert "secret prompt" not in repr(encode_request(ChatRequest("secret prompt"), "m"))


# -- completions -------------------------------------------------------------------------------------------------------

BOM = b"\xef\xbb\xbf"
"""msgspec refuses it, so a body that begins with one is always read the tolerant way."""


def completion(message: object = ..., /, **changes: object) -> bytes:
    """A completion as the provider's page has it, with some fields changed, or left out where the value is `...`."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello!"} if message is ... else message,
        "finish_reason": "stop",
    }
    fields: dict[str, object] = {
        "id": "chatcmpl-83jZ61GDHtdlsFUzXDbpGeoU193Mj",
        "object": "chat.completion",
        "created": 1695900828,
        "model": "gpt-3.5-turbo",
        "choices": [choice],
        "usage": {"prompt_tokens": 19, "completion_tokens": 9, "total_tokens": 28},
    }
    fields |= changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def decode_completion(body: bytes, **options: Any) -> ChatCompletion:
    """Decode, and make of it what a caller gets."""
    found = wire.decode_completion(body, **options)
    return ChatCompletion(
        found.id, found.object, found.created, found.model, found.choices, found.usage, body=found.body
    )


def decode(body: bytes) -> ChatCompletion:
    """Decode by both ways, which must agree."""
    decoded = decode_completion(body)
    slowly = decode_completion(BOM + body)
    assert decoded == slowly
    assert decoded.raw == slowly.raw
    return decoded


def refused(body: bytes) -> APIResponseError:
    """Have both ways refuse a body, with the same error."""
    errors: list[APIResponseError] = []
    for prefix in (b"", BOM):
        with pytest.raises(APIResponseError) as raised:
            decode_completion(prefix + body)
        assert raised.value.__context__ is None
        errors.append(raised.value)
    fast, slow = errors
    assert (type(fast), fast.kind, fast.maybe_billed) == (type(slow), slow.kind, slow.maybe_billed)
    return fast


def test_the_completion_of_the_providers_page() -> None:
    decoded = decode(completion())
    assert decoded == ChatCompletion(
        id="chatcmpl-83jZ61GDHtdlsFUzXDbpGeoU193Mj",
        object="chat.completion",
        created=1695900828,
        model="gpt-3.5-turbo",
        choices=(Choice(0, Message("assistant", "Hello!"), "stop"),),
        usage=Usage(19, 9, 28),
    )
    assert (decoded.text, decoded.finish_reason) == ("Hello!", "stop")
    assert decoded.raw == json.loads(completion())


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"id": ...}, {"id": ""}),
        ({"id": None}, {"id": ""}),
        ({"id": 5}, {"id": ""}),
        ({"object": None}, {"object": "chat.completion"}),
        ({"object": "text"}, {"object": "text"}),
        ({"created": ...}, {"created": 0}),
        ({"created": None}, {"created": 0}),
        ({"created": 1695900828.5}, {"created": 1695900828}),
        ({"created": "1695900828"}, {"created": 1695900828}),
        ({"created": "yesterday"}, {"created": 0}),
        ({"created": []}, {"created": 0}),
        ({"created": 10**40}, {"created": 10**40}),
        ({"model": ...}, {"model": ""}),
        ({"model": None}, {"model": ""}),
        ({"model": "another"}, {"model": "another"}),
        ({"usage": ...}, {"usage": None}),
        ({"usage": None}, {"usage": None}),
        ({"usage": []}, {"usage": None}),
        ({"usage": {}}, {"usage": None}),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2}}, {"usage": Usage(1, 2, 3)}),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": None}}, {"usage": None}),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 4}}, {"usage": None}),
        ({"usage": {"prompt_tokens": -1, "completion_tokens": 2, "total_tokens": 1}}, {"usage": None}),
        ({"usage": {"prompt_tokens": 1, "completion_tokens": -1, "total_tokens": 0}}, {"usage": None}),
        ({"usage": {"prompt_tokens": "1", "completion_tokens": 2, "total_tokens": 3}}, {"usage": None}),
        ({"usage": {"prompt_tokens": True, "completion_tokens": 2, "total_tokens": 3}}, {"usage": None}),
        ({"usage": {"prompt_tokens": 10**12, "completion_tokens": 0, "total_tokens": 10**12}}, {"usage": None}),
        (
            {"timings": {}, "system_fingerprint": None, "stop_reason": "x", "error": None},
            {"id": "chatcmpl-83jZ61GDHtdlsFUzXDbpGeoU193Mj"},
        ),
    ],
)
def test_liberties_with_fields_that_no_answer_depends_on(changes: dict[str, object], seen: dict[str, object]) -> None:
    decoded = decode(completion(**changes))
    assert {name: getattr(decoded, name) for name in seen} == seen
    assert decoded.text == "Hello!"
    assert decoded.raw.items() >= {name: value for name, value in changes.items() if value is not ...}.items()


def test_a_completion_that_names_no_model_has_the_one_asked() -> None:
    assert decode_completion(completion(model=None), asked="gpt-4o").model == "gpt-4o"
    assert decode_completion(completion(model=""), asked="gpt-4o").model == "gpt-4o"
    assert decode_completion(completion(object="")).object == "chat.completion"
    assert decode_completion(completion(), asked="gpt-4o").model == "gpt-3.5-turbo"


@pytest.mark.parametrize(
    ("message", "seen"),
    [
        ({"role": "assistant", "content": None}, Message("assistant")),
        ({"role": "assistant"}, Message("assistant")),
        ({"content": "Hi"}, Message("assistant", "Hi")),
        ({}, Message("assistant")),
        ({"role": "robot", "content": "", "refusal": None, "audio": {}}, Message("robot", "")),
        (
            {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "x", "y": [1]}]},
            Message("assistant", ({"type": "text", "text": "a"}, {"type": "x", "y": [1]})),
        ),
        ({"role": "assistant", "content": []}, Message("assistant", ())),
        (
            {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
            Message("assistant", function_call=FunctionCall("f", "{}")),
        ),
        (
            {"role": "assistant", "function_call": {"name": "f", "arguments": None}},
            Message("assistant", function_call=FunctionCall("f")),
        ),
        ({"role": "assistant", "function_call": None, "tool_calls": None}, Message("assistant")),
        (
            {
                "role": "assistant",
                "tool_calls": [{"id": "1", "type": None, "function": {"name": "f", "arguments": ""}}],
            },
            Message("assistant", tool_calls=(ToolCall(FunctionCall("f"), "1", None),)),
        ),
        (
            {"role": "assistant", "tool_calls": [{"index": 0, "function": None}, {"function": {"name": None}}]},
            Message("assistant", tool_calls=(ToolCall(index=0), ToolCall())),
        ),
        ({"role": "assistant", "tool_calls": []}, Message("assistant", tool_calls=())),
        ({"role": "tool", "name": "f", "tool_call_id": "1"}, Message("tool", name="f", tool_call_id="1")),
    ],
)
def test_messages(message: object, seen: Message) -> None:
    decoded = decode(completion(message))
    assert decoded.choices[0].message == seen


def test_the_text_of_parts_is_joined() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"text": "b"}, {"text": 5}]
    assert decode(completion({"role": "assistant", "content": parts})).text == "ab"


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "function_call", "a new one", "", None])
def test_a_finish_reason_is_kept(reason: str | None) -> None:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hi"},
        "finish_reason": reason,
        "logprobs": {"a": [1]},
    }
    decoded = decode(completion(choices=[choice]))
    assert decoded.finish_reason == reason
    assert decoded.choices[0].logprobs == {"a": [1]}


def test_choices_without_index_have_their_position() -> None:
    choices = [{"message": {"content": "a"}}, {"message": {"content": "b"}}]
    assert [choice.index for choice in decode(completion(choices=choices)).choices] == [0, 1]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"", "it is empty"),
        (b" \r\n\t", "it is empty"),
        (b"nope", "it is not JSON (Expecting value)"),
        (b"{'a': 1}", "it is not JSON (Expecting property name"),
        (completion() + b"x", "it is not JSON (Extra data)"),
        (completion(created=...).replace(b"}", b', "x": NaN}', 1), "it is not JSON (NaN is not JSON)"),
        (completion(id=5).replace(b"5", b"-Infinity"), "it is not JSON (-Infinity is not JSON)"),
        (
            completion(created=5).replace(b'"created": 5', b'"created": ' + b"9" * 5000),
            "it is not JSON (Exceeds the limit",
        ),
        (b"null", "it is JSON, but not an object: NoneType"),
        (b"[]", "it is JSON, but not an object: list"),
        (b'"text"', "it is JSON, but not an object: str"),
        (b"[" * 100_000, "its JSON nests too deep"),
        (b"[" * 990 + b"]" * 990, "its JSON nests too deep"),
        (completion(x="?").replace(b'"?"', b"[" * 101 + b"]" * 101) + b" " * SHALLOW, "its JSON nests too deep"),
        (completion(x="?").replace(b'"?"', b'{"a":' * 100_000 + b"1" + b"}" * 100_000), "its JSON nests too deep"),
        (b"{}", "it has no choices"),
        (completion(choices=...), "it has no choices"),
        (completion(choices=None), "it has no choices"),
        (completion(choices=[]), "it has no choices"),
        (completion(choices={}), "it has no choices"),
        (completion(choices="x"), "it has no choices"),
        (completion(choices=[None]), "@ $.choices[0]"),
        (completion(choices=[5]), "@ $.choices[0]"),
        (completion(choices=[{"index": 0}]), "'message' is missing @ $.choices[0]"),
        (completion(None), "@ $.choices[0].message"),
        (completion([]), "@ $.choices[0].message"),
        (completion({"role": None}), "expected str, not NoneType @ $.choices[0].message.role"),
        (completion({"content": 5}), "expected str, not int @ $.choices[0].message.content"),
        (completion({"content": ["x"]}), "expected dict, not str @ $.choices[0].message.content"),
        (completion({"content": {"text": "x"}}), "expected str, not dict @ $.choices[0].message.content"),
        (completion({"tool_calls": {}}), "expected list, not dict @ $.choices[0].message.tool_calls"),
        (completion({"tool_calls": [5]}), "@ $.choices[0].message.tool_calls[0]"),
        (completion({"tool_calls": [{"function": 5}]}), "@ $.choices[0].message.tool_calls[0].function"),
        (completion({"function_call": "f"}), "@ $.choices[0].message.function_call"),
        (completion({"function_call": {"name": 5}}), "@ $.choices[0].message.function_call.name"),
        (completion(choices=[{"index": "0", "message": {}}]), "expected int, not str @ $.choices[0].index"),
        (completion(choices=[{"index": None, "message": {}}]), "expected int, not NoneType @ $.choices[0].index"),
        (completion(choices=[{"index": True, "message": {}}]), "expected int, not bool @ $.choices[0].index"),
        (completion(choices=[{"message": {}, "finish_reason": 5}]), "@ $.choices[0].finish_reason"),
    ],
)
def test_what_is_no_completion(body: bytes, says: str) -> None:
    error = refused(body)
    assert says in str(error)
    assert len(str(error)) < 600
    other = ("not JSON (Exp", "not JSON (Extra", "not an object", "no choices")
    kind = "empty" if "empty" in says else "not a completion" if any(o in says for o in other) else "response"
    assert error.kind == kind
    assert error.maybe_billed


def test_a_completion_that_is_cut() -> None:
    body = completion()
    for cut in range(1, len(body)):
        assert refused(body[:cut]).kind in ("truncated", "not a completion")
    assert refused(body[:-1]).kind == refused(body[:100]).kind == "truncated"


@pytest.mark.parametrize("piece", ['\\"', '"', "\\", '"{', '[\\"'])
def test_quotes_without_end_are_read_once(piece: str) -> None:
    """Quadratic work would take minutes here."""
    for body in (f'{{"a": "{piece * 200_000}', piece * 200_000):
        refused(body.encode())


def test_a_web_page() -> None:
    error = refused(b" \n<!DOCTYPE html><html><title>Log in</title>")
    assert (type(error), error.kind) == (APIResponseError, "edge page")
    assert "it is a web page: <!DOCTYPE html>" in str(error)


def test_a_number_that_is_infinite_is_handed_out_as_text() -> None:
    for name in ("x", "created", "usage"):
        decoded = decode_completion(completion(**{name: "?"}).replace(b'"?"', b"1e999"))
        assert decoded.raw[name] in ("1e999", "Infinity")
        assert decoded.created in (0, 1695900828)
        assert decoded.usage in (None, Usage(19, 9, 28))


def test_a_long_number_in_a_field_that_is_not_ours() -> None:
    digits = b"7" * 5000
    assert decode_completion(completion(x="?").replace(b'"?"', digits)).raw["x"] == digits.decode()
    assert decode(completion(x="?").replace(b'"?"', b"7" * 400)).raw["x"] == int("7" * 400)


def test_the_last_of_two_equal_keys_counts() -> None:
    body = b'{"choices": [], ' + completion()[1:]
    assert decode(body).text == "Hello!"
    assert refused(completion()[:-1] + b', "choices": []}')


def test_a_brace_in_the_text_is_not_depth() -> None:
    text = "[{" * 5000
    assert decode(completion({"content": text})).text == text


def test_a_bom_and_invalid_utf8() -> None:
    assert decode_completion(BOM + completion()).text == "Hello!"
    body = completion({"role": "assistant", "content": "a?b"}).replace(b"?", b"\xff\xf0\x9f\x98")
    assert decode(body).text == "a\ufffd\ufffdb"


@pytest.mark.parametrize(
    ("written", "read"),
    [
        (r"\ud83d\ude00", "😀"),
        (r"\uD83D\uDE00", "😀"),
        (r"\ud83d", "\ufffd"),
        (r"\ude00", "\ufffd"),
        (r"\ude00\ud83d", "\ufffd\ufffd"),
        (r"\ud83da\ud83d\ude00", "\ufffda😀"),
    ],
)
def test_surrogates(written: str, read: str) -> None:
    decoded = decode(completion({"content": "?"}, x={"?": "?"}).replace(b"?", written.encode()))
    assert decoded.text == read
    assert decoded.raw["x"] == {read: read}


# -- error objects in a 200 --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "cls", "status"),
    [
        ({"error": {"message": "x", "type": "invalid_request_error", "code": None}}, BadRequestError, 400),
        ({"error": {"message": "x", "code": "context_length_exceeded"}}, BadRequestError, 400),
        ({"error": {"message": "x", "code": 401}}, AuthenticationError, 401),
        ({"error": {"message": "x", "code": "401"}}, AuthenticationError, 401),
        ({"error": {"message": "x", "code": "invalid_api_key", "type": "server_error"}}, AuthenticationError, 401),
        ({"error": {"message": "x", "code": "INSUFFICIENT_QUOTA"}}, InsufficientQuotaError, 402),
        ({"error": {"message": "x", "type": "insufficient_quota", "code": 429}}, InsufficientQuotaError, 429),
        ({"error": {"message": "x", "code": "model_not_found"}}, NotFoundError, 404),
        ({"error": {"message": "x", "status": 403}}, PermissionDeniedError, 403),
        ({"error": {"message": "x", "status_code": 409}}, ConflictError, 409),
        ({"error": {"message": "x", "code": 413}}, RequestTooLargeError, 413),
        ({"error": {"message": "x", "code": 422}}, UnprocessableEntityError, 422),
        ({"error": {"message": "x", "type": "throttling_error"}}, RateLimitError, 429),
        ({"error": {"message": "x", "type": "overloaded_error"}}, InternalServerError, 529),
        ({"error": {"message": "x", "code": 418}}, APIStatusError, 418),
        ({"error": {"message": "x", "code": 200}}, InternalServerError, 500),
        ({"error": {"message": "x", "code": "9" * 20}}, InternalServerError, 500),
        ({"error": {"message": "x", "code": True}}, InternalServerError, 500),
        ({"error": {"message": "x", "code": "٤٠٠"}}, InternalServerError, 500),
        ({"error": {"message": ["x"], "code": {}, "type": [], "param": 5}}, InternalServerError, 500),
        ({"error": {}}, InternalServerError, 500),
        ({"error": "x"}, InternalServerError, 500),
        ({"error": "x", "code": 429}, RateLimitError, 429),
        ({"error": "x", "type": "rate_limit_error"}, RateLimitError, 429),
        ({"error": True}, InternalServerError, 500),
        ({"error": ["x"]}, InternalServerError, 500),
        ({"object": "error", "message": "x", "code": 404}, NotFoundError, 404),
        ({"object": "error", "message": "x", "type": "BadRequestError", "code": 40303}, InternalServerError, 500),
        ({"code": 401, "message": "x", "data": None}, AuthenticationError, 401),
        ({"code": 10_000, "message": "x", "data": None}, InternalServerError, 500),
        ({"code": "quota_exceeded", "detail": "x"}, InsufficientQuotaError, 402),
    ],
)
def test_error_objects(fields: dict[str, object], cls: type[APIStatusError], status: int) -> None:
    for prefix in (b"", BOM):
        with pytest.raises(APIStatusError) as raised:
            decode_completion(prefix + json.dumps(fields).encode())
        assert type(raised.value) is cls
        assert raised.value.status_code == status
        assert raised.value.__context__ is None
        with pytest.raises(cls):
            ChunkDecoder().decode(ServerSentEvent(json.dumps(fields)))


def test_an_error_that_comes_along_with_choices() -> None:
    for fields in ({"error": {"message": "x", "code": 429}}, {"error": "x", "code": 429}):
        with pytest.raises(RateLimitError):
            decode_completion(completion(**fields))
        with pytest.raises(RateLimitError):
            ChunkDecoder().decode(ServerSentEvent(completion(**fields).decode()))


@pytest.mark.parametrize(
    "fields",
    [
        {"error": None},
        {"error": ""},
        {"error": False},
        {"code": 0, "message": "ok"},
        {"code": 200, "message": "success"},
        {"code": 500, "message": "x"},  # beside choices
        {"x": "error"},
        {"model": "error"},
    ],
)
def test_what_is_no_error(fields: dict[str, object]) -> None:
    assert decode(completion(**fields)).text == "Hello!"


def test_a_wrapper_without_error_is_no_completion() -> None:
    for fields in ({"code": 0, "message": "ok"}, {"code": None, "message": "x"}, {"code": 400}):
        assert "no choices" in str(refused(json.dumps(fields).encode()))


def test_the_word_error_as_a_name() -> None:
    call = {"name": "error", "arguments": '{"error": 1}'}
    assert decode(completion({"function_call": call})).choices[0].message.function_call == FunctionCall(**call)


# -- error statuses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "cls"),
    [
        (400, BadRequestError),
        (401, AuthenticationError),
        (402, InsufficientQuotaError),
        (403, PermissionDeniedError),
        (404, NotFoundError),
        (405, APIStatusError),
        (408, APIStatusError),
        (409, ConflictError),
        (413, RequestTooLargeError),
        (414, RequestTooLargeError),
        (422, UnprocessableEntityError),
        (429, RateLimitError),
        (431, RequestTooLargeError),
        (500, InternalServerError),
        (503, InternalServerError),
        (529, InternalServerError),
        (599, InternalServerError),
        (999, InternalServerError),
        (206, APIStatusError),
        (299, APIStatusError),
    ],
)
def test_statuses(status: int, cls: type[APIStatusError]) -> None:
    body = {"error": {"message": "It\nfailed", "type": "some_error", "code": "some_code", "param": "model"}}
    error = error_from_response(status, json.dumps(body).encode())
    assert type(error) is cls
    assert isinstance(error, APIStatusError)
    assert error.status_code == status
    assert (error.type, error.code, error.param) == ("some_error", "some_code", "model")
    assert str(error).startswith(f"the provider answered {status} (some_code): It\\nfailed; ")
    assert error.body == json.dumps(body)
    assert error.kind == "status"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"detail": "Invalid API key"}', "Invalid API key"),
        (b'{"message": "no"}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"code": 500, "message": "no"}', "no"),
        (b'{"detail": [{"loc": ["n"]}]}', '[{"loc": ["n"]}]'),
        (b'{"error": {"message": null, "code": "500"}}', ""),
        (b'{"error": {}}', '{"error": {}}'),
        (b"Internal Server Error", "Internal Server Error"),
        (b"[1]", "[1]"),
        (b'{"cut": ', '{"cut":'),
        (b"\xff\x00\x1b[31m", "\ufffd\\x00\\x1b[31m"),
        (b"", ""),
    ],
)
def test_shapes_of_error_bodies(body: bytes, said: str) -> None:
    error = error_from_response(500, body)
    assert str(error) == f"the provider answered 500{f': {said}' if said else ''}; try again later or use a backup"


@pytest.mark.parametrize("code", ["insufficient_quota", "billing_hard_limit_reached"])
def test_used_up_credit_goes_before_the_status(code: str) -> None:
    for name in ("code", "type"):
        error = error_from_response(429, json.dumps({"error": {"message": "x", name: code}}).encode())
        assert type(error) is InsufficientQuotaError
        assert isinstance(error, APIStatusError)
        assert error.status_code == 429


def test_a_prompt_that_is_too_long_goes_before_the_status() -> None:
    body = b'{"error": {"message": "x", "code": "context_length_exceeded"}}'
    assert type(error_from_response(413, body)) is type(error_from_response(400, body)) is BadRequestError


@pytest.mark.parametrize("status", [204, 205])
def test_no_content(status: int) -> None:
    error = error_from_response(status, b"")
    assert (type(error), error.kind) == (APIResponseError, "empty")


@pytest.mark.parametrize(
    ("location", "where"),
    [
        ("https://evil.example/v1?secret=1", " to evil.example "),
        ("//evil.example:80/x", " to evil.example "),
        ("/v2/chat", " to another path "),
        ("https://[bad", " to another path "),
        ("http://user:pw@host", " to host "),
        ("https://a\nb", " to ab "),
        (None, "the provider redirects (status 307)"),
        ("", "the provider redirects (status 307)"),
    ],
)
def test_redirects_name_the_host_only(location: str | None, where: str) -> None:
    error = error_from_response(307, b"moved", location=location)
    assert (type(error), error.kind) == (APIStatusError, "redirect")
    assert where in str(error)
    assert "secret" not in str(error)
    assert "pw" not in str(error)


@pytest.mark.parametrize("status", [403, 404, 429, 200])
@pytest.mark.parametrize(
    ("body", "content_type"), [(b"\xef\xbb\xbf \n<html>Just a moment", ""), (b"Just a moment", "Text/HTML; charset=x")]
)
def test_a_web_page_is_no_answer(status: int, body: bytes, content_type: str) -> None:
    error = error_from_response(status, body, content_type=content_type)
    assert (type(error), error.kind) == (APIResponseError, "edge page")
    assert f"status {status}" in str(error)
    assert "Just a moment" in str(error)


@pytest.mark.parametrize("status", [500, 502, 520, 522, 524, 530])
def test_a_web_page_with_a_servers_status(status: int) -> None:
    error = error_from_response(status, b"<html>Bad gateway", content_type="text/html")
    assert (type(error), error.kind) == (InternalServerError, "edge")
    assert ": a web page;" in str(error)


def test_json_that_is_called_html_is_json() -> None:
    body = b'{"error": {"message": "bad key", "type": "authentication_error"}}'
    assert type(error_from_response(401, body, content_type="text/html")) is AuthenticationError


@pytest.mark.parametrize(("status", "billed"), [(500, False), (502, False), (504, True), (524, True), (429, False)])
def test_a_gateways_timeout_may_be_billed(status: int, billed: bool) -> None:
    assert error_from_response(status, b"{}").maybe_billed is billed


def test_a_key_that_is_echoed_is_scrubbed() -> None:
    key = KEY.reveal()
    fields = {"message": f"bad key {key}", "code": key, "type": f"x {key}", "param": key}
    error = error_from_response(401, json.dumps({"error": fields}).encode(), secrets=[KEY])
    assert key not in repr(vars(error)) + str(error)
    assert "[key]" in str(error)
    page = error_from_response(403, f"<html>{key}".encode(), secrets=[KEY])
    redirect = error_from_response(302, key.encode(), location=f"https://{key}/", secrets=[KEY])
    for other in (page, redirect):
        assert key not in repr(vars(other)) + str(other)
    for body in (json.dumps({"error": fields}), json.dumps({"x": key}), f'"{key}"', key, f"<{key}"):
        with pytest.raises(PiAPIError) as raised:
            decode_completion(body.encode(), secrets=[KEY])
        assert key not in repr(vars(raised.value)) + str(raised.value)
        with pytest.raises(PiAPIError) as raised:
            ChunkDecoder([KEY]).decode(ServerSentEvent(body, "error"))
        assert key not in repr(vars(raised.value)) + str(raised.value)


def test_an_id_from_a_header() -> None:
    key = KEY.reveal()
    assert read_id(None, [KEY]) is None
    assert read_id("req_0123-AbC.:/=+", [KEY]) == "req_0123-AbC.:/=+"
    assert read_id(f"req-{key}", [KEY]) == "req-[key]"
    assert read_id("sk-0123456789", ()) == "[key]"
    assert read_id("a\x1bb é\n", ()) == "a\\x1bb é"
    assert read_id("x" * 200, ()) == "x" * 128


# -- streams -----------------------------------------------------------------------------------------------------------


def chunk(*choices: object, **fields: object) -> str:
    return json.dumps({"choices": choices, **fields})


def delta(index: int = 0, **fields: object) -> dict[str, object]:
    return {"index": index, "delta": fields}


def decode_chunks(*data: str) -> list[ChatCompletionChunk]:
    """Decode the events of one stream by both ways, which must agree; what is held back at the end comes last."""
    fast = _decode_chunks(data)
    slow = _decode_chunks([" " + text for text in data])  # a blank in front: always the tolerant way
    assert fast == slow
    return [decoded for decoded, _ in fast]


def _decode_chunks(data: Any) -> list[tuple[ChatCompletionChunk, object]]:
    decoder = ChunkDecoder()
    decoded = [decoder.decode(ServerSentEvent(text)) for text in data]
    last = decoder.flush()
    assert decoder.flush() is None
    chunks = [as_chunk(c) for c in [*decoded, last] if isinstance(c, WireChunk)]
    return [(c, c.raw) for c in chunks]


def decode_one(data: str) -> ChatCompletionChunk:
    (decoded,) = decode_chunks(data)
    return decoded


def test_a_chunk() -> None:
    data = chunk(
        {"index": 1, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop", "logprobs": {"a": 1}},
        id="c-1",
        object="chat.completion.chunk",
        created=5,
        model="gpt-4o",
        usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        timings={"x": 1},
    )
    decoded = decode_one(data)
    assert decoded == ChatCompletionChunk(
        (ChunkChoice(1, Delta("assistant", "Hi"), "stop", {"a": 1}),),
        "c-1",
        "chat.completion.chunk",
        5,
        "gpt-4o",
        Usage(1, 2, 3),
    )
    assert decoded.raw == json.loads(data)


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"content": None}, Delta()),
        ({"content": ""}, Delta(content="")),
        ({}, Delta()),
        ({"role": "assistant", "content": "Hi"}, Delta("assistant", "Hi")),
        ({"role": None, "content": "Hi", "refusal": None, "reasoning_content": "x"}, Delta(content="Hi")),
        ({"function_call": None, "tool_calls": None}, Delta()),
        ({"function_call": {"name": "f", "arguments": ""}}, Delta(function_call=FunctionCall("f"))),
        ({"function_call": {"arguments": "{"}}, Delta(function_call=FunctionCall("", "{"))),
        ({"function_call": {"name": None, "arguments": None}}, Delta(function_call=FunctionCall())),
        (
            {"tool_calls": [{"index": 1, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
            Delta(tool_calls=(ToolCall(FunctionCall("f"), "1", "function", 1),)),
        ),
        (
            {"tool_calls": [{"function": {"arguments": "{"}}, {"index": None, "id": None, "type": None}]},
            Delta(tool_calls=(ToolCall(FunctionCall("", "{")), ToolCall(type=None))),
        ),
        (
            {
                "tool_calls": [
                    {"index": 0, "function": None},
                    {"index": 1, "function": {"name": None, "arguments": "}"}},
                ]
            },
            Delta(tool_calls=(ToolCall(index=0), ToolCall(FunctionCall("", "}"), index=1))),
        ),
        ({"tool_calls": []}, Delta(tool_calls=())),
    ],
)
def test_deltas(fields: dict[str, object], seen: Delta) -> None:
    assert decode_one(chunk({"index": 0, "delta": fields})).choices == (ChunkChoice(0, seen),)


@pytest.mark.parametrize(
    ("data", "choices"),
    [
        (chunk(), ()),
        ("{}", ()),
        ('{"choices": null}', ()),
        (chunk({"index": 3}), (ChunkChoice(3),)),
        (chunk({"index": 0, "delta": None}), (ChunkChoice(0),)),
        (chunk({"index": 0, "delta": {}, "finish_reason": None, "logprobs": None}), (ChunkChoice(0),)),
        (chunk({"index": 0, "finish_reason": "new"}), (ChunkChoice(0, finish_reason="new"),)),
        (
            chunk({"delta": {"content": "a"}}, {"delta": {"content": "b"}}),
            (ChunkChoice(0, Delta(content="a")), ChunkChoice(1, Delta(content="b"))),
        ),
        (
            chunk(delta(1, content="b"), delta(0, content="a")),
            (ChunkChoice(1, Delta(content="b")), ChunkChoice(0, Delta(content="a"))),
        ),
    ],
)
def test_choices_of_chunks(data: str, choices: tuple[ChunkChoice, ...]) -> None:
    assert decode_one(data).choices == choices


IMPOSSIBLE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 4}


@pytest.mark.parametrize("usage", [None, {}, [], {"prompt_tokens": -1, "completion_tokens": 1}, IMPOSSIBLE, "x"])
def test_usage_that_is_none(usage: object) -> None:
    assert decode_one(chunk(usage=usage)).usage is None
    assert decode_one(chunk(delta(content="a"), usage=usage)).choices[0].delta.content == "a"


def test_usage_beside_an_empty_delta() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cost": 0.1}
    assert decode_one(chunk(delta(), usage=usage)).usage == Usage(1, 2, 3)


@pytest.mark.parametrize("data", ["[DONE]", "[none]", "[Done]", " [NONE] ", "\ufeff[done]\n", "[done]\r"])
@pytest.mark.parametrize("event", ["message", "error", "done"])
def test_terminators(data: str, event: str) -> None:
    assert ChunkDecoder().decode(ServerSentEvent(data, event)) == "end"


@pytest.mark.parametrize(
    "event",
    [
        ServerSentEvent(""),
        ServerSentEvent(" \n\t"),
        ServerSentEvent("", "ping"),
        ServerSentEvent('{"type": "ping"}', "ping"),
        ServerSentEvent("pong", "ping"),
    ],
)
def test_events_without_meaning(event: ServerSentEvent) -> None:
    assert ChunkDecoder().decode(event) is None


def test_json_over_several_lines_and_another_events_name() -> None:
    data = json.dumps(json.loads(chunk(delta(content="Hi"))), indent=1)
    assert decode_one(data).choices[0].delta.content == "Hi"
    named = ChunkDecoder().decode(ServerSentEvent(data, "completion"))
    assert isinstance(named, WireChunk)
    assert named.choices[0].delta.content == "Hi"


@pytest.mark.parametrize(
    ("event", "cls", "says"),
    [
        (ServerSentEvent("it broke", "error"), InternalServerError, "it broke"),
        (ServerSentEvent("", "error"), InternalServerError, "answered 500;"),
        (ServerSentEvent('{"message": "slow down", "code": 429}', "error"), RateLimitError, "slow down"),
        (ServerSentEvent('{"error": {"message": "no", "code": 401}}', "error"), AuthenticationError, "no"),
        (ServerSentEvent('{"error": "no"}'), InternalServerError, "no"),
        (
            ServerSentEvent('{"error": {"message": "died", "type": null, "param": null, "code": "500"}}'),
            InternalServerError,
            "died",
        ),
    ],
)
def test_errors_in_streams(event: ServerSentEvent, cls: type[APIStatusError], says: str) -> None:
    with pytest.raises(APIStatusError, match=says) as raised:
        ChunkDecoder().decode(event)
    assert type(raised.value) is cls
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("nope", "it is not JSON (Expecting value)"),
        ("[DONE", "it is not JSON"),
        ("[DONE] [DONE]", "it is not JSON"),
        ("null", "not an object: NoneType"),
        ("[1]", "not an object: list"),
        ('{"choices": [', "it is cut"),
        ('{"choices": [{"index": 0, "delta": {"content": NaN}}]}', "NaN is not JSON"),
        ("<html>", "it is a web page"),
        ("{" * 100_000, "nests too deep"),
        ('{"a":' * 100_000, "nests too deep"),
        (chunk(delta(content=5)), "expected str, not int @ $.choices[0].delta.content"),
        (chunk({"index": "0", "delta": {"content": "x"}}), "expected int, not str @ $.choices[0].index"),
        (chunk({"index": [0], "delta": {"content": "\ud83d"}}), "expected int, not list @ $.choices[0].index"),
        (chunk(delta(tool_calls=[{"index": {}, "function": {"arguments": "\ud83d"}}])), "tool_calls[0].index"),
        (chunk(delta(tool_calls=[5, {"function": {"arguments": "x"}}])), "@ $.choices[0].delta.tool_calls[0]"),
        (chunk({"index": 0, "delta": "x"}), "@ $.choices[0].delta"),
        (chunk({"index": 0, "delta": {}, "finish_reason": 1}), "@ $.choices[0].finish_reason"),
        (chunk("x"), "@ $.choices[0]"),
        ('{"choices": {}}', "expected list, not dict @ $.choices"),
    ],
)
def test_what_is_no_chunk(data: str, says: str) -> None:
    for prefix in ("", " "):
        with pytest.raises(APIResponseError) as raised:
            ChunkDecoder().decode(ServerSentEvent(prefix + data))
        assert says in str(raised.value)
        assert raised.value.__context__ is None


def test_surrogate_halves_of_two_chunks_are_joined_in_each_place() -> None:
    def at(place: str, text: str) -> dict[str, object]:
        return {
            "content": delta(content=text),
            "function_call": delta(function_call={"arguments": text}),
            "first tool": delta(tool_calls=[{"index": 0, "function": {"arguments": text}}]),
            "second tool": delta(1, tool_calls=[{"function": {"arguments": ""}}, {"function": {"arguments": text}}]),
        }[place]

    def texts(chunks: list[ChatCompletionChunk]) -> str:
        found = ""
        for choice in (choice for part in chunks for choice in part.choices):
            found += choice.delta.content or ""
            found += choice.delta.function_call.arguments if choice.delta.function_call else ""
            found += "".join(call.function.arguments for call in choice.delta.tool_calls or ())
        return found

    for place in ("content", "function_call", "first tool", "second tool"):
        assert texts(decode_chunks(chunk(at(place, "a\ud83d")), chunk(at(place, "\ude00b")))) == "a😀b"
        assert texts(decode_chunks(chunk(at(place, "a\ud83d")), chunk(at(place, "b")))) == "a\ufffdb"
        assert (
            texts(decode_chunks(chunk(at(place, "a\ud83d")), chunk(at(place, "")), chunk(at(place, "\ude00")))) == "a😀"
        )
        assert texts(decode_chunks(chunk(at(place, "\ud83d")), chunk(at(place, "\ud83d\ude00")))) == "\ufffd😀"
        assert texts(decode_chunks(chunk(at(place, "a\ud83d")))) == "a\ufffd"
        assert texts(decode_chunks(chunk(at(place, "\ude00")))) == "\ufffd"


def test_halves_of_two_choices_are_kept_apart() -> None:
    chunks = decode_chunks(
        chunk(delta(0, content="\ud83d"), delta(1, content="\ud83c")),
        chunk(delta(1, content="\udf0d")),
        chunk(delta(0, content="\ude00")),
    )
    assert [(c.index, c.delta.content) for part in chunks for c in part.choices if c.delta.content] == [
        (1, "🌍"),
        (0, "😀"),
    ]


def test_halves_that_wait_do_not_hold_up_a_keep_alive() -> None:
    decoder = ChunkDecoder()
    assert isinstance(decoder.decode(ServerSentEvent(chunk(delta(content="\ud83d")))), WireChunk)
    assert decoder.decode(ServerSentEvent("")) is None
    assert decoder.decode(ServerSentEvent("[DONE]")) == "end"
    last = decoder.flush()
    assert last is not None
    assert as_chunk(last) == ChatCompletionChunk((ChunkChoice(0, Delta(content="\ufffd")),))
    assert as_chunk(last).raw == {}


# -- properties --------------------------------------------------------------------------------------------------------


def strings(value: object) -> Iterator[str]:
    """Every string in attrs objects, mappings and sequences."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from strings(key)
            yield from strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from strings(item)
    elif attrs.has(type(value)):
        for name in attrs.asdict(cast("Any", value), recurse=False):
            yield from strings(getattr(value, name))


def assert_utf8(*values: object) -> None:
    for text in strings(values):
        text.encode()


ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.sampled_from('\ud83d\ude00😀\ufeff"\\'), max_size=6)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(ANY_TEXT | st.just("text"), inner, max_size=2),
    max_leaves=4,
)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A good value, but for one in thirty."""
    return st.integers(0, 29).flatmap(lambda dice: good if dice else JUNK)


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields, and one that is not known."""
    known = st.fixed_dictionaries({}, optional=fields)
    return st.builds(lambda own, extra: own | extra, known, st.dictionaries(ANY_TEXT, JUNK, max_size=1))


def with_all(part: st.SearchStrategy[dict[str, Any]], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(lambda own, rest: own | rest, st.fixed_dictionaries(fields), part)


INDEX = mostly(st.integers(0, 2))
CALL = objects(name=mostly(ANY_TEXT), arguments=mostly(ANY_TEXT))
TOOL_CALL = objects(index=INDEX, id=mostly(ANY_TEXT), type=mostly(st.just("function")), function=mostly(CALL))
PART = objects(
    role=mostly(st.just("assistant")),
    name=mostly(ANY_TEXT),
    function_call=mostly(st.none() | CALL),
    tool_calls=mostly(st.none() | st.lists(mostly(TOOL_CALL), max_size=2)),
)
MESSAGE = with_all(PART, content=mostly(ANY_TEXT | st.lists(st.dictionaries(ANY_TEXT, JUNK, max_size=2), max_size=2)))
DELTA = with_all(PART, content=mostly(ANY_TEXT))
CHOICE = with_all(
    objects(index=INDEX, finish_reason=mostly(ANY_TEXT), logprobs=JUNK), message=mostly(MESSAGE), delta=mostly(DELTA)
)
COUNT = mostly(st.integers(0, 2))
USAGE = objects(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=mostly(st.integers(0, 4)))
ANSWER = with_all(
    objects(
        id=mostly(ANY_TEXT),
        object=mostly(st.just("chat.completion")),
        created=mostly(st.integers(0, 9) | st.floats(0, 9)),
        model=mostly(ANY_TEXT),
        usage=mostly(st.none() | USAGE),
        error=mostly(st.none()),
        code=JUNK,
    ),
    choices=mostly(st.lists(mostly(CHOICE), min_size=1, max_size=2)),
)
JSON_BODY = st.builds(
    lambda value, plain: json.dumps(value, ensure_ascii=plain), st.one_of(ANSWER, ANSWER, ANSWER, JUNK), st.booleans()
)


def refusal(error: APIError) -> object:
    """What an error says, apart from its text, which quotes the answer."""
    assert_utf8(str(error), vars(error))
    assert error.__context__ is None
    return type(error), error.kind, getattr(error, "status_code", None)


def outcome(body: bytes) -> object:
    try:
        decoded = decode_completion(body)
    except APIError as error:
        return refusal(error)
    assert_utf8(decoded, decoded.raw, decoded.text)
    return decoded, decoded.raw


@given(text=JSON_BODY)
@example(text=r'{"choices": [{"index": 0, "message": {"role": "assistant"}}], "x": "\ud800"}')
def test_property_both_ways_agree_on_completions(text: str) -> None:
    body = text.encode("utf-8", "surrogatepass")
    assert outcome(body) == outcome(BOM + body)


def _seen(decoded: object) -> list[object]:
    """What a caller sees of it."""
    if not isinstance(decoded, WireChunk):
        return [decoded]
    chunk = as_chunk(decoded)
    return [chunk, chunk.raw]


def stream_outcome(texts: list[str]) -> list[object]:
    decoder = ChunkDecoder()
    seen: list[object] = []
    for text in texts:
        try:
            decoded = decoder.decode(ServerSentEvent(text))
        except APIError as error:
            seen.append(refusal(error))
        else:
            seen += _seen(decoded)
    seen += _seen(decoder.flush())
    assert_utf8(seen)
    return seen


@given(texts=st.lists(JSON_BODY, max_size=4))
def test_property_both_ways_agree_on_chunks(texts: list[str]) -> None:
    assert stream_outcome(texts) == stream_outcome([" " + text for text in texts])


def joined(units: str) -> str:
    """UTF-16 code units as text: pairs joined, lone halves replaced."""
    text = ""
    for unit in units:
        if "\udc00" <= unit <= "\udfff" and text and "\ud800" <= text[-1] <= "\udbff":
            text = text[:-1] + chr(0x10000 + ((ord(text[-1]) - 0xD800) << 10) + ord(unit) - 0xDC00)
        else:
            text += unit
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


@given(pieces=st.lists(st.text(st.sampled_from("a\ud83d\ude00\ud83c\udf0d"), max_size=4), max_size=6))
def test_property_any_cut_of_code_units_is_joined(pieces: list[str]) -> None:
    chunks = decode_chunks(*(chunk(delta(content=piece)) for piece in pieces))
    assert "".join(c.delta.content or "" for part in chunks for c in part.choices) == joined("".join(pieces))


RAW_BODY = st.binary(max_size=60) | JSON_BODY.map(lambda text: text.encode("utf-8", "surrogatepass"))


@given(body=RAW_BODY)
def test_property_nothing_but_our_errors_escapes_a_body(body: bytes) -> None:
    outcome(body)


@given(texts=st.lists(ANY_TEXT | JSON_BODY | st.text('[]{}":,\\ud8en0 ', max_size=20), max_size=3))
def test_property_nothing_but_our_errors_escapes_an_event(texts: list[str]) -> None:
    for name in ("message", "error", "ping"):
        for text in texts:
            try:
                ChunkDecoder([KEY]).decode(ServerSentEvent(text, name))
            except APIError as error:
                refusal(error)
    stream_outcome(texts)


@given(
    status=st.integers(100, 999).filter(lambda status: status != 200),
    body=RAW_BODY,
    content_type=st.sampled_from(["", "application/json", "text/html"]) | ANY_TEXT,
    location=st.none() | ANY_TEXT | st.text("http:/[]@.%?#a1", max_size=20),
)
def test_property_any_answer_makes_an_error(status: int, body: bytes, content_type: str, location: str | None) -> None:
    error = error_from_response(status, body, content_type=content_type, location=location, secrets=[KEY])
    assert isinstance(error, APIError)
    assert str(error).isprintable()
    assert_utf8(str(error), vars(error))
    twin = pickle.loads(pickle.dumps(error))
    assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))


# -- what real servers sent --------------------------------------------------------------------------------------------


@attrs.frozen
class Capture:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @classmethod
    def read(cls, path: Path) -> Capture:
        head, _, body = path.read_bytes().partition(b"\r\n\r\n")
        lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines[1:])}
        if headers.get("transfer-encoding") == "chunked":
            body = b"".join(_unchunked(body))
        return cls(int(lines[0].split()[1]), headers, body)

    @property
    def is_stream(self) -> bool:
        return self.status == 200 and "event-stream" in self.headers["content-type"]


def _unchunked(body: bytes) -> Iterator[bytes]:
    while body:
        size, _, body = body.partition(b"\r\n")
        yield body[: int(size, 16)]
        body = body[int(size, 16) + 2 :]


NAMES = sorted(str(path.relative_to(CAPTURES)) for path in CAPTURES.rglob("*.raw"))
STREAMS = [name for name in NAMES if Capture.read(CAPTURES / name).is_stream]

ERRORS: dict[str, tuple[type[APIError], str | None]] = {
    "aimock/51-bad_tool": (InternalServerError, None),
    "aimock/52-bad_json": (BadRequestError, "invalid_json"),
    "aimock/55-no_auth": (AuthenticationError, "invalid_api_key"),
    "aimock/57-get": (NotFoundError, None),
    "faults/litellm-mock-429": (RateLimitError, "429"),
    "faults/litellm-mock-500": (InternalServerError, "500"),
    "faults/litellm-mock-ctx": (BadRequestError, "400"),
    "faults/litellm-mock-timeout": (APIStatusError, "408"),
    "faults/litellm-upstream-down": (InternalServerError, "500"),
    "litellm/36-n_str": (InternalServerError, "500"),
    "litellm/47-unknown_model": (BadRequestError, "400"),
    "litellm/52-bad_json": (BadRequestError, "400"),
    "litellm/55-no_auth": (InternalServerError, None),
    "litellm/56-wrong_auth": (BadRequestError, "400"),
    "litellm/57-get": (APIStatusError, None),
    "litellm/60-trailing_slash": (APIStatusError, None),
    "llama_cpp_python/49-ctx_overflow": (BadRequestError, "context_length_exceeded"),
    "llama_cpp_python/52-bad_json": (InternalServerError, None),
    "llama_cpp_python/55-no_auth": (AuthenticationError, None),
    "llama_cpp_python/57-get": (APIStatusError, None),
    "llama_cpp_python/60-trailing_slash": (APIStatusError, None),
    "llamacpp/36-n_str": (BadRequestError, "400"),
    "llamacpp/49-ctx_overflow": (BadRequestError, "400"),
    "llamacpp/51-bad_tool": (InternalServerError, "500"),
    "llamacpp/52-bad_json": (BadRequestError, "400"),
    "llamacpp/55-no_auth": (AuthenticationError, "401"),
    "llamacpp/57-get": (NotFoundError, "404"),
}


@pytest.mark.parametrize("name", [name for name in NAMES if name not in STREAMS])
def test_captured_answer(name: str) -> None:
    capture = Capture.read(CAPTURES / name)
    if name.removesuffix(".raw") not in ERRORS:
        assert capture.status == 200
        decoded = decode(capture.body)
        assert decoded.finish_reason in ("stop", "length", "tool_calls", "function_call")
        assert decoded.usage is not None
        assert decoded.text or decoded.choices[0].message.tool_calls or decoded.choices[0].message.function_call
        assert decoded.raw == json.loads(capture.body)
        return
    error = error_from_response(
        capture.status,
        capture.body,
        content_type=capture.headers.get("content-type", ""),
        location=capture.headers.get("location"),
    )
    cls, code = ERRORS[name.removesuffix(".raw")]
    assert type(error) is cls
    assert isinstance(error, APIStatusError)
    assert (error.status_code, error.code) == (capture.status, code)


def read_stream(body: bytes, size: int) -> tuple[list[ChatCompletionChunk], bool, APIError | None]:
    """The chunks of a stream's body, whether its terminator came, and the error that ended it."""
    events, decoder = SSEDecoder(), ChunkDecoder()
    chunks: list[ChatCompletionChunk] = []
    for start in range(0, len(body), size):
        for event in events.feed(body[start : start + size]):
            try:
                decoded = decoder.decode(event)
            except APIError as error:
                return chunks, False, error
            if decoded == "end":
                return chunks, True, None
            if isinstance(decoded, WireChunk):
                chunks.append(as_chunk(decoded))
    return chunks, False, None


@pytest.mark.parametrize("name", STREAMS)
def test_captured_stream(name: str) -> None:
    body = Capture.read(CAPTURES / name).body
    chunks, ended, error = read_stream(body, len(body) + 1)
    for size in (1, 7, 64, 1000):
        again = read_stream(body, size)
        assert again[:2] == (chunks, ended)
        assert str(again[2]) == str(error)
    if name == "faults/litellm-upstream-dies.raw":
        assert (type(error), ended, bool(chunks)) == (InternalServerError, False, True)
    elif name == "llama_cpp_python/50-ctx_overflow_stream.raw":
        assert (error, ended, chunks) == (None, False, [])
    else:
        assert (error, ended, bool(chunks)) == (None, True, True)
    finished = {choice.index for part in chunks for choice in part.choices if choice.finish_reason}
    assert (0 in finished) == (name not in _UNFINISHED)
    assert_utf8(chunks, [part.raw for part in chunks])


_UNFINISHED = {
    "faults/lcpp-interrupt-A.raw",
    "faults/litellm-upstream-dies.raw",
    "llama_cpp_python/50-ctx_overflow_stream.raw",
}


def test_captured_streams_with_usage() -> None:
    for server, completion_tokens in (
        ("aimock", {9}),
        ("litellm", {9}),
        ("llamacpp", {3}),
        ("llama_cpp_python", set()),
    ):
        chunks, _, _ = read_stream(Capture.read(CAPTURES / server / "02-stream_usage.raw").body, 100)
        assert {part.usage.completion_tokens for part in chunks if part.usage is not None} == completion_tokens


def test_captured_choices_are_interleaved() -> None:
    chunks, _, _ = read_stream(Capture.read(CAPTURES / "llamacpp" / "04-n2_stream.raw").body, 100)
    assert {choice.index for part in chunks for choice in part.choices} == {0, 1}


def test_a_captured_name_comes_with_every_delta() -> None:
    chunks, _, _ = read_stream(Capture.read(CAPTURES / "llama_cpp_python" / "18-functions_forced_stream.raw").body, 100)
    deltas = [choice.delta for part in chunks for choice in part.choices]
    assert {d.function_call.name for d in deltas if d.function_call} == {"get_weather"}
    assert {call.function.name for d in deltas for call in d.tool_calls or ()} == {"get_weather"}
