"""The decoder against the WHATWG rules: own vectors, a slow oracle, and every way to cut the bytes."""

from __future__ import annotations

import itertools
import re
import tracemalloc
from collections.abc import Iterable, Iterator

import attrs
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from piapi_async import ServerSentEvent, SSEDecoder
from piapi_async.errors import StreamTooLargeError

MIB = 1 << 20

# -- the oracle: the standard's words, one after the other, and no thought of speed ------------------------------------


@attrs.frozen
class Outcome:
    """All that a stream leads to."""

    events: list[ServerSentEvent]
    last_event_id: str = ""
    reconnection_time: int | None = None


def utf8_decode(data: bytes) -> str:
    """The UTF-8 decoder of the Encoding Standard, byte by byte, with replacement."""
    text: list[str] = []
    point = needed = seen = 0
    lower, upper = 0x80, 0xBF
    position = 0
    while position < len(data):
        byte = data[position]
        position += 1
        if not needed:
            if byte <= 0x7F:
                text.append(chr(byte))
            elif 0xC2 <= byte <= 0xDF:
                needed, point = 1, byte & 0x1F
            elif 0xE0 <= byte <= 0xEF:
                lower, upper = 0xA0 if byte == 0xE0 else 0x80, 0x9F if byte == 0xED else 0xBF
                needed, point = 2, byte & 0xF
            elif 0xF0 <= byte <= 0xF4:
                lower, upper = 0x90 if byte == 0xF0 else 0x80, 0x8F if byte == 0xF4 else 0xBF
                needed, point = 3, byte & 0x7
            else:
                text.append("\ufffd")
            continue
        if not lower <= byte <= upper:
            point = needed = seen = 0
            lower, upper = 0x80, 0xBF
            position -= 1  # "prepend byte to stream"
            text.append("\ufffd")
            continue
        lower, upper = 0x80, 0xBF
        point = (point << 6) | (byte & 0x3F)
        seen += 1
        if seen == needed:
            text.append(chr(point))
            point = needed = seen = 0
    if needed:
        text.append("\ufffd")
    return "".join(text)


def oracle(data: bytes) -> Outcome:
    text = utf8_decode(data.removeprefix(b"\xef\xbb\xbf"))
    # Lines end at CRLF, LF or CR; what stands behind the last end is no line.
    lines = re.split("\r\n|\n|\r", text)[:-1]
    events: list[ServerSentEvent] = []
    last_event_id = id_buffer = event_buffer = data_buffer = ""
    reconnection_time = retry = None
    for line in lines:
        if line == "":
            last_event_id = id_buffer
            if data_buffer != "":
                events.append(
                    ServerSentEvent(data_buffer.removesuffix("\n"), event_buffer or "message", id_buffer, retry)
                )
            data_buffer = event_buffer = ""
            retry = None
            continue
        if line.startswith(":"):
            continue
        field, colon, value = line.partition(":")
        if colon and value.startswith(" "):
            value = value[1:]
        if field == "event":
            event_buffer = value
        elif field == "data":
            data_buffer += value + "\n"
        elif field == "id" and "\0" not in value:
            id_buffer = value
        elif field == "retry" and value and set(value) <= set("0123456789"):
            retry = reconnection_time = int(value)
    return Outcome(events, last_event_id, reconnection_time)


# -- cutting -----------------------------------------------------------------------------------------------------------


