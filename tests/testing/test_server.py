from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import aiohttp
import msgspec
import pytest
import trustme
from attrs import frozen

from piapi_async import testing
from piapi_async.errors import ConfigurationError
from piapi_async.testing import (
    HTML_PAGE,
    WRONG_JSON,
    Cut,
    Delay,
    Drop,
    Fault,
    LocalServer,
    RawServer,
    ReadRequest,
    Send,
    Stall,
    Status,
    StreamError,
    http_response,
    random_faults,
)

pytestmark = pytest.mark.anyio

WEATHER = {
    "name": "get_weather",
    "description": "The weather of a city",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer", "minimum": 1, "maximum": 2},
            "unit": {"enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city"],
    },
}


@frozen
class Answer:
    """An answer, read whole."""

    status: int
    headers: Any
    content: bytes

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.content)

    @property
    def error(self) -> Any:
        assert list(self.json) == ["error"]
        assert list(self.json["error"]) == ["message", "type", "param", "code"]
        return self.json["error"]

    @property
    def message(self) -> Any:
        return self.json["choices"][0]["message"]

    @property
    def text(self) -> Any:
        return self.message["content"]

    @property
    def data(self) -> list[str]:
        """The data of the events; they must be framed as on the provider's page."""
        *events, rest = self.content.decode().split("\n\n")
        assert rest == ""
        assert all(event.startswith("data: ") and "\n" not in event for event in events)
        return [event.removeprefix("data: ") for event in events]

    @property
    def chunks(self) -> list[Any]:
        """The chunks of a stream, without its terminator."""
        return [msgspec.json.decode(data) for data in self.data if data.startswith("{")]


class Caller:
    """Sends requests to the server of the test."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def send(self, server: LocalServer, method: str, path: str, **options: Any) -> Answer:
        headers = {"Authorization": f"Bearer {server.api_key}", **options.pop("headers", {})}
        url = server.base_url.removesuffix("/v1") + path
        async with self.session.request(method, url, headers=headers, **options) as response:
            return Answer(response.status, response.headers, await response.read())

    async def ask(self, server: LocalServer, prompt: str = "Why is the sky blue?", **fields: Any) -> Answer:
        """Ask for a completion; fields replace the request's own."""
        body = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": prompt}], **fields}
        return await self.send(server, "POST", "/v1/chat/completions", json=body)


@pytest.fixture
async def caller(anyio_backend: object) -> AsyncIterator[Caller]:
    async with aiohttp.ClientSession() as session:
        yield Caller(session)


@pytest.fixture
async def server(anyio_backend: object) -> AsyncIterator[LocalServer]:
    async with LocalServer() as server:
        yield server


PAGE_MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "Hello!"},
]


def texts(answer: Answer) -> dict[int, str]:
    """The text of each choice of a stream."""
    said: dict[int, str] = {}
    for chunk in answer.chunks:
        for choice in chunk["choices"]:
            said[choice["index"]] = said.get(choice["index"], "") + choice["delta"].get("content", "")
    return said


# --- Completions ---


async def test_the_pages_example_gets_the_pages_shape_and_usage(server: LocalServer, caller: Caller) -> None:
    answer = await caller.ask(server, model="gpt-3.5-turbo", messages=PAGE_MESSAGES)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.headers["x-request-id"].startswith("req_")
    assert "Date" in answer.headers
    completion = answer.json
    assert list(completion) == ["id", "object", "created", "model", "choices", "usage"]
    assert completion["id"].startswith("chatcmpl-")
    assert (completion["object"], completion["model"]) == ("chat.completion", "gpt-3.5-turbo")
    [choice] = completion["choices"]
    assert choice["index"] == 0
    assert choice["message"] == {"role": "assistant", "content": "Hello! What can I do for you?"}
    assert choice["finish_reason"] == "stop"
    assert completion["usage"] == {"prompt_tokens": 19, "completion_tokens": 9, "total_tokens": 28}


async def test_the_same_messages_get_the_same_answer(server: LocalServer, caller: Caller) -> None:
    first, again = [await caller.ask(server, "What makes tides?") for _ in range(2)]
    other = await caller.ask(server, "What makes bread rise?")
    assert first.text == again.text != other.text
    assert first.json["usage"] == again.json["usage"]
    assert first.json["id"] != again.json["id"]
    assert first.headers["x-request-id"] != again.headers["x-request-id"]


async def test_n_gives_that_many_different_choices(server: LocalServer, caller: Caller) -> None:
    answer = await caller.ask(server, n=3)
    assert [choice["index"] for choice in answer.json["choices"]] == [0, 1, 2]
    assert len({choice["message"]["content"] for choice in answer.json["choices"]}) == 3
    one = await caller.ask(server)
    assert answer.json["choices"][0] == one.json["choices"][0]
    assert answer.json["usage"]["completion_tokens"] > one.json["usage"]["completion_tokens"]


