"""What the tests of `wire` share: bodies and chunks as the provider's page has them, and both ways to read each.

Nearly every answer is read as it comes, by a fast engine. What that engine refuses is read again the tolerant way.
`decode` and `decode_chunks` go both ways, which must agree.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any, cast

import attrs
import pytest

from piapi_async import APIResponseError, ChatCompletion, ChatCompletionChunk, ServerSentEvent
from piapi_async.errors import Secret
from piapi_async.wire import AnswerBuilder, ChunkDecoder, decode_completion

KEY = Secret("canary-0123456789-key")

BOM = b"\xef\xbb\xbf"
"""The fast engine refuses it, so a body that begins with one is always read the tolerant way."""


def completion(message: object = ..., /, **changes: object) -> bytes:
    """A completion as the provider's page has it, with some fields changed, or left out where the value is `...`."""
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello!"} if message is ... else message,
        "finish_reason": "stop",
    }
    fields: dict[str, object] = {
        "id": "chatcmpl-83jZ61GDHtdlsFUzXDbpGeoU193Mj",
        "object": "chat.completion",
        "created": 1695900828,
        "model": "gpt-3.5-turbo",
        "choices": [choice],
        "usage": {"prompt_tokens": 19, "completion_tokens": 9, "total_tokens": 28},
    }
    fields |= changes
    return json.dumps({name: value for name, value in fields.items() if value is not ...}).encode()


def decode(body: bytes) -> ChatCompletion:
    """Decode a completion by both ways."""
    decoded = decode_completion(body)
    tolerantly = decode_completion(BOM + body)
    assert decoded == tolerantly
    assert decoded.raw == tolerantly.raw
    return decoded


def refused(body: bytes) -> APIResponseError:
    """Have both ways refuse a body, with the same error."""
    errors: list[APIResponseError] = []
    for prefix in (b"", BOM):
        with pytest.raises(APIResponseError) as raised:
            decode_completion(prefix + body)
        assert raised.value.__context__ is None
        errors.append(raised.value)
    fast, slow = errors
    assert (type(fast), fast.kind, fast.maybe_billed) == (type(slow), slow.kind, slow.maybe_billed)
    return fast


def chunk(*choices: object, **fields: object) -> str:
    """The data of one event."""
    return json.dumps({"choices": choices, **fields})


def delta(index: int = 0, **fields: object) -> dict[str, object]:
    """A choice of a chunk."""
    return {"index": index, "delta": fields}


def decode_chunks(*data: str) -> list[ChatCompletionChunk]:
    """Decode the events of one stream by both ways; what is held back at the end comes last."""
    fast = _decode_stream(data)
    tolerant = _decode_stream(" " + text for text in data)  # a blank in front: always the tolerant way
    assert fast == tolerant
    assert [each.raw for each in fast] == [each.raw for each in tolerant]
    return fast


def _decode_stream(data: Any) -> list[ChatCompletionChunk]:
    builder, expected = AnswerBuilder(asked=2), AnswerBuilder(asked=2)
    decoder = ChunkDecoder(builder)
    chunks: list[ChatCompletionChunk] = []
    decoder.decode([ServerSentEvent(text) for text in data], chunks)
    chunks += decoder.flush()
    assert not decoder.flush()
    for each in chunks:
        expected.add(each)
    assert builder.build("asked") == expected.build("asked")
    return chunks


def decode_event(event: ServerSentEvent) -> ChatCompletionChunk | str | None:
    """Decode the only event of a stream: a chunk, `"end"` for a terminator, or None for nothing."""
    chunks: list[ChatCompletionChunk] = []
    if ChunkDecoder(AnswerBuilder(asked=2)).decode([event], chunks):
        return "end"
    return chunks[0] if chunks else None


def decode_one(data: str) -> ChatCompletionChunk:
    """Decode the only event of a stream by both ways."""
    (decoded,) = decode_chunks(data)
    return decoded


def _strings(value: object) -> Iterator[str]:
    """Every string in attrs objects, mappings and sequences."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _strings(key)
            yield from _strings(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _strings(item)
    elif attrs.has(type(value)):
        for name in attrs.asdict(cast("Any", value), recurse=False):
            yield from _strings(getattr(value, name))


def assert_utf8(*values: object) -> None:
    """Assert that every string in the values encodes to UTF-8."""
    for text in _strings(values):
        text.encode()
