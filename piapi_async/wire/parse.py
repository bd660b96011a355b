"""Text → JSON, for all that the fast engine refuses: any depth is bounded, every string comes out as valid Unicode."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import NoReturn, TypeAlias, TypeVar, cast

from piapi_async.errors import APIResponseError, ErrorKind, Secret, excerpt
from piapi_async.models import MAX_DEPTH
from piapi_async.models.answers import parse_float, parse_int

JSON: TypeAlias = dict[str, object]
T = TypeVar("T")

SHALLOW = 1600
"""Length of JSON up to which nobody counts its brackets. It nests 800 deep at most, which leaves a fifth of Python's
usual recursion limit to those who look at what was decoded."""

BLANK = "\ufeff \t\r\n"
"""What may stand around JSON: a byte order mark and white space."""

# The closing quote is optional: to search for one that is missing would begin anew at each quote.
_BRACKETS = r'(?s)[\[\]{}]|"(?:[^"\\]+|\\.)*"?'


def may_be_deep(body: bytes) -> bool:
    """Tell by the number of brackets whether JSON may nest too deep for the fast engine."""
    return len(body) > SHALLOW and body.count(b"[") + body.count(b"{") > MAX_DEPTH


def parse_object(text: str, secrets: Iterable[Secret]) -> JSON:
    """Parse any JSON object; the last of two equal keys wins.

    Raises:
        APIResponseError: It is no JSON object.
    """
    text = text.removeprefix("\ufeff")
    problem: str
    kind: ErrorKind
    problem, kind = "it is empty", "empty"
    if text.strip(BLANK):
        try:
            _check_depth(text)
            value: object = json.loads(
                text, parse_int=parse_int, parse_float=parse_float, parse_constant=_refuse_constant
            )
        except RecursionError:
            problem, kind = "its JSON nests too deep", "response"
        except json.JSONDecodeError as error:
            problem, kind = f"it is not JSON ({error.msg})", "not a completion"
            if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
                problem, kind = "it is cut off", "truncated"
        except ValueError as error:
            problem, kind = f"it is not JSON ({error.args[0]})", "response"
        else:
            if isinstance(value, dict):
                return cast("JSON", value)
            problem, kind = f"it is JSON, but not an object: {type(value).__name__}", "not a completion"
    raise malformed(problem, text, secrets, kind)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_depth(text: str) -> None:
    depth, most = 0, MAX_DEPTH if len(text) > SHALLOW else SHALLOW // 2
    for bracket in re.findall(_BRACKETS, text):
        depth += 1 if bracket in "[{" else -1 if bracket in "]}" else 0
        if depth > most:
            raise RecursionError


def malformed(problem: str, text: str, secrets: Iterable[Secret], kind: ErrorKind = "response") -> APIResponseError:
    """Make the error for an answer that is no completion.

    Args:
        problem: What is wrong with it, as the end of a sentence.
        text: What came.
        secrets: Keys that must not appear in the error.
        kind: `"not a completion"` for something else altogether, `"response"` for one with a wrong detail.
    """
    if text.lstrip(BLANK)[:1] == "<":
        problem, kind = "it is a web page", "edge page"
    start = f": {excerpt(text[:4000], secrets)[:300]}" if text.strip() else ""
    return APIResponseError(f"the answer is not a chat completion, {problem}{start}", kind=kind, maybe_billed=True)


def as_unicode(value: T) -> T:
    """Make every string of a JSON value fit for UTF-8: surrogate pairs joined, lone halves replaced by U+FFFD."""
    if isinstance(value, str):
        return cast("T", _whole(value))
    if isinstance(value, list):
        return cast("T", [as_unicode(item) for item in cast("list[object]", value)])
    if isinstance(value, dict):
        return cast("T", {_whole(k): as_unicode(v) for k, v in cast("JSON", value).items()})
    return value


def _whole(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
