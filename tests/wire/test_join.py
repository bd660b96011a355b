"""Chunks to the whole answer, and whether a stream that ended is whole."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import (
    APIResponseError,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Delta,
    FunctionCall,
    Message,
    StreamTruncatedError,
    ToolCall,
    Usage,
)
from piapi_async.wire import AnswerBuilder, as_chunk
from tests.wire.samples import completion, decode


def chunk_of(index: int = 0, finish: str | None = None, logprobs: object = None, **fields: Any) -> ChatCompletionChunk:
    """A chunk of one choice."""
    return ChatCompletionChunk((ChunkChoice(index, Delta(**fields), finish, logprobs),))


def join(*chunks: ChatCompletionChunk) -> ChatCompletion:
    builder = AnswerBuilder()
    for chunk in chunks:
        builder.add(chunk)
    return builder.build("asked")


def joined_message(*chunks: ChatCompletionChunk) -> Message:
    (choice,) = join(*chunks).choices
    return choice.message


# -- what is joined ----------------------------------------------------------------------------------------------------


def test_the_choices_of_a_whole_answer() -> None:
    usage = Usage(1, 4, 5)
    assert join(
        ChatCompletionChunk(
            (ChunkChoice(1, Delta("robot", "b")),), "c-1", "chat.completion.chunk", 7, "gpt-4o", data="{…}"
        ),
        ChatCompletionChunk((ChunkChoice(0, Delta(content="a")),), "c-2", None, 8, "another"),
        chunk_of(1, "length", content="B"),
        chunk_of(0, "stop", content="A"),
        chunk_of(0, content=""),
        ChatCompletionChunk(usage=usage),
        ChatCompletionChunk(),
    ) == ChatCompletion(
        "c-1",
        "chat.completion",
        7,
        "gpt-4o",
        (Choice(0, Message("assistant", "aA"), "stop"), Choice(1, Message("robot", "bB"), "length")),
        usage,
    )


def test_the_first_id_time_and_model_count() -> None:
    whole = join(
        ChatCompletionChunk(), ChatCompletionChunk(id="c-1"), ChatCompletionChunk(id="c-2", created=7, model="gpt-4o")
    )
    assert (whole.id, whole.created, whole.model, whole.choices, whole.usage) == ("c-1", 7, "gpt-4o", (), None)


def test_id_time_and_model_may_come_one_by_one() -> None:
    headers: list[dict[str, Any]] = [
        {"model": "gpt-4o"},
        {"created": 7, "model": "another"},
        {"id": "c-1", "created": 8},
        {"id": "c-2"},
    ]
    for order in permutations(headers):
        whole = join(*(ChatCompletionChunk(**header) for header in order))
        first = {name: next(h[name] for h in order if name in h) for name in ("id", "created", "model")}
        assert {name: getattr(whole, name) for name in first} == first


def test_nothing_but_the_model_that_was_asked() -> None:
    assert join() == ChatCompletion("", "chat.completion", 0, "asked", ())


def test_the_last_finish_reason_counts() -> None:
    assert join(chunk_of(finish="stop"), chunk_of(), chunk_of(finish="length")).finish_reason == "length"


def test_an_answer_without_text_has_empty_text() -> None:
    assert joined_message(chunk_of(role="assistant"), chunk_of(finish="stop")) == Message("assistant", "")


@pytest.mark.parametrize(
    "names", [("get_weather", "", ""), ("get_weather", "get_weather", "get_weather"), ("get_", "weather", "")]
)
def test_function_call_fragments(names: tuple[str, str, str]) -> None:
    """Some servers send the name once, some with every fragment, some in pieces."""
    arguments = ("", '{"city": ', '"Oslo"}')
    calls = [FunctionCall(name, piece) for name, piece in zip(names, arguments, strict=True)]
    message = joined_message(*(chunk_of(function_call=call) for call in calls), chunk_of(finish="function_call"))
    assert message == Message("assistant", None, function_call=FunctionCall("get_weather", '{"city": "Oslo"}'))


def test_a_call_beside_text() -> None:
    call = FunctionCall("f", "{}")
    message = joined_message(chunk_of(content="Let me see."), chunk_of(function_call=call))
    assert message == Message("assistant", "Let me see.", function_call=call)


def tool(arguments: str, name: str = "", **fields: Any) -> ToolCall:
    return ToolCall(FunctionCall(name, arguments), **fields)


@pytest.mark.parametrize(
    "fragments",
    [
        [tool("{", "f", index=0, id="a"), tool("{", "g", index=1, id="b"), tool("}", index=0), tool("}", index=1)],
        [tool("{", "g", index=7, id="b"), tool("{", "f", index=2, id="a"), tool("}", index=2), tool("}", index=7)],
        [tool("{", "f", id="a"), tool("}"), tool("{", "g", id="b"), tool("}")],
        [tool("{", "f", id="a"), tool("{", "g", id="b"), tool("}", id="a"), tool("}", id="b")],
        [tool("{", "f", index=0), tool("}", index=0, id="a"), tool("{", "g", index=1), tool("}", index=1, id="b")],
    ],
    ids=["index", "index out of order", "order", "id", "id that comes late"],
)
def test_tool_call_fragments(fragments: list[ToolCall]) -> None:
    whole = (tool("{}", "f", id="a"), tool("{}", "g", id="b"))
    assert joined_message(*(chunk_of(tool_calls=(each,)) for each in fragments)) == Message(
        "assistant", None, tool_calls=whole
    )
    assert joined_message(chunk_of(tool_calls=tuple(fragments))).tool_calls == whole


def test_a_tool_call_without_index_or_id() -> None:
    message = joined_message(chunk_of(tool_calls=(tool("{", "f"),)), chunk_of(tool_calls=(tool("}"),)))
    assert message.tool_calls == (tool("{}", "f"),)


def test_the_type_of_a_tool_call_is_kept() -> None:
    fragments = [tool("", "f", index=0, type="custom"), tool("x", index=0, type=None)]
    message = joined_message(*(chunk_of(tool_calls=(each,)) for each in fragments))
    assert message.tool_calls == (tool("x", "f", type="custom"),)


def test_no_tool_calls_in_a_list() -> None:
    assert joined_message(chunk_of(tool_calls=(), content="a")) == Message("assistant", "a")


@pytest.mark.parametrize(
    ("parts", "joined"),
    [
        ([], None),
        ([{"content": [1], "refusal": None}], {"content": [1], "refusal": None}),
        ([{"content": [1], "refusal": None}, {"content": [2], "tokens": [3]}], {"content": [1, 2], "tokens": [3]}),
        ([[1]], [1]),
        ([[1], [2]], [[1], [2]]),
        ([{"content": [1]}, "x"], [{"content": [1]}, "x"]),
    ],
)
def test_logprobs_are_joined(parts: list[object], joined: object) -> None:
    (choice,) = join(chunk_of(content="a"), *(chunk_of(logprobs=part) for part in parts)).choices
    assert choice.logprobs == joined


# -- what has no field -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "joined"),
    [
        (["a", "b"], "ab"),
        ([[1], [2, 3]], [1, 2, 3]),
        ([{"a": 1}, {"b": 2}, {"a": 3}], {"a": 3, "b": 2}),
        ([{"data": "Uk", "id": "1"}, {"data": "lG", "id": "2"}], {"data": "lG", "id": "2"}),
        ([1, 2], 2),
        ([[1], {"a": 1}], {"a": 1}),
        ([{"a": 1}, [1]], [1]),
        ([True], True),
    ],
)
def test_fields_of_deltas_that_nobody_knows(values: list[object], joined: object) -> None:
    chunks = [chunk_of(extra={"x": value}) for value in values]
    assert joined_message(*chunks) == Message("assistant", "", extra={"x": joined})
    assert [each.choices[0].delta.extra["x"] for each in chunks] == values  # what was handed out stays as it is


@pytest.mark.parametrize(
    ("values", "joined"),
    [
        (
            [{"id": "1"}, {"data": "Uk"}, {"data": "lG"}, {"transcript": "Hi"}],
            {"id": "1", "data": "UklG", "transcript": "Hi"},
        ),
        ([{"transcript": "Hi"}, {"transcript": None}], {"transcript": "Hi"}),
        ([{"transcript": 5}, {"transcript": "Hi"}], {"transcript": "Hi"}),
        ([{"data": "Uk"}, 5], {"data": "Uk"}),
        ([{"id": "1"}, {"expires_at": 5}], {"id": "1", "expires_at": 5}),
    ],
)
def test_an_audio_grows(values: list[object], joined: object) -> None:
    chunks = [chunk_of(extra={"audio": value}) for value in values]
    assert joined_message(*chunks) == Message("assistant", "", extra={"audio": joined})


def test_a_name_that_comes_with_every_delta_is_one() -> None:
    chunks = [chunk_of(extra={"name": "bot"}) for _ in range(2)]
    assert joined_message(*chunks) == Message("assistant", "", extra={"name": "bot"})


def test_fields_beside_the_choices_and_in_them() -> None:
    """The last one counts; of a list that comes with every chunk, each item counts once."""
    extras: list[dict[str, object]] = [{"a": 1, "cited": ["x"]}, {"b": 2, "cited": ["x", "y"]}, {"a": 3}, {"cited": 5}]
    for count, kept in ((2, ["x", "y"]), (3, ["x", "y"]), (4, 5)):
        whole = join(*(ChatCompletionChunk((ChunkChoice(0, extra=e),), extra=e) for e in extras[:count]))
        assert whole.extra == whole.choices[0].extra == {"a": 1 if count == 2 else 3, "b": 2, "cited": kept}
    assert extras[0]["cited"] == ["x"]


def parts_of(*parts: Any) -> ChatCompletionChunk:
    texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
    return chunk_of(content="".join(texts) or None, extra={"content_parts": list(parts)})


def part(text: object = "a", **fields: object) -> dict[str, object]:
    return {"type": "text", "text": text, **fields}


PICTURE = {"type": "image_url", "image_url": {"url": "u"}}


@pytest.mark.parametrize(
    ("chunks", "content"),
    [
        ([parts_of(part()), parts_of(part())], "aa"),
        ([parts_of(part()), chunk_of(content="b")], "ab"),
        ([chunk_of(content="b"), parts_of(PICTURE), parts_of(PICTURE)], (part("b"), PICTURE, PICTURE)),
        ([parts_of(part(n=[1]), part(n=[2]))], (part("aa", n=[1, 2]),)),
        ([parts_of(part(n=1)), parts_of(part(n=1))], (part("aa", n=1),)),
        ([parts_of(part(n=1)), parts_of(part(n=2))], (part(n=1), part(n=2))),
        ([parts_of(part(None)), parts_of(part())], "a"),
        ([parts_of({"text": "a"}), parts_of({"text": "b"})], ({"text": "a"}, {"text": "b"})),
        ([parts_of(part(5, n=1))], (part(5, n=1),)),
    ],
    ids=[
        "texts", "a text behind parts", "pictures do not grow", "lists are extended", "what is equal stays",
        "what differs is another part", "a text that was null", "parts without a kind", "a text that is none",
    ],
)  # fmt: skip
def test_parts_are_joined(chunks: list[ChatCompletionChunk], content: object) -> None:
    message = joined_message(*chunks)
    assert message.content == content
    builder = AnswerBuilder()
    for each in chunks:
        builder.add(each)
    assert builder.text == message.text


def test_a_whole_object_of_arguments_is_followed_by_another_call() -> None:
    """Without ids, and with one index for all: by the name, once the arguments before it are whole."""
    one = [
        tool('{"a": ', "f", index=0),
        tool("1}", index=0),
        tool(" ", index=0),
        tool("{", "f", index=0),
        tool("}", index=0),
    ]
    assert joined_message(*(chunk_of(tool_calls=(each,)) for each in one)).tool_calls == (
        tool('{"a": 1} ', "f"),
        tool("{}", "f"),
    )
    for half in (
        "",
        "[1]",
        "{",
        '{"a": {}',
        "}",
        '{"a":' * 100_000 + "}",
    ):  # no whole object: the name is one that comes in pieces, or again
        pieces = [tool(half, "get_", index=0), tool("", "time", index=0)]
        message = joined_message(*(chunk_of(tool_calls=(each,)) for each in pieces))
        assert message.tool_calls == (tool(half, "get_time"),)


def test_a_call_with_an_index_that_was_given_away() -> None:
    """A call that had none got it."""
    message = joined_message(
        *(chunk_of(tool_calls=(each,)) for each in (tool("1", "f", id="a"), tool("2", "g", id="b", index=0)))
    )
    assert message.tool_calls == (tool("1", "f", id="a"), tool("2", "g", id="b"))


@given(st.lists(st.tuples(st.integers(-1, 2), st.text(max_size=3)), min_size=1))
def test_property_each_choice_has_its_own_text_in_order(pieces: list[tuple[int, str]]) -> None:
    whole = join(*(chunk_of(index, content=text) for index, text in pieces))
    indices = sorted({index for index, _ in pieces})
    texts = ["".join(text for at, text in pieces if at == index) for index in indices]
    assert [(choice.index, choice.message.text) for choice in whole.choices] == list(zip(indices, texts, strict=True))


def test_a_whole_completion_is_one_chunk() -> None:
    """A server may answer a request for a stream with plain JSON."""
    call = {"index": 0, "id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "assistant", "content": parts}, {"role": "robot", "tool_calls": [call]}]
    whole = decode(
        completion(choices=[{"index": i, "message": m, "finish_reason": "stop"} for i, m in enumerate(messages)])
    )
    chunk = as_chunk(whole)
    assert (chunk.text, chunk.object, chunk.usage, chunk.raw) == ("ab", "chat.completion.chunk", whole.usage, whole.raw)
    again = join(chunk)
    assert (again.id, again.created, again.model, again.usage) == (whole.id, whole.created, whole.model, whole.usage)
    assert [choice.message for choice in again.choices] == [
        Message("assistant", "ab"),
        Message("robot", tool_calls=(tool("{}", "f", id="1"),)),
    ]


# -- the answer so far -------------------------------------------------------------------------------------------------


def test_the_text_so_far_is_that_of_the_first_choice() -> None:
    builder = AnswerBuilder()
    texts = [builder.text]
    for chunk in (chunk_of(1, content="x"), chunk_of(content="a"), chunk_of(), chunk_of(content="b")):
        builder.add(chunk)
        texts.append(builder.text)
    assert texts == ["", "", "a", "a", "ab"]


@pytest.mark.parametrize(
    ("chunk", "has_content"),
    [
        (ChatCompletionChunk(usage=Usage(1, 2, 3)), False),
        (chunk_of(role="assistant", content=""), False),
        (chunk_of(content="a"), True),
        (chunk_of(1, content="a"), True),
        (chunk_of(function_call=FunctionCall("f")), True),
        (chunk_of(tool_calls=(tool("", "f"),)), True),
        (chunk_of(refusal="No."), True),
        (chunk_of(extra={"reasoning_content": "Hm"}), True),
        (chunk_of(extra={"reasoning_content": ""}), False),
        (chunk_of(extra={"images": [], "audio": {}, "reasoning_content": ""}), False),
        (chunk_of(extra={"images": [1]}), True),
        (chunk_of(extra={"content_parts": [{"type": "thinking", "thinking": "Hm"}]}), True),
    ],
)
def test_what_counts_as_content(chunk: ChatCompletionChunk, has_content: bool) -> None:
    builder = AnswerBuilder()
    assert not builder.begun
    assert not builder.has_content
    builder.add(chunk)
    assert builder.begun
    assert builder.has_content is has_content


# -- the end of a stream -----------------------------------------------------------------------------------------------


def check_end(*chunks: ChatCompletionChunk, **how: bool) -> None:
    builder = AnswerBuilder()
    for chunk in chunks:
        builder.add(chunk)
    builder.check_end(**{"terminated": False, **how})


TEXT, STOP = chunk_of(content="a"), chunk_of(finish="stop")


def test_ends_of_whole_answers() -> None:
    check_end(TEXT, STOP)
    check_end(TEXT, STOP, broken=True)
    check_end(TEXT, STOP, terminated=True, require_finish_reason=True)
    check_end(TEXT, terminated=True)  # Ollama does that; `stop` is never invented
    check_end(ChatCompletionChunk(usage=Usage(1, 0, 1)), terminated=True)


@pytest.mark.parametrize(
    ("chunks", "how", "lacks"),
    [
        ([TEXT], {}, "its terminator and a finish_reason"),
        ([TEXT], {"broken": True}, "its terminator and a finish_reason"),
        ([], {"broken": True}, "its terminator and a finish_reason"),
        ([ChatCompletionChunk()], {}, "its terminator and a finish_reason"),
        ([TEXT, STOP, chunk_of(1, content="b")], {}, "its terminator and a finish_reason"),
        ([TEXT], {"terminated": True, "require_finish_reason": True}, "a finish_reason"),
    ],
)
def test_ends_of_answers_that_were_cut(chunks: list[ChatCompletionChunk], how: dict[str, bool], lacks: str) -> None:
    with pytest.raises(StreamTruncatedError, match=f"ended without {lacks}: the answer is cut off") as raised:
        check_end(*chunks, **how)
    assert raised.value.maybe_billed


@pytest.mark.parametrize("terminated", [True, False])
def test_a_stream_without_any_event_is_empty(terminated: bool) -> None:
    with pytest.raises(APIResponseError, match="ended without any event") as raised:
        check_end(terminated=terminated)
    assert (type(raised.value), raised.value.kind, raised.value.maybe_billed) == (APIResponseError, "empty", True)
