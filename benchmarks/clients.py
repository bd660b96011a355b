"""The same jobs, written for each client.

To add a peer, write one class here, add a line to each table at the end, and name it in `rows`.

A peer returns the text of choice 0, or hands each of its non-empty tokens to a sink. The worker checks all peers in the
same way, so none can win by doing less. A class imports its client when an object of it is made, so a worker process
loads no client but the one that it measures.
"""

from __future__ import annotations

import asyncio
import os
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from benchmarks.server import API_KEY, MODEL

Sink = Callable[[str], None]

_HEADERS = {"Authorization": f"Bearer {API_KEY}", "Content-Type": "application/json"}


async def fan_out(call: Callable[[str], Awaitable[None]], prompts: Iterable[str], width: int) -> None:
    """Calls once for each prompt, ``width`` calls at a time.

    Workers share one iterator, which is the cheapest way to do this by hand.
    """
    shared = iter(prompts)

    async def work() -> None:
        for prompt in shared:
            await call(prompt)

    async with asyncio.TaskGroup() as group:
        for _ in range(width):
            group.create_task(work())


class Peer(ABC):
    """A client under test. Make it inside a running loop, and use it inside ``async with peer.resource``.

    Args:
        resource: Opens and closes the client's connections.
    """

    def __init__(self, resource: AbstractAsyncContextManager[object]) -> None:
        self.resource = resource

    @abstractmethod
    async def complete(self, prompt: str) -> str:
        """Returns the text of one completion."""

    @abstractmethod
    async def stream(self, prompt: str, sink: Sink) -> None:
        """Hands each token of one stream to the sink as soon as it arrives."""

    async def chunks(self, prompt: str, sink: Sink) -> None:
        """Does what `stream` does, but reads whole chunks. For most clients that is the only way, so it is the same."""
        await self.stream(prompt, sink)

    async def map(self, prompts: Iterable[str], width: int, sink: Sink) -> None:
        """Hands the text of each prompt's completion to the sink, with ``width`` calls at a time."""

        async def call(prompt: str) -> None:
            sink(await self.complete(prompt))

        await fan_out(call, prompts, width)

    async def read_slowly(self, prompt: str, sink: Callable[[str], Awaitable[None]]) -> None:
        """Does what `stream` does, but waits for the sink after each token."""
        raise NotImplementedError(f"the row about slow readers does not measure {type(self).__name__}")


def _body(prompt: str, *, stream: bool = False) -> dict[str, object]:
    body: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": prompt}]}
    return body | {"stream": True} if stream else body


class Bare(Peer):
    """What a careful engineer writes by hand: one aiohttp session and a fast JSON engine, no types, no retries."""

    def __init__(self, base_url: str, width: int) -> None:
        import aiohttp
        import msgspec

        # aiohttp allows 100 connections, and 300 seconds for a whole answer. Many long streams need more of both, so
        # every hand-written loop ends up changing these two defaults.
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=30),
            headers=_HEADERS,
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
        """Posts, then reads the body line by line. It reads to the very end, so that the connection can be reused."""
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
        """Repeats the loop of `stream`: sharing it would add a call for each line and make the baseline look dear."""
        async with self._session.post(self._url, data=self._encode(_body(prompt, stream=True))) as response:
            response.raise_for_status()
            async for line in response.content:
                if line.startswith(b"data: {"):
                    token = self._decode(line[5:])["choices"][0]["delta"].get("content")
                    if token:
                        await sink(token)