@pytest.mark.parametrize(
    ("fields", "text", "finish_reason"),
    [
        ({}, "one two three, four.", "stop"),
        ({"stop": " three"}, "one two", "stop"),
        ({"stop": ["four", ",", "nothing"]}, "one two three", "stop"),
        ({"stop": "one"}, "", "stop"),
        ({"stop": ["", "nothing"]}, "one two three, four.", "stop"),
        ({"stop": []}, "one two three, four.", "stop"),
        ({"max_tokens": 4}, "one two three,", "length"),
        ({"max_tokens": 6}, "one two three, four.", "stop"),
        ({"max_completion_tokens": 2, "max_tokens": 4}, "one two", "length"),
        ({"max_tokens": 2, "stop": ","}, "one two", "length"),
        ({"max_tokens": 3, "stop": ","}, "one two three", "stop"),
    ],
)
async def test_stop_and_max_tokens_cut(caller: Caller, fields: Any, text: str, finish_reason: str) -> None:
    async with LocalServer(answer=lambda messages: "one two three, four.") as server:
        answer = await caller.ask(server, **fields)
        stream = await caller.ask(server, **fields, stream=True)
    assert answer.text == text
    assert answer.json["choices"][0]["finish_reason"] == finish_reason
    assert texts(stream) == {0: text}
    assert stream.chunks[-1]["choices"][0]["finish_reason"] == finish_reason


async def test_answer_sees_the_messages(caller: Caller) -> None:
    async with LocalServer(answer=lambda messages: f"You said: {messages[-1]['content']}") as server:
        assert (await caller.ask(server, "hi")).text == "You said: hi"


async def test_content_may_come_in_parts(server: LocalServer, caller: Caller) -> None:
    parts = [{"type": "text", "text": "What makes"}, {"type": "image_url"}, {"type": "text", "text": "tides?"}]
    answer = await caller.ask(server, messages=[{"role": "user", "content": parts}])
    assert "makes" in answer.text or "tides" in answer.text


async def test_names_and_functions_count_as_prompt(server: LocalServer, caller: Caller) -> None:
    plain = (await caller.ask(server)).json["usage"]["prompt_tokens"]
    named = [{"role": "user", "name": "ada", "content": "Why is the sky blue?"}]
    assert (await caller.ask(server, messages=named)).json["usage"]["prompt_tokens"] == plain + 2
    assert (await caller.ask(server, functions=[WEATHER])).json["usage"]["prompt_tokens"] > plain + 20


async def test_latency_comes_before_the_headers(caller: Caller) -> None:
    async with LocalServer(latency=0.001) as server:
        assert (await caller.ask(server)).status == 200


# --- Streams ---


