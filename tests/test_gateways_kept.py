"""Kinds 9 to 13 of `test_gateways.py`: pictures, counts, and all that stands beside a text, kept and sent back."""

from __future__ import annotations

import json
from typing import Any, cast

import pytest

from piapi_async import Client, FunctionCall, Message, Provider, Retry, StreamTruncatedError, ToolCall, Usage
from piapi_async.stream import CallDelta, Reasoning, Text
from piapi_async.testing import Close, RawServer, ReadRequest, Send
from tests.gateways import COUNTS, answer, chunks_of, event, events_of, named, part, plain
from tests.leaks import PROMPT
from tests.wires import (
    DONE,
    WHOLE,
    ask,
    chunk,
    completion,
    dialled,
    failure,
    ok,
    quiet,  # noqa: F401  # a fixture of every test here
    read,
    sse,
    sse_cut,
)

pytestmark = pytest.mark.anyio

# -- 9. Large events ---------------------------------------------------------------------------------------------------


async def test_large_event_with_a_picture_and_what_comes_behind_it() -> None:
    picture = "data:image/png;base64," + "iVBO" * (3 << 18)
    images = [{"type": "image_url", "image_url": {"url": picture}}]
    chunks, whole = await chunks_of(part(content="Here:"), part(images=images), part(0, "stop", content=" so."), DONE)
    assert (whole.text, whole.image_urls, whole.finish_reason) == ("Here: so.", (picture,), "stop")
    assert chunks[1].choices[0].delta.extra == {"images": images}


# -- 10. Usage ---------------------------------------------------------------------------------------------------------

