"""What is sent is what is reserved and booked: `extra_body`, tools, pictures, the larger bound, streams without usage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from piapi_async import (
    APITimeoutError,
    ChatRequest,
    Client,
    InvalidRequestError,
    Limits,
    Message,
    image,
    run_batch,
)
from piapi_async.catalog import CATALOG, ModelInfo
from piapi_async.models import ChatParams
from piapi_async.testing import LocalServer
from tests.leaks import KEY, assert_tight
from tests.test_billing import answer, serving

pytestmark = pytest.mark.anyio

IN, OUT = Decimal("0.1125e-6"), Decimal("0.45e-6")
"""US dollars that a token costs with gpt-4o-mini."""


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(api_key=KEY, faults=[]) as server:
        yield server


def at_most(prompt: Any = "x", model: str = "gpt-4o-mini", **params: Any) -> Decimal:
    """What a budget reserves for a call."""
    most = Client(KEY).quote(prompt, model=model, **{"max_tokens": 10, **params}).most
    assert most is not None
    return most


# -- extra_body --------------------------------------------------------------------------------------------------------

FIELDS = (frozenset(ChatParams.__annotations__) - {"extra_body"}) | {"messages", "model", "stream"}


@pytest.mark.parametrize("name", [*sorted(FIELDS), "extra_body", "Max_Tokens"])
async def test_a_parameter_is_refused_in_extra_body(server: LocalServer, name: str) -> None:
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="1") as client:
        for ask in (client.complete, client.quote, client.stream):
            with pytest.raises(InvalidRequestError, match=f"^extra_body: '{name}' is a parameter") as caught:
                await ask("x", extra_body={"fine": 1, name: 400})  # type: ignore[misc]  # `quote` raises at once too
            remedy = "client.stream()" if name == "stream" else f"its own keyword, {name.lower()}=…"
            assert remedy in str(caught.value)
            assert_tight(caught.value)
        with pytest.raises(InvalidRequestError, match="extra_body"):
            ChatRequest("x", extra_body={name: None})
    assert server.requests == []


async def test_a_row_is_refused_that_way_too(server: LocalServer, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rows: list[str | Mapping[str, object]] = [
        {"prompt": "x", "extra_body": {"max_tokens": 16_000}},
        {"prompt": "x", "N": 400},
        {"prompt": "x"},
    ]
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", budget="0.001") as client:
        status = await run_batch(rows, out, client=client, max_tokens=10)
    assert (status.done, status.failed, len(server.requests)) == (1, 2, 1)
    errors = [line["error"]["message"] for line in map(json.loads, out.read_text().splitlines()) if line["error"]]
    assert sorted(errors) == [
        "extra_body: 'N' is a parameter of the call; pass it by its own keyword, n=…",
        "extra_body: 'max_tokens' is a parameter of the call; pass it by its own keyword, max_tokens=…",
    ]


async def test_what_else_is_in_extra_body_is_sent_and_counted(server: LocalServer) -> None:
    documents = {"documents": ["y" * 1000]}
    assert at_most(extra_body=documents) >= at_most() + 1000 * IN
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini") as client:
        await client.complete("x", extra_body=documents)
    assert server.requests[0].body["documents"] == ["y" * 1000]


# -- what bounds an answer ---------------------------------------------------------------------------------------------


def test_of_two_bounds_the_larger_counts() -> None:
    larger = at_most(max_tokens=4000)
    assert at_most(max_tokens=10, max_completion_tokens=4000) == larger
    assert at_most(max_tokens=4000, max_completion_tokens=10) == larger
    assert at_most(max_tokens=None, max_completion_tokens=4000) == larger


async def test_tokens_per_minute_count_the_larger_too(server: LocalServer) -> None:
    limits = Limits(tokens_per_minute=600)  # 10 a second, and at most two seconds' worth at once
    async with Client(KEY, base_url=server.base_url, model="gpt-4o-mini", limits=limits) as client:
        server.latency = 0.1
        first = asyncio.create_task(client.complete("x", max_tokens=1, max_completion_tokens=600))
        await asyncio.sleep(0)
        with pytest.raises(APITimeoutError, match="deadline"):
            await client.complete("x", max_tokens=1, deadline=0.05)
        await first
    assert len(server.requests) == 1


# -- what counts as prompt ---------------------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"city": {"type": "string", "description": "y" * 300}}}
FUNCTION = {"name": "f", "description": "z" * 100, "parameters": SCHEMA}


@pytest.mark.parametrize(
    ("params", "own"),
    [
        ({"functions": [FUNCTION]}, 530),
        ({"tools": [{"type": "function", "function": FUNCTION}]}, 530),
        ({"response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA}}}, 0),
    ],
)
async def test_schemas_are_part_of_the_prompt(server: LocalServer, params: Any, own: int) -> None:
    least = len(json.dumps(params, separators=(",", ":"))) - 40  # its parameter's name is none of it
    assert at_most(**params) >= at_most() + (least + own) * IN
    plain, quote = Client(KEY).quote("x", model="gpt-4o-mini"), Client(KEY).quote("x", model="gpt-4o-mini", **params)
    assert quote.tokens >= plain.tokens + least // 4
    async with serving(answer(usage=None)) as raw:
        async with Client(KEY, base_url=raw.base_url, model="gpt-4o-mini") as client:
            found = await client.complete("x", **params)
            assert found.cost == quote.tokens * IN + 4 * OUT


CALL = {"name": "f", "arguments": json.dumps({"text": "y" * 400}, separators=(",", ":"))}


@pytest.mark.parametrize(
    "message",
    [
        {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
        {"role": "assistant", "content": None, "function_call": CALL},
        {"role": "assistant", "content": "", "reasoning_content": "y " * 400},
        {"role": "assistant", "content": None, "refusal": "y " * 400},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "y " * 400}]},
    ],
)
def test_all_that_a_message_holds_is_part_of_the_prompt(message: Any) -> None:
    prompt = [{"role": "user", "content": "x"}, message]
    assert at_most(prompt) >= at_most() + 400 * IN
    assert 100 <= Client(KEY).quote(prompt, model="gpt-4o-mini").tokens < 1000


def test_calls_of_other_kinds_count_too() -> None:
    custom = {"id": "1", "type": "custom", "custom": {"name": "shell", "input": "y" * 400}}
    assert at_most([{"role": "assistant", "content": None, "tool_calls": [custom]}]) >= at_most() + 400 * IN


@pytest.mark.parametrize("model", sorted(CATALOG))
async def test_a_picture_counts_as_its_model_counts_it(model: str) -> None:
    picture, info = image("https://example.com/p.png"), CATALOG[model]
    tokens = info.image_tokens or 50_000
    assert {"gpt-4o": 85 + 8 * 170, "gpt-4o-mini": 2833 + 8 * 5667}.get(model, tokens) == tokens
    prompts = [Message("user", ["What?", *[picture] * count]) for count in (0, 2)]
    plain, seen = (Client(KEY).quote([prompt], model=model, max_tokens=10) for prompt in prompts)
    assert seen.tokens == plain.tokens + 2 * tokens
    assert seen.most is not None
    assert plain.most is not None
    assert seen.most >= plain.most - info.minimum_charge + 2 * tokens * info.input_price / 10**6
    async with serving(answer(usage=None)) as raw, Client(KEY, base_url=raw.base_url, model=model) as client:
        found = await client.complete([prompts[1]])
        assert found.cost == max(info.minimum_charge, (seen.tokens * info.input_price + 4 * info.output_price) / 10**6)


def test_a_picture_of_an_unknown_model_and_other_parts_count_as_the_dearest() -> None:
    prices = {"mine": ModelInfo("mine", "1", "1"), "bounded": ModelInfo("bounded", "1", "1", image_tokens=7)}
    audio = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
    picture = image("https://example.com/p.png")
    for model, part, tokens in (("mine", picture, 50_000), ("mine", audio, 50_000), ("bounded", picture, 7)):
        quotes = [
            Client(KEY, prices=prices).quote([Message("user", ["x", *parts])], model=model) for parts in ([], [part])
        ]
        assert quotes[1].tokens == quotes[0].tokens + tokens


async def test_a_tokenizer_counts_schemas_too() -> None:
    client = Client(KEY, tokenizer=lambda text: len(text))
    plain, quote = (client.quote("x", model="gpt-4o-mini", functions=each) for each in (None, [FUNCTION]))
    assert plain.tokens == 1
    assert quote.tokens > 400