@pytest.mark.parametrize("terminator", ["[none]", "[DONE]", None])
async def test_a_stream_says_the_same_as_a_completion(caller: Caller, terminator: str | None) -> None:
    async with LocalServer(terminator=terminator) as server:
        whole = await caller.ask(server)
        answer = await caller.ask(server, stream=True)
    assert answer.headers["Content-Type"] == "text/event-stream"
    assert answer.headers["Cache-Control"] == "no-cache"
    assert "x-request-id" in answer.headers
    assert texts(answer) == {0: whole.text}
    first, *middle, last = answer.chunks
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert len(middle) == whole.json["usage"]["completion_tokens"]
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in (first, *middle))
    assert last["choices"] == [{"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}]
    assert len({chunk["id"] for chunk in answer.chunks}) == 1
    assert all(list(chunk) == ["id", "object", "created", "model", "choices"] for chunk in answer.chunks)
    assert first["object"] == "chat.completion.chunk"
    assert answer.data[len(answer.chunks) :] == ([] if terminator is None else [terminator])


async def test_the_choices_of_a_stream_take_turns(server: LocalServer, caller: Caller) -> None:
    answer = await caller.ask(server, stream=True, n=2, max_tokens=3)
    order = [chunk["choices"][0]["index"] for chunk in answer.chunks]
    assert order == [0, 1, 0, 1, 0, 1, 0, 1, 0, 1]
    whole = await caller.ask(server, n=2, max_tokens=3)
    assert texts(answer) == {choice["index"]: choice["message"]["content"] for choice in whole.json["choices"]}


async def test_choices_of_a_stream_end_at_their_own_length(server: LocalServer, caller: Caller) -> None:
    whole = await caller.ask(server, n=5)
    answer = await caller.ask(server, n=5, stream=True)
    assert len({len(choice["message"]["content"]) for choice in whole.json["choices"]}) > 1
    assert texts(answer) == {choice["index"]: choice["message"]["content"] for choice in whole.json["choices"]}


async def test_usage_in_a_stream_comes_only_when_asked(server: LocalServer, caller: Caller) -> None:
    whole = await caller.ask(server)
    answer = await caller.ask(server, stream=True, stream_options={"include_usage": True})
    *chunks, last = answer.chunks
    assert last["choices"] == []
    assert last["usage"] == whole.json["usage"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert answer.data[-1] == "[none]"


async def test_a_paced_stream_sends_a_token_an_event(caller: Caller) -> None:
    async with LocalServer(tokens_per_second=5000) as server:
        answer = await caller.ask(server, stream=True)
        assert texts(answer) == {0: (await caller.ask(server)).text}


async def test_a_long_unpaced_stream_lets_others_in(caller: Caller) -> None:
    async with LocalServer(answer=lambda messages: "word " * 300) as server:
        answers = await asyncio.gather(*(caller.ask(server, stream=True) for _ in range(3)))
    assert [texts(answer) for answer in answers] == [{0: "word " * 300}] * 3


async def test_many_streams_at_once(caller: Caller) -> None:
    async with LocalServer(tokens_per_second=500) as server:
        answers = await asyncio.gather(*(caller.ask(server, stream=True, max_tokens=20) for _ in range(100)))
    assert {answer.data[-1] for answer in answers} == {"[none]"}
    assert len({texts(answer)[0] for answer in answers}) == 1
    assert not any(request.disconnected for request in server.requests)


# --- Functions and tools ---


TOOL = {"type": "function", "function": WEATHER}
ARGUMENTS = '{"city":"Paris","days":2,"unit":"celsius"}'


@pytest.mark.parametrize(
    ("prompt", "choice"),
    [("Hi", {"name": "get_weather"}), ("The weather in Paris?", None), ("The weather in Paris?", "auto")],
)
async def test_functions(server: LocalServer, caller: Caller, prompt: str, choice: Any) -> None:
    answer = await caller.ask(server, prompt, functions=[WEATHER], function_call=choice)
    call = {"name": "get_weather", "arguments": ARGUMENTS}
    assert answer.message == {"role": "assistant", "content": None, "function_call": call}
    assert answer.json["choices"][0]["finish_reason"] == "function_call"
    stream = await caller.ask(server, prompt, functions=[WEATHER], function_call=choice, stream=True)
    first, *middle, last = [chunk["choices"][0] for chunk in stream.chunks]
    opening = {"name": "get_weather", "arguments": ""}
    assert first["delta"] == {"role": "assistant", "content": None, "function_call": opening}
    assert all(list(part["delta"]["function_call"]) == ["arguments"] for part in middle)
    assert "".join(part["delta"]["function_call"]["arguments"] for part in middle) == ARGUMENTS
    assert last["finish_reason"] == "function_call"


@pytest.mark.parametrize(
    ("prompt", "choice"),
    [
        ("Hi", {"type": "function", "function": {"name": "get_weather"}}),
        ("Hi", "required"),
        ("The weather in Paris?", None),
        ("The weather in Paris?", "auto"),
    ],
)
async def test_tools(server: LocalServer, caller: Caller, prompt: str, choice: Any) -> None:
    answer = await caller.ask(server, prompt, tools=[TOOL], tool_choice=choice)
    [call] = answer.message["tool_calls"]
    assert answer.message["content"] is None
    assert call["id"].startswith("call_")
    assert (call["type"], call["function"]) == ("function", {"name": "get_weather", "arguments": ARGUMENTS})
    assert answer.json["choices"][0]["finish_reason"] == "tool_calls"
    stream = await caller.ask(server, prompt, tools=[TOOL], tool_choice=choice, stream=True)
    first, *middle, last = [chunk["choices"][0] for chunk in stream.chunks]
    [opening] = first["delta"]["tool_calls"]
    assert opening.pop("id").startswith("call_")
    assert opening == {"index": 0, "type": "function", "function": {"name": "get_weather", "arguments": ""}}
    parts = [part["delta"]["tool_calls"][0] for part in middle]
    assert all(list(part) == ["index", "function"] for part in parts)
    assert "".join(part["function"]["arguments"] for part in parts) == ARGUMENTS
    assert last["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("prompt", "fields"),
    [
        ("The weather in Paris?", {"functions": [WEATHER], "function_call": "none"}),
        ("The weather in Paris?", {"tools": [TOOL], "tool_choice": "none"}),
        ("What makes tides?", {"functions": [WEATHER]}),
        ("What makes tides?", {"tools": [TOOL]}),
    ],
)
async def test_a_function_is_not_called_unasked(
    server: LocalServer, caller: Caller, prompt: str, fields: dict[str, Any]
) -> None:
    answer = await caller.ask(server, prompt, **fields)
    assert answer.json["choices"][0]["finish_reason"] == "stop"
    assert answer.text


async def test_arguments_are_cut_at_max_tokens(server: LocalServer, caller: Caller) -> None:
    fields: dict[str, Any] = {"functions": [WEATHER], "function_call": {"name": "get_weather"}, "max_tokens": 3}
    answer = await caller.ask(server, **fields)
    assert answer.message["function_call"]["arguments"] == '{"city'
    assert answer.json["choices"][0]["finish_reason"] == "length"


async def test_a_function_without_parameters_gets_none(server: LocalServer, caller: Caller) -> None:
    answer = await caller.ask(server, functions=[{"name": "f"}, {"name": "now"}], function_call={"name": "now"})
    assert answer.message["function_call"] == {"name": "now", "arguments": "{}"}


async def test_a_result_is_answered_with_a_sentence(server: LocalServer, caller: Caller) -> None:
    question = {"role": "user", "content": "The weather in Paris?"}
    call = {"name": "get_weather", "arguments": "{}"}
    asked: dict[str, Any] = {"role": "assistant", "content": None, "function_call": call}
    result = {"role": "function", "name": "get_weather", "content": '{"degrees": 21}'}
    answer = await caller.ask(server, messages=[question, asked, result], functions=[WEATHER])
    assert answer.text == "According to get_weather, degrees is 21."

    asked = {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"id": "call_1", "type": "function", "function": call}],
    }
    for call_id, name in (("call_1", "get_weather"), ("call_2", "the tool")):
        result = {"role": "tool", "tool_call_id": call_id, "content": "21 degrees"}
        answer = await caller.ask(server, messages=[question, asked, result], tools=[TOOL])
        assert answer.text == f"According to {name}, 21 degrees."


async def test_response_formats(server: LocalServer, caller: Caller) -> None:
    schema = {"name": "place", "strict": True, "schema": WEATHER["parameters"]}
    answer = await caller.ask(server, response_format={"type": "json_schema", "json_schema": schema})
    assert answer.text == ARGUMENTS
    answer = await caller.ask(server, response_format={"type": "json_object"})
    assert answer.text.startswith('{"answer":"')
    text = await caller.ask(server, response_format={"type": "text"})
    assert text.text == (await caller.ask(server)).text


# --- What is refused ---


@pytest.mark.parametrize(
    "headers", [{"Authorization": ""}, {"Authorization": "Bearer no"}, {"Authorization": "Basic x"}]
)
@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/chat/completions"), ("GET", "/v1/models")])
async def test_another_key_is_refused(
    server: LocalServer, caller: Caller, headers: dict[str, str], method: str, path: str
) -> None:
    answer = await caller.send(server, method, path, headers=headers, data=b"{")
    assert answer.status == 401
    assert answer.error["code"] == "invalid_api_key"
    assert answer.error["type"] == "invalid_request_error"
    assert "x-request-id" in answer.headers


async def test_more_keys(caller: Caller) -> None:
    async with LocalServer(api_key="sk-one", more_keys=["sk-two"]) as server:
        for key, status in (("sk-one", 200), ("sk-two", 200), ("sk-three", 401)):
            answer = await caller.send(server, "GET", "/v1/models", headers={"Authorization": f"bearer {key}"})
            assert answer.status == status


@pytest.mark.parametrize("data", [b"", b"{", b"null", b"\xff", b'{"a": NaN}', b"[" * 100_000, b'{"model":"\xff"}'])
async def test_a_body_must_be_json(server: LocalServer, caller: Caller, data: bytes) -> None:
    answer = await caller.send(server, "POST", "/v1/chat/completions", data=data)
    assert answer.status == 400
    assert "not valid JSON" in answer.error["message"]
    assert server.requests[-1].raw == data
    assert server.requests[-1].body is None


async def test_a_body_must_be_an_object(server: LocalServer, caller: Caller) -> None:
    answer = await caller.send(server, "POST", "/v1/chat/completions", data=b"[]")
    assert answer.status == 400
    assert answer.error["param"] is None


USER = {"role": "user", "content": "hi"}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": [{"content": "hi"}]}, "messages"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "messages"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 1.1}, "top_p"),
        ({"n": 0}, "n"),
        ({"n": 1.5}, "n"),
        ({"n": 129}, "n"),
        ({"stream": "yes"}, "stream"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": 1}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 0}, "max_completion_tokens"),
        ({"presence_penalty": 2.1}, "presence_penalty"),
        ({"frequency_penalty": -2.1}, "frequency_penalty"),
        ({"logit_bias": {"50256": 101}}, "logit_bias"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"functions": [{"name": "no spaces"}]}, "functions"),
        ({"functions": [{"name": "f", "parameters": []}]}, "functions"),
        ({"functions": [{"name": "f", "parameters": {"properties": {"a": {"minLength": "1"}}}}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"function_call": "always", "functions": [WEATHER]}, "function_call"),
        ({"function_call": {"name": "other"}, "functions": [WEATHER]}, "function_call"),
        ({"tool_choice": "auto"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "other"}}, "tools": [TOOL]}, "tool_choice"),
        ({"tools": [WEATHER]}, "tools"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
    ],
    ids=repr,
)
async def test_types_and_ranges(server: LocalServer, caller: Caller, fields: dict[str, Any], param: str) -> None:
    answer = await caller.ask(server, **fields)
    assert answer.status == 400
    assert answer.error["param"] == param
    assert answer.error["type"] == "invalid_request_error"
    assert param in answer.error["message"]
    assert server.requests[-1].status == 400


