"""The official OpenAI SDK, unchanged, against the local server: the proof that it speaks the API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any

import openai
import pytest
from openai import AsyncOpenAI

from piapi_async import Client
from piapi_async.testing import LocalServer, Status, StreamError

pytestmark = pytest.mark.anyio

QUESTION: Any = [{"role": "user", "content": "Why is the sky blue?"}]
WEATHER: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
FUNCTION: Any = {
    "name": "get_weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOL: Any = {"type": "function", "function": FUNCTION}
ARGUMENTS = '{"city":"Paris"}'


@pytest.fixture
async def server(anyio_backend: object) -> AsyncIterator[LocalServer]:
    async with LocalServer(terminator="[DONE]") as server:
        yield server


@pytest.fixture
async def sdk(server: LocalServer) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(api_key=server.api_key, base_url=server.base_url, max_retries=0) as sdk:
        yield sdk


async def test_completion(sdk: AsyncOpenAI) -> None:
    completion = await sdk.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
    assert completion.object == "chat.completion"
    assert completion.choices[0].message.content
    assert completion.choices[0].finish_reason == "stop"
    assert completion.usage is not None
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + completion.usage.completion_tokens
    assert completion._request_id is not None
    assert completion._request_id.startswith("req_")


async def test_stream(sdk: AsyncOpenAI) -> None:
    whole = await sdk.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
    stream = await sdk.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


async def test_stream_with_usage(sdk: AsyncOpenAI) -> None:
    whole = await sdk.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
    stream = await sdk.chat.completions.create(
        model="gpt-4o-mini", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    )
    *_, last = [chunk async for chunk in stream]
    assert last.choices == []
    assert last.usage == whole.usage


async def test_stream_helper_joins_what_we_sent(sdk: AsyncOpenAI) -> None:
    whole = await sdk.chat.completions.create(model="gpt-4o-mini", messages=WEATHER, n=2, tools=[TOOL])
    async with sdk.chat.completions.stream(model="gpt-4o-mini", messages=WEATHER, n=2, tools=[TOOL]) as stream:
        joined = await stream.get_final_completion()
    for ours, theirs in zip(joined.choices, whole.choices, strict=True):
        assert ours.finish_reason == theirs.finish_reason == "tool_calls"
        assert ours.message.tool_calls is not None
        assert ours.message.tool_calls[0].function.arguments == ARGUMENTS


async def test_n(sdk: AsyncOpenAI) -> None:
    whole = await sdk.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, n=2)
    first, second = [choice.message.content for choice in whole.choices]
    assert first != second
    said = ["", ""]
    async for chunk in await sdk.chat.completions.create(model="gpt-4o-mini", messages=QUESTION, n=2, stream=True):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    assert said == [first, second]


async def test_functions(sdk: AsyncOpenAI) -> None:
    forced: Any = {"name": "get_weather"}
    completion = await sdk.chat.completions.create(
        model="gpt-4o-mini", messages=QUESTION, functions=[FUNCTION], function_call=forced
    )
    assert completion.choices[0].finish_reason == "function_call"
    assert completion.choices[0].message.content is None
    call = completion.choices[0].message.function_call
    assert call is not None
    assert (call.name, call.arguments) == ("get_weather", ARGUMENTS)
    name, arguments = "", ""
    async for chunk in await sdk.chat.completions.create(
        model="gpt-4o-mini", messages=WEATHER, functions=[FUNCTION], stream=True
    ):
        part = chunk.choices[0].delta.function_call
        name += (part and part.name) or ""
        arguments += (part and part.arguments) or ""
    assert (name, arguments) == ("get_weather", ARGUMENTS)


async def test_tools_there_and_back(sdk: AsyncOpenAI) -> None:
    completion = await sdk.chat.completions.create(model="gpt-4o-mini", messages=WEATHER, tools=[TOOL])
    message = completion.choices[0].message
    assert message.tool_calls is not None
    [call] = message.tool_calls
    assert call.type == "function"
    assert call.function.arguments == ARGUMENTS
    result: Any = {"role": "tool", "tool_call_id": call.id, "content": '{"degrees": 21}'}
    said: Any = [*WEATHER, message.to_dict(), result]
    completion = await sdk.chat.completions.create(model="gpt-4o-mini", messages=said, tools=[TOOL])
    assert completion.choices[0].message.content == "According to get_weather, degrees is 21."


async def test_what_the_sdk_dumps_is_a_message_of_ours(sdk: AsyncOpenAI, server: LocalServer) -> None:
    plain = await sdk.chat.completions.create(model="gpt-4o-mini", messages=QUESTION)
    called = await sdk.chat.completions.create(model="gpt-4o-mini", messages=WEATHER, tools=[TOOL])
    legacy = await sdk.chat.completions.create(model="gpt-4o-mini", messages=WEATHER, functions=[FUNCTION])
    said, call, function = (each.choices[0].message.model_dump() for each in (plain, called, legacy))
    (tool_call,) = call["tool_calls"]
    conversation: list[Mapping[str, object]] = [
        *QUESTION,
        said | {"annotations": []},
        *WEATHER,
        call,
        {"role": "tool", "tool_call_id": tool_call["id"], "content": '{"degrees": 21}'},
        function,
        {"role": "function", "name": "get_weather", "content": "rain"},
        *QUESTION,
    ]
    async with Client(server.api_key, base_url=server.base_url, model="gpt-4o-mini") as client:
        assert (await client.complete(conversation)).text
    body = server.requests[-1].body
    assert isinstance(body, dict)
    sent = body["messages"]
    assert sent[1] == {"role": "assistant", "content": said["content"], "annotations": []}
    assert sent[3] == {"role": "assistant", "content": None, "tool_calls": [tool_call]}
    assert sent[5] == {"role": "assistant", "content": None, "function_call": function["function_call"]}


async def test_models(sdk: AsyncOpenAI) -> None:
    assert "gpt-4o-mini" in [model.id async for model in sdk.models.list()]


@pytest.mark.parametrize(
    ("fields", "error", "code"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "model_not_found"),
        ({"temperature": 3}, openai.BadRequestError, None),
        ({"extra_headers": {"Authorization": "Bearer no"}}, openai.AuthenticationError, "invalid_api_key"),
    ],
)
async def test_errors(sdk: AsyncOpenAI, fields: dict[str, Any], error: type[openai.APIStatusError], code: str) -> None:
    with pytest.raises(error) as caught:
        await sdk.chat.completions.create(**{"model": "gpt-4o-mini", "messages": QUESTION, **fields})
    assert caught.value.code == code
    assert caught.value.request_id is not None


async def test_a_plan_is_a_permission(sdk: AsyncOpenAI, server: LocalServer) -> None:
    server.plan = "free"
    with pytest.raises(openai.PermissionDeniedError, match="Creator plan"):
        await sdk.chat.completions.create(model="gpt-4o", messages=QUESTION)


async def test_faults(sdk: AsyncOpenAI, server: LocalServer) -> None:
    server.faults = [Status(429, headers={"retry-after-ms": "1"}), Status(409, headers={"retry-after-ms": "1"})]
    patient = sdk.with_options(max_retries=2)
    assert (await patient.chat.completions.create(model="gpt-4o", messages=QUESTION)).choices
    server.faults = [StreamError(2)]
    with pytest.raises(openai.APIError, match="overloaded"):
        async for _ in await sdk.chat.completions.create(model="gpt-4o", messages=QUESTION, stream=True):
            pass
    assert [request.status for request in server.requests] == [429, 409, 200, 200]
