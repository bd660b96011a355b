"""Content encodings: what a label means, and how its encoding is undone, however the bytes are cut."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Callable, Iterable
from importlib import import_module
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import APIConnectionError, APIError, APIResponseError
from piapi_async.policy import Deadline
from piapi_async.pool import INFLATED_PIECE, SessionPool
from piapi_async.pool.encoding import ContentDecoder, find_encodings
from piapi_async.testing import RawServer, ReadRequest, Send, Wait, http_response
from tests.pool.sending import ask, endpoint, send

JSON = b'{"id": "c-1", "text": "' + "Grüße ".encode() * 50 + b'"}'
STREAM = b'data: {"a": 1}\n\n' * 20 + b"data: [DONE]\n\n"
PAGE = b"<!doctype html><title>502</title>"
PACKAGES = ("brotli", "brotlicffi", "compression.zstd", "backports.zstd", "zstandard")


def decode(header: str, pieces: Iterable[bytes], limit: int = INFLATED_PIECE) -> bytes:
    """Undo what a header names, as an exchange does."""
    return b"".join(decoded_pieces(header, pieces, limit))


def decoded_pieces(header: str, pieces: Iterable[bytes], limit: int = INFLATED_PIECE) -> list[bytes]:
    decoder = ContentDecoder(find_encodings(header), "host", limit)
    plain: list[bytes] = []
    for data in [*filter(None, pieces), b""]:
        decoder.feed(data)
        while piece := decoder.read():
            plain.append(piece)
    assert decoder.read() == b""
    return plain


def fault(header: str, pieces: Iterable[bytes]) -> APIError:
    with pytest.raises(APIError) as caught:
        decode(header, pieces)
    assert caught.value.maybe_billed
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None
    return caught.value


def bytewise(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


def raw_deflate(data: bytes) -> bytes:
    return zlib.compress(data, wbits=-15)


# -- labels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "encodings"),
    [
        ("none", []),
        ("", []),
        ("UTF-8", []),
        ("utf8, Binary", []),
        ("identity, identity\nIdentity", []),
        ("aws-chunked,gzip", ["gzip"]),
        ("X-GZip", ["gzip"]),
        ("gzip\nbr , deflate", ["gzip", "br", "deflate"]),
        ("gzip," * 5, ["gzip, gzip, gzip, gzip, gzip"]),
    ],
)
def test_what_a_header_names(header: str, encodings: list[str]) -> None:
    assert find_encodings(header) == encodings


@pytest.mark.parametrize("header", ["gzip", "deflate", "br", "zstd", "foo", "gzip, gzip", "br, foo", "gzip," * 5])
@pytest.mark.parametrize("start", [b"", b"\n", b"\r\n" * 20, b"\xef\xbb\xbf"])
@pytest.mark.parametrize("body", [JSON, STREAM, PAGE, b"[1, 2]", b"{}", b"no", b""])
def test_text_is_read_as_it_is(header: str, start: bytes, body: bytes) -> None:
    assert decode(header, [start + body]) == start + body
    assert decode(header, bytewise(start + body)) == start + body


@pytest.mark.parametrize("header", ["gzip", "deflate", "br", "zstd", "foo, gzip"])
def test_text_comes_out_as_it_arrives(header: str) -> None:
    events = [b"data: a\n\n", b"data: b\n\n"]
    assert decoded_pieces(header, events) == events


def test_blank_lines_come_out_as_they_arrive() -> None:
    assert decoded_pieces("gzip", [b"\n", b"\n", gzip.compress(b"{}")]) == [b"\n", b"\n", b"{}"]


# -- gzip and deflate --------------------------------------------------------------------------------------------------


ZLIB = {
    "gzip": ("gzip", gzip.compress(JSON)),
    "zlib though gzip": ("gzip", zlib.compress(JSON)),
    "zlib": ("deflate", zlib.compress(JSON)),
    "raw": ("deflate", raw_deflate(JSON)),
    "gzip though deflate": ("deflate", gzip.compress(JSON)),
    "gzip twice": ("gzip, gzip", gzip.compress(gzip.compress(JSON))),
    "gzip once though twice": ("gzip, gzip", gzip.compress(JSON)),
    "raw in gzip": ("deflate, gzip", gzip.compress(raw_deflate(JSON))),
    "unknown in gzip": ("foo, gzip", gzip.compress(JSON)),
    "blank lines in front": ("gzip", b"\r\n" + gzip.compress(JSON)),
    "members": ("gzip", gzip.compress(JSON[:9]) + gzip.compress(b"") + gzip.compress(JSON[9:])),
    "padding": ("gzip", gzip.compress(JSON) + b"\0\0\x1f\x8b padding"),
    "half a magic": ("gzip", gzip.compress(JSON) + b"\x1f"),
    "padding of zlib": ("deflate", zlib.compress(JSON) + b"padding"),
}


@pytest.mark.parametrize("case", ZLIB)
def test_what_zlib_undoes(case: str) -> None:
    header, packed = ZLIB[case]
    assert decode(header, [packed]).strip() == JSON
    assert decode(header, bytewise(packed)).strip() == JSON
    assert decode(header, [packed], limit=7).strip() == JSON


@given(
    st.lists(st.binary(max_size=200) | st.just(JSON), min_size=1, max_size=3),
    st.sampled_from(["gzip", "deflate", "raw", "gzip, gzip", "text"]),
    st.lists(st.integers(0, 600)),
    st.integers(1, 50),
)
def test_property_any_cutting_gives_the_same(members: list[bytes], form: str, cuts: list[int], limit: int) -> None:
    plain = b"".join(members)
    header = form
    if form == "text":
        header, plain = "gzip", b'{"' + plain
        packed = plain
    elif form == "raw":
        header, packed = "deflate", raw_deflate(plain)
    elif form == "deflate":
        packed = zlib.compress(plain)
    else:
        packed = b"".join(map(gzip.compress, members))
        header = "gzip"
        if "," in form:
            header, packed = form, gzip.compress(gzip.compress(plain))
    ends = sorted({min(cut, len(packed)) for cut in cuts} | {0, len(packed)})
    pieces = [packed[start:end] for start, end in pairwise(ends)]
    assert decode(header, pieces, limit) == plain


def test_a_small_body_comes_out_in_pieces() -> None:
    bomb = gzip.compress(bytes(20 << 20))
    for header, packed in (("gzip", bomb), ("gzip, gzip", gzip.compress(bomb))):
        pieces = decoded_pieces(header, [packed])
        assert sum(map(len, pieces)) == 20 << 20
        assert max(map(len, pieces)) <= INFLATED_PIECE


@pytest.mark.parametrize("header", ["gzip", "deflate", "gzip, gzip"])
@pytest.mark.parametrize("pieces", [[b"\x00\x01 no text"], [b"\x00"], [b"\xef\xbb"]])
def test_what_is_broken(header: str, pieces: list[bytes]) -> None:
    error = fault(header, pieces)
    assert error.kind in ("encoding", "truncated body")


def test_broken_data() -> None:
    error = fault("gzip", [b"\x1f\x8b nothing of the kind"])
    assert type(error) is APIResponseError
    assert error.kind == "encoding"
    assert (
        str(error)
        == "host's answer is broken, or not in its content encoding (gzip), which nobody asked for; try again"
    )


@pytest.mark.parametrize("cut", [1, 5, 12, -9, -1])
@pytest.mark.parametrize("layers", [1, 2])
def test_data_that_is_cut(cut: int, layers: int) -> None:
    packed = gzip.compress(JSON)[:cut]
    if layers == 2:
        packed = gzip.compress(packed)
    error = fault(", ".join(["gzip"] * layers), [packed])
    assert type(error) is APIConnectionError
    assert error.kind == "truncated body"
    assert str(error) == "host's answer ends in the middle of its gzip data; try again"


# -- what takes a package, or is unknown -------------------------------------------------------------------------------


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """None of the packages is installed."""
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)
    return monkeypatch


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ("br", "'br', which takes a package: install brotli 1.2 or newer"),
        ("zstd", "'zstd', which takes a package: install backports.zstd, or use Python 3.14"),
        ("Foo", "'foo', which is unknown; try again or use a backup"),
        ("a\x1b[31m" + "b" * 100, "'a\\x1b[31mbbbbbbbbbbb', which is unknown; try again or use a backup"),
        ("sk-abcdefgh12345", "'[key]', which is unknown; try again or use a backup"),
        ("gzip, " * 9, "'gzip, gzip, gzip, gz', which is unknown; try again or use a backup"),
    ],
)
@pytest.mark.usefixtures("bare")
def test_an_encoding_that_cannot_be_undone(header: str, says: str) -> None:
    error = fault(header, [b"\x0b\x02\x80\x00\x00"])
    assert type(error) is APIResponseError
    assert error.kind == "encoding"
    assert str(error).replace("\\\\", "\\") == f"host's answer came in the content encoding {says}"


@pytest.mark.usefixtures("bare")
def test_a_vertical_tab_begins_no_text() -> None:
    """But much of what is compressed by brotli."""
    for pieces in ([b'\x0b{"'], bytewise(b'\x0b{"')):
        assert fault("br", pieces).kind == "encoding"


def test_a_brotli_without_bounds_is_as_good_as_none(bare: pytest.MonkeyPatch) -> None:
    bare.setitem(sys.modules, "brotli", SimpleNamespace(Decompressor=object))
    bare.setitem(sys.modules, "brotlicffi", SimpleNamespace())
    assert "install brotli 1.2 or newer" in str(fault("br", [b"\x0b\x02\x80"]))


class StandIn:
    """A decompressor of the shape that the packages for brotli and zstd have, which undoes deflate behind a mark."""

    def __init__(self, mark: bytes = b"", **_: object) -> None:
        self._mark = mark
        self._inflate = zlib.decompressobj()
        self._waiting = b""
        self.unused_data = b""

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._waiting

    def is_finished(self) -> bool:
        return self.eof

    def can_accept_more_data(self) -> bool:
        return self.needs_input

    def decompress(self, data: bytes, limit: int = 0) -> bytes:
        assert self.needs_input or not data
        data = self._waiting + data
        mark, data = data[: len(self._mark)], data[len(self._mark) :]
        self._waiting, self._mark = b"", self._mark[len(mark) :]
        plain = self._inflate.decompress(data, limit)
        self._waiting, self.unused_data = self._inflate.unconsumed_tail, self._inflate.unused_data
        return plain

    def process(self, data: bytes, *, output_buffer_limit: int) -> bytes:
        return self.decompress(data, output_buffer_limit)


ZSTD_MARK = b"\x28\xb5\x2f\xfd"


def marked(data: bytes) -> bytes:
    return ZSTD_MARK + zlib.compress(data)


def stand_in(name: str) -> Any:
    if name.startswith("brotli"):
        return SimpleNamespace(Decompressor=StandIn, error=zlib.error)
    if name == "zstandard":
        made = SimpleNamespace(decompressobj=lambda: StandIn(ZSTD_MARK))
        return SimpleNamespace(ZstdError=zlib.error, ZstdDecompressor=lambda max_window_size: made)
    parameters = SimpleNamespace(window_log_max="window_log_max")
    make = lambda options: StandIn(ZSTD_MARK)  # noqa: E731
    return SimpleNamespace(ZstdError=zlib.error, DecompressionParameter=parameters, ZstdDecompressor=make)


def check_package(header: str, compress: Callable[[bytes], bytes], members: int) -> None:
    """What holds of each package."""
    packed = compress(JSON) * members
    for pieces in ([packed], bytewise(packed)):
        assert decode(header, pieces) == JSON * members
    assert decode(f"gzip, {header}", [compress(gzip.compress(JSON))]) == JSON
    large = bytes(5 << 20)
    pieces = decoded_pieces(header, [compress(large) * members])
    assert b"".join(pieces) == large * members
    assert max(map(len, pieces)) <= INFLATED_PIECE + (1 << 18)
    assert fault(header, [packed[:-3]]).kind == "truncated body"
    assert fault(header, [packed[:2] + b"\xff" * 60]).kind == "encoding"
    if members > 1:
        assert decode(header, [packed + b"padding"]) == JSON * members


@pytest.mark.parametrize("name", ["brotli", "brotlicffi", "compression.zstd", "backports.zstd", "zstandard"])
def test_the_shapes_of_the_packages(name: str, bare: pytest.MonkeyPatch) -> None:
    bare.setitem(sys.modules, name.partition(".")[0], SimpleNamespace())
    bare.setitem(sys.modules, name, stand_in(name))
    if name.startswith("brotli"):
        check_package("br", zlib.compress, 1)
    elif name == "zstandard":  # it knows no limit, so a stand-in is fed what stays small
        for pieces in ([marked(JSON) * 3], bytewise(marked(JSON) * 3)):
            assert decode("zstd", pieces) == JSON * 3
    else:
        check_package("zstd", marked, 3)


@pytest.mark.parametrize("name", PACKAGES)
def test_the_packages_that_are_installed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip(name, exc_type=ImportError)
    for other in PACKAGES:
        if other != name:
            monkeypatch.setitem(sys.modules, other, None)
    module = import_module(name)
    if name.startswith("brotli"):
        check_package("br", module.compress, 1)
    else:
        check_package("zstd", module.compress, 3)


# -- through a pool ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_the_pieces_of_an_exchange() -> None:
    answer = http_response(200, gzip.compress(bytes(5 << 20)), {"Content-Encoding": "gzip"})
    async with RawServer([ReadRequest(), Send(answer), Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target)
            pieces: list[bytes] = []
            while piece := await exchange.read(Deadline()):
                pieces.append(piece)
            assert b"".join(pieces) == bytes(5 << 20)
            assert max(map(len, pieces)) <= INFLATED_PIECE
            exchange.finish()
            assert repr(pool) == "<SessionPool open=1 idle=1 in_flight=0>"


@pytest.mark.anyio
@pytest.mark.parametrize("header", ["gzip", "identity, Identity", "identity"])
async def test_an_exchange_that_comes_byte_by_byte(header: str) -> None:
    body = gzip.compress(b"plain text") if header == "gzip" else b"plain text"
    answer = http_response(200, body, {"Content-Encoding": header})
    async with RawServer([ReadRequest(), Send(answer, piece=1, pause=0.0001), Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            assert await ask(pool, target) == b"plain text"


@pytest.mark.anyio
async def test_a_header_that_comes_twice_and_the_start_of_a_body() -> None:
    body = gzip.compress(gzip.compress(JSON))
    head = b"HTTP/1.1 500 Oh\r\nContent-Encoding: gzip\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(
        body
    )
    async with RawServer([ReadRequest(), Send(head + body), Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target)
            assert await exchange.read_start(Deadline()) == JSON


@pytest.mark.anyio
async def test_what_arrives_of_a_compressed_stream_comes_out() -> None:
    packer = zlib.compressobj(wbits=31)
    events = [packer.compress(STREAM) + packer.flush(zlib.Z_SYNC_FLUSH), b"\n\n"]
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with RawServer([ReadRequest(), Send(head + b"%x\r\n%b\r\n" % (len(events[0]), events[0])), Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            exchange = await send(pool, target)
            assert await exchange.read(Deadline()) == STREAM
            exchange.close()


@pytest.mark.anyio
async def test_a_broken_encoding_costs_the_connection() -> None:
    answer = http_response(200, b"\x1f\x8b nothing of the kind", {"Content-Encoding": "gzip"})
    async with RawServer([ReadRequest(), Send(answer[:-1]), Wait()]) as server:
        target = endpoint(server)
        async with SessionPool([target]) as pool:
            with pytest.raises(APIResponseError) as caught:
                await ask(pool, target)
            assert caught.value.kind == "encoding"
            assert "in_flight=0" in repr(pool)
