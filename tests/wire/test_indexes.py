"""The index of a choice, where a server counts its chunks in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import ChatCompletionChunk, ChunkChoice, Delta, ServerSentEvent
from piapi_async.wire import AnswerBuilder, ChunkDecoder
from piapi_async.wire.indexes import ChoiceIndexes
from tests.wire.samples import chunk, delta

LETTERS = "abcdefghij"


def chunks_of(*indexes: int | None) -> list[ChatCompletionChunk]:
    """A chunk for each index, with a text of its own; one of None has no choice."""
    return [
        ChatCompletionChunk(() if index is None else (ChunkChoice(index, Delta(content=LETTERS[i])),), id=LETTERS[i])
        for i, index in enumerate(indexes)
    ]


def placed(chunks: list[ChatCompletionChunk], *, ended: bool = False) -> list[ChatCompletionChunk]:
    """What comes out, and what waits when no more come."""
    places, found = ChoiceIndexes(), list[ChatCompletionChunk]()
    for each in chunks:
        found += places.place(each)
    held = places.release(ended=ended)
    assert not places.release(ended=ended)
    return found + held


@pytest.mark.parametrize(
    ("sent", "seen"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((0, 1, 2, 3), (0, 0, 0, 0)),
        ((0, 1, 2, 7, 0), (0, 0, 0, 0, 0)),  # once it is known to count chunks
        ((0, 1, 0, 1), (0, 1, 0, 1)),
        ((0, 1, 1, 2), (0, 1, 1, 2)),
        ((1, 2, 3), (0, 0, 0)),
        ((1, 1, 1), (0, 0, 0)),
        ((-1, -1), (0, 0)),
        ((-1, 0, -1), (-1, 0, -1)),
        ((1, 0, 1), (1, 0, 1)),
        ((2,), (0,)),
        ((0, 2, 1), (0, 2, 1)),
        ((None, 0, None, 1, 2), (None, 0, None, 0, 0)),
        ((0, 1, None, 2), (0, 0, None, 0)),
        ((0, 1, None), (0, 0, None)),
        ((0, 1), (0, 0)),  # only one was asked for
        ((), ()),
    ],
)
def test_which_indexes_count_chunks(sent: tuple[int | None, ...], seen: tuple[int | None, ...]) -> None:
    assert [each.choices[0].index if each.choices else None for each in placed(chunks_of(*sent))] == list(seen)


def test_a_second_choice_behind_the_end_of_the_first() -> None:
    assert [each.choices[0].index for each in placed(chunks_of(0, 1), ended=True)] == [0, 1]


def test_a_chunk_of_two_choices_counts_choices() -> None:
    both = ChatCompletionChunk((ChunkChoice(0, Delta(content="a")), ChunkChoice(1, Delta(content="b"))))
    (found, *_) = placed([both, *chunks_of(1, 2)])
    assert [choice.index for choice in found.choices] == [0, 1]


@given(st.lists(st.none() | st.integers(-1, 4), max_size=len(LETTERS)), st.booleans())
def test_property_no_chunk_is_lost_and_their_order_is_kept(indexes: list[int | None], ended: bool) -> None:
    found = placed(chunks_of(*indexes), ended=ended)
    assert "".join(each.id or "" for each in found) == LETTERS[: len(indexes)]
    assert [each.text or each.choices[0].delta.content for each in found if each.choices] == [
        LETTERS[i] for i, index in enumerate(indexes) if index is not None
    ]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=len(LETTERS)), st.integers(1, 2))
def test_property_a_stream_loses_no_text(indexes: list[int], asked: int) -> None:
    """However the events are cut into reads."""
    events = [ServerSentEvent(chunk(delta(index, content=LETTERS[i]))) for i, index in enumerate(indexes)]
    whole = []
    for size in (1, len(events)):
        builder, found = AnswerBuilder(asked), list[ChatCompletionChunk]()
        decoder = ChunkDecoder(builder)
        for at in range(0, len(events), size):
            assert not decoder.decode(events[at : at + size], found)
        found += decoder.flush()
        texts = [choice.delta.content or "" for each in found for choice in each.choices]
        assert "".join(texts) == LETTERS[: len(indexes)]
        whole.append(builder.build("m"))
        assert sorted("".join(choice.message.text for choice in whole[-1].choices)) == sorted(texts)
    assert whole[0] == whole[1]


def test_a_chunk_that_waits_is_handed_out_before_an_error_and_in_its_order() -> None:
    builder, found = AnswerBuilder(), list[ChatCompletionChunk]()
    decoder = ChunkDecoder(builder)
    decoder.decode([ServerSentEvent(chunk(delta(i, content=LETTERS[i]))) for i in range(2)], found)
    assert [each.text for each in found] == ["a"]
    assert [each.text for each in decoder.flush()] == ["b"]
    assert builder.text == "ab"
