"""Events of a stream to chunks, by both ways to read JSON."""

from __future__ import annotations

import json

import pytest

from piapi_async import (
    APIResponseError,
    APIStatusError,
    AuthenticationError,
    ChatCompletionChunk,
    ChunkChoice,
    Delta,
    FunctionCall,
    RateLimitError,
    ServerSentEvent,
    ToolCall,
    Usage,
)
from piapi_async.errors import InternalServerError
from piapi_async.wire import AnswerBuilder, ChunkDecoder
from tests.wire.samples import chunk, decode_chunks, decode_event, decode_one, delta


def test_a_chunk() -> None:
    data = chunk(
        {"index": 1, "delta": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop", "logprobs": {"a": 1}},
        id="c-1",
        object="chat.completion.chunk",
        created=5,
        model="gpt-4o",
        usage={"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3},
        timings={"x": 1},
    )
    decoded = decode_one(data)
    assert decoded == ChatCompletionChunk(
        (ChunkChoice(1, Delta("assistant", "Hi"), "stop", {"a": 1}),),
        "c-1",
        "chat.completion.chunk",
        5,
        "gpt-4o",
        Usage(1, 2, 3),
        extra={"timings": {"x": 1}},
    )
    assert decoded.raw == json.loads(data)


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({"content": None}, Delta()),
        ({"content": ""}, Delta(content="")),
        ({}, Delta()),
        ({"role": "assistant", "content": "Hi"}, Delta("assistant", "Hi")),
        ({"role": None, "content": "Hi", "refusal": None, "audio": None}, Delta(content="Hi")),
        ({"content": "Hi", "reasoning_content": "x"}, Delta(content="Hi", extra={"reasoning_content": "x"})),
        ({"refusal": "No.", "extra": "x"}, Delta(refusal="No.")),
        ({"function_call": None, "tool_calls": None}, Delta()),
        ({"function_call": {"name": "f", "arguments": ""}}, Delta(function_call=FunctionCall("f"))),
        ({"function_call": {"arguments": "{"}}, Delta(function_call=FunctionCall("", "{"))),
        ({"function_call": {"name": None, "arguments": None}}, Delta()),
        (
            {"tool_calls": [{"index": 1, "id": "1", "type": "function", "function": {"name": "f", "arguments": ""}}]},
            Delta(tool_calls=(ToolCall(FunctionCall("f"), "1", "function", 1),)),
        ),
        (
            {"tool_calls": [{"function": {"arguments": "{"}}, {"index": None, "id": None, "type": None}]},
            Delta(tool_calls=(ToolCall(FunctionCall("", "{"), index=0), ToolCall(type=None, index=1))),  # as sent
        ),
        (
            {
                "tool_calls": [
                    {"index": 0, "function": None},
                    {"index": 1, "function": {"name": None, "arguments": "}"}},
                ]
            },
            Delta(tool_calls=(ToolCall(index=0), ToolCall(FunctionCall("", "}"), index=1))),
        ),
        ({"tool_calls": []}, Delta(tool_calls=())),
    ],
)
def test_deltas(fields: dict[str, object], seen: Delta) -> None:
    assert decode_one(chunk({"index": 0, "delta": fields})).choices == (ChunkChoice(0, seen),)


@pytest.mark.parametrize(
    ("data", "choices"),
    [
        (chunk(), ()),
        ('{"choices": null}', ()),
        ('{"choices": {}}', (ChunkChoice(0),)),
        (chunk({"index": "1", "delta": {"content": "x"}}), (ChunkChoice(1, Delta(content="x")),)),
        (chunk({"index": [0], "delta": {"content": "x"}}), (ChunkChoice(0, Delta(content="x")),)),
        (chunk({"index": 0, "delta": {}, "finish_reason": 1}), (ChunkChoice(0),)),
        (chunk({"index": 0, "delta": "", "finish_reason": "null"}), (ChunkChoice(0),)),
        (chunk({"index": 3}), (ChunkChoice(3),)),
        (chunk({"index": 0, "delta": None}), (ChunkChoice(0),)),
        (chunk({"index": 0, "delta": {}, "finish_reason": None, "logprobs": None}), (ChunkChoice(0),)),
        (chunk({"index": 0, "finish_reason": "new"}), (ChunkChoice(0, finish_reason="new"),)),
        (
            chunk({"delta": {"content": "a"}}, {"delta": {"content": "b"}}),
            (ChunkChoice(0, Delta(content="a")), ChunkChoice(1, Delta(content="b"))),
        ),
        (
            chunk(delta(1, content="b"), delta(0, content="a")),
            (ChunkChoice(1, Delta(content="b")), ChunkChoice(0, Delta(content="a"))),
        ),
    ],
)
def test_choices_of_chunks(data: str, choices: tuple[ChunkChoice, ...]) -> None:
    assert decode_one(data).choices == choices


