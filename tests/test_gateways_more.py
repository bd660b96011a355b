"""More odd answers of gateways: whole messages among deltas, calls told apart by ids, errors beside usage."""

from __future__ import annotations

import json
from typing import Any

import pytest

from piapi_async import (
    APIStatusError,
    FunctionCall,
    RateLimitError,
    StreamTruncatedError,
    ToolCall,
)
from piapi_async.errors import InsufficientQuotaError
from piapi_async.testing import Close, ReadRequest, Send, http_response
from tests.gateways import COUNTS, answer, event, events_of, named, part, plain
from tests.wires import DONE, ask, completion, dialled, failure, ok, quiet, read, sse  # noqa: F401  # `quiet` is a fixture

pytestmark = pytest.mark.anyio


def choice(**fields: Any) -> bytes:
    """An event with one choice of any form."""
    return event(choices=[{"index": 0, **fields}])


def tool(index: object = None, id_: object = None, name: str | None = None, arguments: str = "") -> dict[str, Any]:
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    sent = {"index": index, "id": id_, "function": function}
    return {key: value for key, value in sent.items() if value is not None}


STOP = part(0, "stop")

TEXTS = {
    "the same piece twice as `text`": [choice(text="ha"), choice(text="ha"), choice(text="!", finish_reason="stop")],
    "the same piece twice as `message`": [
        *(choice(message={"content": piece}) for piece in ("ha", "ha", "!")),
        STOP,
    ],
    "a whole message behind its deltas": [
        part(content="ha"),
        part(content="ha!"),
        choice(message={"content": "haha!"}),
    ],
    "a message beside an empty delta": [
        choice(delta={"role": "assistant", "content": ""}, message={"content": "haha!"})
    ],
    "a text beside an empty delta": [choice(delta={"content": None}, text="haha!")],
    "an index that counts chunks, and usage": [
        part(0, content="ha"),
        part(1, content="ha!"),
        event(choices=[], usage=COUNTS),
    ],
    "an index that counts from 1": [part(1, content="h"), part(2, content="a"), part(3, content="ha!")],
    "an index that counts chunks behind a role": [
        part(0, role="assistant"),
        part(0, content="ha"),
        part(1, content="ha!"),
    ],
    "an index of 1 throughout": [part(1, content="haha"), part(1, content="!")],
    "an index below zero throughout": [part(-1, content="haha"), part(-1, content="!")],
    "a base_resp that says that all is well": [
        event(**json.loads(part(content="haha!")[6:]), base_resp={"status_code": 0})
    ],
    "two events in one, each with its field's name": [
        b"data: data: " + part(content="ha")[6:-1] + b"data: \ndata: " + part(content="ha!")
    ],
    "parts of reasoning beside the text": [
        part(content=[{"type": "reasoning", "text": "hm"}, {"type": "text", "text": "haha!"}])
    ],
    "comments, then chunks without `data:`": [b": wait\n\n: wait\n\n", part(content="haha!")[6:], part(0, "stop")[6:]],
}


@named(TEXTS)
async def test_text_comes_out_whole(case: list[bytes]) -> None:
    assert (await answer(sse(*case, DONE))).text == "haha!"


async def test_tokens_are_those_of_the_only_choice() -> None:
    document = completion(choices=[{"index": 1, "message": {"role": "assistant", "content": "haha!"}}])
    for sent in (sse(part(1, content="haha"), part(1, content="!"), DONE), ok(document)):
        async with dialled([ReadRequest(), Send(sent)]) as (client, _), client.stream("x") as stream:
            assert "".join([token async for token in stream]) == "haha!"


async def test_choices_in_another_order_are_sorted() -> None:
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}} for index, text in ((1, "b"), (0, "a"))
    ]
    whole = await answer(ok(completion(choices=choices)), ask, n=2)
    assert (whole.text, [each.message.text for each in whole.choices]) == ("a", ["a", "b"])


async def test_choices_of_one_chunk_with_the_same_index_are_two() -> None:
    two = event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": "stop"} for text in "ab"])
    whole = await answer(sse(two, DONE), n=2)
    assert [each.message.text for each in whole.choices] == ["a", "b"]