def pieces_of(data: bytes, cuts: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def every_cutting(data: bytes) -> Iterator[list[bytes]]:
    """Whole, byte by byte, and cut in two at every place, with empty pieces among them."""
    yield [data]
    yield pieces_of(data, range(len(data)))
    for cut in range(len(data) + 1):
        yield pieces_of(data, [cut])


def decode(pieces: Iterable[bytes], max_event_bytes: int = MIB) -> Outcome:
    decoder = SSEDecoder(max_event_bytes)
    events = [event for piece in pieces for event in decoder.feed(piece)]
    return Outcome(events, decoder.last_event_id, decoder.reconnection_time)


def messages(*data: str) -> Outcome:
    return Outcome([ServerSentEvent(text) for text in data])


# -- vectors -----------------------------------------------------------------------------------------------------------

E = ServerSentEvent
BOM = b"\xef\xbb\xbf"

VECTORS: dict[str, tuple[bytes, Outcome]] = {
    # line ends
    "LF": (b"data: a\n\ndata: b\n\n", messages("a", "b")),
    "CR": (b"data: a\r\rdata: b\r\r", messages("a", "b")),
    "CRLF": (b"data: a\r\n\r\ndata: b\r\n\r\n", messages("a", "b")),
    "LF then CR": (b"data: a\n\rdata: b\n\r", messages("a", "b")),
    "CR then CRLF": (b"data: a\r\r\ndata: b\r\r\n", messages("a", "b")),
    "CRLF then LF": (b"data: a\r\n\ndata: b\r\n\n", messages("a", "b")),
    "CRLF then CR": (b"data: a\r\n\rdata: b\r\n\r", messages("a", "b")),
    "LF LF CR CR": (b"data: a\n\n\r\rdata: b\n\n", messages("a", "b")),
    "all three in one event": (b"data: a\ndata: b\rdata: c\r\n\n", messages("a\nb\nc")),
    "a lone CR is the last byte": (b"data: a\n\r", messages("a")),
    "CR LF CR LF after an event": (b"data: a\n\n\r\n\r\ndata: b\n\n", messages("a", "b")),
    "other separators end no line": (
        "data: a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\n\n".encode(),
        messages("a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei"),
    ),
    "NEL as a bare byte": (b"data: a\x85b\n\n", messages("a\ufffdb")),
    # blank lines
    "nothing": (b"", messages()),
    "blank lines only": (b"\n\n\r\r\r\n\r\n\n", messages()),
    "blank lines in front": (b"\n\n\ndata: a\n\n", messages("a")),
    "many blank lines between": (b"data: a\n\n\n\n\ndata: b\n\n\n", messages("a", "b")),
    # the end
    "no blank line at the end": (b"data: a\n\ndata: b\n", messages("a")),
    "no line end at the end": (b"data: a\n\ndata: b", messages("a")),
    "an id that no blank line ends": (b"id: 1\ndata: a\n\nid: 2\n", Outcome([E("a", id="1")], "1")),
    "a retry that no blank line ends": (b"retry: 7\n", Outcome([], "", 7)),
    "a retry that no line end ends": (b"retry: 7", messages()),
    "a cut character at the end": (b"data: a\n\ndata: \xf0\x9f", messages("a")),
    # BOM
    "BOM": (BOM + b"data: a\n\n", messages("a")),
    "only a BOM": (BOM, messages()),
    "two BOMs": (BOM + BOM + b"data: a\n\ndata: b\n\n", messages("b")),
    "half a BOM": (b"\xef\xbbdata: a\n\ndata: b\n\n", messages("b")),
    "a third of a BOM": (b"\xef\n\ndata: b\n\n", messages("b")),
    "half a BOM, ended": (b"\xef\xbb\n\ndata: b\n\n", messages("b")),
    "a BOM that is not in front": (b"\n" + BOM + b"data: a\n\ndata: b\n\n", messages("b")),
    "a BOM in front of the second event": (b"data: a\n\n" + BOM + b"data: b\n\n", messages("a")),
    "a BOM in the data": (b"data: " + BOM + b"a\n\n", messages("\ufeffa")),
    "BOM and comment": (BOM + b": hi\ndata: a\n\n", messages("a")),
    "BOM and blank line": (BOM + b"\r\ndata: a\n\n", messages("a")),
    # comments
    "comment": (b": hi\ndata: a\n\n", messages("a")),
    "empty comment": (b":\ndata: a\n\n", messages("a")),
    "comment blocks": (b":\n\n: keep-alive\n\n:\n\ndata: a\n\n:\n\n", messages("a")),
    "comment between data": (b"data: a\n: no\ndata: b\n\n", messages("a\nb")),
    "comment that looks like data": (b":data: a\n\n", messages()),
    "comment with bad UTF-8": (b": \xff\xfe\ndata: a\n\n", messages("a")),
    # fields
    "without colon": (b"data\n\n", messages("")),
    "without colon, twice": (b"data\ndata\n\n", messages("\n")),
    "the standard's third example": (b"data\n\ndata\ndata\n\ndata:", messages("", "\n")),
    "the standard's first example": (b"data: YHOO\ndata: +2\ndata: 10\n\n", messages("YHOO\n+2\n10")),
    "the standard's second example": (
        b": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n",
        Outcome([E("first event", id="1"), E("second event")], ""),
    ),
    "the standard's fourth example": (b"data:test\n\ndata: test\n\n", messages("test", "test")),
    "empty value": (b"data:\n\n", messages("")),
    "a space as value": (b"data: \n\n", messages("")),
    "one space goes": (b"data:  a \n\n", messages(" a ")),
    "no space": (b"data:a\n\n", messages("a")),
    "a tab stays": (b"data:\ta\n\n", messages("\ta")),
    "a no-break space stays": ("data:\xa0a\n\n".encode(), messages("\xa0a")),
    "a colon in the value": (b"data: a: b:c\n\n", messages("a: b:c")),
    "a colon as value": (b"data::\n\n", messages(":")),
    "a space before the colon": (b"data : a\n\n", messages()),
    "a space before the name": (b" data: a\n\n", messages()),
    "names are case-sensitive": (b"Data: a\nDATA: b\ndata: c\n\n", messages("c")),
    "unknown fields": (b"foo: 1\nx\ndatax: 2\ndat: 3\ndata: a\n\n", messages("a")),
    "a NUL in the name": (b"da\0ta: a\ndata: b\n\n", messages("b")),
    "a NUL in the data": (b"data: a\0b\n\n", messages("a\0b")),
    "several data lines": (b"data: a\ndata:\ndata: b\ndata\n\n", messages("a\n\nb\n")),
    "no data, no event": (b"event: x\n\ndata: a\n\n", messages("a")),
    "JSON over lines": (b'data: {"a":\ndata: 1}\n\n', messages('{"a":\n1}')),
    # event
    "event": (b"event: ping\ndata: a\n\ndata: b\n\n", Outcome([E("a", "ping"), E("b")])),
    "event behind data": (b"data: a\nevent: ping\n\n", Outcome([E("a", "ping")])),
    "the last event counts": (b"event: a\nevent: b\ndata: x\n\n", Outcome([E("x", "b")])),
    "an empty event is a message": (b"event: a\nevent:\ndata: x\n\n", messages("x")),
    "event without colon": (b"event: a\nevent\ndata: x\n\n", messages("x")),
    "an event that was not sent is forgotten": (b"event: a\n\ndata: x\n\n", messages("x")),
    "bad UTF-8 in event": (b"event: \xff\ndata: x\n\n", Outcome([E("x", "\ufffd")])),
    # id
    "id": (b"id: 1\ndata: a\n\n", Outcome([E("a", id="1")], "1")),
    "id sticks": (b"id: 1\ndata: a\n\ndata: b\n\n", Outcome([E("a", id="1"), E("b", id="1")], "1")),
    "id behind data": (b"data: a\nid: 1\n\n", Outcome([E("a", id="1")], "1")),
    "the last id counts": (b"id: 1\nid: 2\ndata: a\n\n", Outcome([E("a", id="2")], "2")),
    "an empty id resets": (b"id: 1\ndata: a\n\nid\ndata: b\n\n", Outcome([E("a", id="1"), E("b")])),
    "an id with NUL does not count": (b"id: 1\nid: 2\0\ndata: a\n\n", Outcome([E("a", id="1")], "1")),
    "an id without data counts": (b"id: 1\n\ndata: a\n\n", Outcome([E("a", id="1")], "1")),
    "an id alone": (b"id: 1\n\n", Outcome([], "1")),
    "an id and comments": (b"id: 1\n: x\n\n:\n\n", Outcome([], "1")),
    "an id in UTF-8": ("id: é\ndata: a\n\n".encode(), Outcome([E("a", id="é")], "é")),
    "bad UTF-8 in id": (b"id: \xff\n\n", Outcome([], "\ufffd")),
    # retry
    "retry": (b"retry: 1500\ndata: a\n\ndata: b\n\n", Outcome([E("a", retry=1500), E("b")], "", 1500)),
    "retry with leading zeros": (b"retry: 007\ndata: a\n\n", Outcome([E("a", retry=7)], "", 7)),
    "retry without data": (b"retry: 1\n\ndata: a\n\n", Outcome([E("a")], "", 1)),
    "the last retry counts": (b"retry: 1\nretry: 2\nretry: x\ndata: a\n\n", Outcome([E("a", retry=2)], "", 2)),
    "retry that is no number": (b"retry: 1s\nretry: -1\nretry: +1\nretry: 1.5\ndata: a\n\n", messages("a")),
    "retry with spaces": (b"retry:  1\nretry: 1 \ndata: a\n\n", messages("a")),
    "retry empty": (b"retry\nretry:\nretry: \ndata: a\n\n", messages("a")),
    "retry with digits that are not ASCII": ("retry: ١٢\nretry: ²\ndata: a\n\n".encode(), messages("a")),
    "retry with an underscore": (b"retry: 1_0\ndata: a\n\n", messages("a")),
    # UTF-8
    "two, three and four bytes": ("data: é€😀\n\n".encode(), messages("é€😀")),
    "a lone continuation": (b"data: \x80\n\n", messages("\ufffd")),
    "a byte that never is": (b"data: \xc0\xc1\xf5\xff\n\n", messages("\ufffd" * 4)),
    "overlong": (b"data: \xe0\x80\x80\xf0\x80\x80\x80\n\n", messages("\ufffd" * 7)),
    "surrogates": (b"data: \xed\xa0\x80\xed\xb0\x80\n\n", messages("\ufffd" * 6)),
    "above U+10FFFF": (b"data: \xf4\x90\x80\x80\n\n", messages("\ufffd" * 4)),
    "the longest good start is one": (b"data: \xf0\x9f\x98a\xe2\x82b\xc3c\n\n", messages("\ufffda\ufffdb\ufffdc")),
    "a character cut by the line's end": (b"data: \xe2\x82\ndata: \xac\n\n", messages("\ufffd\n\ufffd")),
    "a character cut by CR": (b"data: \xf0\x9f\x98\rdata: a\r\r", messages("\ufffd\na")),
    # the gateways' own
    "several events at once": (b"data: a\n\ndata: b\n\n: c\n\ndata: d\n\ndata: e", messages("a", "b", "d")),
    "blocks of several kinds": (
        b"data: a\n\nevent: x\ndata: b\n\ndata:c\n\nid: 9\n\ndata: d\n\n",
        Outcome([E("a"), E("b", "x"), E("c"), E("d", id="9")], "9"),
    ),
    "terminators are data": (b"data: [DONE]\n\ndata:[none]\n\n", messages("[DONE]", "[none]")),
}


@pytest.mark.parametrize("name", VECTORS)
def test_vector(name: str) -> None:
    data, expected = VECTORS[name]
    assert oracle(data) == expected
    for pieces in every_cutting(data):
        assert decode(pieces) == expected, pieces


@pytest.mark.parametrize("name", VECTORS)
def test_an_event_is_out_with_its_last_byte(name: str) -> None:
    data, _ = VECTORS[name]
    decoder = SSEDecoder()
    events: list[ServerSentEvent] = []
    for position in range(len(data)):
        events += decoder.feed(data[position : position + 1])
        assert events == oracle(data[: position + 1]).events
        assert decoder.last_event_id == oracle(data[: position + 1]).last_event_id


@pytest.mark.parametrize("name", VECTORS)
def test_two_vectors_in_a_row(name: str) -> None:
    """A BOM is one only in front of the first; an id sticks over both."""
    for first, _ in (VECTORS["LF"], VECTORS["id"], VECTORS["a lone CR is the last byte"]):
        data = first + VECTORS[name][0]
        for pieces in every_cutting(data):
            assert decode(pieces) == oracle(data), pieces


def test_the_oracles_decoder_is_pythons() -> None:
    for data in ("é€😀".encode(), b"\xed\xa0\x80\xf4\x90\xe0\x80\xf0\x9f\x98", bytes(range(256))):
        for cut in range(len(data) + 1):
            assert utf8_decode(data[cut:]) == data[cut:].decode(errors="replace")


# -- properties --------------------------------------------------------------------------------------------------------

TOKENS = [
    *(b"\n", b"\r", b"\r\n", b"\n\n", b"\r\r", b":", b" ", b"\0", b"\t", b"a", b"1", b"0", b"[DONE]", b"{}"),
    *(b"data", b"event", b"id", b"retry", b"data:", b"data: ", b"event: ", b"id: ", b"retry: ", b": ", b"data: x\n\n"),
    *(BOM, b"\xef", b"\xbb", b"\xbf", b"\x80", b"\xff", b"\xc3", b"\xf0\x9f", b"\x98\x80", b"\xed\xa0\x80"),
    *("é€😀\u2028\u2029\x85\x0b\x0c\ufeff".encode(), b"x" * 40),
]
STREAMS = st.lists(st.sampled_from(TOKENS), max_size=40).map(b"".join) | st.binary(max_size=60)
CUTS = st.lists(st.integers(0, 400), max_size=12)


def cut_within(data: bytes, cuts: list[int]) -> list[bytes]:
    return pieces_of(data, [cut % (len(data) + 1) for cut in cuts])


@given(data=STREAMS, cuts=CUTS)
@example(data=b"id: 1\n\ndata: a\n\n", cuts=[5])
def test_property_decoder_and_oracle_agree(data: bytes, cuts: list[int]) -> None:
    assert decode(cut_within(data, cuts)) == oracle(data)


@given(data=STREAMS)
def test_property_byte_by_byte(data: bytes) -> None:
    assert decode(pieces_of(data, range(len(data)))) == oracle(data)


@given(data=st.binary(max_size=60))
def test_property_utf8(data: bytes) -> None:
    assert utf8_decode(data) == data.decode(errors="replace")


def until_too_large(pieces: Iterable[bytes], cap: int) -> tuple[list[ServerSentEvent], bool]:
    """The events before the cap, and whether it was passed."""
    decoder = SSEDecoder(cap)
    events: list[ServerSentEvent] = []
    try:
        for piece in pieces:
            decoder.feed_into(piece, events)
    except StreamTooLargeError:
        return events, True
    return events, False


@given(data=STREAMS, cuts=CUTS, cap=st.integers(1, 30))
def test_property_the_cap_does_not_depend_on_the_cutting(data: bytes, cuts: list[int], cap: int) -> None:
    assert until_too_large(cut_within(data, cuts), cap) == until_too_large([data], cap)
    assert until_too_large(pieces_of(data, range(len(data))), cap) == until_too_large([data], cap)


@given(data=STREAMS, cap=st.integers(1, 30))
def test_property_no_event_is_larger_than_the_cap(data: bytes, cap: int) -> None:
    events, refused = until_too_large([data], cap)
    assert events == oracle(data).events[: len(events)]
    # U+FFFD may stand for one byte, and has three.
    assert all(len(event.data.replace("\ufffd", "?").encode()) <= cap for event in events)
    if not refused:
        assert events == oracle(data).events


# -- the cap -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "larger"),
    [
        (b"data: 0123456789\n\n", b"data: 0123456789a\n\n"),
        (b"data:0123456789\n\n", b"data:0123456789a\n\n"),
        (b"data:  123456789\n\n", b"data:  123456789a\n\n"),
        (b"data: 0123\ndata: 56789\n\n", b"data: 0123\ndata: 56789a\n\n"),
        (b"data: 0123\ndata:56789\n\n", b"data: 0123\ndata:56789a\n\n"),
        (b"data\n" * 11 + b"\n", b"data\n" * 12 + b"\n"),
        (b"data: 0123456\ndata\ndata\ndata\n\n", b"data: 0123456\ndata\ndata\ndata\ndata\n\n"),
        (b"data: 0123456789\n: 12345678901234\n\n", b"data: 0123456789\n: 123456789012345\n\n"),
        (b"data: 0123456789\nid: 123456789012\n\n", b"data: 0123456789\nid: 1234567890123\n\n"),
        (b"data: 0123456789\nevent: abc\ndatax: 3\n\n", b"data: 0123456789\nevent: 0123456789\n\n"),
        (b": comment\r\rdata: 0123456789\r\r", b": comment\r\rdata: 0123456789a\r\r"),
    ],
)
def test_the_largest_event(largest: bytes, larger: bytes) -> None:
    """The data counts, with the line feeds that join it; any other line counts alone, but for 6 bytes of field name."""
    for pieces in every_cutting(largest):
        assert decode(pieces, 10).events == oracle(largest).events
        assert len(oracle(largest).events) == 1
    for pieces in every_cutting(larger):
        assert until_too_large(pieces, 10) == ([], True)


