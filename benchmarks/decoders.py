"""Decoders of server-sent events: each takes the pieces of a body, and yields the data of its events."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from importlib import import_module
from typing import Any

Decoder = Callable[[Iterable[bytes]], Iterator[str]]

_EVENT_STREAM = {"Content-Type": "text/event-stream"}


def decode_ours(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yields the data of each event, by our decoder."""
    from piapi_async import SSEDecoder

    decoder = SSEDecoder()
    for piece in pieces:
        for event in decoder.feed(piece):
            yield event.data


def decode_httpx_sse(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yields the data of each event, by httpx-sse. It decodes only responses, so it gets one."""
    import httpx
    import httpx_sse

    response = httpx.Response(200, headers=_EVENT_STREAM, content=iter(pieces))
    for event in httpx_sse.EventSource(response).iter_sse():
        yield event.data


def decode_httpx2(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yields the data of each event, by httpx2. It decodes only responses to a request, so it gets both."""
    httpx2: Any = import_module("httpx2")  # by name, because the type check runs without this peer
    request = httpx2.Request("POST", "http://127.0.0.1")
    response = httpx2.Response(200, headers=_EVENT_STREAM, content=iter(pieces), request=request)
    for event in httpx2.EventSource(response):
        yield event.data


def decode_openai(pieces: Iterable[bytes]) -> Iterator[str]:
    """Yields the data of each event, by the decoder inside the OpenAI SDK."""
    from openai._streaming import SSEDecoder

    for event in SSEDecoder().iter_bytes(iter(pieces)):
        yield event.data


DECODERS: dict[str, Decoder] = {
    "httpx-sse": decode_httpx_sse,
    "ours": decode_ours,
    "openai": decode_openai,
    "httpx2": decode_httpx2,
}
"""Name of a decoder → the decoder."""
