"""Checks of what a caller asks. Each returns the value to send, or raises `InvalidRequestError` that names the field.

The ranges are those of the provider's page (`temperature`, `top_p`, `n`, `stop`, the penalties); where it gives none
they are OpenAI's, whose API it mirrors. Numbers of NumPy and members of a str `Enum` become plain values.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, TypeAlias, cast

import attrs

from piapi_async.errors import InvalidRequestError
from piapi_async.models.messages import FunctionCall, Message, ToolCall

MAX_DEPTH = 100
"""How deep JSON may nest, in a request's functions, tools and extra_body as in an answer (ours)."""

_SHORT_WORD = "[a-z_]{1,20}|[0-9]{1,10}"

Check: TypeAlias = Callable[[str, object], object]


def refuse(field: str, problem: str, remedy: str) -> InvalidRequestError:
    """Make the error that says which field is wrong, why, and what to pass instead."""
    return InvalidRequestError(f"{field}: {problem}; {remedy}")


def _shown(value: object) -> str:
    """A value for an error message: numbers as they are, of everything else the type, as it may hold the prompt."""
    return repr(value) if isinstance(value, (int, float)) and abs(value) < 1e300 else f"a {type(value).__name__}"


def show_fields(self: Any) -> str:
    """Write an attrs object as attrs does, and also one that is half made, as a traceback out of `__init__` may ask."""
    made = ((field, self.__dict__[field.name]) for field in attrs.fields(self.__class__) if field.name in self.__dict__)
    shown = (f"{each.name}={each.repr(v) if callable(each.repr) else repr(v)}" for each, v in made if each.repr)
    return f"{type(self).__name__}({', '.join(shown)})"


def check_number(field: str, value: object, low: float, high: float) -> int | float:
    """Check a number and its range."""
    number = plain_number(value)
    if number is None or not low <= number <= high:
        shown = "NaN" if isinstance(number, float) and math.isnan(number) else _shown(value)
        raise refuse(field, f"{shown} is not a number in range", f"pass a number from {low:g} to {high:g}")
    return number


def plain_number(value: object) -> int | float | None:
    """Return a number of any library as Python's own; None if it is none."""
    if type(value) is int or type(value) is float:  # first, as they are by far the most
        return value
    if isinstance(value, bool):
        return None
    if isinstance(value, Integral):
        return int(value)
    return _plain_float(value) if isinstance(value, Real) else None


def _plain_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # such as a fraction above 1.8e308
        return math.inf


def check_integer(field: str, value: object, low: int, high: int | None) -> int:
    """Check a whole number and its range."""
    number = plain_number(value)
    if not isinstance(number, int) or number < low or (high is not None and number > high):
        span = f"{low} or more" if high is None else f"from {low} to {high}"
        raise refuse(field, f"{_shown(value)} is not a whole number in range", f"pass a whole number, {span}")
    return number


def check_flag(field: str, value: object) -> bool:
    """Check a bool."""
    if not isinstance(value, bool):
        raise refuse(field, f"{_shown(value)} is not a bool", "pass True or False")
    return value


def check_text(field: str, value: object) -> str:
    """Check a text: a str that UTF-8 can carry."""
    if not isinstance(value, str):
        raise refuse(field, f"{_shown(value)} is not text", "pass a str")
    text = value if type(value) is str else str.__str__(value)
    if not text.isascii() and not _is_utf8(text):
        raise refuse(field, "the text has a lone surrogate, which no UTF-8 can carry", "remove or replace it")
    return text


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def check_stop(field: str, value: object) -> str | tuple[str, ...]:
    """Check up to 4 texts, or one."""
    if isinstance(value, str):
        return check_text(field, value)
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)):
        raise refuse(field, f"{_shown(value)} is not text or a list of texts", "pass up to 4 strings")
    items = cast("Sequence[object]", value)
    if len(items) > 4:
        raise refuse(field, f"{len(items)} sequences are too many", "pass up to 4 strings")
    return tuple(check_text(f"{field}[{i}]", item) for i, item in enumerate(items))


