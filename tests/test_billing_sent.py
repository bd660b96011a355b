"""What is sent is what is reserved and booked: `extra_body`, schemas, pictures, two bounds, streams without usage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from piapi_async import (
    APIError,
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
from piapi_async.testing import LocalServer, ReadRequest, Send, Wait, http_response
from tests.leaks import KEY, assert_tight
from tests.test_billing import answer, serving
from tests.wires import DONE, chunk, dialled, sse, sse_cut

pytestmark = pytest.mark.anyio

IN, OUT = Decimal("0.1125e-6"), Decimal("0.45e-6")
"""US dollars that a token costs with gpt-4o-mini."""

IN_4O, OUT_4O = Decimal("1.875e-6"), Decimal("7.5e-6")
"""The same with gpt-4o."""


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


# -- streams without usage ---------------------------------------------------------------------------------------------

PIECES = ["[1", *[",1"] * 98, "]"]
"""An answer of a hundred tokens and one word."""


def bare(*deltas: Mapping[str, object], index: int = 0) -> bytes:
    """Chunks without usage."""
    choices = ({"choices": [{"index": index, "delta": delta, "finish_reason": None}]} for delta in deltas)
    return b"".join(b"data: " + json.dumps(choice).encode() + b"\n\n" for choice in choices)


TEXT = bare(*({"content": piece} for piece in PIECES))
ARGUMENTS = bare(
    *({"tool_calls": [{"index": 0, "id": "c", "function": {"name": "f", "arguments": piece}}]} for piece in PIECES)
)
REASONING = bare(*({"reasoning_content": piece} for piece in PIECES))


@pytest.mark.parametrize("how", ["tokens", "chunks", "events", "completion", "complete"])
@pytest.mark.parametrize("pieces", [TEXT, ARGUMENTS, REASONING])
async def test_a_stream_without_usage_costs_a_token_a_chunk(pieces: bytes, how: str) -> None:
    async with dialled([ReadRequest(), Send(sse(pieces, DONE))], budget="1") as (client, _):
        if how == "complete":
            assert (await client.complete("x", via_stream=True)).cost_estimated
        else:
            async with client.stream("x") as stream:
                reads: Any = {"tokens": stream.__aiter__, "chunks": stream.chunks, "events": stream.events}
                if how == "completion":
                    await stream.completion()
                else:
                    async for _ in reads[how]():
                        pass
        assert client.ledger.spent == 2 * IN_4O + 100 * OUT_4O
        assert client.ledger.reserved == client.ledger.unknown == client.ledger.overrun == 0


async def test_each_choice_of_a_stream_counts() -> None:
    pieces = [bare({"content": piece}, index=i) for piece in PIECES for i in (0, 1)]
    async with dialled([ReadRequest(), Send(sse(*pieces, DONE))], budget="1") as (client, _):
        async with client.stream("x", n=2) as stream:
            await stream.completion()
        assert client.ledger.spent == 2 * IN_4O + 200 * OUT_4O


async def test_words_count_where_they_are_more() -> None:
    words = bare({"content": "word " * 300}) + bare({"content": "end"})
    async with dialled([ReadRequest(), Send(sse(words, DONE))], budget="1") as (client, _):
        async with client.stream("x") as stream:
            await stream.completion()
        assert client.ledger.spent == 2 * IN_4O + 402 * OUT_4O


JSON = '{"a":1,' * 100


async def test_text_without_blanks_counts_a_token_in_four_characters() -> None:
    body = json.dumps({"choices": [{"index": 0, "message": {"content": JSON}, "finish_reason": "stop"}]}).encode()
    for reply, by_stream in ((sse(bare({"content": JSON}), DONE), True), (http_response(200, body), False)):
        async with dialled([ReadRequest(), Send(reply)], budget="1") as (client, _):
            await client.complete("x", via_stream=by_stream)
            assert client.ledger.spent == 2 * IN_4O + 175 * OUT_4O


def counts(prompt: int, answer: int) -> dict[str, Any]:
    return {"usage": {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}}


@pytest.mark.parametrize(
    ("pieces", "tokens"),
    [
        ([TEXT, chunk(**counts(0, 0))], (2, 101)),
        ([chunk("a", **counts(9, 1)), TEXT], (9, 101)),
        ([chunk("a", **counts(9, 150)), TEXT], (9, 150)),
        ([chunk("a", **counts(9, 1)), TEXT, chunk(**counts(9, 60))], (9, 60)),
        ([TEXT, chunk(**counts(9, 60)), chunk(finish="stop"), chunk(**counts(0, 0))], (9, 60)),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
async def test_counts_that_are_not_of_the_whole_answer(pieces: list[bytes], tokens: tuple[int, int], size: int) -> None:
    """Zeros, which some gateways send, and counts that came before the text are completed by the estimate."""
    events = [event + b"\n\n" for event in b"".join(pieces).split(b"\n\n") if event]
    parts = [b"".join(events[i : i + size]) for i in range(0, len(events), size)]
    async with dialled([ReadRequest(), Send(sse(*parts, DONE))], budget="1") as (client, _):
        async with client.stream("x") as stream:
            answer = await stream.completion()
        assert client.ledger.spent == answer.cost == tokens[0] * IN_4O + tokens[1] * OUT_4O
        assert answer.cost_estimated == (tokens != (9, 60))


async def test_zeros_are_no_counts_of_an_answer() -> None:
    async with serving(answer(0, 0)) as raw:
        async with Client(KEY, base_url=raw.base_url, model="gpt-4o") as client:
            found = await client.complete("x")
    assert (found.cost, found.cost_estimated) == (2 * IN_4O + 4 * OUT_4O, True)


@pytest.mark.parametrize("budget", [None, "1"])
@pytest.mark.parametrize("how", ["cut", "left", "cancelled", "failed"])
async def test_a_stream_that_ends_early_costs_what_came_at_least(budget: str | None, how: str) -> None:
    """The answer is longer than `max_tokens`, as some servers don't obey it."""
    error = b'data: {"error": {"message": "no", "code": 500}}\n\n' if how == "failed" else b""
    end = [] if how in ("cut", "failed") else [Wait()]
    script = [ReadRequest(), Send(sse_cut(TEXT, error)), *end]
    async with dialled(script, budget=budget) as (client, _):

        async def read() -> None:
            async with client.stream("x", max_tokens=10) as stream:
                left = 100
                async for _ in stream:
                    left -= 1
                    if how == "left" and not left:
                        break
                    if how == "cancelled" and not left:
                        reading.cancel()

        reading = asyncio.create_task(read())
        (outcome,) = await asyncio.gather(reading, return_exceptions=True)
        assert isinstance(outcome, {"left": type(None), "cancelled": asyncio.CancelledError}.get(how, APIError))
        assert client.ledger.spent == client.ledger.reserved == 0
        assert client.ledger.unknown == 17 * IN_4O + 100 * OUT_4O
        assert client.ledger.overrun == (90 * OUT_4O if budget else 0)