async def test_a_document_of_two_choices_for_a_stream() -> None:
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}} for index, text in ((0, "a"), (1, "b"))
    ]
    whole = await answer(ok(completion(choices=choices)), n=2)
    assert [each.message.text for each in whole.choices] == ["a", "b"]


W = ToolCall(FunctionCall("w", "{}"), "a")
CALLS = {
    "an index that comes later": ([[tool(None, "a", "w", "{")], [tool(0, None, None, "}")]], [W]),
    "a list without indexes, then one without ids": (
        [[tool(None, "a", "w", "{"), tool(None, "b", "t", "{")], [tool(arguments="}"), tool(arguments="}")]],
        [W, ToolCall(FunctionCall("t", "{}"), "b")],
    ),
    "an index that counts fragments": (
        [[tool(0, "a", "w")], [tool(1, "a", None, "{")], [tool(2, "a", None, "}")]],
        [W],
    ),
    "one id for two calls": (
        [[tool(None, "a", "w", "{}"), tool(None, "a", "t", "{}")]],
        [W, ToolCall(FunctionCall("t", "{}"), "a")],
    ),
    "one id and another index": (
        [[tool(0, "a", "w", "{}")], [tool(1, "a", "t", "{}")]],
        [W, ToolCall(FunctionCall("t", "{}"), "a")],
    ),
    "an empty call": ([[tool(0, "a", "w", "{}")], [{}], [{"index": 1, "function": {"arguments": ""}}]], [W]),
    "a place that is taken": (
        [[tool(1, "a", "w", "{}")], [tool(None, "b", "t", "{}")], [tool(1, "c", "u", "{}")]],
        [ToolCall(FunctionCall("t", "{}"), "b"), W, ToolCall(FunctionCall("u", "{}"), "c")],
    ),
}


@named(CALLS)
async def test_calls_are_told_apart(case: tuple[list[list[dict[str, Any]]], list[ToolCall]]) -> None:
    pieces, calls = case
    whole = await answer(sse(*(part(tool_calls=each) for each in pieces), part(0, "tool_calls"), DONE))
    found = whole.choices[0].message.tool_calls or ()
    assert sorted((call.id, call.function.name, call.function.arguments) for call in found) == sorted(
        (call.id, call.function.name, call.function.arguments) for call in calls
    )


async def test_a_whole_message_behind_its_own_calls_and_reasoning() -> None:
    calls = [tool(0, "a", "w", "{}")]
    message = {"role": "assistant", "content": None, "tool_calls": calls, "reasoning_content": "hm"}
    whole = await answer(sse(part(reasoning_content="hm"), part(tool_calls=calls), choice(message=message), STOP, DONE))
    found = whole.choices[0].message
    assert (found.reasoning, found.tool_calls) == ("hm", (W,))


@pytest.mark.parametrize("empty", [{"function_call": {}}, {"tool_calls": [{}]}, {"tool_calls": [None]}])
async def test_empty_calls_are_none(empty: dict[str, Any]) -> None:
    for whole in (
        await answer(ok(plain(content="haha!", **empty)), ask),
        await answer(sse(part(content="haha!"), STOP, part(**empty))),
    ):
        message = whole.choices[0].message
        assert (message.text, message.function_call, message.tool_calls or None) == ("haha!", None, None)


ERRORS = {
    "MiniMax, beside a usage": (
        event(choices=[], usage=COUNTS, base_resp={"status_code": 1008, "status_msg": "no"}),
        InsufficientQuotaError,
    ),
    "MiniMax, beside an empty choice": (
        event(choices=[{"index": 0, "delta": {}}], base_resp={"status_code": 1002, "status_msg": "no"}),
        RateLimitError,
    ),
    "a code beside a usage": (event(choices=[], usage=COUNTS, code=429, msg="no"), RateLimitError),
    "an error within a delta": (part(error={"code": 429, "message": "no"}), RateLimitError),
}