@pytest.mark.parametrize("missing", ["model", "messages"])
async def test_what_must_be_there(server: LocalServer, caller: Caller, missing: str) -> None:
    body: dict[str, Any] = {"model": "gpt-4o", "messages": [USER]}
    del body[missing]
    answer = await caller.send(server, "POST", "/v1/chat/completions", json=body)
    assert (answer.status, answer.error["param"]) == (400, missing)


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 0, "top_p": 1, "n": None, "stop": None, "logit_bias": None, "max_tokens": None},
        {"temperature": 2, "presence_penalty": -2.0, "frequency_penalty": 2, "logit_bias": {"1": -100}},
        {"seed": 1, "user": "me", "reasoning_effort": "low", "something_new": [1]},
        {"stop": ["a", "b", "c", "d"]},
    ],
)
async def test_what_is_allowed(server: LocalServer, caller: Caller, fields: dict[str, Any]) -> None:
    assert (await caller.ask(server, **fields)).status == 200


async def test_an_unknown_model_is_not_found(server: LocalServer, caller: Caller) -> None:
    answer = await caller.ask(server, model="gpt-9")
    assert answer.status == 404
    assert (answer.error["code"], answer.error["param"]) == ("model_not_found", "model")


@pytest.mark.parametrize(
    ("plan", "model", "status"),
    [
        ("free", "gpt-4o-mini", 200),
        ("free", "gpt-3.5-turbo", 200),
        ("free", "mine", 200),
        ("free", "gpt-4o", 403),
        ("free", "gpt-4-gizmo-g-gFt1ghYJl", 403),
        ("creator", "gpt-4-gizmo-g-gFt1ghYJl", 200),
        ("creator", "o1-preview", 200),
        ("pro", "claude-3-5-sonnet-20240620", 200),
    ],
)
async def test_plans(caller: Caller, plan: str, model: str, status: int) -> None:
    async with LocalServer(plan=plan, models=["mine"]) as server:
        answer = await caller.ask(server, model=model)
    assert answer.status == status
    if status == 403:
        assert answer.error["code"] == "plan_required"
        assert "Creator plan" in answer.error["message"]


