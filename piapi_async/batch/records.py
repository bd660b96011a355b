"""The format of a line of the results: OpenAI's batch output, with a note and a checksum at its end.

The checksum tells a whole line from a damaged one without parsing the answer, which may be large.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator
from hashlib import blake2b

import attrs
import msgspec

__all__ = [
    "FORMAT",
    "LINES_A_TURN",
    "Note",
    "ShortNote",
    "has_note",
    "is_blank",
    "is_cut_short",
    "key_of",
    "make_line",
    "read_notes",
    "read_short_note",
    "version_of",
]

FORMAT = 1
"""Version of the note. A file with a higher one is refused, because we can't know what its fields mean."""

LINES_A_TURN = 2000
"""Lines, of the input too, that are read before other tasks get their turn: some 10 ms (ours)."""

_START = b'{"id":"batch_req_'
_MARK = b',"piapi_async":'
_CHECKSUM = b',"crc":"%08x"}}\n'
_TAIL = len(_CHECKSUM % 0)
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@attrs.frozen(kw_only=True)
class Note:
    """What a line says about its result, under `"piapi_async"`.

    Attributes:
        version: `FORMAT` of the release that wrote it.
        key: Hash of the row's `custom_id`, 16 hexadecimal digits.
        request: Hash of the request and of the base URL, 16 hexadecimal digits.
        failed: Whether the row failed.
        kind: `"ok"`, or what failed.
        provider: Name of the provider that answered, or that failed last.
        model: The model, by the caller's name.
        cost: US dollars; None if unknown.
        cost_estimated: Whether the cost comes from estimated token counts.
        saved: US dollars that it cost less than at the vendor's own price, as far as that is known.
        run: Names the run that wrote it; empty in the first releases.
        unknown: US dollars that requests whose bill is unknown may have cost, in that run up to this line; in a line
            without a run's name, in the whole batch.
        tokens_in: Tokens of the prompt, if the provider counted them.
        tokens_out: Tokens of the answer, if the provider counted them.
        attempts: Requests that were sent.
        latency: Seconds that the last request took.
        first_token: Seconds until its first event, if it was streamed.
        elapsed: Seconds from start to end, with waits and retries.
        finished: Unix time, seconds.
    """

    version: int = FORMAT
    key: str
    request: str
    failed: bool = False
    kind: str = "ok"
    provider: str = ""
    model: str = ""
    cost: str | None = None
    cost_estimated: bool = False
    saved: str = "0"
    run: str = ""
    unknown: str = "0"
    tokens_in: int | None = None
    tokens_out: int | None = None
    attempts: int = 0
    latency: float = 0.0
    first_token: float | None = None
    elapsed: float = 0.0
    finished: float = 0.0


@attrs.frozen
class ShortNote:
    """The fields of a `Note` that a resume needs. Fewer fields decode faster, and a file may have millions of lines."""

    version: int
    key: str
    request: str
    failed: bool = False
    cost: str | None = None
    saved: str = "0"
    run: str = ""
    unknown: str = "0"


_decode_short_note = msgspec.json.Decoder(ShortNote).decode
_decode_note = msgspec.json.Decoder(Note).decode


def key_of(custom_id: str) -> str:
    """Return the hash that stands for a row's id."""
    return blake2b(custom_id.encode(), digest_size=8).hexdigest()


def make_line(custom_id: str, response: object, error: object, note: Note) -> bytes:
    """Make the line of one result."""
    result = {"id": f"batch_req_{note.key}", "custom_id": custom_id, "response": response, "error": error}
    head = msgspec.json.encode(result)[:-1] + _MARK + msgspec.json.encode(note)[:-1]
    return head + _CHECKSUM % zlib.crc32(head)


def _find_note(line: bytes) -> bytes | None:
    """Return the JSON of a line's note, or None if the line is damaged or not ours."""
    if line.endswith(b"\r\n") or line.startswith(_BYTE_ORDER_MARK):  # an editor has been at it
        line = line.removeprefix(_BYTE_ORDER_MARK).rstrip(b"\r\n") + b"\n"
    head = line[:-_TAIL]
    if line[-_TAIL:] != _CHECKSUM % zlib.crc32(head):
        return None
    return line[head.rfind(_MARK) + len(_MARK) : -2]


def read_short_note(line: bytes) -> ShortNote | None:
    """Read the note of a line; None if the line is damaged, or the note is not in today's format."""
    content = _find_note(line)
    if content is None:
        return None
    try:
        return _decode_short_note(content)
    except msgspec.DecodeError:  # the checksum is right, so another release wrote it
        return None


def read_notes(path: str | os.PathLike[str]) -> Iterator[Note]:
    """Read the notes of a file of results, for statistics. Damaged lines are left out.

    Raises:
        OSError: The file can't be read.
        msgspec.DecodeError: A newer release wrote it.
    """
    with open(path, "rb") as file:
        for line in file:
            note = _find_note(line if line.endswith(b"\n") else line + b"\n")
            if note is not None:
                yield _decode_note(note)


def has_note(line: bytes) -> bool:
    """Tell whether a line, damaged or not, seems to have a note of ours."""
    return _MARK in line


def is_blank(line: bytes) -> bool:
    """Tell whether a line holds nothing, as an editor may leave one."""
    return not line.removeprefix(_BYTE_ORDER_MARK).strip()


def is_cut_short(line: bytes) -> bool:
    """Tell whether a line may be the beginning of one of ours. Complete JSON without a note is someone else's."""
    if not line.startswith(_START[: len(line)]):
        return False
    try:
        msgspec.json.decode(line)
    except (ValueError, RecursionError):
        return True
    return has_note(line)


def version_of(line: bytes) -> int:
    """Return the version in a line that we can't read as one of ours; 0 if it names none."""
    try:
        version: object = msgspec.json.decode(line)["piapi_async"]["version"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return 0
    return version if isinstance(version, int) else 0