def test_events_before_the_one_too_large_are_kept() -> None:
    data = b"data: one\n\nid: 7\ndata: two\n\ndata: " + b"x" * 11 + b"\n\ndata: four\n\n"
    for pieces in every_cutting(data):
        assert until_too_large(pieces, 10) == ([E("one"), E("two", id="7")], True)
    with pytest.raises(StreamTooLargeError, match="larger than 10 bytes; ask for a shorter answer") as raised:
        SSEDecoder(10).feed(data)
    assert raised.value.__context__ is None


@given(data=STREAMS, cuts=CUTS)
def test_property_events_are_added_to_a_list(data: bytes, cuts: list[int]) -> None:
    decoder, events = SSEDecoder(), [E("before")]
    for piece in cut_within(data, cuts):
        decoder.feed_into(piece, events)
    assert events == [E("before"), *oracle(data).events]


def test_events_before_the_one_too_large_in_a_large_chunk() -> None:
    data = b"data: a\n\n" * 20_000 + b"data: " + b"x" * 100
    events, refused = until_too_large([data], 50)
    assert (len(events), refused) == (20_000, True)


def test_the_default_cap_is_16_mebibytes() -> None:
    (event,) = SSEDecoder().feed(b"data: " + b"x" * (16 * MIB) + b"\n\n")
    assert len(event.data) == 16 * MIB
    with pytest.raises(StreamTooLargeError, match="larger than 16777216 bytes"):
        SSEDecoder().feed(b"data: " + b"x" * (16 * MIB + 1))