def check_json(field: str, value: object, depth: int = 0) -> object:
    """Check that a value is JSON, and copy it, so that what the caller changes later does not change the request."""
    if depth > MAX_DEPTH:
        raise refuse(field[:80], f"it nests deeper than {MAX_DEPTH}, or contains itself", "flatten it")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return check_text(field, value)
    if isinstance(value, Mapping):
        pairs = cast("Mapping[object, object]", value).items()
        return {
            check_text(f"{field} key", k): check_json(f"{field}.{_name_of(k, i)}", v, depth + 1)
            for i, (k, v) in enumerate(pairs)
        }
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        return tuple(check_json(f"{field}[{i}]", item, depth + 1) for i, item in enumerate(items))
    return _check_json_number(field, value)


def _name_of(key: object, index: int) -> str:
    """What to call a key in an error: a short word or number as it is, another by its place, as it may be a prompt."""
    return str(key) if re.fullmatch(_SHORT_WORD, str(key)) else f"[key {index + 1}]"


def _check_json_number(field: str, value: object) -> int | float:
    number = plain_number(value)
    if isinstance(number, int):
        return check_integer(field, number, -(2**63), 2**64 - 1)
    if number is None:
        raise refuse(field, f"a {type(value).__name__} is not JSON", "pass str, numbers, bool, None, mappings or lists")
    if not math.isfinite(number):
        raise refuse(field, f"{number} is not JSON", "pass a finite number")
    return number


def check_mapping(field: str, value: object) -> Mapping[str, object]:
    """Check a JSON object."""
    if not isinstance(value, Mapping):
        raise refuse(field, f"{_shown(value)} is not a mapping", "pass a mapping with string keys")
    return cast("Mapping[str, object]", check_json(field, cast("object", value)))


def check_extra_body(field: str, value: object) -> Mapping[str, object]:
    """Check what goes into the body beside the fields: what has a field of its own would get past its check there."""
    extra = check_mapping(field, value)
    for name in extra:
        own = name.casefold()  # as servers written in Go read a key in any case
        if own in CHECKS or own in _CALLED:
            remedy = _CALLED.get(own, f"pass it by its own keyword, {own}=…")
            raise refuse(field, f"{name!r} is a parameter of the call", remedy)
    return extra


_CALLED: Mapping[str, str] = {
    "messages": "pass it by its own keyword, messages=…, or as the prompt",
    "stream": "call client.stream() for a stream, client.complete() for none",
}
"""What to do instead, where a field is not passed by its name."""


def check_mappings(field: str, value: object) -> tuple[Mapping[str, object], ...]:
    """Check a list of JSON objects."""
    if not isinstance(value, (list, tuple)):
        raise refuse(field, f"{_shown(value)} is not a list", "pass a list of mappings")
    return tuple(check_mapping(f"{field}[{i}]", item) for i, item in enumerate(cast("Sequence[object]", value)))


def check_functions(field: str, value: object) -> tuple[Mapping[str, object], ...]:
    """Check descriptions of functions: JSON objects with a name."""
    functions = check_mappings(field, value)
    for i, function in enumerate(functions):
        if not function.get("name") or not isinstance(function["name"], str):
            raise refuse(f"{field}[{i}].name", "it is missing", "give each function a name")
    return functions


def check_choice(field: str, value: object, words: tuple[str, ...]) -> object:
    """Check one of several words, or a JSON object that names one."""
    if isinstance(value, Mapping):
        return check_mapping(field, cast("object", value))
    if value not in words:
        shown = repr(value) if isinstance(value, str) and len(value) < 40 else _shown(value)
        raise refuse(field, f"{shown} is not known", f"pass one of {', '.join(words)}, or a mapping that names one")
    return value


def check_bias(field: str, value: object) -> Mapping[str, int | float]:
    """Check token ids and what each gets added to its likelihood."""
    if not isinstance(value, Mapping):
        raise refuse(field, f"{_shown(value)} is not a mapping", "map token ids to numbers from -100 to 100")
    pairs = cast("Mapping[object, object]", value).items()
    return {
        check_text(f"{field} key", str(token)): check_number(f"{field}[{_name_of(token, i)}]", bias, -100, 100)
        for i, (token, bias) in enumerate(pairs)
    }


