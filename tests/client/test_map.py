"""What `Client.map` takes: prompts, prompts with keys, generators."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any

import pytest

from piapi_async import ChatRequest, Client, InvalidRequestError, Message, run_batch
from piapi_async.testing import LocalServer

pytestmark = pytest.mark.anyio


@pytest.fixture
async def client(piapi_server: LocalServer) -> AsyncIterator[Client]:
    async with Client(piapi_server.api_key, base_url=piapi_server.base_url, model="gpt-4o-mini") as opened:
        yield opened


async def sent(client: Client, prompts: Any, **options: Any) -> dict[object, str]:
    """The text that each key was asked by."""
    async with client.map(prompts, **options) as results:
        return {result.key: result.request.messages[-1].text async for result in results if result.request is not None}


TWO = [{"role": "system", "content": "Be terse."}, {"role": "user", "content": "hello"}]


async def pairs() -> AsyncGenerator[tuple[str, str], None]:
    yield "T1", "hello"
    yield "T2", "goodbye"


async def test_a_mapping_of_keys_to_prompts(client: Client) -> None:
    assert await sent(client, {"T1": "hello", 7: TWO}) == {"T1": "hello", 7: "hello"}


async def test_pairs(client: Client) -> None:
    assert await sent(client, [("T1", "hello"), (None, TWO), "alone"]) == {"T1": "hello", None: "hello", 2: "alone"}
    assert await sent(client, pairs()) == {"T1": "hello", "T2": "goodbye"}
    assert await sent(client, [(("a", 1), ChatRequest("hello"))]) == {("a", 1): "hello"}


async def test_tuples_that_are_prompts(client: Client) -> None:
    """Two messages are no pair, nor are one or three of anything."""
    messages = Message("system", "Be terse."), Message("user", "hello")
    found = await sent(client, [messages, tuple(TWO), messages[1:], (*messages, Message("user", "again"))])
    assert found == {0: "hello", 1: "hello", 2: "hello", 3: "again"}


async def test_the_key_of_a_prompt_that_fails(client: Client) -> None:
    async with client.map({"bad": [{"role": ""}], "good": "hello"}, ordered=True) as results:
        bad, good = [result async for result in results]
    assert (bad.key, bad.index, good.key, good.index) == ("bad", 0, "good", 1)
    assert isinstance(bad.error, InvalidRequestError)
    assert good.unwrap().text


async def test_keys_of_which_two_are_the_same(client: Client) -> None:
    async with client.map([("twin", "a"), ("twin", "b")], ordered=True) as results:
        assert [(result.key, result.index) async for result in results] == [("twin", 0), ("twin", 1)]


@pytest.mark.parametrize("batch", [False, True])
async def test_a_generator_is_closed_in_the_task_that_drove_it(client: Client, batch: bool, tmp_path: Any) -> None:
    log: list[object] = []

    async def prompts() -> AsyncGenerator[str, None]:
        task = asyncio.current_task()
        try:
            for i in range(1000):
                yield f"Question {i}?"
        finally:
            await asyncio.sleep(0)
            log.append(asyncio.current_task() is task)

    if batch:

        def stop(status: Any) -> None:
            if status.done:
                raise ZeroDivisionError("mine")

        with pytest.raises(ZeroDivisionError, match="mine"):
            await run_batch(prompts(), tmp_path / "out.jsonl", client=client, concurrency=2, progress=stop)
    else:
        async with client.map(prompts(), concurrency=2) as results:
            await anext(results)
    assert log == [True]
    assert client.statistics().in_flight == 0