@pytest.mark.parametrize("model", ["o1-preview", "o1-mini"])
async def test_o1_takes_no_system_role(server: LocalServer, caller: Caller, model: str) -> None:
    answer = await caller.ask(server, model=model, messages=PAGE_MESSAGES)
    assert answer.status == 400
    assert answer.error["param"] == "messages"
    assert (await caller.ask(server, model=model, messages=PAGE_MESSAGES[1:])).status == 200


async def test_models(caller: Caller) -> None:
    async with LocalServer(models=["mine"]) as server:
        answer = await caller.send(server, "GET", "/v1/models?limit=5")
    names = [model["id"] for model in answer.json["data"]]
    assert {"gpt-4o-mini", "o1-preview", "gpt-3.5-turbo", "mine"} <= set(names)
    assert not any("*" in name for name in names)
    assert answer.json["object"] == "list"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("POST", "/v1/chat/completions/", 404),
        ("POST", "/v1/v1/chat/completions", 404),
        ("GET", "/v1/chat/completions", 405),
        ("POST", "/v1/models", 405),
    ],
)
async def test_other_addresses(server: LocalServer, caller: Caller, method: str, path: str, status: int) -> None:
    answer = await caller.send(server, method, path)
    assert answer.status == status
    assert answer.error["message"]
    assert ("Allow" in answer.headers) is (status == 405)


async def test_a_request_may_be_too_large(caller: Caller) -> None:
    async with LocalServer(max_body_bytes=1000) as server:
        assert (await caller.ask(server, "x" * 500)).status == 200
        answer = await caller.ask(server, "x" * 1000)
    assert answer.status == 413
    assert answer.error["code"] == "request_too_large"


# --- The record ---


async def test_requests_are_recorded(server: LocalServer, caller: Caller) -> None:
    await caller.ask(server, "hi", user="ada")
    await caller.send(server, "GET", "/nowhere?key=value", headers={"X-Mine": "1"})
    first, second = server.requests
    assert (first.number, first.method, first.path) == (0, "POST", "/v1/chat/completions")
    assert first.body["user"] == "ada"
    assert b'"ada"' in first.raw
    assert (first.status, first.fault, first.disconnected) == (200, None, False)
    assert (second.number, second.path, second.status) == (1, "/nowhere", 404)
    assert second.headers["x-mine"] == "1"
    assert server.api_key not in repr(server.requests)


async def test_only_the_newest_requests_are_kept(caller: Caller) -> None:
    async with LocalServer(keep=2) as server:
        for _ in range(4):
            await caller.ask(server)
        assert [request.number for request in server.requests] == [2, 3]
    async with LocalServer(keep=0) as server:
        assert (await caller.ask(server)).status == 200
        assert server.requests == []


