"""Fields that the client fills in, and a provider sends under the same names: they are not believed."""

from __future__ import annotations

import json
from typing import Any

import attrs
import pytest

from piapi_async import ChatCompletion, ChatCompletionChunk, Client, ServerSentEvent
from piapi_async.testing import RawServer, ReadRequest, Send, http_response
from piapi_async.wire import AnswerBuilder, ChunkDecoder, as_chunk, decode_completion
from tests import wires

KEY = "sk-own-fields-0123"
OWN = ("cost", "provider", "attempts", "request_id", "body", "cost_estimated", "data")

FALSE: list[dict[str, Any]] = [
    dict.fromkeys(OWN, 5),
    dict.fromkeys(OWN),
    dict.fromkeys(OWN, "5"),
    {
        "cost": 5,
        "provider": "another",
        "attempts": [{"provider": "another", "key": "…", "status": 500}],
        "request_id": "false",
        "body": "eA==",
        "cost_estimated": True,
        "data": '{"choices": []}',
    },
    *({name: "false"} for name in OWN),
]
"""What a provider may claim: of a wrong type, of the right one, all at once, and one at a time."""

EACH = pytest.mark.parametrize("false", FALSE, ids=str)
CHUNKS: tuple[dict[str, Any], ...] = (
    {"id": "c-1", "model": "gpt-4o", "choices": [{"index": 0, "delta": {"content": "Hi"}}]},
    {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
    {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}},
)


def test_every_field_that_the_client_fills_in_is_tested() -> None:
    own = {field.name for cls in (ChatCompletion, ChatCompletionChunk) for field in attrs.fields(cls)}
    assert own - {"id", "object", "created", "model", "choices", "usage", "extra"} == set(OWN)


@EACH
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["as it comes", "tolerantly"])
def test_of_a_plain_answer(false: dict[str, Any], start: bytes) -> None:
    body = wires.completion(**false)
    decoded, expected = decode_completion(start + body), decode_completion(start + wires.completion())
    assert decoded == expected
    assert (decoded.cost, decoded.provider, decoded.attempts, decoded.request_id) == (None, "", (), None)
    assert decoded.cost_estimated is False
    assert decoded.raw == json.loads(body)


@EACH
@pytest.mark.parametrize("start", ["", " "], ids=["as it comes", "tolerantly"])
def test_of_a_chunk(false: dict[str, Any], start: str) -> None:
    builder, expected = AnswerBuilder(), AnswerBuilder()
    chunks, plain = list[ChatCompletionChunk](), list[ChatCompletionChunk]()
    ChunkDecoder(builder).decode([ServerSentEvent(start + json.dumps(each | false)) for each in CHUNKS], chunks)
    ChunkDecoder(expected).decode([ServerSentEvent(start + json.dumps(each)) for each in CHUNKS], plain)
    assert [attrs.evolve(each, extra={}) for each in chunks] == plain
    assert all(each.extra.keys() <= false.keys() - {"data"} for each in chunks)
    assert [each.raw for each in chunks] == [each | false for each in CHUNKS]
    assert [json.loads(each.data) for each in chunks] == [each | false for each in CHUNKS]
    assert builder.build("asked") == expected.build("asked")
    said = {name: value for name, value in false.items() if name != "data" and value is not None}
    assert builder.build("asked").raw == expected.build("asked").raw | said


@EACH
def test_of_a_plain_answer_in_place_of_a_stream(false: dict[str, Any]) -> None:
    body = wires.completion(**false)
    chunk = as_chunk(decode_completion(body))
    assert chunk == as_chunk(decode_completion(wires.completion()))
    assert chunk.raw == json.loads(body)


def answers(false: dict[str, Any], *, stream: bool) -> bytes:
    if stream:
        events = [f"data: {json.dumps(fields | false)}\n\n".encode() for fields in CHUNKS]
        return wires.sse(*events, wires.DONE)
    return http_response(200, wires.completion("Hi", **false), {"x-request-id": "true"})


async def asked(false: dict[str, Any], *, stream: bool) -> ChatCompletion:
    async with RawServer([ReadRequest(), Send(answers(false, stream=stream))]) as server:
        async with Client(KEY, base_url=server.base_url, model="gpt-4o") as client:
            if not stream:
                return await client.complete("Hi")
            async with client.stream("Hi") as events:
                return await events.completion()


@pytest.mark.anyio
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
async def test_of_what_a_caller_gets(stream: bool) -> None:
    """The client's own say is there instead."""
    expected = await asked({}, stream=stream)
    assert (expected.text, expected.provider, len(expected.attempts)) == ("Hi", "piapi", 1)
    assert expected.request_id == (None if stream else "true")
    assert expected.cost is not None
    for false in FALSE:
        completion = await asked(false, stream=stream)
        (attempt,) = completion.attempts
        assert (attempt.provider, attempt.status, attempt.kind) == ("piapi", 200, "ok")
        assert attrs.evolve(completion, attempts=expected.attempts) == expected