def test_a_cap_must_be_a_size() -> None:
    with pytest.raises(ValueError, match="max_event_bytes: 0 is not a size"):
        SSEDecoder(0)


# -- size and work -----------------------------------------------------------------------------------------------------


def in_pieces(data: bytes, size: int) -> list[bytes]:
    return [data[start : start + size] for start in range(0, len(data), size)]


def test_a_long_line_in_small_pieces() -> None:
    """Quadratic work would copy 128 GiB here, and not end."""
    (event,) = decode(in_pieces(b"data: " + b"x" * (4 * MIB) + b"\n\n", 64), 4 * MIB).events
    assert event.data == "x" * (4 * MIB)


@pytest.mark.parametrize("size", [7, 4096, 1 << 30])
def test_many_comments(size: int) -> None:
    assert decode(in_pieces(b": keep-alive\n" * 100_000 + b"data: a\n\n", size)) == messages("a")


@pytest.mark.parametrize("size", [1, 4096, 1 << 30])
def test_many_bare_crs(size: int) -> None:
    assert decode(in_pieces(b"\r" * 100_000 + b"data: a\r\r", size)) == messages("a")


@pytest.mark.parametrize("size", [64, 4096, 1 << 30])
def test_many_events_and_lines(size: int) -> None:
    assert len(decode(in_pieces(b"data: a\n\nevent: b\ndata: c\r\n\r\n" * 20_000, size)).events) == 40_000
    (event,) = decode(in_pieces(b"data: ab\n" * 100_000 + b"\n", size)).events
    assert event.data.count("\n") == 99_999


