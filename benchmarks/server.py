"""A load server that is never the bottleneck, as its answers are bytes that it made before the first request.

It speaks HTTP/1.1 with keep-alive over a bare `asyncio.Protocol`, and frames its answers as gateways do: JSON with
``Content-Length``, event streams in chunked coding with one event a chunk. It has two ports:

- *fast* speaks HTTP and writes a whole stream of 200 tokens at once. Below ``/tokens/N/`` a stream has N tokens, the
  200 repeated as needed. Below ``/padded/N/`` too, and each event is longer than `PADDING` bytes.
- *control* speaks lines. Each connection is first told the number of a new HTTP port, opened for it alone. A stream on
  that port gets its first token at once, and one more whenever the control connection says ``tick``; ``end`` ends all
  of them. So the client under test sets the pace, and however slow it is, each token is a read of its own.

``python -m benchmarks.server`` prints the ports as one line of JSON, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
import resource
import sys
from functools import lru_cache
from itertools import cycle, islice
from typing import cast

API_KEY = "sk-bench"
MODEL = "gpt-4o-mini"

_SENTENCE = 'A token is a piece of text ; the word "café" may be two of them .\n'
TOKENS = tuple((_SENTENCE.replace(" ", "| ") * 20).split("|")[:200])
"""The 200 tokens of every answer. A quote, a line break and a letter beyond ASCII leave decoders no shortcut."""

TEXT = "".join(TOKENS)
"""The whole answer, which a client must return for its call to count."""

PADDING = 16 << 10
"""Bytes of padding in each event of a padded stream. They make it much longer than the answer that a client keeps."""

_HEADERS = (
    b"HTTP/1.1 200 OK\r\n"
    b"Date: Mon, 06 Jan 2025 10:00:00 GMT\r\n"
    b"Server: cloudflare\r\n"
    b"Connection: keep-alive\r\n"
    b"Cache-Control: no-cache\r\n"
    b"X-Request-Id: req_0f8c6b7a4f9e4c4c8f6d2a1b3c5d7e9f\r\n"
    b"X-RateLimit-Limit-Requests: 10000\r\n"
    b"X-RateLimit-Remaining-Requests: 9999\r\n"
    b"Strict-Transport-Security: max-age=31536000\r\n"
)
_NOT_FOUND = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
_UNAUTHORIZED = b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n"
_LENGTH_REQUIRED = b"HTTP/1.1 411 Length Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


def _completion() -> bytes:
    message = {"role": "assistant", "content": TEXT, "refusal": None}
    body = {
        "id": "chatcmpl-83jZ61GDHtdlsFUzXDbpGeoU193Mj",
        "object": "chat.completion",
        "created": 1736157600,
        "model": MODEL,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 19, "completion_tokens": 200, "total_tokens": 219},
        "system_fingerprint": "fp_0705bf87c0",
    }
    data = json.dumps(body).encode()
    return _HEADERS + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(data) + data


def _event(delta: dict[str, str], finish_reason: str | None = None, padding: str = "") -> bytes:
    body: dict[str, object] = {
        "id": "chatcmpl-83jZ61GDHtdlsFUzXDbpGeoU193Mj",
        "object": "chat.completion.chunk",
        "created": 1736157600,
        "model": MODEL,
        "system_fingerprint": "fp_0705bf87c0",
        "choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}],
    }
    if padding:
        body["obfuscation"] = padding  # OpenAI's name for the padding that hides the length of a token
    return b"data: " + json.dumps(body, separators=(",", ":")).encode() + b"\n\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


TOKEN_EVENTS = tuple(_event({"content": token}) for token in TOKENS)
"""One event for each token, as it stands in the body, without chunk framing."""

_COMPLETION = _completion()
_STREAM_HEAD = (
    _HEADERS
    + b"Content-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
    + _chunk(_event({"role": "assistant", "content": ""}))
)
_STREAM_TAIL = _chunk(_event({}, "stop")) + _chunk(b"data: [DONE]\n\n") + _chunk(b"")
_TOKEN_CHUNKS = tuple(_chunk(event) for event in TOKEN_EVENTS)
_FAST_STREAM = _STREAM_HEAD + b"".join(_TOKEN_CHUNKS) + _STREAM_TAIL
_REQUEST = re.compile(rb"post (?:/(tokens|padded)/(\d+))?/v1/chat/completions http/1\.1\r\n")


def text_of(count: int) -> str:
    """Returns the text of an answer of so many tokens."""
    return "".join(islice(cycle(TOKENS), count))


@lru_cache(maxsize=2)
def _stream(kind: bytes, count: int) -> bytes:
    padding = "." * PADDING if kind == b"padded" else ""
    chunks = (_chunk(_event({"content": token}, padding=padding)) for token in islice(cycle(TOKENS), count))
    return _STREAM_HEAD + b"".join(chunks) + _STREAM_TAIL


class Conductor:
    """Sends the tokens of the paced streams, and knows how many each has got."""

    def __init__(self) -> None:
        self._sent: dict[asyncio.WriteTransport, int] = {}

    def begin(self, transport: asyncio.WriteTransport) -> None:
        """Sends the head of a stream and its first token."""
        transport.write(_STREAM_HEAD + _TOKEN_CHUNKS[0])
        self._sent[transport] = 1

    def forget(self, transport: asyncio.WriteTransport) -> None:
        """Forgets a stream whose connection is gone."""
        self._sent.pop(transport, None)

    def tick(self) -> None:
        """Sends each stream its next token; after the last of the 200 comes the first again."""
        for transport, sent in self._sent.items():
            transport.write(_TOKEN_CHUNKS[sent % len(_TOKEN_CHUNKS)])
            self._sent[transport] = sent + 1

    def end(self) -> None:
        """Sends each stream its finish reason and its terminator."""
        for transport in self._sent:
            transport.write(_STREAM_TAIL)
        self._sent.clear()


class Answerer(asyncio.Protocol):
    """One connection of an HTTP port. Its streams are paced if it has a conductor, else fast."""

    _transport: asyncio.Transport

    def __init__(self, conductor: Conductor | None) -> None:
        self._conductor = conductor
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Has the conductor forget the stream."""
        if self._conductor is not None:
            self._conductor.forget(self._transport)

    def data_received(self, data: bytes) -> None:
        """Answers as soon as the request is complete."""
        self._buffer += data
        head, blank, rest = self._buffer.partition(b"\r\n\r\n")
        if not blank:
            return
        fields = head.lower()
        length = _content_length(fields)
        if length is None:
            self._transport.write(_LENGTH_REQUIRED)
            self._transport.close()
        elif len(rest) >= length:
            self._buffer = rest[length:]
            self._answer(fields, rest[:length])

    def _answer(self, fields: bytes, body: bytes) -> None:
        request = _REQUEST.match(fields)
        if request is None:
            self._transport.write(_NOT_FOUND)
        elif b"authorization: bearer " + API_KEY.encode() not in fields:
            self._transport.write(_UNAUTHORIZED)
        elif b'"stream":true' not in body.replace(b" ", b""):
            self._transport.write(_COMPLETION)
        elif self._conductor is not None:
            self._conductor.begin(self._transport)
        elif request[1]:
            self._transport.write(_stream(request[1], int(request[2])))
        else:
            self._transport.write(_FAST_STREAM)


