"""Content encodings that nobody asked for: bytes in, plain bytes out, in pieces: a small body must not fill the memory.

Gateways compress, and label, whatever they like. What a label says is believed only where the bytes are not plain text.
"""

from __future__ import annotations

import re
import zlib
from abc import ABC, abstractmethod
from importlib import import_module
from types import ModuleType

from piapi_async.errors import APIConnectionError, APIError, APIResponseError, excerpt

MAX_LAYERS = 4
"""Most encodings on top of each other that are undone; more are a mistake or an attack (ours)."""

_NO_ENCODING = frozenset({"", "none", "utf-8", "utf8", "identity", "binary", "aws-chunked"})
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"
_BOM = b"\xef\xbb\xbf"
_BLANK = b" \t\r\n"
_TEXT = bytes(range(0x20, 0x7F)) + b"\t\r\n"
_TEXT_BYTES = 16
"""A body whose first bytes, so many, are printable ASCII is text: compressed data is so once in millions of times."""

# What no compressed data begins with, so that a short first event need not wait for the rest of `_TEXT_BYTES`.
_TEXT_START = rb"""[ \t\r\n]*(\{[ \t\r\n]*["}]|<[!?A-Za-z]|(data|event|id|retry):)"""

_ZSTD_FED = 24  # bytes at a time: a block of four bytes may stand for 128 KiB, and `zstandard` knows no limit
_ZSTD_WINDOW_LOG = 23  # RFC 9659: 8 MiB is the largest window on the web; a frame may ask for gigabytes


def find_encodings(header: str) -> list[str]:
    """Return the encodings that a `Content-Encoding` names, in the order in which they were applied."""
    labels = [label.strip(" \t").lower() for label in header.replace("\n", ",").split(",")]
    names = [label.removeprefix("x-") if label == "x-gzip" else label for label in labels if label not in _NO_ENCODING]
    return names if len(names) <= MAX_LAYERS else [", ".join(names)]  # as one that nobody knows


class ContentDecoder:
    """Undoes the content encodings of one body.

    Attributes:
        ended: Whether the end of the body was fed.

    Args:
        encodings: What `find_encodings` returned.
        host: For errors.
        piece: Most bytes that one `read` gives.
    """

    def __init__(self, encodings: list[str], host: str, piece: int) -> None:
        self.ended = False
        self._fed = b""
        # What comes out of an outer layer in one piece goes into the next, which may copy it again and again.
        limits = [1 << 14] * (len(encodings) - 1) + [piece]
        self._layers = [_Layer(name, host, limit) for name, limit in zip(reversed(encodings), limits, strict=True)]

    def feed(self, data: bytes) -> None:
        """Take bytes of the body, once `read` has given all that was fed before; `b""` is its end."""
        self._fed = data
        self.ended = not data

    def read(self) -> bytes:
        """Return plain bytes; `b""` where more must be fed, or at the end.

        Raises:
            APIResponseError: The encoding is broken, unknown, or can't be undone without a package.
            APIConnectionError: The data ends too early.
        """
        try:
            return self._pull(len(self._layers) - 1)
        except _DecodingError as failure:
            error = failure.error
        raise error  # from here, where no bytes of the body are at hand that a traceback could show

    def _pull(self, depth: int) -> bytes:
        """What comes out of a layer next."""
        if depth < 0:
            data, self._fed = self._fed, b""
            return data
        layer = self._layers[depth]
        plain = layer.decode(b"")
        while not plain and (data := self._pull(depth - 1)):
            plain = layer.decode(data)
        return layer.decode(b"", last=True) if self.ended and not plain else plain


class _DecodingError(Exception):
    """Carries an error out to `ContentDecoder.read`."""

    def __init__(self, error: APIError) -> None:
        self.error = error