def peak(pieces: Iterable[bytes], cap: int) -> tuple[int, int]:
    """The events, and the most memory that the decoder took, its result included."""
    held = list(pieces)
    decoder = SSEDecoder(cap)
    events = 0
    tracemalloc.start()
    try:
        for piece in held:
            events += len(decoder.feed(piece))
    except StreamTooLargeError:
        pass
    finally:
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    return events, most


# A growing buffer's reserve, an eighth of it, and the lines of one piece of the input.
SLACK = MIB


@pytest.mark.parametrize("size", [64, 1 << 16, 1 << 30])
@pytest.mark.parametrize("start", [b"data: ", b"data:", b": ", b"id: "])
def test_an_endless_line_takes_twice_the_cap_at_most(start: bytes, size: int) -> None:
    events, most = peak(in_pieces(start + b"x" * (8 * MIB), size), MIB)
    assert events == 0
    assert most <= 2 * MIB + SLACK // 2


@pytest.mark.slow
@pytest.mark.parametrize("size", [64, 1 << 30])
@pytest.mark.parametrize("line", [b"data\n", b"data:ab\n", b"data: " + b"x" * 9_999 + b"\n"])
def test_endless_lines_take_twice_the_cap_at_most(line: bytes, size: int) -> None:
    cap = MIB // 4
    events, most = peak(in_pieces(line * (cap // (len(line) - 4) * 9 // 8), size), cap)
    assert events == 0
    assert most <= 2 * cap + SLACK


@pytest.mark.parametrize("size", [64, 1 << 16, 1 << 30])
def test_the_largest_event_takes_twice_the_cap_at_most(size: int) -> None:
    events, most = peak(in_pieces(b"data: " + b"x" * MIB + b"\n\n", size), MIB)
    assert events == 1
    assert most <= 2 * MIB + SLACK // 2


@pytest.mark.parametrize("size", [64, 1 << 30])
@pytest.mark.parametrize("line", [b"data\n", b"data:ab\n", b"data: " + b"x" * 9_999 + b"\n"])
def test_the_largest_event_of_lines_takes_twice_the_cap_at_most(line: bytes, size: int) -> None:
    cap = MIB // 4
    events, most = peak(in_pieces(line * (cap // len(line)) + b"\n", size), cap)
    assert events == 1
    assert most <= 2 * cap + SLACK