IMPOSSIBLE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 4}


@pytest.mark.parametrize("usage", [None, {}, [], {"prompt_tokens": -1, "completion_tokens": 1}, "x"])
def test_usage_that_is_none(usage: object) -> None:
    assert decode_one(chunk(usage=usage)).usage is None
    assert decode_one(chunk(delta(content="a"), usage=usage)).choices[0].delta.content == "a"


def test_usage_beside_an_empty_delta() -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3, "cost": 0.1}
    assert decode_one(chunk(delta(), usage=usage)).usage == Usage(1, 2, 3, extra={"cost": 0.1})


@pytest.mark.parametrize(
    "data", ["[DONE]", "[none]", "[Done]", " [NONE] ", "\ufeff[done]\n", "[done]\r", '"[DONE]"', "data: [DONE]"]
)
@pytest.mark.parametrize("event", ["message", "error", "done"])
def test_terminators(data: str, event: str) -> None:
    assert decode_event(ServerSentEvent(data, event)) == "end"


@pytest.mark.parametrize(
    "event",
    [
        ServerSentEvent(""),
        ServerSentEvent(" \n\t"),
        ServerSentEvent("", "ping"),
        ServerSentEvent('{"type": "ping"}', "ping"),
        ServerSentEvent("pong", "ping"),
        ServerSentEvent("ping"),
        ServerSentEvent(": keep-alive"),
        ServerSentEvent("null"),
        ServerSentEvent('""'),
        ServerSentEvent('"ping"'),
        ServerSentEvent("17"),
        ServerSentEvent("[]"),
        ServerSentEvent("{}"),
        ServerSentEvent('{"type": "ping"}'),
        ServerSentEvent('{"status": "processing"}'),
    ],
)
def test_events_without_meaning(event: ServerSentEvent) -> None:
    assert decode_event(event) is None


def test_json_over_several_lines_and_another_events_name() -> None:
    data = json.dumps(json.loads(chunk(delta(content="Hi"))), indent=1)
    assert decode_one(data).choices[0].delta.content == "Hi"
    named = decode_event(ServerSentEvent(data, "completion"))
    assert isinstance(named, ChatCompletionChunk)
    assert named.choices[0].delta.content == "Hi"


@pytest.mark.parametrize(
    ("event", "cls", "says"),
    [
        (ServerSentEvent("it broke", "error"), InternalServerError, "it broke"),
        (ServerSentEvent("", "error"), InternalServerError, "answered 500;"),
        (ServerSentEvent('{"message": "slow down", "code": 429}', "error"), RateLimitError, "slow down"),
        (ServerSentEvent('{"error": {"message": "no", "code": 401}}', "error"), AuthenticationError, "no"),
        (ServerSentEvent('{"error": "no"}'), InternalServerError, "no"),
        (
            ServerSentEvent('{"error": {"message": "died", "type": null, "param": null, "code": "500"}}'),
            InternalServerError,
            "died",
        ),
    ],
)
def test_errors_in_streams(event: ServerSentEvent, cls: type[APIStatusError], says: str) -> None:
    with pytest.raises(APIStatusError, match=says) as raised:
        decode_event(event)
    assert type(raised.value) is cls
    assert raised.value.__context__ is None


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("nope", "it is not JSON (Expecting value)"),
        ("[DONE", "it is not JSON"),
        ('"it broke"', "it is a text"),
        ('{"choices": [', "it is cut"),
        ('{"choices": []} x', "it is not JSON"),
        ('{"choices": [{"index": 0, "delta": {"content": NaN}}]}', "NaN is not JSON"),
        ("<html>", "it is a web page"),
        ("{" * 100_000, "nests too deep"),
        ('{"a":' * 100_000, "nests too deep"),
        (chunk(delta(content=5)), "expected str, not int @ $.choices[0].delta.content"),
        (chunk(delta(tool_calls=[5, {"function": {"arguments": "x"}}])), "@ $.choices[0].delta.tool_calls[0]"),
        (chunk({"index": 0, "delta": "x"}), "@ $.choices[0].delta"),
        (chunk(delta(content=["x"])), "expected str, not list @ $.choices[0].delta.content"),
        (chunk("x"), "@ $.choices[0]"),
        ('{"choices": "x"}', "@ $.choices[0]"),
    ],
)
def test_what_is_no_chunk(data: str, says: str) -> None:
    for prefix in ("", " "):
        with pytest.raises(APIResponseError) as raised:
            decode_event(ServerSentEvent(prefix + data))
        assert says in str(raised.value)
        assert raised.value.__context__ is None


