"""The same jobs written for each client. A new peer is one class here, a line in `PEERS`, and its name in `rows`.

A peer hands every non-empty token of choice 0 to the sink it is given, or returns the text of choice 0. The worker
checks both in the same way for all, so nobody wins by doing nothing. Each class imports its client when it is made:
a worker process loads the client that it measures and no other.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any

from benchmarks.server import API_KEY, MODEL

Sink = Callable[[str], None]
Decoder = Callable[[Iterable[bytes]], Iterator[str]]


async def fan_out(call: Callable[[str], Awaitable[None]], prompts: Iterable[str], width: int) -> None:
    """Calls once for each prompt, ``width`` calls at a time: workers on one iterator, the cheapest way by hand."""
    shared = iter(prompts)

    async def work() -> None:
        for prompt in shared:
            await call(prompt)

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(work())


class Peer(ABC):
    """A client under test. It is made inside a running loop, and used inside ``async with peer.resource``.

    Args:
        resource: What opens and closes the client's connections.
    """

    def __init__(self, resource: AbstractAsyncContextManager[object]) -> None:
        self.resource = resource

    @abstractmethod
    async def complete(self, prompt: str) -> str:
        """Returns the text of one completion."""

    @abstractmethod
    async def stream(self, prompt: str, sink: Sink) -> None:
        """Hands each token of one stream to the sink, as it comes."""

    async def chunks(self, prompt: str, sink: Sink) -> None:
        """As `stream`, by way of whole chunks; the same thing for a client that has one way only."""
        await self.stream(prompt, sink)

    async def map(self, prompts: Iterable[str], width: int, sink: Sink) -> None:
        """Hands the text of every prompt's completion to the sink, ``width`` calls at a time."""

        async def call(prompt: str) -> None:
            sink(await self.complete(prompt))

        await fan_out(call, prompts, width)


class Bare(Peer):
    """What a careful engineer writes by hand: one aiohttp session, a fast JSON engine, no types and no retries."""

    def __init__(self, base_url: str, width: int) -> None:
        import aiohttp
        import msgspec

        # Two defaults of aiohttp break under many long streams, and every hand-written loop ends up changing them:
        # 100 connections and 300 seconds in all.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
            headers={"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"},
        )
        super().__init__(self._session)
        self._url = f"{base_url}/chat/completions"
        self._encode = msgspec.json.encode
        self._decode: Callable[[bytes], Any] = msgspec.json.decode

    async def complete(self, prompt: str) -> str:
        """Posts, reads, decodes."""
        body = self._encode({"model": MODEL, "messages": [{"role": "user", "content": prompt}]})
        async with self._session.post(self._url, data=body) as response:
            response.raise_for_status()
            answer = self._decode(await response.read())
        text: str = answer["choices"][0]["message"]["content"]
        return text

    async def stream(self, prompt: str, sink: Sink) -> None:
        """Posts, then takes the body line by line, to its very end so that the connection can be used again."""
        body = self._encode({"model": MODEL, "messages": [{"role": "user", "content": prompt}], "stream": True})
        async with self._session.post(self._url, data=body) as response:
            response.raise_for_status()
            async for line in response.content:
                if not line.startswith(b"data:"):
                    continue
                data = line[5:].strip()
                if data == b"[DONE]":
                    continue
                token = self._decode(data)["choices"][0]["delta"].get("content")
                if token:
                    sink(token)


class Ours(Peer):
    """This library with all its features on, as they are by default; only the concurrency is that of the job."""

    def __init__(self, base_url: str, width: int) -> None:
        from piapi_async import Client, Limits

        self._client = Client(API_KEY, base_url=base_url, model=MODEL, limits=Limits(concurrency=width))
        super().__init__(self._client)

    async def complete(self, prompt: str) -> str:
        """Awaits one completion."""
        return (await self._client.complete(prompt)).text

    async def stream(self, prompt: str, sink: Sink) -> None:
        """Iterates over the tokens."""
        async with self._client.stream(prompt) as stream:
            async for token in stream:
                sink(token)

    async def chunks(self, prompt: str, sink: Sink) -> None:
        """Iterates over the typed chunks."""
        async with self._client.stream(prompt) as stream:
            async for chunk in stream.chunks():
                for choice in chunk.choices:
                    if choice.delta.content:
                        sink(choice.delta.content)

    async def map(self, prompts: Iterable[str], width: int, sink: Sink) -> None:
        """Fans out with the library's own `map`."""
        async with self._client.map(prompts, concurrency=width) as results:
            async for result in results:
                sink(result.unwrap().text)


class OpenAI(Peer):
    """The official SDK as it comes, on its own HTTP client with its own limits (1,000 connections)."""

    def __init__(self, base_url: str, width: int) -> None:
        from openai import AsyncOpenAI

        self._client = AsyncOpenAI(api_key=API_KEY, base_url=base_url)
        super().__init__(self._client)

    async def complete(self, prompt: str) -> str:
        """Awaits one completion."""
        completion = await self._client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}]
        )
        return completion.choices[0].message.content or ""

    async def stream(self, prompt: str, sink: Sink) -> None:
        """Iterates over the chunks, which is the SDK's one way."""
        stream = await self._client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], stream=True
        )
        async with stream:
            async for chunk in stream:
                if chunk.choices and (token := chunk.choices[0].delta.content):
                    sink(token)


PEERS: dict[str, Callable[[str, int], Peer]] = {"bare": Bare, "ours": Ours, "openai": OpenAI}
"""Name of a peer → what makes one, from the base URL and the number of calls in flight."""

IMPORTS = {"bare": "import aiohttp, cattrs", "ours": "import piapi_async", "openai": "import openai"}
"""Name of a peer → the statement that loads it."""


def decode_ours(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yields the data of each event, by our decoder."""
    from piapi_async import SSEDecoder

    decoder = SSEDecoder()
    for piece in pieces:
        for event in decoder.feed(piece):
            yield event.data


def decode_httpx_sse(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yields the data of each event, by httpx-sse; its public way in is a response."""
    import httpx
    import httpx_sse

    response = httpx.Response(200, headers={"Content-Type": "text/event-stream"}, content=iter(pieces))
    for event in httpx_sse.EventSource(response).iter_sse():
        yield event.data


def decode_openai(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yields the data of each event, by the decoder inside the OpenAI SDK."""
    from openai._streaming import SSEDecoder

    for event in SSEDecoder().iter_bytes(iter(pieces)):
        yield event.data


DECODERS: dict[str, Decoder] = {"httpx-sse": decode_httpx_sse, "ours": decode_ours, "openai": decode_openai}
"""Name of a decoder → a function from pieces of a body to the data of its events."""