CHECKS: Mapping[str, Check] = {
    "model": check_text,
    "stream": check_flag,
    "functions": check_functions,
    "function_call": partial(check_choice, words=("none", "auto")),
    "temperature": partial(check_number, low=0, high=2),
    "top_p": partial(check_number, low=0, high=1),
    "n": partial(check_integer, low=1, high=None),
    "stop": check_stop,
    "max_tokens": partial(check_integer, low=1, high=None),
    "presence_penalty": partial(check_number, low=-2, high=2),
    "frequency_penalty": partial(check_number, low=-2, high=2),
    "logit_bias": check_bias,
    "tools": check_mappings,
    "tool_choice": partial(check_choice, words=("none", "auto", "required")),
    "response_format": check_mapping,
    "seed": partial(check_integer, low=-(2**63), high=2**63 - 1),
    "user": check_text,
    "max_completion_tokens": partial(check_integer, low=1, high=None),
    "reasoning_effort": check_text,
    "stream_options": check_mapping,
    "logprobs": check_flag,
    "top_logprobs": partial(check_integer, low=0, high=20),
    "extra_body": check_extra_body,
}
"""The check of each field of `ChatRequest` but the messages."""


# -- messages ----------------------------------------------------------------------------------------------------------

_FIELDS: Mapping[type[object], frozenset[str]] = {
    kind: frozenset(field.name for field in attrs.fields(kind)) - {"extra"}
    for kind in (Message, ToolCall, FunctionCall)
}
"""The keys that have a field of their own."""

_MEANT = {"text": "content", "args": "arguments"}
"""Other words for a key → the key, where the spelling does not tell."""

_CLOSE = 0.85
"""From how alike on, as `difflib` counts, a key is another one misspelt. `tool_plan` is less like `tool_calls`."""


def check_messages(value: object) -> tuple[Message, ...]:
    """Check a prompt: a text, which is one user message, or messages."""
    if isinstance(value, str):
        return (Message("user", check_text("prompt", value)),)
    if not isinstance(value, Sequence) or isinstance(value, (bytes, bytearray)):
        raise refuse("prompt", f"{_shown(value)} is not a prompt", "pass a str, a list of messages or a ChatRequest")
    items = cast("Sequence[object]", value)
    if not items:
        raise refuse("messages", "there is none", "pass at least one message")
    return tuple(_message(f"messages[{i}]", item) for i, item in enumerate(items))


def _message(field: str, value: object) -> Message:
    """Check every field, and copy what is not text, so that later changes by the caller don't reach the request."""
    get = _fields(field, value, Message, "a message", "Message(...) or {'role': …, 'content': …}").get
    role = check_text(f"{field}.role", get("role", ""))
    if not role:
        raise refuse(f"{field}.role", "it is missing or empty", 'say who speaks: "system", "user", "assistant", …')
    call, calls, extra = get("function_call"), get("tool_calls"), get("extra")
    call, calls = None if call == "" else call, None if calls in ("", {}) else calls  # as some servers write none
    return Message(
        role,
        _content(f"{field}.content", get("content")),
        _text_or_none(f"{field}.name", get("name")),
        None if call is None else _function_call(f"{field}.function_call", call),
        None if calls is None else _tool_calls(f"{field}.tool_calls", calls),
        _text_or_none(f"{field}.tool_call_id", get("tool_call_id")),
        _text_or_none(f"{field}.refusal", None if get("refusal") is False else get("refusal")),
        extra={} if extra is None else _extra(field, extra, Message),
    )


def _fields(field: str, value: object, kind: type[object], name: str, remedy: str) -> Mapping[str, object]:
    """The fields of a message or a call, not yet checked; a mapping's keys that have no field are in `extra`."""
    if isinstance(value, kind):
        return _unfolded(value.__dict__)
    if not isinstance(value, Mapping):
        raise refuse(field, f"{_shown(value)} is not {name}", f"pass {remedy}")
    pairs, known = cast("Mapping[str, object]", value), _FIELDS[kind]
    if pairs.keys() <= known:  # as nearly always
        return pairs
    fields: dict[str, object] = {key: item for key, item in pairs.items() if key in known}
    extra = {key: item for key, item in pairs.items() if key not in known}
    for key in extra:
        meant = _meant(key, known - fields.keys())
        if meant is not None:
            raise refuse(field, f"unknown key {key!r}", f"did you mean {meant!r}?")
    return fields | {"extra": extra}


