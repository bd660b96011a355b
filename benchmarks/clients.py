"""The same jobs written for each client. A new peer is one class here, a line in each table below, its name in `rows`.

A peer hands every non-empty token of choice 0 to the sink it is given, or returns the text of choice 0. The worker
checks both in the same way for all, so nobody wins by doing nothing. Each class imports its client when it is made:
a worker process loads the client that it measures and no other.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
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

    async def read_slowly(self, prompt: str, sink: Callable[[str], Awaitable[None]]) -> None:
        """As `stream`, but waits for the sink after each token."""
        raise NotImplementedError(f"{type(self).__name__} is not read slowly")


def _body(prompt: str, *, stream: bool = False) -> dict[str, object]:
    body: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}
    return body | {"stream": True} if stream else body


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

    async def read_slowly(self, prompt: str, sink: Callable[[str], Awaitable[None]]) -> None:
        """The same loop once more: a call for each line, to share it, would make the baseline dearer than it is."""
        async with self._session.post(self._url, data=self._encode(_body(prompt, stream=True))) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    token = self._decode(line[5:])["choices"][0]["delta"].get("content")
                    if token:
                        await sink(token)


class Kept(Bare):
    """The same loop in a process that keeps the memory it reads into, as glibc does from a peer's first close on.

    Our client has it so from the start (`piapi_async.pool.KEPT_BLOCK`); this tells how much of the difference that is.
    """

    def __init__(self, base_url: str, width: int) -> None:
        bytes(1 << 20)
        super().__init__(base_url, width)


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

    async def read_slowly(self, prompt: str, sink: Callable[[str], Awaitable[None]]) -> None:
        """Iterates over the tokens."""
        async with self._client.stream(prompt) as stream:
            async for token in stream:
                await sink(token)


class OpenAI(Peer):
    """The official SDK as it comes, on its own HTTP client with its own limits (1,000 connections)."""

    def __init__(self, base_url: str, width: int) -> None:
        from openai import AsyncOpenAI

        self._client = AsyncOpenAI(api_key=API_KEY, base_url=base_url, http_client=self._http_client())
        super().__init__(self._client)

    def _http_client(self) -> Any:
        """Returns the SDK's HTTP client; `None` for its default."""

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


class OpenAIOnAiohttp(OpenAI):
    """The official SDK with the aiohttp transport that it has as an extra."""

    def _http_client(self) -> Any:
        from openai import DefaultAioHttpClient

        return DefaultAioHttpClient()


class LiteLLM(Peer):
    """litellm's `acompletion` as it comes, on its own transport with its own limits (500 connections a host)."""

    def __init__(self, base_url: str, width: int) -> None:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else the import fetches a price list
        litellm: Any = import_module("litellm")  # by name: the type check does without this peer
        litellm.telemetry = False
        litellm.suppress_debug_info = True
        litellm.turn_off_message_logging = True
        self._litellm = litellm
        super().__init__(self._open())
        self._options = {"model": f"openai/{MODEL}", "api_base": base_url, "api_key": API_KEY}

    @asynccontextmanager
    async def _open(self) -> AsyncGenerator[None]:
        yield
        await self._litellm.close_litellm_async_clients()

    async def complete(self, prompt: str) -> str:
        """Awaits one completion."""
        completion = await self._litellm.acompletion(messages=[{"role": "user", "content": prompt}], **self._options)
        return completion.choices[0].message.content or ""

    async def stream(self, prompt: str, sink: Sink) -> None:
        """Iterates over the chunks."""
        messages = [{"role": "user", "content": prompt}]
        async for chunk in await self._litellm.acompletion(messages=messages, stream=True, **self._options):
            if chunk.choices and (token := chunk.choices[0].delta.content):
                sink(token)


class Httpx(Peer):
    """A loop by hand on httpx and httpx-sse, with the JSON engine of the bare loop, and no limit of connections either.

    Only idle connections keep to httpx's default limit: its pool looks at all connections for each idle one whenever a
    request begins or ends, so keeping all 64 makes completions three times as dear, and the more the dearer.
    """

    def __init__(self, base_url: str, width: int) -> None:
        import httpx
        import httpx_sse
        import msgspec

        self._client = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            timeout=httpx.Timeout(None, connect=30),
            headers={"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"},
        )
        super().__init__(self._client)
        self._url = f"{base_url}/chat/completions"
        self._connect = httpx_sse.aconnect_sse
        self._encode = msgspec.json.encode
        self._decode: Callable[[bytes | str], Any] = msgspec.json.decode

    async def complete(self, prompt: str) -> str:
        """Posts, decodes."""
        response = await self._client.post(self._url, content=self._encode(_body(prompt)))
        text: str = self._decode(response.raise_for_status().content)["choices"][0]["message"]["content"]
        return text

    async def stream(self, prompt: str, sink: Sink) -> None:
        """Iterates over the events."""
        body = self._encode(_body(prompt, stream=True))
        async with self._connect(self._client, "POST", self._url, content=body) as source:
            source.response.raise_for_status()
            async for event in source.aiter_sse():
                if event.data == "[DONE]":
                    continue
                token = self._decode(event.data)["choices"][0]["delta"].get("content")
                if token:
                    sink(token)


class Pyreqwest(Peer):
    """Rust's reqwest by way of pyreqwest, for plain completions; its CPU includes that of its own thread."""

    def __init__(self, base_url: str, width: int) -> None:
        import msgspec

        builder = import_module("pyreqwest.client").ClientBuilder()
        headers = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}
        self._client = builder.error_for_status(True).default_headers(headers).build()
        super().__init__(self._client)
        self._url = f"{base_url}/chat/completions"
        self._encode = msgspec.json.encode
        self._decode: Callable[[Any], Any] = msgspec.json.decode

    async def complete(self, prompt: str) -> str:
        """Posts, reads, decodes."""
        response = await self._client.post(self._url).body_bytes(self._encode(_body(prompt))).build().send()
        text: str = self._decode(await response.bytes())["choices"][0]["message"]["content"]
        return text

    async def stream(self, prompt: str, sink: Sink) -> None:
        """Is not measured: pyreqwest has no event streams."""
        raise NotImplementedError("pyreqwest has no event streams")


PEERS: dict[str, Callable[[str, int], Peer]] = {
    "bare": Bare,
    "ours": Ours,
    "kept": Kept,
    "openai": OpenAI,
    "openai-aiohttp": OpenAIOnAiohttp,
    "litellm": LiteLLM,
    "httpx": Httpx,
    "pyreqwest": Pyreqwest,
}
"""Name of a peer → what makes one, from the base URL and the number of calls in flight."""

IMPORTS = {
    "bare": "import aiohttp, cattrs",
    "ours": "import piapi_async",
    "openai": "import openai",
    "litellm": "import os; os.environ['LITELLM_LOCAL_MODEL_COST_MAP'] = 'True'; import litellm",
    "httpx": "import httpx, httpx_sse",
    "pyreqwest": "import pyreqwest.client",
}
"""Name of a peer → the statement that loads it."""

MODULES = {
    "openai": ("openai",),
    "openai-aiohttp": ("openai",),
    "litellm": ("litellm",),
    "httpx": ("httpx", "httpx_sse"),
    "httpx-sse": ("httpx", "httpx_sse"),
    "pyreqwest": ("pyreqwest",),
}
"""Name of a peer or decoder → what must be installed for it, besides what this library needs itself."""


def installed(peer: str) -> bool:
    """Returns whether all that a peer or decoder needs is installed."""
    return all(find_spec(module) is not None for module in MODULES.get(peer, ()))


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
