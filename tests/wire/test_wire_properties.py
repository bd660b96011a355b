"""Whatever comes: both ways to read JSON agree, nothing but our errors escapes, all text is UTF-8."""

from __future__ import annotations

import json
import pickle
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from piapi_async import APIError, ChatCompletionChunk, ServerSentEvent
from piapi_async.wire import AnswerBuilder, ChunkDecoder, decode_completion, error_from_response
from tests.wire.samples import BOM, KEY, assert_utf8, chunk, decode_chunks, delta

ANY_TEXT = st.text(st.characters(exclude_categories=()) | st.sampled_from('\ud83d\ude00😀\ufeff"\\'), max_size=6)
JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | ANY_TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(ANY_TEXT | st.just("text"), inner, max_size=2),
    max_leaves=4,
)


def mostly(good: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """A good value, but for one in thirty."""
    return st.integers(0, 29).flatmap(lambda dice: good if dice else JUNK)


def objects(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Some of the fields, and one that is not known."""
    known = st.fixed_dictionaries({}, optional=fields)
    return st.builds(lambda own, extra: own | extra, known, st.dictionaries(ANY_TEXT, JUNK, max_size=1))


def with_all(part: st.SearchStrategy[dict[str, Any]], **fields: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.builds(lambda own, rest: own | rest, st.fixed_dictionaries(fields), part)


INDEX = mostly(st.integers(0, 2))
CALL = objects(name=mostly(ANY_TEXT), arguments=mostly(ANY_TEXT))
TOOL_CALL = objects(index=INDEX, id=mostly(ANY_TEXT), type=mostly(st.just("function")), function=mostly(CALL))
PART = objects(
    role=mostly(st.just("assistant")),
    name=mostly(ANY_TEXT),
    function_call=mostly(st.none() | CALL),
    tool_calls=mostly(st.none() | st.lists(mostly(TOOL_CALL), max_size=2)),
)
MESSAGE = with_all(PART, content=mostly(ANY_TEXT | st.lists(st.dictionaries(ANY_TEXT, JUNK, max_size=2), max_size=2)))
DELTA = with_all(PART, content=mostly(ANY_TEXT))
CHOICE = with_all(
    objects(index=INDEX, finish_reason=mostly(ANY_TEXT), logprobs=JUNK), message=mostly(MESSAGE), delta=mostly(DELTA)
)
COUNT = mostly(st.integers(0, 2))
USAGE = objects(prompt_tokens=COUNT, completion_tokens=COUNT, total_tokens=mostly(st.integers(0, 4)))
ANSWER = with_all(
    objects(
        id=mostly(ANY_TEXT),
        object=mostly(st.just("chat.completion")),
        created=mostly(st.integers(0, 9) | st.floats(0, 9)),
        model=mostly(ANY_TEXT),
        usage=mostly(st.none() | USAGE),
        error=mostly(st.none()),
        code=JUNK,
    ),
    choices=mostly(st.lists(mostly(CHOICE), min_size=1, max_size=2)),
)
JSON_BODY = st.builds(
    lambda value, plain: json.dumps(value, ensure_ascii=plain), st.one_of(ANSWER, ANSWER, ANSWER, JUNK), st.booleans()
)


def refusal(error: APIError) -> object:
    """What an error says, apart from its text, which quotes the answer."""
    assert_utf8(str(error), vars(error))
    assert error.__context__ is None
    return type(error), error.kind, getattr(error, "status_code", None)


def outcome(body: bytes) -> object:
    try:
        decoded = decode_completion(body)
    except APIError as error:
        return refusal(error)
    assert_utf8(decoded, decoded.raw, decoded.text)
    return decoded, decoded.raw


@given(text=JSON_BODY)
@example(text=r'{"choices": [{"index": 0, "message": {"role": "assistant"}}], "x": "\ud800"}')
def test_property_both_ways_agree_on_completions(text: str) -> None:
    body = text.encode("utf-8", "surrogatepass")
    assert outcome(body) == outcome(BOM + body)


def stream_outcome(texts: list[str]) -> list[object]:
    decoder = ChunkDecoder(AnswerBuilder())
    seen: list[object] = []
    for text in texts:
        chunks: list[ChatCompletionChunk] = []
        try:
            seen.append(decoder.decode([ServerSentEvent(text)], chunks))
        except APIError as error:
            seen.append(refusal(error))
        for decoded in chunks:
            seen += [decoded, decoded.raw]
    for last in decoder.flush():
        seen += [last, last.raw]
    assert_utf8(seen)
    return seen


@given(texts=st.lists(JSON_BODY, max_size=4))
def test_property_both_ways_agree_on_chunks(texts: list[str]) -> None:
    assert stream_outcome(texts) == stream_outcome([" " + text for text in texts])


def joined(units: str) -> str:
    """UTF-16 code units as text: pairs joined, lone halves replaced."""
    text = ""
    for unit in units:
        if "\udc00" <= unit <= "\udfff" and text and "\ud800" <= text[-1] <= "\udbff":
            text = text[:-1] + chr(0x10000 + ((ord(text[-1]) - 0xD800) << 10) + ord(unit) - 0xDC00)
        else:
            text += unit
    return "".join("\ufffd" if "\ud800" <= c <= "\udfff" else c for c in text)


@given(pieces=st.lists(st.text(st.sampled_from("a\ud83d\ude00\ud83c\udf0d"), max_size=4), max_size=6))
def test_property_any_cut_of_code_units_is_joined(pieces: list[str]) -> None:
    chunks = decode_chunks(*(chunk(delta(content=piece)) for piece in pieces))
    assert "".join(c.delta.content or "" for part in chunks for c in part.choices) == joined("".join(pieces))


RAW_BODY = st.binary(max_size=60) | JSON_BODY.map(lambda text: text.encode("utf-8", "surrogatepass"))


@given(body=RAW_BODY)
def test_property_nothing_but_our_errors_escapes_a_body(body: bytes) -> None:
    outcome(body)


@given(texts=st.lists(ANY_TEXT | JSON_BODY | st.text('[]{}":,\\ud8en0 ', max_size=20), max_size=3))
def test_property_nothing_but_our_errors_escapes_an_event(texts: list[str]) -> None:
    for name in ("message", "error", "ping"):
        for text in texts:
            try:
                ChunkDecoder(AnswerBuilder(), [KEY]).decode([ServerSentEvent(text, name)], [])
            except APIError as error:
                refusal(error)
    stream_outcome(texts)


@given(
    status=st.integers(100, 999).filter(lambda status: status != 200),
    body=RAW_BODY,
    content_type=st.sampled_from(["", "application/json", "text/html"]) | ANY_TEXT,
    location=st.none() | ANY_TEXT | st.text("http:/[]@.%?#a1", max_size=20),
)
def test_property_any_answer_makes_an_error(status: int, body: bytes, content_type: str, location: str | None) -> None:
    error = error_from_response(status, body, content_type=content_type, location=location, secrets=[KEY])
    assert isinstance(error, APIError)
    assert str(error).isprintable()
    assert_utf8(str(error), vars(error))
    twin = pickle.loads(pickle.dumps(error))
    assert (type(twin), str(twin), vars(twin)) == (type(error), str(error), vars(error))