USAGES: dict[str, tuple[list[bytes], Usage | None]] = {
    "on every chunk: the last counts": (
        [
            chunk("Hel", usage={"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}),
            chunk("lo!", "stop", usage=COUNTS),
        ],
        Usage(3, 2, 5),
    ),
    "null behind it": ([chunk("Hello!", "stop", usage=COUNTS), event(choices=[], usage=None)], Usage(3, 2, 5)),
    "with what can't be true behind it": (
        [chunk("Hello!", "stop", usage=COUNTS), event(choices=[], usage={"prompt_tokens": -1, "completion_tokens": 2})],
        Usage(3, 2, 5),
    ),
    "of a choice": (
        [event(choices=[{"index": 0, "delta": {"content": "Hello!"}, "finish_reason": "stop", "usage": COUNTS}])],
        Usage(3, 2, 5),
    ),
    "in x_groq": ([chunk("Hello!"), chunk(finish="stop", x_groq={"id": "r-1", "usage": COUNTS})], Usage(3, 2, 5)),
    "by other names": (
        [chunk("Hello!", "stop"), event(choices=[], usage={"input_tokens": 3, "output_tokens": 2})],
        Usage(3, 2, 5, extra={"input_tokens": 3, "output_tokens": 2}),
    ),
    "with the reasoning in the sum alone": (
        [chunk("Hello!", "stop", usage={**COUNTS, "total_tokens": 45})],
        Usage(3, 2, 45),
    ),
    "with the provider's price": (
        [chunk("Hello!", "stop"), event(choices=[], usage={**COUNTS, "cost": 0.25})],
        Usage(3, 2, 5, extra={"cost": 0.25}),
    ),
    "with details": (
        [
            chunk(
                "Hello!", "stop", usage={**COUNTS, "cached_tokens": 1, "output_tokens_details": {"reasoning_tokens": 2}}
            )
        ],
        Usage(3, 2, 5, 1, 2, extra={"output_tokens_details": {"reasoning_tokens": 2}}),
    ),
    "with details beside the counts": (
        [chunk("Hello!", "stop", usage={**COUNTS, "cached_tokens": 1, "reasoning_tokens": 2, "cost": 0})],
        Usage(3, 2, 5, 1, 2, extra={"cost": 0}),
    ),
    "none": ([chunk("Hello!", "stop")], None),
}


@named(USAGES)
async def test_usage_of_a_stream(case: tuple[list[bytes], Usage | None]) -> None:
    events, usage = case
    whole = await answer(sse(*events, DONE))
    assert (whole.text, whole.usage, whole.cost_estimated) == ("Hello!", usage, usage is None)


async def test_usage_is_billed_with_the_reasoning() -> None:
    less, more = [await answer(ok(completion(usage={**COUNTS, "total_tokens": total})), ask) for total in (5, 45)]
    assert less.usage is not None
    assert more.usage is not None
    assert (less.usage.output_tokens, more.usage.output_tokens) == (2, 42)
    assert less.cost is not None
    assert more.cost is not None
    assert more.cost > less.cost


# -- 11. Fields that are kept ------------------------------------------------------------------------------------------

CITED = [{"type": "url_citation", "url_citation": {"url": "https://example.com/a"}}]
ALSO = [{"type": "url_citation", "url_citation": {"url": "https://example.com/b"}}]
PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/sea.png"}}
THOUGHT = {"type": "thinking", "thinking": [{"type": "text", "text": "Hm. "}]}
SIGNED = {"type": "thinking", "thinking": [{"type": "text", "text": "So."}], "signature": "s-1"}

DELTAS: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "reasoning in DeepSeek's words": (
        [{"reasoning_content": "Hm. "}, {"reasoning_content": "So."}, {"content": "Hi"}],
        {"content": "Hi", "reasoning_content": "Hm. So."},
    ),
    "reasoning in OpenRouter's words": (
        [{"content": "", "reasoning": "Hm. "}, {"content": "", "reasoning": "So."}, {"content": "Hi"}],
        {"content": "Hi", "reasoning": "Hm. So."},
    ),
    "reasoning as parts, with a signature": (
        [{"content": [THOUGHT]}, {"content": [SIGNED]}, {"content": "Hi"}],
        {
            "content": [
                {
                    "type": "thinking",
                    "thinking": [{"type": "text", "text": "Hm. "}, {"type": "text", "text": "So."}],
                    "signature": "s-1",
                },
                {"type": "text", "text": "Hi"},
            ]
        },
    ),
    "a refusal": ([{"refusal": "I can't "}, {"refusal": "do that."}], {"content": "", "refusal": "I can't do that."}),
    "audio": (
        [{"audio": {"id": "a-1", "transcript": "Hi, "}}, {"audio": {"transcript": "sea", "data": "UklG"}}],
        {"content": "", "audio": {"id": "a-1", "transcript": "Hi, sea", "data": "UklG"}},
    ),
    "audio's data in pieces": (
        [{"audio": {"data": "UklG"}}, {"audio": {"data": "RgAA", "expires_at": 5}}],
        {"content": "", "audio": {"data": "UklGRgAA", "expires_at": 5}},
    ),
    "pictures": ([{"images": [PICTURE]}, {"content": "Hi"}], {"content": "Hi", "images": [PICTURE]}),
    "a picture among the parts": (
        [{"content": [{"type": "text", "text": "Hi"}]}, {"content": [PICTURE]}],
        {"content": [{"type": "text", "text": "Hi"}, PICTURE]},
    ),
    "annotations": (
        [{"content": "Hi", "annotations": CITED}, {"annotations": ALSO}],
        {"content": "Hi", "annotations": CITED + ALSO},
    ),
    "a field that nobody knows": ([{"content": "Hi", "mood": {"joy": 3}}], {"content": "Hi", "mood": {"joy": 3}}),
}


@named(DELTAS)
async def test_kept_of_the_deltas_of_a_stream(case: tuple[list[dict[str, Any]], dict[str, Any]]) -> None:
    deltas, message = case
    events = [part(**delta) for delta in deltas]
    chunks, whole = await chunks_of(*events, part(0, "stop"), DONE)
    (choice,) = cast("list[Any]", whole.raw["choices"])
    assert choice["message"] == {"role": "assistant", **message}
    assert [cast("list[Any]", each.raw["choices"])[0]["delta"] for each in chunks[:-1]] == deltas
    for each, delta in zip(chunks, deltas, strict=False):
        seen = each.choices[0].delta
        for name, value in delta.items():
            if isinstance(value, list) and name == "content":
                assert seen.extra["content_parts"] == value
            elif value:
                assert (seen.extra.get(name) or getattr(seen, name, None)) == value
    # a plain answer with the same message is the same
    assert (await answer(ok(plain(**message)), ask)).choices[0].message == whole.choices[0].message


REASONED = ["reasoning in DeepSeek's words", "reasoning in OpenRouter's words", "reasoning as parts, with a signature"]


@pytest.mark.parametrize("name", REASONED)
async def test_kept_reasoning_is_told_apart_from_the_text(name: str) -> None:
    events = [part(**delta) for delta in DELTAS[name][0]]
    assert await events_of(*events, part(0, "stop"), DONE) == [Reasoning("Hm. "), Reasoning("So."), Text("Hi")]
    whole = await answer(sse(*events, part(0, "stop"), DONE))
    assert (whole.text, whole.choices[0].message.reasoning) == ("Hi", "Hm. So.")
    async with dialled([ReadRequest(), Send(sse(*events, part(0, "stop"), DONE))]) as (client, _):
        async with client.stream(PROMPT) as stream:
            assert [token async for token in stream] == ["Hi"]


async def test_kept_signature_of_a_call() -> None:
    google = {"google": {"thought_signature": "s-2"}}
    piece = {"index": 0, "id": "a", "function": {"name": "f", "arguments": "{}"}, "extra_content": google}
    call = ToolCall(FunctionCall("f", "{}"), "a", extra={"extra_content": google})
    whole = await answer(sse(part(tool_calls=[piece]), part(0, "tool_calls"), DONE))
    assert whole.choices[0].message.tool_calls == (call,)
    sent: Any = whole.raw["choices"]
    assert sent[0]["message"]["tool_calls"][0]["extra_content"] == google
    told = await events_of(part(tool_calls=[piece]), part(0, "tool_calls"), DONE)
    assert told == [CallDelta("f", "{}", "a")]
    body = plain(tool_calls=[{name: value for name, value in piece.items() if name != "index"}])
    assert (await answer(ok(body), ask)).choices[0].message.tool_calls == (call,)


BESIDE: dict[str, Any] = {
    "system_fingerprint": "fp-1",
    "service_tier": "flex",
    "provider_name": "x",
    "citations": ["https://e.com/a"],
}


async def test_kept_beside_the_choices() -> None:
    plain_answer = await answer(ok(completion(**BESIDE)), ask)
    more: dict[str, Any] = {"citations": ["https://e.com/a", "https://e.com/b"], "service_tier": "default"}
    chunks, streamed = await chunks_of(chunk("Hello!", **BESIDE), chunk(finish="stop", **more), DONE)
    assert [each.extra for each in chunks] == [BESIDE, more]
    assert plain_answer.extra == BESIDE
    assert streamed.extra == BESIDE | more
    assert streamed.raw.items() >= (BESIDE | more).items()


async def test_kept_beside_a_message() -> None:
    odd = {"content_filter_results": {"hate": {"filtered": False}}, "stop_reason": 7}
    choice = {"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop", **odd}
    assert (await answer(ok(completion(choices=[choice])), ask)).choices[0].extra == odd
    sent = event(choices=[{"index": 0, "delta": {"content": "Hi"}, "finish_reason": "stop", **odd}])
    chunks, whole = await chunks_of(sent, DONE)
    assert chunks[0].choices[0].extra == whole.choices[0].extra == odd


HANDED_OUT = {
    "reasoning": {"reasoning_content": "Hm."},
    "reasoning in parts": {"content": [THOUGHT]},
    "a refusal": {"refusal": "I can't"},
    "audio": {"audio": {"data": "UklG"}},
    "a picture": {"images": [PICTURE]},
    "a call": {"tool_calls": [{"index": 0, "id": "a", "function": {"name": "f", "arguments": ""}}]},
}


@named(HANDED_OUT)
async def test_kept_apart_from_another_answer_once_it_was_handed_out(case: dict[str, Any]) -> None:
    """It commits, as text does: no other answer begins behind it without a word."""
    async with RawServer([ReadRequest(), Send(sse(WHOLE, DONE))]) as other:
        backup = Provider("second", other.base_url, "sk-second-0123")
        script = [ReadRequest(), Send(sse_cut(part(**case))), Close()]
        async with dialled(script, backups=[backup], retry=Retry(3, base=0)) as (client, server):
            error = await failure(read(client))
            assert (type(error), error.committed) == (StreamTruncatedError, True)
            assert (len(server.requests), len(other.requests)) == (1, 0)


@pytest.mark.parametrize("empty", [{}, {"reasoning_content": ""}, {"annotations": [], "refusal": "", "tool_calls": []}])
async def test_kept_nothing_of_an_answer_that_only_had_begun(empty: dict[str, Any]) -> None:
    """A role and empty fields are nothing that another answer could contradict."""
    async with RawServer([ReadRequest(), Send(sse(WHOLE, DONE))]) as other:
        backup = Provider("second", other.base_url, "sk-second-0123")
        script = [ReadRequest(), Send(sse_cut(part(role="assistant", content="", **empty))), Close()]
        async with dialled(script, backups=[backup], retry=Retry(3, base=0)) as (client, _):
            whole = await read(client)
    assert (whole.text, whole.provider) == ("Hello!", "second")


# -- 12. An answer that is sent back -----------------------------------------------------------------------------------


async def test_history_of_an_answer_of_a_stream() -> None:
    call = {"index": 0, "function": {"name": "f", "arguments": "{}"}}
    events = [part(reasoning_content="Hm."), part(tool_calls=[call]), part(0, "tool_calls"), DONE]
    async with dialled([ReadRequest(), Send(sse(*events)), ReadRequest(), Send(ok())]) as (client, server):
        message = (await read(client)).choices[0].message
        assert (await follow_up(client, message)).endswith("!")
        body = json.loads(server.requests[1].partition(b"\r\n\r\n")[2])
    sent, result = body["messages"][1:]
    assert sent["reasoning_content"] == "Hm."
    assert sent["tool_calls"][0]["id"] == result["tool_call_id"] == "call_1"


async def follow_up(client: Client, message: Message) -> str:
    return (await client.complete([Message("user", PROMPT), message, Message("tool", "7")])).text


# -- 13. A whole answer, asked for by stream ---------------------------------------------------------------------------


async def test_long_answer_is_asked_for_by_stream() -> None:
    async with dialled([ReadRequest(), Send(sse(WHOLE, DONE))]) as (client, server):
        assert (await ask(client, via_stream=True)).text == "Hello!"
        assert json.loads(server.requests[0].partition(b"\r\n\r\n")[2])["stream"] is True