def test_surrogate_halves_of_two_chunks_are_joined_in_each_place() -> None:
    def at(place: str, text: str) -> dict[str, object]:
        return {
            "content": delta(content=text),
            "function_call": delta(function_call={"arguments": text}),
            "first tool": delta(tool_calls=[{"index": 0, "function": {"arguments": text}}]),
            "second tool": delta(1, tool_calls=[{"function": {"arguments": ""}}, {"function": {"arguments": text}}]),
        }[place]

    def texts(chunks: list[ChatCompletionChunk]) -> str:
        found = ""
        for choice in (choice for part in chunks for choice in part.choices):
            found += choice.delta.content or ""
            found += choice.delta.function_call.arguments if choice.delta.function_call else ""
            found += "".join(call.function.arguments for call in choice.delta.tool_calls or ())
        return found

    for place in ("content", "function_call", "first tool", "second tool"):
        assert texts(decode_chunks(chunk(at(place, "a\ud83d")), chunk(at(place, "\ude00b")))) == "a😀b"
        assert texts(decode_chunks(chunk(at(place, "a\ud83d")), chunk(at(place, "b")))) == "a\ufffdb"
        assert (
            texts(decode_chunks(chunk(at(place, "a\ud83d")), chunk(at(place, "")), chunk(at(place, "\ude00")))) == "a😀"
        )
        assert texts(decode_chunks(chunk(at(place, "\ud83d")), chunk(at(place, "\ud83d\ude00")))) == "\ufffd😀"
        assert texts(decode_chunks(chunk(at(place, "a\ud83d")))) == "a\ufffd"
        assert texts(decode_chunks(chunk(at(place, "\ude00")))) == "\ufffd"


def test_halves_of_two_choices_are_kept_apart() -> None:
    chunks = decode_chunks(
        chunk(delta(0, content="\ud83d"), delta(1, content="\ud83c")),
        chunk(delta(1, content="\udf0d")),
        chunk(delta(0, content="\ude00")),
    )
    assert [(c.index, c.delta.content) for part in chunks for c in part.choices if c.delta.content] == [
        (1, "🌍"),
        (0, "😀"),
    ]


def test_halves_that_wait_do_not_hold_up_a_keep_alive() -> None:
    decoder, chunks = ChunkDecoder(AnswerBuilder()), list[ChatCompletionChunk]()
    half = ServerSentEvent(chunk(delta(content="\ud83d")))
    assert decoder.decode([half, ServerSentEvent(""), ServerSentEvent("[DONE]")], chunks)
    assert len(chunks) == 1
    (last,) = decoder.flush()
    assert last == ChatCompletionChunk((ChunkChoice(0, Delta(content="\ufffd")),))
    assert last.raw == {}


@pytest.mark.parametrize("separators", [(",", ":"), (", ", ": ")])
@pytest.mark.parametrize(
    "text", ["", "b", ' "b" ', "a\\b\n", "\x7f\u2028é😀", '","content":"b', '"},"index":1},{"delta":{"content":"b']
)
def test_chunks_that_differ_in_their_text(separators: tuple[str, str], text: str) -> None:
    def dumps(text: str, **fields: object) -> str:
        part = {"index": 1, "delta": {"content": text}, "finish_reason": None}
        return json.dumps({"id": "c", "choices": [part], "model": "m", **fields}, separators=separators)

    chunks = decode_chunks(dumps("a"), dumps(text), dumps(text, usage=None), dumps("c"), dumps("d", id="e"))
    assert [each.choices for each in chunks] == [
        (ChunkChoice(1, Delta(content=each)),) for each in ("a", text, text, "c", "d")
    ]
    assert [each.id for each in chunks] == [*"cccc", "e"]
    assert [each.model for each in chunks] == ["m"] * 5