async def until(condition: Callable[[], object]) -> None:
    """Wait for what the server will know in a moment: it tells nobody."""
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def left(server: LocalServer) -> None:
    """Wait until the server has seen the last client leave."""
    await until(lambda: server.requests[-1].disconnected)


async def test_a_client_that_leaves_a_stream_is_recorded(server: LocalServer, caller: Caller) -> None:
    server.tokens_per_second = 100
    body = {"model": "gpt-4o", "messages": [USER], "stream": True}
    headers = {"Authorization": f"Bearer {server.api_key}"}
    async with caller.session.post(f"{server.base_url}/chat/completions", json=body, headers=headers) as response:
        await response.content.readany()
        assert server.requests[-1].status == 200
        response.close()
        await left(server)
    assert server.requests[-1].status == 200


async def test_a_client_that_leaves_in_its_own_body_is_recorded(server: LocalServer) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
    await until(lambda: server.requests)
    writer.close()
    await writer.wait_closed()
    await left(server)
    assert server.requests[-1].status is None


async def test_a_client_that_reads_nothing_is_no_trouble(caller: Caller) -> None:
    async with LocalServer(answer=lambda messages: "word " * 100_000) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        content = b'{"model":"gpt-4o","stream":true,"messages":[{"role":"user","content":"hi"}]}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {server.api_key}\r\n"
        writer.write(head.encode() + b"Content-Length: %d\r\n\r\n" % len(content) + content)
        await reader.readuntil(b"data: ")
        assert (await caller.ask(server, max_tokens=1)).text == "word"
        writer.transport.abort()
        await until(lambda: server.requests[0].disconnected)


# --- Faults ---


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("fault", "status", "content"),
    [
        (Status(), 503, b'{"error":{"message":"A scripted fault of the local server.","type":"server_error"'),
        (
            Status(400, message="No."),
            400,
            b'{"error":{"message":"No.","type":"invalid_request_error","param":null,"code":null}}',
        ),
        (Status(429, type="quota", error_code="insufficient_quota"), 429, b'{"error":{"message":"A scripted'),
        (Status(500, body=b"\xff"), 500, b"\xff"),
        (Status(500, body="Überlast"), 500, "Überlast".encode()),
        (Status(200, body={"error": "text"}), 200, b'{"error":"text"}'),
        (Status(999), 999, b'{"error"'),
        (HTML_PAGE, 200, b"<!doctype html>"),
        (WRONG_JSON, 200, b'{"id": "chatcmpl-1", "choices": [{"index": 0, "mess'),
    ],
)
async def test_faults_instead_of_an_answer(
    server: LocalServer, caller: Caller, fault: Fault, status: int, content: bytes, stream: bool
) -> None:
    server.faults = [fault]
    answer = await caller.ask(server, stream=stream)
    assert answer.status == status
    assert answer.content.startswith(content)
    assert "x-request-id" in answer.headers
    assert (server.requests[0].fault, server.requests[0].status) == (fault, status)
    assert (await caller.ask(server)).status == 200


async def test_the_headers_of_a_status(server: LocalServer, caller: Caller) -> None:
    server.faults = [Status(429, headers={"Retry-After": "3", "content-type": "text/plain"}, body="slow down")]
    answer = await caller.ask(server)
    assert answer.headers["Retry-After"] == "3"
    assert answer.headers.getall("Content-Type") == ["text/plain"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("how", "error"), [("reset", aiohttp.ClientOSError), ("fin", aiohttp.ServerDisconnectedError)])
async def test_drop(server: LocalServer, caller: Caller, how: Any, error: type[Exception], stream: bool) -> None:
    server.faults = [None, Drop(how)]
    assert (await caller.ask(server, stream=stream)).status == 200
    with pytest.raises(error):
        await caller.ask(server, stream=stream)
    assert (server.requests[1].status, server.requests[1].disconnected) == (None, False)
    assert (await caller.ask(server, stream=stream)).status == 200


async def part_of(server: LocalServer, caller: Caller, *, stream: bool) -> tuple[bytes, Exception | None]:
    """What arrives of an answer, and the error that ends it."""
    body = {"model": "gpt-4o", "messages": [USER], "stream": stream}
    headers = {"Authorization": f"Bearer {server.api_key}"}
    received = b""
    async with caller.session.post(f"{server.base_url}/chat/completions", json=body, headers=headers) as response:
        try:
            async for part in response.content.iter_any():
                received += part
        except aiohttp.ClientPayloadError as error:
            return received, error
    return received, None