class Lean(Peer):
    """The cheapest loop that aiohttp's documented API allows: a limit for clients on aiohttp, and no bar.

    It has no cookies, no timers and no redirects, sends only the headers it needs, reads whatever has arrived, and
    trusts the server to write events of one ``data`` line, with a blank line after each.
    """

    def __init__(self, base_url: str, width: int) -> None:
        import aiohttp
        import msgspec

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=_HEADERS,
            skip_auto_headers=("Accept", "Accept-Encoding", "User-Agent"),  # asks for no compression, so undoes none
            auto_decompress=False,
        )
        super().__init__(self._session)
        self._url = f"{base_url}/chat/completions"
        self._encode = msgspec.json.encode
        self._decode: Callable[[bytes], Any] = msgspec.json.decode

    async def complete(self, prompt: str) -> str:
        """Posts, reads, decodes."""
        async with self._session.post(self._url, data=self._encode(_body(prompt)), allow_redirects=False) as response:
            response.raise_for_status()
            body = b""
            while piece := await response.content.readany():
                body += piece
        text: str = self._decode(body)["choices"][0]["message"]["content"]
        return text

    async def stream(self, prompt: str, sink: Sink) -> None:
        """Posts, then splits what has arrived at blank lines. What follows the last one is the start of an event."""
        body = self._encode(_body(prompt, stream=True))
        async with self._session.post(self._url, data=body, allow_redirects=False) as response:
            response.raise_for_status()
            rest = b""
            while piece := await response.content.readany():
                *events, rest = (rest + piece).split(b"\n\n")
                for event in events:
                    data = event[6:]  # after "data: "
                    if data == b"[DONE]":
                        continue
                    token = self._decode(data)["choices"][0]["delta"].get("content")
                    if token:
                        sink(token)


class Ours(Peer):
    """This library with its defaults, so with all its features on. Only the concurrency is set, to that of the job."""

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
    """The official SDK with its defaults: its own HTTP client, and at most 1,000 connections."""

    def __init__(self, base_url: str, width: int) -> None:
        from openai import AsyncOpenAI

        self._client = AsyncOpenAI(api_key=API_KEY, base_url=base_url, http_client=self._http_client())
        super().__init__(self._client)

    def _http_client(self) -> Any:
        """Returns the HTTP client for the SDK, `None` for the SDK's own."""

    async def complete(self, prompt: str) -> str:
        """Awaits one completion."""
        completion = await self._client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}]
        )
        return completion.choices[0].message.content or ""

    async def stream(self, prompt: str, sink: Sink) -> None:
        """Iterates over the chunks, the only way that the SDK has."""
        stream = await self._client.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": prompt}], stream=True
        )
        async with stream:
            async for chunk in stream:
                if chunk.choices and (token := chunk.choices[0].delta.content):
                    sink(token)


class OpenAIOnAiohttp(OpenAI):
    """The official SDK on aiohttp, which it offers as an extra."""

    def _http_client(self) -> Any:
        from openai import DefaultAioHttpClient

        return DefaultAioHttpClient()


class LiteLLM(Peer):
    """litellm's `acompletion` with its defaults: its own transport, and at most 500 connections to a host."""

    def __init__(self, base_url: str, width: int) -> None:
        os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # without this the import downloads a price list
        litellm: Any = import_module("litellm")  # by name, because the type check runs without this peer
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


class Flexllm(Peer):
    """flexllm's `LLMClient` with its defaults but for two: the concurrency is the job's, and its 1,000 QPS are lifted.

    Every stream of flexllm opens an aiohttp session of its own and breaks off at ``[DONE]``, so each of them pays for a
    new connection. It has no chunks, and its `chat_batch` wants all prompts at once, so it has no part in those rows.
    """

    def __init__(self, base_url: str, width: int) -> None:
        flexllm: Any = import_module("flexllm")  # by name, because the type check runs without this peer
        self._client = flexllm.LLMClient(
            provider="openai", base_url=base_url, api_key=API_KEY, model=MODEL, concurrency_limit=width, max_qps=0
        )
        super().__init__(self._client)

    async def complete(self, prompt: str) -> str:
        """Awaits one completion."""
        text: str = (await self._client.chat([{"role": "user", "content": prompt}])).content
        return text

    async def stream(self, prompt: str, sink: Sink) -> None:
        """Iterates over the events, and takes those of content."""
        async for event in self._client.chat_stream([{"role": "user", "content": prompt}]):
            if event["type"] == "content":
                sink(event["content"])


