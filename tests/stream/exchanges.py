"""What the tests of streams share: an exchange that holds its bytes already, events as bytes, both joined."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from typing import Any

from piapi_async import APIConnectionError, ChatCompletion, ChatCompletionChunk
from piapi_async.policy import Deadline
from piapi_async.stream import read_chunks
from piapi_async.wire import AnswerBuilder, Headers


class Bytes:
    """An exchange that holds its body already."""

    def __init__(self, *pieces: bytes, error: APIConnectionError | None = None) -> None:
        self.status = 200
        self.headers: Headers = {}
        self.pieces = list(pieces)
        self.error = error

    async def read(self, deadline: Deadline) -> bytes:
        if not self.pieces and self.error:
            raise self.error
        return self.pieces.pop(0) if self.pieces else b""

    async def read_all(self, deadline: Deadline, start: bytes = b"") -> bytes:
        body, self.pieces = start + b"".join(self.pieces), []
        return body

    async def read_start(self, deadline: Deadline, limit: int = 1 << 16) -> bytes:
        return await self.read_all(deadline)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def batches(
    exchange: Bytes, builder: AnswerBuilder | None = None, **options: Any
) -> AsyncGenerator[list[ChatCompletionChunk], None]:
    """The chunks of an exchange, without any timer."""
    builder = AnswerBuilder() if builder is None else builder
    timers: dict[str, Any] = {"first_event": Deadline(), "progress": None, "deadline": Deadline(), "clock": lambda: 0.0}
    return read_chunks(exchange, builder, **{**timers, **options})


def event(**fields: Any) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def delta(index: int | None = 0, finish: str | None = None, **fields: Any) -> bytes:
    return event(choices=[{"index": index, "delta": fields, "finish_reason": finish}])


async def joined(*pieces: bytes, **options: Any) -> ChatCompletion:
    builder = AnswerBuilder()
    async for _ in batches(Bytes(*pieces), builder, **options):
        pass
    return builder.build("asked")
