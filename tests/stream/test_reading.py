"""One exchange to chunks, and to the answer that they make."""

from __future__ import annotations

from typing import Any

import pytest

from piapi_async import APIConnectionError, APIResponseError, FunctionCall, StreamTruncatedError, ToolCall
from piapi_async.errors import StreamTooLargeError
from piapi_async.sse import MAX_EVENT_BYTES
from piapi_async.wire import AnswerBuilder
from tests.stream.exchanges import Bytes, batches, delta, event, joined
from tests.wires import DONE

pytestmark = pytest.mark.anyio


async def test_chunks_that_arrive_together_come_together() -> None:
    pieces = Bytes(delta(content="a") + delta(content="b"), delta(content="c") + DONE)
    found = [[chunk.text for chunk in batch] async for batch in batches(pieces)]
    assert found == [["a", "b"], ["c"]]


async def test_choices_are_joined_apart() -> None:
    whole = await joined(
        event(id="c-1", created=7, model="m", choices=[{"index": 1, "delta": {"role": "assistant", "content": "b"}}]),
        delta(0, content="a"),
        delta(1, content="B", finish="length"),
        delta(0, content="A", finish="stop"),
        event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}),
        event(choices=[], usage=None),
        DONE,
    )
    assert [(c.index, c.message.content, c.finish_reason) for c in whole.choices] == [
        (0, "aA", "stop"),
        (1, "bB", "length"),
    ]
    assert (whole.id, whole.created, whole.model) == ("c-1", 7, "m")
    assert whole.usage is not None
    assert whole.usage.total_tokens == 5
    assert whole.raw["usage"] == {"prompt_tokens": 1, "completion_tokens": 4, "total_tokens": 5}
    assert whole.raw["model"] == "m"


async def test_a_stream_that_names_no_model_has_the_one_asked() -> None:
    whole = await joined(delta(content="a", finish="stop"))
    assert (whole.model, whole.raw["usage"]) == ("asked", None)


async def test_function_call_fragments() -> None:
    whole = await joined(
        delta(role="assistant", content=None, function_call={"name": "get_weather", "arguments": ""}),
        delta(function_call={"name": "get_weather", "arguments": '{"city": '}),  # repeated, as llama-cpp-python does
        delta(function_call={"arguments": '"Oslo"}'}),
        delta(finish="function_call"),
        DONE,
    )
    message = whole.choices[0].message
    assert message.function_call == FunctionCall("get_weather", '{"city": "Oslo"}')
    assert (message.content, whole.text, whole.finish_reason) == (None, "", "function_call")


def tool(arguments: str = "", name: str = "", **fields: Any) -> dict[str, Any]:
    return {**fields, "function": {"name": name, "arguments": arguments}}


@pytest.mark.parametrize(
    "fragments",
    [
        [tool("{", "f", index=0, id="a"), tool("{", "g", index=1, id="b"), tool("}", index=0), tool("}", index=1)],
        [tool("{", "f", id="a"), tool("}"), tool("{", "g", id="b"), tool("}")],
        [tool("{", "f", id="a"), tool("{", "g", id="b"), tool("}", id="a"), tool("}", id="b")],
    ],
    ids=["index", "order", "id"],
)
async def test_tool_call_fragments(fragments: list[dict[str, Any]]) -> None:
    whole = await joined(*(delta(tool_calls=[each]) for each in fragments), delta(finish="tool_calls"), DONE)
    assert whole.choices[0].message.tool_calls == (
        ToolCall(FunctionCall("f", "{}"), "a"),
        ToolCall(FunctionCall("g", "{}"), "b"),
    )


async def test_a_tool_call_without_index_or_id() -> None:
    whole = await joined(delta(tool_calls=[tool("{", "f")]), delta(tool_calls=[tool("}")]), delta(finish="tool_calls"))
    assert whole.choices[0].message.tool_calls == (ToolCall(FunctionCall("f", "{}")),)


async def test_logprobs_are_joined() -> None:
    def with_logprobs(value: Any) -> bytes:
        return event(choices=[{"index": 0, "delta": {"content": "a"}, "logprobs": value}])

    finish = delta(finish="stop")
    parts = [{"content": [1], "refusal": None}, {"content": [2]}]
    assert (await joined(with_logprobs(parts[0]), finish)).choices[0].logprobs == parts[0]
    assert (await joined(*map(with_logprobs, parts), finish)).choices[0].logprobs == {"content": [1, 2]}
    assert (await joined(with_logprobs([1]), with_logprobs([2]), finish)).choices[0].logprobs == [[1], [2]]


async def test_the_end_of_a_stream() -> None:
    text = delta(content="a")
    finish = delta(finish="stop")
    assert (await joined(text, finish)).finish_reason == "stop"
    assert (await joined(text, DONE)).finish_reason is None  # Ollama does that; `stop` is never invented
    assert (await joined(text, b"data: [none]\n\n")).finish_reason is None
    with pytest.raises(StreamTruncatedError, match="terminator"):
        await joined(text)
    with pytest.raises(StreamTruncatedError, match="finish_reason"):
        await joined(text, DONE, require_finish_reason=True)
    assert (await joined(text, finish, DONE, require_finish_reason=True)).text == "a"
    with pytest.raises(StreamTruncatedError):  # one of two choices never finishes
        await joined(text, delta(1, content="b"), finish)
    with pytest.raises(APIResponseError):
        await joined(DONE)


async def test_a_broken_connection_is_one_more_end() -> None:
    broken = APIConnectionError(kind="truncated body")
    pieces = Bytes(delta(content="a", finish="stop"), error=broken)
    assert [len(batch) async for batch in batches(pieces)] == [1]
    with pytest.raises(StreamTruncatedError):
        _ = [batch async for batch in batches(Bytes(error=broken))]
    reset = APIConnectionError(kind="reset")
    with pytest.raises(APIConnectionError) as caught:
        _ = [batch async for batch in batches(Bytes(error=reset))]
    assert caught.value is reset


async def test_a_choice_below_zero_stays_in_its_stream() -> None:
    for _ in range(2):
        whole = await joined(delta(-1, content="a"), delta(0, content="b"), delta(-1, "stop", content="c"), DONE)
        assert [(choice.index, choice.message.text) for choice in whole.choices] == [(-1, "ac"), (0, "b")]


async def test_a_half_surrogate_at_the_end_is_replaced() -> None:
    half = delta(content="?").replace(b'"?"', rb'"a\ud83d"')
    assert (await joined(half, DONE)).text == "a\ufffd"


async def test_a_line_of_json_is_not_larger_than_an_event() -> None:
    line = delta(content="a").removeprefix(b"data: ").rstrip() + b"\n"
    builder = AnswerBuilder()
    with pytest.raises(StreamTooLargeError, match="a line of the stream") as caught:
        async for _ in batches(Bytes(line, line, bytes(MAX_EVENT_BYTES), b"x"), builder):
            pass
    assert (builder.text, caught.value.maybe_billed) == ("aa", True)
    many = [line] * 3 + [b" " * (MAX_EVENT_BYTES - 1), b"\n"] * 2 + [line]  # together they may be
    assert (await joined(*many, delta(finish="stop").removeprefix(b"data: "))).text == "aaaa"