@named(ERRORS)
async def test_an_error_is_no_answer(case: tuple[bytes, type[APIStatusError]]) -> None:
    sent, cls = case
    async with dialled([ReadRequest(), Send(sse(sent, DONE)), Close()]) as (client, _):
        assert type(await failure(read(client))) is cls


async def test_chunks_without_field_names_that_are_cut() -> None:
    pieces = [{"index": 0, "delta": {"content": "Hel"}}]
    line = event(object="chat.completion.chunk", choices=pieces)[6:-2]
    for how in (ask, read):
        async with dialled([ReadRequest(), Send(http_response(200, line)), Close()]) as (client, _):
            error = await failure(how(client))
        assert isinstance(error, StreamTruncatedError)
        assert error.partial == "Hel"


async def test_plain_answers_with_something_around_them() -> None:
    assert (await answer(ok(completion("haha!") + b"\n\ndata: [DONE]\n\n"), ask)).text == "haha!"
    assert (await answer(ok(b": wait\n\n: wait\n\n" + completion("haha!")), ask)).text == "haha!"
    assert (await answer(ok(completion(choices=[{"index": 0, "text": "haha!"}])), ask)).text == "haha!"
    beside = [{"index": 0, "message": {"role": "assistant", "content": None}, "text": "haha!"}]
    assert (await answer(ok(completion(choices=beside)), ask)).text == "haha!"


async def test_a_finish_reason_that_content_has_followed_is_none() -> None:
    whole = await answer(sse(part(0, "stop", content="ha"), part(content="ha!"), DONE))
    assert (whole.text, whole.finish_reason) == ("haha!", None)


@pytest.mark.parametrize("form", ["parts", "text", "message", "index"])
async def test_half_characters_are_joined(form: str) -> None:
    def half(number: int, text: str) -> bytes:
        forms: dict[str, dict[str, Any]] = {
            "parts": {"delta": {"content": [{"type": "text", "text": text}]}},
            "text": {"text": text},
            "message": {"message": {"content": text}},
            "index": {"index": number, "delta": {"content": text}},
        }
        return choice(**forms[form])

    whole = await answer(sse(half(0, "a"), half(1, "b\ud83d"), half(2, "\ude00c"), STOP, DONE))
    assert whole.text == "ab😀c"


async def test_half_a_character_at_the_end_does_not_reopen_the_answer() -> None:
    assert (await answer(sse(part(0, "stop", content="a\ud83d")))).text == "a\ufffd"


async def test_what_is_named_as_a_field_of_ours_is_in_raw_alone() -> None:
    whole = await answer(sse(event(provider="other", cost=5, **json.loads(part(0, "stop", content="haha!")[6:])), DONE))
    assert (whole.raw["provider"], whole.raw["cost"]) == ("other", 5)
    assert (whole.provider, whole.extra) == ("piapi", {})


async def test_citations_commit() -> None:
    cut = sse(event(citations=["u"], **json.loads(part(role="assistant")[6:]))).removesuffix(b"0\r\n\r\n")
    async with dialled([ReadRequest(), Send(cut), Close()]) as (client, server), client.stream("x") as stream:
        with pytest.raises(StreamTruncatedError) as caught:
            async for _ in stream.chunks():
                pass
        assert caught.value.committed
        assert len(server.requests) == 1


async def test_thoughts_in_parts_of_two_forms() -> None:
    thoughts = [{"type": "thinking", "thinking": [{"type": "text", "text": "h"}]}, {"type": "reasoning", "text": "m"}]
    events = await events_of(part(content=thoughts), part(0, "stop", content="haha!"), DONE)
    assert [(type(each).__name__, each.text) for each in events] == [("Reasoning", "hm"), ("Text", "haha!")]


async def test_thoughts_in_parts_are_no_text_of_an_answer_that_is_cut() -> None:
    pieces = part(content=[{"type": "reasoning", "text": "hm"}]), part(content=[{"type": "text", "text": "ha"}])
    cut = sse(*pieces).removesuffix(b"0\r\n\r\n")
    async with dialled([ReadRequest(), Send(cut), Close()]) as (client, _):
        assert (await failure(read(client))).partial == "ha"
