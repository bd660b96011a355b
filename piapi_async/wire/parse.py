"""Text → JSON, for all that the fast engine refuses: any depth is bounded, every string comes out as valid Unicode."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import NoReturn, TypeAlias, TypeVar, cast

from piapi_async.errors import APIResponseError, ErrorKind, Secret, excerpt
from piapi_async.models import MAX_DEPTH
from piapi_async.models.answers import parse_float, parse_int

JSON: TypeAlias = dict[str, object]
T = TypeVar("T")

SHALLOW = 1600
"""Length of JSON up to which nobody counts its brackets. It nests 800 deep at most, which leaves a fifth of Python's
usual recursion limit to those who look at what was decoded."""

TERMINATORS = ("[done]", "[none]")
"""What ends a stream, in lower case: OpenAI's word, and the one of PiAPI's page."""

BLANK = "\ufeff \t\r\n"
"""What may stand around JSON: a byte order mark and white space."""

# The closing quote is optional: to search for one that is missing would begin anew at each quote. What was taken of a
# string is not given back (`++`, `*+`), so that no memory is needed for ways back.
_BRACKETS = r'(?s)[\[\]{}]|"(?:[^"\\]++|\\.)*+"?'


def may_be_deep(body: bytes) -> bool:
    """Tell by the number of brackets whether JSON may nest too deep for the fast engine."""
    return len(body) > SHALLOW and body.count(b"[") + body.count(b"{") > MAX_DEPTH


def parse_values(text: str, secrets: Iterable[Secret]) -> list[object]:
    """Parse JSON values that stand one behind the other; the last of two equal keys wins.

    A terminator of a stream among them is a value too: the text of it.

    Raises:
        APIResponseError: It is not JSON, or empty.
    """
    problem: str
    kind: ErrorKind
    try:
        _check_depth(text)
        values = list(_values(text))
    except RecursionError:
        problem, kind = "its JSON nests too deep", "response"
    except json.JSONDecodeError as error:
        problem, kind = f"it is not JSON ({error.msg})", "not a completion"
        if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
            problem, kind = "it is cut off", "truncated"
    except ValueError as error:
        problem, kind = f"it is not JSON ({error.args[0]})", "response"
    else:
        if values:
            return values
        problem, kind = "it is empty", "empty"
    raise malformed(problem, text, secrets, kind)


def _values(text: str) -> Iterator[object]:
    at, end = 0, len(text)
    while (at := _skip_blank(text, at)) < end:
        terminator = next((word for word in TERMINATORS if text[at : at + len(word)].lower() == word), None)
        if terminator is not None:
            yield terminator
            at += len(terminator)
        else:
            value, at = _next_value(text, at)
            yield value


def _next_value(text: str, at: int) -> tuple[object, int]:
    try:
        return cast("tuple[object, int]", _decoder.raw_decode(text, at))
    except json.JSONDecodeError as error:
        if not at or error.pos > at:
            raise
    raise json.JSONDecodeError("Extra data", text, at)


def _skip_blank(text: str, at: int) -> int:
    """Skip white space, and the name of an event's field, which frameworks put into its data once more."""
    while at < len(text) and (text[at] in BLANK or text.startswith("data:", at)):
        at += 1 if text[at] in BLANK else 5
    return at


def one_object(values: list[object], text: str, secrets: Iterable[Secret]) -> JSON:
    """Return the only object among parsed values, which may be in a list.

    Args:
        values: What `parse_values` made of the text.
        text: What came, for an error.
        secrets: Keys that must not appear in an error.

    Raises:
        APIResponseError: There is something else.
    """
    value = values[0]
    if isinstance(value, list) and len(cast("list[object]", value)) == 1:
        value = cast("list[object]", value)[0]
    if len(values) > 1:
        raise malformed("it is more than one JSON value", text, secrets, "not a completion")
    if not isinstance(value, dict):
        problem = f"it is JSON, but not an object: {type(values[0]).__name__}"
        raise malformed(problem, text, secrets, "not a completion")
    return cast("JSON", value)


def parse_value(text: str) -> object:
    """Parse any JSON value.

    Raises:
        ValueError: It is not JSON.
        RecursionError: It nests too deep.
    """
    _check_depth(text)
    return _decoder.decode(text.strip(BLANK))


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_decoder = json.JSONDecoder(parse_int=parse_int, parse_float=parse_float, parse_constant=_refuse_constant)


def _check_depth(text: str) -> None:
    depth, most = 0, MAX_DEPTH if len(text) > SHALLOW else SHALLOW // 2
    for found in re.finditer(_BRACKETS, text):  # not all at once: text may hold millions of them
        bracket = found[0]
        depth += 1 if bracket in "[{" else -1 if bracket in "]}" else 0
        if depth > most:
            raise RecursionError


def malformed(problem: str, text: str, secrets: Iterable[Secret], kind: ErrorKind = "response") -> APIResponseError:
    """Make the error for an answer that is no completion.

    Args:
        problem: What is wrong with it, as the end of a sentence.
        text: What came.
        secrets: Keys that must not appear in the error.
        kind: `"not a completion"` for something else, or one with a field that no text can be read from; `"response"`
            for JSON that must not be asked for again.
    """
    if text.lstrip(BLANK)[:1] == "<":
        problem, kind = "it is a web page", "edge page"
    start = f": {excerpt(text[:4000], secrets)[:300]}" if text.strip() else ""
    return APIResponseError(f"the answer is not a chat completion, {problem}{start}", kind=kind, maybe_billed=True)


def as_unicode(value: T) -> T:
    """Make every string of a JSON value fit for UTF-8: surrogate pairs joined, lone halves replaced by U+FFFD."""
    if isinstance(value, str):
        return cast("T", _whole(value))
    # A comprehension would be one more frame for each level, and what nests 800 deep would pass Python's limit.
    if isinstance(value, list):
        return cast("T", list(map(as_unicode, cast("list[object]", value))))
    if isinstance(value, dict):
        fields = cast("JSON", value)
        return cast("T", dict(zip(map(_whole, fields), map(as_unicode, fields.values()), strict=True)))
    return value


def _whole(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