class _Layer:
    """One encoding of a body, undone if the body is in it."""

    def __init__(self, name: str, host: str, limit: int) -> None:
        self._name = name
        self._host = host
        self._limit = limit
        self._left = b""
        self._codec: _Codec | None = None

    def decode(self, data: bytes, *, last: bool = False) -> bytes:
        """Return what the next bytes stand for; `b""` where more are needed.

        Args:
            data: More of them.
            last: Whether no more will come.
        """
        self._left += data
        plain = self._take_blanks()
        while not plain and (codec := self._find(last)):
            plain = self._decode(codec)
            if not plain and not codec.eof and not self._left:
                if last and not isinstance(codec, _Plain):
                    raise _DecodingError(_cut(self._host, self._name))
                break
        return plain

    def _take_blanks(self) -> bytes:
        """Hand on blank lines in front, which a gateway sends while it waits: gzip and zstd don't begin so."""
        if self._codec is not None or self._name in ("deflate", "br"):
            return b""
        left, self._left = self._left, self._left.lstrip(_BLANK)
        return left[: len(left) - len(self._left)]

    def _find(self, last: bool) -> _Codec | None:
        """What the next bytes are in; None while there are too few of them, or behind the end."""
        codec = self._codec
        if codec is None:
            return self._begin(last)
        return self._begin_member(codec) if codec.eof else codec

    def _begin(self, last: bool) -> _Codec | None:
        """Find out what the body is in; None while there are too few bytes of it."""
        text = _is_text(self._left, last)
        if text is None or (len(self._left) < 2 and not last):
            return None
        self._codec = _Plain() if text else _find_codec(self._name, self._left, self._host)
        return self._codec

    def _begin_member(self, codec: _Codec) -> _Codec | None:
        """Begin the next member behind one that has ended, if there is one; anything else there is padding."""
        if codec.magic and self._left.startswith(codec.magic):
            self._codec = _find_codec(self._name, self._left, self._host)
            return self._codec
        if not codec.magic.startswith(self._left):
            self._left = codec.magic = b""  # nor is there one behind padding
        return None

    def _decode(self, codec: _Codec) -> bytes:
        try:
            plain, self._left = codec.decode(self._left, self._limit)
        except codec.errors:
            raise _DecodingError(_broken(self._host, self._name)) from None
        return plain


def _is_text(start: bytes, last: bool) -> bool | None:
    """Whether a body is plain text, by its first bytes; None where there are too few to tell."""
    if len(start) < len(_BOM) and _BOM.startswith(start):
        return start == b"" if last else None
    start = start.removeprefix(_BOM)
    if re.match(_TEXT_START, start):
        return True
    if start[:_TEXT_BYTES].translate(None, _TEXT):
        return False
    return True if last or len(start) >= _TEXT_BYTES else None


# -- codecs ------------------------------------------------------------------------------------------------------------


class _Codec(ABC):
    """Undoes one encoding.

    Attributes:
        errors: What it raises over data that is in another.
        magic: What a next member of the data begins with; empty where there is never one.
        eof: Whether a member has ended.
    """

    errors: type[Exception] = zlib.error
    magic = b""
    eof = False

    @abstractmethod
    def decode(self, data: bytes, limit: int) -> tuple[bytes, bytes]:
        """Return about `limit` plain bytes at most, and the input that it did not get to; with neither, it needs more.

        After that it is told the rest of the input again, with more behind it.
        """


class _Plain(_Codec):
    """Text as it is."""

    def decode(self, data: bytes, limit: int) -> tuple[bytes, bytes]:
        return data, b""


class _Zlib(_Codec):
    """One member of gzip, or deflate's one."""

    def __init__(self, name: str, start: bytes) -> None:
        self._inflate = zlib.decompressobj(_window_bits(name, start))
        self.magic = _GZIP if start.startswith(_GZIP) else b""

    def decode(self, data: bytes, limit: int) -> tuple[bytes, bytes]:
        plain = self._inflate.decompress(data, limit)
        self.eof = self._inflate.eof
        return plain, self._inflate.unused_data if self.eof else self._inflate.unconsumed_tail


def _window_bits(name: str, start: bytes) -> int:
    """What tells zlib which of its three forms the data is in; it may be labelled as another of them."""
    if start.startswith(_GZIP):
        return 31
    if start[0] & 0x8F == 8 and int.from_bytes(start[:2], "big") % 31 == 0:  # a header that zlib would take
        return 15
    return -15 if name == "deflate" else 31