class Httpx(Peer):
    """A loop by hand on httpx and httpx-sse, with the JSON engine of the bare loop and any number of connections.

    It keeps only 20 of them when idle, which is httpx's default. At the start and the end of every request httpx's pool
    looks at all connections once for each idle one, so a completion costs three times as much if all 64 are kept.
    """

    def __init__(self, base_url: str, width: int) -> None:
        import httpx
        import httpx_sse
        import msgspec

        self._client = httpx.AsyncClient(
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            timeout=httpx.Timeout(None, connect=30),
            headers=_HEADERS,
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


class Httpx2(Peer):
    """A loop by hand on httpx2, which has event streams of its own, with the JSON engine of the bare loop.

    As with httpx, the number of connections is free and only 20 are kept when idle. At the start and the end of every
    request httpx2's pool probes the socket of each idle connection, so to keep all of them costs more.
    """

    def __init__(self, base_url: str, width: int) -> None:
        import msgspec

        httpx2: Any = import_module("httpx2")  # by name, because the type check runs without this peer
        self._client = httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=20),
            timeout=httpx2.Timeout(None, connect=30),
            headers=_HEADERS,
        )
        super().__init__(self._client)
        self._url = f"{base_url}/chat/completions"
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
        async with self._client.sse(self._url, method="POST", content=body) as source:
            source.response.raise_for_status()
            async for event in source:
                if event.data == "[DONE]":
                    continue
                token = self._decode(event.data)["choices"][0]["delta"].get("content")
                if token:
                    sink(token)


class Pyreqwest(Peer):
    """Rust's reqwest, called through pyreqwest. Its CPU includes that of the thread in which it works.

    It has no event streams, so it only completes.
    """

    def __init__(self, base_url: str, width: int) -> None:
        import msgspec

        builder = import_module("pyreqwest.client").ClientBuilder()
        self._client = builder.error_for_status(True).default_headers(_HEADERS).build()
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
        """Raises `NotImplementedError`."""
        raise NotImplementedError("pyreqwest has no event streams")


PEERS: dict[str, Callable[[str, int], Peer]] = {
    "bare": Bare,
    "lean": Lean,
    "ours": Ours,
    "openai": OpenAI,
    "openai-aiohttp": OpenAIOnAiohttp,
    "litellm": LiteLLM,
    "flexllm": Flexllm,
    "httpx": Httpx,
    "httpx2": Httpx2,
    "pyreqwest": Pyreqwest,
}
"""Name of a peer → its class, which takes the base URL and the number of calls in flight."""

IMPORTS = {
    "bare": "import aiohttp, cattrs",
    "ours": "import piapi_async",
    "openai": "import openai",
    "litellm": "import os; os.environ['LITELLM_LOCAL_MODEL_COST_MAP'] = 'True'; import litellm",
    "flexllm": "import flexllm",
    "httpx": "import httpx, httpx_sse",
    "httpx2": "import httpx2",
    "pyreqwest": "import pyreqwest.client",
}
"""Name of a peer → the statement that imports it."""

MODULES = {
    "openai": ("openai",),
    "openai-aiohttp": ("openai",),
    "litellm": ("litellm",),
    "flexllm": ("flexllm",),
    "httpx": ("httpx", "httpx_sse"),
    "httpx-sse": ("httpx", "httpx_sse"),
    "httpx2": ("httpx2",),
    "pyreqwest": ("pyreqwest",),
}
"""Name of a peer or decoder → the modules that it needs beyond those that this library needs itself."""


def installed(peer: str) -> bool:
    """Returns whether everything that a peer or decoder needs is installed."""
    return all(find_spec(module) is not None for module in MODULES.get(peer, ()))