@pytest.mark.parametrize(
    ("text", "good"),
    [("\\", False), ('\\"', True), ("\n", False), ('"', False), ("\\ud83d", True), ('","x":"', True)],
)
def test_odd_json_between_two_chunks_that_differ_in_their_text(text: str, good: bool) -> None:
    frame = chunk(delta(content="TEXT"))
    events = [ServerSentEvent(frame), ServerSentEvent(frame.replace("TEXT", text)), ServerSentEvent(frame)]
    decoder, chunks = ChunkDecoder(AnswerBuilder()), list[ChatCompletionChunk]()
    if good:
        assert not decoder.decode(events, chunks)
        assert chunks[1] == decode_event(events[1])
    else:
        with pytest.raises(APIResponseError):
            decoder.decode(events, chunks)
        assert len(chunks) == 1


def test_a_text_in_an_event_of_another_name() -> None:
    data = chunk(delta(content="it broke"), message="it broke")
    chunks: list[ChatCompletionChunk] = []
    with pytest.raises(InternalServerError, match="it broke"):
        ChunkDecoder(AnswerBuilder()).decode([ServerSentEvent(data), ServerSentEvent(data, "error")], chunks)
    assert len(chunks) == 1


def test_a_whole_text_behind_half_a_surrogate_pair() -> None:
    chunks = decode_chunks(*(chunk(delta(content=text)) for text in ("a", "b\ud83d", "c", "d")))
    assert [each.text for each in chunks] == ["a", "b", "\ufffdc", "d"]


def test_what_the_caller_does_to_a_chunk_does_not_reach_the_next() -> None:
    decoder, chunks = ChunkDecoder(AnswerBuilder()), list[ChatCompletionChunk]()
    event = ServerSentEvent(chunk(delta(content="a"), id="c-1", model="m"))
    decoder.decode([event], chunks)
    chunks[0].id, chunks[0].model, chunks[0].choices[0].index = "mine", None, 7
    decoder.decode([event], chunks)
    assert chunks[1] == ChatCompletionChunk((ChunkChoice(0, Delta(content="a")),), "c-1", model="m")


BESIDE = {"system_fingerprint": "fp-1", "citations": ["u"]}


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning"])
def test_what_stands_beside_a_growing_text_comes_with_each_chunk(field: str) -> None:
    def dumps(text: str, **fields: object) -> str:
        return chunk({"index": 0, "delta": {field: text}, "stop_reason": 0, **fields}, **BESIDE)

    chunks = decode_chunks(*map(dumps, "abc"), dumps("d", stop_reason=1))
    assert [each.extra for each in chunks] == [BESIDE] * 4
    assert [each.choices[0].extra for each in chunks] == [{"stop_reason": n} for n in (0, 0, 0, 1)]
    deltas = [each.choices[0].delta for each in chunks]
    assert [each.content or each.extra[field] for each in deltas] == list("abcd")
    chunks[0].extra, deltas[1].extra = {}, {}
    assert chunks[1].extra == BESIDE


def test_a_text_beside_another_that_stays() -> None:
    """As servers that send an empty content, or the same one, with each piece of reasoning."""
    chunks = decode_chunks(*(chunk(delta(content=c, reasoning=r)) for c, r in ["aw", "ax", ("", "y"), ("", "z")]))
    assert [each.choices[0].delta for each in chunks] == [
        Delta(content=c, extra={"reasoning": r}) for c, r in ["aw", "ax", ("", "y"), ("", "z")]
    ]


@pytest.mark.parametrize("field", ["content", "refusal", "reasoning_content", "mood"])
def test_half_a_pair_at_the_end_is_replaced_where_it_stands(field: str) -> None:
    half, replaced = chunk(delta(1, **{field: "a\ud83d"})), decode_chunks(chunk(delta(1, **{field: "\ufffd"})))
    first, last = decode_chunks(half)
    assert last.choices == replaced[0].choices
    assert decode_chunks(half, chunk(delta(1, **{field: "\ude00"})))[1] == decode_one(chunk(delta(1, **{field: "😀"})))
    assert first == decode_one(chunk(delta(1, **{field: "a"})))


def test_a_call_without_an_object_around_its_name_and_arguments() -> None:
    call = {"index": 0, "id": "a", "name": "f", "arguments": "{}"}
    assert decode_one(chunk(delta(tool_calls=[call]))).choices[0].delta.tool_calls == (
        ToolCall(FunctionCall("f", "{}"), "a", index=0),
    )