class _Brotli(_Codec):
    """Brotli by the package `brotli`, or `brotlicffi`, which has the same shape."""

    def __init__(self, module: ModuleType) -> None:
        self.errors = module.error
        self._decompressor = module.Decompressor()

    def decode(self, data: bytes, limit: int) -> tuple[bytes, bytes]:
        left = b""
        if not self._decompressor.can_accept_more_data():
            data, left = b"", data
        plain: bytes = self._decompressor.process(data, output_buffer_limit=limit // 2)  # it gives up to twice as much
        self.eof = self._decompressor.is_finished()
        return plain, left


class _Zstd(_Codec):
    """One frame of Zstandard by the standard library, or its backport."""

    magic = _ZSTD

    def __init__(self, module: ModuleType) -> None:
        self.errors = module.ZstdError
        options = {module.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
        self._decompressor = module.ZstdDecompressor(options=options)

    def decode(self, data: bytes, limit: int) -> tuple[bytes, bytes]:
        left = b""
        if not self._decompressor.needs_input:
            data, left = b"", data
        plain: bytes = self._decompressor.decompress(data, limit)
        self.eof = self._decompressor.eof
        return plain, self._decompressor.unused_data + left


class _Zstandard(_Codec):
    """The same by the package `zstandard`."""

    magic = _ZSTD

    def __init__(self, module: ModuleType) -> None:
        self.errors = module.ZstdError
        self._decompressor = module.ZstdDecompressor(max_window_size=1 << _ZSTD_WINDOW_LOG).decompressobj()

    def decode(self, data: bytes, limit: int) -> tuple[bytes, bytes]:
        plain, end = b"", 0
        while end < len(data) and not plain and not self.eof:
            end += _ZSTD_FED
            plain = self._decompressor.decompress(data[end - _ZSTD_FED : end])
            self.eof = self._decompressor.eof
        return plain, self._decompressor.unused_data + data[end:]


def _find_codec(name: str, start: bytes, host: str) -> _Codec:
    if name in ("gzip", "deflate"):
        return _Zlib(name, start)
    codec = _find_brotli() if name == "br" else _find_zstd() if name == "zstd" else None
    if codec is None:
        raise _DecodingError(_not_undone(host, name))
    return codec


def _find_brotli() -> _Codec | None:
    for name in ("brotli", "brotlicffi"):
        module = _find_module(name)
        # Before 1.2 there was no bound to what comes out at once.
        if module is not None and hasattr(getattr(module, "Decompressor", None), "can_accept_more_data"):
            return _Brotli(module)
    return None


def _find_zstd() -> _Codec | None:
    for name in ("compression.zstd", "backports.zstd"):
        module = _find_module(name)
        if module is not None:
            return _Zstd(module)
    module = _find_module("zstandard")
    return None if module is None else _Zstandard(module)


def _find_module(name: str) -> ModuleType | None:
    try:
        return import_module(name)
    except ImportError:
        return None


# -- errors ------------------------------------------------------------------------------------------------------------

_PACKAGES = {"br": "brotli 1.2 or newer", "zstd": "backports.zstd, or use Python 3.14"}


def _not_undone(host: str, name: str) -> APIError:
    package = _PACKAGES.get(name)
    why = f"which takes a package: install {package}" if package else "which is unknown; try again or use a backup"
    return _encoding_error(f"{host}'s answer came in the content encoding {excerpt(name)[:20]!r}, {why}")


def _broken(host: str, name: str) -> APIError:
    return _encoding_error(
        f"{host}'s answer is broken, or not in its content encoding ({name}), which nobody asked for; try again"
    )


def _encoding_error(text: str) -> APIError:
    return APIResponseError(text, kind="encoding", maybe_billed=True)


def _cut(host: str, name: str) -> APIError:
    return APIConnectionError(
        f"{host}'s answer ends in the middle of its {name} data; try again", kind="truncated body", maybe_billed=True
    )