def _unfolded(fields: Mapping[str, object]) -> Mapping[str, object]:
    """The fields of an object; what is in `extra`, but has a field that is unset, is put there.

    An answer that was joined of chunks may have such: a chunk has fewer fields than a message.
    """
    extra = fields["extra"]
    if not isinstance(extra, dict) or fields.keys().isdisjoint(cast("dict[object, object]", extra)):
        return fields
    pairs = cast("dict[str, object]", extra)
    own = {key: item for key, item in pairs.items() if key in fields and fields[key] is None}
    return {**fields, **own, "extra": {key: item for key, item in pairs.items() if key not in own}}


def _meant(key: object, absent: frozenset[str]) -> str | None:
    """The absent key of which this one is a misspelling, if it is one."""
    import difflib  # deferred: few programs send what has no field

    if not isinstance(key, str):
        return None
    meant = _MEANT.get(key)
    if meant in absent:
        return meant
    return next(iter(difflib.get_close_matches(key.lower(), absent, n=1, cutoff=_CLOSE)), None)


def _extra(field: str, value: object, kind: type[object]) -> Mapping[str, object]:
    """Check what has no field; nulls are left out."""
    if type(value) is dict and not value:  # as nearly always
        return {}
    if not isinstance(value, Mapping):
        raise refuse(f"{field}.extra", f"{_shown(value)} is not a mapping", "pass a mapping with string keys")
    pairs = check_mapping(field, cast("object", value))
    extra = {key: item for key, item in pairs.items() if item is not None}
    for key in sorted(_FIELDS[kind] & extra.keys()):
        raise refuse(f"{field}.extra", f"{key!r} has a field of its own", f"pass it as {key}=…")
    return extra


def _text_or_none(field: str, value: object) -> str | None:
    return None if value is None else check_text(field, value)


def _content(field: str, value: object) -> str | tuple[Mapping[str, object], ...] | None:
    if value is None or isinstance(value, str):
        return value if value is None else check_text(field, value)
    if not isinstance(value, (list, tuple)):
        raise refuse(field, f"{_shown(value)} is not a content", "pass a str, or a list of str and parts as of image()")
    return tuple(_part(f"{field}[{i}]", part) for i, part in enumerate(cast("Sequence[object]", value)))


def _part(field: str, value: object) -> Mapping[str, object]:
    if isinstance(value, str):
        return {"type": "text", "text": check_text(field, value)}
    if not isinstance(value, Mapping):
        raise refuse(field, f"{_shown(value)} is not a part", "pass a str, image(…), or another mapping")
    return check_mapping(field, cast("object", value))


def _function_call(field: str, value: object) -> FunctionCall:
    get = _fields(field, value, FunctionCall, "a function call", "FunctionCall(...) or a mapping").get
    arguments, extra = get("arguments"), get("extra")
    if isinstance(arguments, Mapping):  # as gateways to DeepSeek and Gemini send them
        arguments = _json(check_mapping(f"{field}.arguments", cast("object", arguments)))
    return FunctionCall(
        check_text(f"{field}.name", get("name")),
        "" if arguments is None else check_text(f"{field}.arguments", arguments),
        extra={} if extra is None else _extra(field, extra, FunctionCall),
    )


def _json(value: object) -> str:
    import json  # deferred: few programs send such a call back

    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _tool_calls(field: str, value: object) -> tuple[ToolCall, ...] | None:
    """Check tool calls; an empty list is none."""
    if not isinstance(value, (list, tuple)):
        raise refuse(field, f"{_shown(value)} is not a list", "pass a list")
    calls = enumerate(cast("Sequence[object]", value))
    return tuple(_tool_call(f"{field}[{i}]", call) for i, call in calls if call is not None) or None


def _tool_call(field: str, value: object) -> ToolCall:
    """Check a tool call; its index, which a request has no word for, is left out."""
    get = _fields(field, value, ToolCall, "a tool call", "ToolCall(...) or a mapping").get
    kind, function, extra = check_text(f"{field}.type", get("type") or "function"), get("function"), get("extra")
    if function is None and kind != "function":  # what such a call has instead, such as "custom", is in `extra`
        function = FunctionCall()
    return ToolCall(
        _function_call(f"{field}.function", function),
        _text_or_none(f"{field}.id", str(id_) if type(id_ := get("id")) is int else id_),
        kind,
        extra={} if extra is None else _extra(field, extra, ToolCall),
    )
