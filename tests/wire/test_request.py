"""Requests to the bytes and headers that are sent."""

from __future__ import annotations

import copy
import enum
import json
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import ChatRequest, FunctionCall, InvalidRequestError, Message, ToolCall
from piapi_async.wire import (
    COMMON_HEADERS,
    MAX_REQUEST_BYTES,
    decode_completion,
    encode_request,
    request_headers,
)
from tests.wire.samples import completion

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
    fields = sent(ChatRequest("Hi", extra_body={"vendor": None, "repetition": {"penalty": [1, 2]}}))
    assert fields["vendor"] is None
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
            "content": None,
            "tool_calls": [{"function": {"name": "type", "arguments": "{}"}, "id": "call_1", "type": "function"}],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"function": {"name": "f", "arguments": ""}, "id": "2", "type": "function"}],
        },
        {"role": "tool", "content": "sunny", "tool_call_id": "call_1"},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": ""}},
        {"role": "assistant", "content": None, "function_call": {"name": "f", "arguments": "{}"}},
        {"role": "function", "content": "rain", "name": "f"},
    ]


def test_an_answer_is_sent_back() -> None:
    call = {"index": 0, "id": "call_1", "type": None, "function": {"name": "f", "arguments": "{}"}}
    sent = {"role": "assistant", "content": None, "function_call": None, "tool_calls": [call]}
    (message,) = messages_sent(decode_completion(completion(sent)).choices[0].message)
    tools = [{"function": {"name": "f", "arguments": "{}"}, "id": "call_1", "type": "function"}]
    assert message == {"role": "assistant", "content": None, "tool_calls": tools}
    sent |= {"content": "Hello!", "tool_calls": None}
    (message,) = messages_sent(decode_completion(completion(sent)).choices[0].message)
    assert message == {"role": "assistant", "content": "Hello!"}


def test_content_may_be_parts() -> None:
    parts = [{"type": "text", "text": "What is this?"}, {"type": "image_url", "image_url": {"url": "data:,"}}]
    assert messages_sent({"role": "user", "content": parts}) == [{"role": "user", "content": parts}]


def test_every_field_of_a_message_is_sent() -> None:
    """Each alone, as the encoder has a shorter way for messages of role and content."""
    values: dict[str, Any] = {
        "content": "Hi",
        "name": "bob",
        "function_call": FunctionCall("f", "{}"),
        "tool_calls": (ToolCall(FunctionCall("f", "{}"), "1"),),
        "tool_call_id": "1",
        "refusal": "No",
        "extra": {"a": None, "b": {"c": None}},
    }
    assert {field.name for field in attrs.fields(Message)} == {"role", *values}
    call = {"name": "f", "arguments": "{}"}
    said = values | {
        "function_call": call,
        "tool_calls": [{"function": call, "id": "1", "type": "function"}],
    }
    for name, value in values.items():
        expected = {"b": {"c": None}} if name == "extra" else {name: said[name]}
        assert messages_sent(Message("a", **{name: value})) == [{"role": "a", "content": None} | expected]


def test_a_call_of_another_type_is_sent_back() -> None:
    call = {"id": "1", "type": "custom", "custom": {"name": "f", "input": "x"}}
    message = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert messages_sent(message) == [message]
    made = ToolCall(id="1", type="custom", extra={"custom": call["custom"]})
    assert messages_sent(Message("assistant", tool_calls=(made,))) == [message]
    mixed = ToolCall(FunctionCall("f"), "1", "another")
    (sent,) = messages_sent(Message("assistant", tool_calls=(mixed,)))
    assert sent["tool_calls"] == [{"function": {"name": "f", "arguments": ""}, "id": "1", "type": "another"}]


TEXT = st.text(max_size=5)
JSON_VALUE = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
EXTRA = st.dictionaries(
    st.sampled_from(["reasoning_content", "audio", "annotations", "images", "extra", "tool_plan", "é", ""]), JSON_VALUE
)
FUNCTION_CALL = st.builds(
    lambda extra, name, arguments: {**extra, "name": name, "arguments": arguments}, EXTRA, TEXT, TEXT
)
TOOL_CALLS = st.lists(
    st.builds(lambda extra, call: {**extra, "type": "function", "function": call}, EXTRA, FUNCTION_CALL),
    min_size=1,
    max_size=3,
).map(lambda calls: [call | {"id": f"call-{i}"} for i, call in enumerate(calls)])
RAW_MESSAGE = st.builds(
    lambda extra, fields: {**extra, "role": "assistant", "content": None, **fields},
    EXTRA,
    st.fixed_dictionaries(
        {},
        optional={
            "content": TEXT | st.none() | st.lists(st.dictionaries(TEXT, JSON_VALUE, max_size=3), max_size=3),
            "refusal": TEXT | st.none(),
            "function_call": FUNCTION_CALL | st.none(),
            "tool_calls": TOOL_CALLS | st.none(),
        },
    ),
)


def without_nulls(message: dict[str, Any]) -> dict[str, Any]:
    """A message, and its calls, without nulls, but for the content's."""
    kept = {name: value for name, value in message.items() if value is not None or name == "content"}
    for name in ("function_call", "function"):
        if name in kept:
            kept[name] = without_nulls(kept[name])
    if "tool_calls" in kept:
        kept["tool_calls"] = [without_nulls(call) for call in kept["tool_calls"]]
    return kept


@given(message=RAW_MESSAGE)
def test_property_what_came_goes_back(message: dict[str, Any]) -> None:
    before = copy.deepcopy(message)
    assert messages_sent(message) == [without_nulls(message)]
    assert message == before
    (checked,) = ChatRequest([message]).messages
    assert messages_sent(checked) == [without_nulls(message)]


def test_what_is_as_in_raw_is_as_in_the_answer() -> None:
    """Whether a caller sends back the message, or what it was made of."""
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}, "extra_content": 1}
    answer = decode_completion(
        completion(
            {
                "role": "assistant",
                "content": None,
                "refusal": "No",
                "reasoning_content": "hm",
                "annotations": [],
                "audio": None,
                "tool_calls": [call],
            }
        )
    )
    raw: Any = answer.raw["choices"]
    (sent_back,) = messages_sent(raw[0]["message"])
    assert sent_back == {
        "role": "assistant",
        "content": None,
        "refusal": "No",
        "reasoning_content": "hm",
        "annotations": [],
        "tool_calls": [{name: value for name, value in call.items() if name != "index"}],
    }


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


def test_the_headers_of_a_request() -> None:
    assert (COMMON_HEADERS["Accept"], COMMON_HEADERS["X-Attempt"]) == ("application/json", "1")
    assert request_headers("call-1", 1, stream=False) == {"Idempotency-Key": "call-1"}
    assert request_headers("call-1", 2, stream=False) == {"Idempotency-Key": "call-1", "X-Attempt": "2"}
    assert request_headers("call-1", 1, stream=True)["Accept"] == "text/event-stream"