@pytest.mark.parametrize("after", [0, 3, 1000])
@pytest.mark.parametrize("how", ["reset", "fin", "close"])
async def test_cut_in_a_stream(server: LocalServer, caller: Caller, how: Any, after: int) -> None:
    whole = (await caller.ask(server, USER["content"], stream=True)).data
    server.faults = [Cut(after, how)]
    received, error = await part_of(server, caller, stream=True)
    assert received.count(b"data: ") == min(1 + after, len(whole) - 2)  # the role before, the finish never
    assert received.endswith(b"\n\n")
    if how == "close":
        assert error is None
    else:
        assert isinstance(error, aiohttp.ClientPayloadError)
        assert ("ConnectionResetError" in str(error)) is (how == "reset")
    assert (server.requests[1].status, server.requests[1].disconnected) == (200, False)


@pytest.mark.parametrize("how", ["reset", "fin", "close"])
async def test_cut_in_an_answer(server: LocalServer, caller: Caller, how: Any) -> None:
    whole = (await caller.ask(server, USER["content"])).content
    server.faults = [Cut(how=how)]
    received, error = await part_of(server, caller, stream=False)
    assert abs(len(received) - len(whole) / 2) <= 10
    assert (error is None) is (how == "close")
    assert (server.requests[1].status, server.requests[1].disconnected) == (200, False)


@pytest.mark.parametrize(("fault", "stream"), [(Stall(), True), (Stall(), False), (Stall(2), True), (Stall(2), False)])
async def test_stall(server: LocalServer, caller: Caller, fault: Stall, stream: bool) -> None:
    server.faults = [fault]
    arrived = asyncio.Event()
    if fault.after is None:
        arrived.set()

    async def look() -> None:
        body = {"model": "gpt-4o", "messages": [USER], "stream": stream}
        headers = {"Authorization": f"Bearer {server.api_key}"}
        async with caller.session.post(f"{server.base_url}/chat/completions", json=body, headers=headers) as response:
            received = b""
            while True:
                received += await response.content.readany()
                if received.count(b"data: ") == 3 or (not stream and received):
                    arrived.set()

    task = asyncio.create_task(look())
    await arrived.wait()
    await until(lambda: server.requests and server.requests[0].fault)
    await asyncio.sleep(0.01)  # nothing more comes: look() would go on
    assert not task.done()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await left(server)
    assert server.requests[0].status == (None if fault.after is None else 200)


@pytest.mark.parametrize("stream", [True, False])
async def test_delay(server: LocalServer, caller: Caller, stream: bool) -> None:
    server.faults = [Delay(0.001)]
    assert (await caller.ask(server, stream=stream)).status == 200


async def test_an_error_in_a_stream(server: LocalServer, caller: Caller) -> None:
    server.faults = [StreamError(2, code="overloaded"), StreamError(2, code="overloaded")]
    answer = await caller.ask(server, stream=True)
    assert answer.status == 200
    *chunks, error = answer.chunks
    assert len(chunks) == 3
    assert error == {
        "error": {
            "message": "The model became overloaded.",
            "type": "server_error",
            "param": None,
            "code": "overloaded",
        }
    }
    assert answer.data[-1].startswith('{"error"')
    answer = await caller.ask(server)
    assert (answer.status, answer.json) == (500, error)


async def test_faults_come_before_the_rules(server: LocalServer, caller: Caller) -> None:
    server.faults = [Status(503)]
    assert (await caller.ask(server, headers={"Authorization": "Bearer no"}, model="gpt-9")).status == 503


async def test_a_script_may_grow_and_be_replaced(server: LocalServer, caller: Caller) -> None:
    async def statuses(count: int) -> list[int]:
        return [(await caller.ask(server)).status for _ in range(count)]

    script: list[Fault | None] = [Status(503), None, Status(429)]
    server.faults = script
    assert await statuses(4) == [503, 200, 429, 200]
    script.append(Status(500))
    assert await statuses(2) == [500, 200]
    server.faults = iter([Status(503)])
    assert await statuses(2) == [503, 200]
    server.faults = lambda number, body: Status(400 + number) if body["model"] == "gpt-4o-mini" else None
    assert server.faults(0, {"model": "other"}) is None
    assert await statuses(2) == [408, 409]


async def test_other_requests_take_no_fault(server: LocalServer, caller: Caller) -> None:
    server.faults = [Status(503)]
    assert (await caller.send(server, "GET", "/v1/models")).status == 200
    assert (await caller.ask(server)).status == 503


def test_random_faults_depend_on_seed_and_number_alone() -> None:
    rule = random_faults(0.3, seed=1)
    faults = [rule(number, None) for number in range(2000)]
    assert faults == [random_faults(0.3, seed=1)(number, {}) for number in range(2000)]
    assert faults != [random_faults(0.3, seed=2)(number, None) for number in range(2000)]
    assert 0.27 < sum(fault is not None for fault in faults) / 2000 < 0.33
    assert len({repr(fault) for fault in faults}) == 7
    assert [random_faults(1, kinds=[Status(418)])(number, None) for number in range(9)] == [Status(418)] * 9
    assert [random_faults(0)(number, None) for number in range(9)] == [None] * 9


