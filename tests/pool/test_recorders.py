"""Tools that take aiohttp's place in tests: they see what they need, and hand back what they like."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import aiohttp
import pytest

from piapi_async import Client, RateLimitError, Retry
from piapi_async.testing import LocalServer
from tests.wires import DONE, WHOLE, completion

pytestmark = pytest.mark.anyio

KEY = "sk-recorded-key-0"


async def test_vcrpy_records_and_plays(tmp_path: Path) -> None:
    vcr = pytest.importorskip("vcr")
    cassette = tmp_path / "cassette.yaml"
    answers: list[tuple[str, str]] = []
    async with LocalServer(api_key=KEY) as server:
        base_url = server.base_url
        for mode in ("once", "none"):
            with vcr.use_cassette(str(cassette), record_mode=mode, filter_headers=["authorization"]) as tape:
                async with Client(KEY, base_url=base_url, model="gpt-4o-mini") as client:
                    whole = await client.complete("Hello!")
                    async with client.stream("Tell me of the sea.") as stream:
                        streamed = await stream.completion()
            answers.append((whole.text, streamed.text))
            assert len(tape) == 2
            await server.close()
    assert len(server.requests) == 2
    assert answers[0] == answers[1]
    assert all(answers[0])
    assert tape.play_count == 2
    assert KEY not in cassette.read_text()


class Response(aiohttp.ClientResponse):
    """What aiohttp 3.14 wants to be told, aioresponses 0.7.9 does not know of yet."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"stream_writer": Mock(), **options})


async def test_aioresponses_answers_in_the_servers_place() -> None:
    aioresponses = pytest.importorskip("aioresponses").aioresponses
    url = "https://api.example.com/v1/chat/completions"
    with aioresponses() as mocked:
        mocked.post(url, body=completion(), headers={"X-Request-Id": "r-1"}, response_class=Response)
        mocked.post(url, body=WHOLE + DONE, content_type="text/event-stream", response_class=Response)
        mocked.post(url, status=429, body=b"{}", headers={"Retry-After": "7"}, response_class=Response)
        async with Client(KEY, base_url="https://api.example.com", model="gpt-4o", retry=Retry(attempts=1)) as client:
            whole = await client.complete("Hello!")
            assert (whole.text, whole.request_id) == ("Hello!", "r-1")
            async with client.stream("Hello!") as stream:
                assert [token async for token in stream] == ["Hel", "lo!"]
            with pytest.raises(RateLimitError) as caught:
                await client.complete("Hello!")
            assert caught.value.retry_after == 7
        sent: list[Any] = [json.loads(call.kwargs["data"]) for calls in mocked.requests.values() for call in calls]
    assert [body["messages"] for body in sent] == [[{"role": "user", "content": "Hello!"}]] * 3