def _content_length(fields: bytes) -> int | None:
    _, found, rest = fields.partition(b"\r\ncontent-length:")
    return int(rest.partition(b"\r\n")[0]) if found else None


async def _listen(conductor: Conductor | None) -> tuple[asyncio.Server, int]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Answerer(conductor), "127.0.0.1", 0, backlog=16384)
    return server, server.sockets[0].getsockname()[1]


async def _obey(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    conductor = Conductor()
    server, port = await _listen(conductor)
    async with server:
        writer.write(b"%d\n" % port)
        async for line in reader:
            if line == b"tick\n":
                conductor.tick()
            elif line == b"end\n":
                conductor.end()
    writer.close()


async def _serve() -> None:
    _, fast = await _listen(None)
    control = await asyncio.start_server(_obey, "127.0.0.1", 0)
    print(json.dumps({"fast": fast, "control": control.sockets[0].getsockname()[1]}), flush=True)
    # The parent writes nothing, so standard input becomes readable only when the parent closes it or dies.
    ended = asyncio.Event()
    asyncio.get_running_loop().add_reader(sys.stdin, ended.set)
    await ended.wait()


def raise_file_limit() -> None:
    """Raises the limit of open files as far as this process may, as each stream takes a socket."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def main() -> None:
    """Serves on uvloop where it is installed, else on asyncio's own loop."""
    raise_file_limit()
    if importlib.util.find_spec("uvloop") is None:
        asyncio.run(_serve())
    else:
        import uvloop

        uvloop.run(_serve())


if __name__ == "__main__":
    main()