# --- Starting and closing ---


async def test_a_server_has_an_address_once_it_is_started(caller: Caller) -> None:
    server = LocalServer()
    with pytest.raises(RuntimeError, match="until it is started"):
        server.base_url  # noqa: B018
    async with server:
        assert server.base_url == f"http://127.0.0.1:{server.port}/v1"
        with pytest.raises(RuntimeError, match="started already"):
            await server.start()
    await server.close()


async def test_a_server_comes_back_on_its_port(caller: Caller) -> None:
    server = LocalServer()
    for outage in range(3):
        async with server:
            assert (await caller.ask(server)).status == 200
            address = server.base_url
        with pytest.raises(aiohttp.ClientConnectionError):
            await caller.ask(server)
        assert len(server.requests) == outage + 1
    assert server.base_url == address


async def test_a_taken_port_is_an_os_error(server: LocalServer) -> None:
    other = LocalServer(port=server.port)
    for _ in range(2):
        with pytest.raises(OSError, match="address already in use"):
            await other.start()


async def test_ipv6_addresses_are_bracketed(caller: Caller) -> None:
    server = LocalServer(host="::1", port=1)
    assert server.base_url == "http://[::1]:1/v1"


def test_an_unknown_plan_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="plan must be"):
        LocalServer(plan="gold")


@pytest.mark.parametrize("fault", [Stall(), Stall(2), Delay(60)])
@pytest.mark.parametrize("stream", [True, False])
async def test_closing_ends_what_is_open(caller: Caller, fault: Stall | Delay, stream: bool) -> None:
    async with asyncio.timeout(5):
        async with LocalServer(faults=[None, fault]) as server:
            await caller.ask(server)  # an idle connection besides
            task = asyncio.create_task(caller.ask(server, stream=stream))
            await until(lambda: len(server.requests) == 2 and server.requests[1].fault)
        with pytest.raises(aiohttp.ClientError):
            await task
    assert not server.requests[1].disconnected


@pytest.mark.parametrize("turns", range(8))
async def test_closing_at_any_moment_of_a_request(turns: int) -> None:
    async with LocalServer() as server:
        client = socket.create_connection(("127.0.0.1", server.port))  # the kernel accepts; the loop hasn't looked yet
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        for _ in range(turns):
            await asyncio.sleep(0)
    with client:
        client.setblocking(False)
        with contextlib.suppress(ConnectionResetError):
            async with asyncio.timeout(5):
                while await asyncio.get_running_loop().sock_recv(client, 1000):
                    pass


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


async def test_tls(authority: trustme.CA) -> None:
    ours = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(ours)
    theirs = ssl.create_default_context()
    authority.configure_trust(theirs)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=theirs)) as session:
        async with LocalServer(ssl_context=ours) as server:
            assert server.base_url.startswith("https://")
            assert (await Caller(session).ask(server)).status == 200
        async with RawServer([ReadRequest(), Send(http_response(200, b"{}"))], ssl_context=ours) as raw:
            assert raw.base_url.startswith("https://")
            async with session.get(raw.base_url) as response:
                assert await response.json() == {}


STREAMS_AT_CLOSE = """
import asyncio, aiohttp
from piapi_async.testing import LocalServer, Stall

async def main():
    async with aiohttp.ClientSession() as session:
        async with LocalServer(tokens_per_second=50, faults=[Stall(), Stall(1)]) as server:
            body = {"model": "gpt-4o", "stream": True, "messages": [{"role": "user", "content": "hi"}]}
            headers = {"Authorization": "Bearer " + server.api_key}
            post = lambda: session.post(server.base_url + "/chat/completions", json=body, headers=headers)
            waiting = [asyncio.ensure_future(post()) for _ in range(20)]
            while sum(request.status == 200 for request in server.requests) < 19:
                await asyncio.sleep(0.001)
        for response in await asyncio.gather(*waiting, return_exceptions=True):
            if not isinstance(response, Exception):
                response.close()

async def abandoned():
    server = LocalServer(tokens_per_second=50)
    await server.start()
    await server.close()

asyncio.run(main())
asyncio.run(abandoned())
"""


def test_closing_over_open_streams_is_silent() -> None:
    command = [sys.executable, "-X", "dev", "-W", "error", "-c", STREAMS_AT_CLOSE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**os.environ})
    # asyncio also says when a step took over 100 ms: that is a busy machine, no fault of the server.
    said = [line for line in done.stderr.splitlines() if not line.startswith("Executing <")]
    assert (done.returncode, done.stdout, said) == (0, "", [])


# --- The package ---


def test_the_package_has_what_it_says() -> None:
    for name in testing.__all__:
        assert getattr(testing, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        testing.nothing  # noqa: B018


def test_the_plugin_does_not_load_the_server() -> None:
    code = "import sys, piapi_async.testing.pytest_plugin; assert 'piapi_async.testing.server' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
