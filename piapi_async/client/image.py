"""`image`: a picture as a part of a message."""

from __future__ import annotations

import os
import stat
from base64 import b64encode
from typing import Literal, cast

from piapi_async.errors import InvalidRequestError

__all__ = ["MAX_IMAGE_BYTES", "image"]

MAX_IMAGE_BYTES = 20_000_000
"""Largest picture, 20 MB (OpenAI's limit at its smallest reading; the provider's page gives none)."""

TAKEN = "a PNG, JPEG, GIF or WebP"
"""What vendors of vision models have in common (OpenAI, Anthropic, Google)."""

_STARTS = {
    b"\x89PNG\r\n\x1a\n": "image/png",
    b"\xff\xd8\xff": "image/jpeg",
    b"GIF87a": "image/gif",
    b"GIF89a": "image/gif",
}

_LONGEST_SHOWN = 200
"""Characters of a path that an error shows; what is longer is likely no path but the picture itself."""


def image(
    source: str | os.PathLike[str] | bytes | bytearray | memoryview,
    detail: Literal["auto", "low", "high"] | None = None,
) -> dict[str, object]:
    """Make a picture a part of a message, to stand beside its text in the list that is the content.

    A file is read at once, which blocks: in async code, call this in a thread if the disk may be slow.

    Args:
        source: A path, the bytes of a PNG, JPEG, GIF or WebP, or a URL (`https://…`, `http://…`, `data:…`).
        detail: How closely the model looks; None for its own default.

    Returns:
        The part: `{"type": "image_url", "image_url": {"url": …}}`. Files and bytes become a data URL.

    Raises:
        InvalidRequestError: There is no such file, it is no such picture, or it has more than 20 MB.
    """
    if detail not in (None, "auto", "low", "high"):
        raise _refuse("detail is not known", 'pass "auto", "low", "high" or None')
    url = source if isinstance(source, str) and _is_url(source) else _data_url(source)
    return {"type": "image_url", "image_url": {"url": url} if detail is None else {"url": url, "detail": detail}}


def _refuse(problem: str, remedy: str) -> InvalidRequestError:
    return InvalidRequestError(f"image: {problem}; {remedy}")


def _is_url(source: str) -> bool:
    return source[:8].lower().startswith(("https://", "http://", "data:"))


def _data_url(source: object) -> str:
    if isinstance(source, (bytes, bytearray, memoryview)):
        view = memoryview(cast("bytes", source))
        name, size = "the bytes", view.nbytes
        content = bytes(view) if size <= MAX_IMAGE_BYTES else b""
    elif isinstance(source, (str, os.PathLike)):
        name, content, size = _read(cast("str | os.PathLike[str]", source))
    else:
        raise _refuse(f"a {type(source).__name__} is no picture", "pass a path, bytes, or a URL")
    if size > MAX_IMAGE_BYTES:
        raise _refuse(f"{name}: {size:,} bytes are more than {MAX_IMAGE_BYTES:,}", "make the picture smaller")
    if not content:
        raise _refuse(f"{name}: it is empty", f"pass {TAKEN}")
    return f"data:{_media_type(name, content)};base64,{b64encode(content).decode()}"


def _read(source: str | os.PathLike[str]) -> tuple[str, bytes, int]:
    """Read a file, unless it is too large; return what to call it in an error, its content, and its size."""
    path = os.fsdecode(source)
    name = (
        repr(os.path.basename(path) or path) if len(path) <= _LONGEST_SHOWN else f"a text of {len(path):,} characters"
    )
    content, size, problem = b"", 0, ""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # to open a pipe might wait for ever
            problem = "it is a directory" if stat.S_ISDIR(status.st_mode) else "it is no regular file"
        elif status.st_size <= MAX_IMAGE_BYTES:
            with open(path, "rb") as file:
                content = file.read(MAX_IMAGE_BYTES + 1)
        size = max(status.st_size, len(content))
    except OSError as error:
        problem = error.strerror or type(error).__name__
    except ValueError:
        problem = "it has a null character"
    if problem and isinstance(source, str):
        raise _refuse(
            f"{name} is neither a URL (https://, http://, data:) nor a file that can be read ({problem})",
            "check the path, or pass the bytes of the picture",
        )
    if problem:
        raise _refuse(f"{name} is no file that can be read ({problem})", "check the path")
    return name, content, size


def _media_type(name: str, content: bytes) -> str:
    """Tell the media type by the content; a name may be wrong."""
    for start, media_type in _STARTS.items():
        if content.startswith(start):
            return media_type
    if content.startswith(b"RIFF") and content[8:12] == b"WEBP":
        return "image/webp"
    raise _refuse(f"{name}: it is none of PNG, JPEG, GIF and WebP", "convert it to one of them")
