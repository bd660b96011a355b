"""Checks of what a caller asks. Each returns the value to send, or raises `InvalidRequestError` that names the field.

The ranges are those of the provider's page (`temperature`, `top_p`, `n`, `stop`, the penalties); where it gives none
they are OpenAI's, whose API it mirrors. Numbers of NumPy and members of a str `Enum` become plain values.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any, TypeAlias, cast

import attrs

from piapi_async.errors import InvalidRequestError
from piapi_async.models.messages import FunctionCall, Message, ToolCall

MAX_DEPTH = 100
"""How deep JSON may nest, in a request's functions, tools and extra_body as in an answer (ours)."""

Check: TypeAlias = Callable[[str, object], object]


def refuse(field: str, problem: str, remedy: str) -> InvalidRequestError:
    """Make the error that says which field is wrong, why, and what to pass instead."""
    return InvalidRequestError(f"{field}: {problem}; {remedy}")


def _shown(value: object) -> str:
    """A value for an error message: numbers as they are, of everything else the type, as it may hold the prompt."""
    return repr(value) if isinstance(value, (int, float)) and abs(value) < 1e300 else f"a {type(value).__name__}"


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
        return {check_text(f"{field} key", k): check_json(f"{field}.{k}", v, depth + 1) for k, v in pairs}
    if isinstance(value, (list, tuple)):
        items = cast("Sequence[object]", value)
        return tuple(check_json(f"{field}[{i}]", item, depth + 1) for i, item in enumerate(items))
    return _check_json_number(field, value)


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
        check_text(f"{field} key", str(token)): check_number(f"{field}[{token}]", bias, -100, 100)
        for token, bias in pairs
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
    "extra_body": check_mapping,
}
"""The check of each field of `ChatRequest` but the messages."""


# -- messages ----------------------------------------------------------------------------------------------------------


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
    if isinstance(value, Mapping):
        value = _from_mapping(field, cast("Mapping[object, object]", value))
    if not isinstance(value, Message):
        raise refuse(field, f"{_shown(value)} is not a message", "pass Message(...) or {'role': …, 'content': …}")
    return _check_message(field, value)


def _from_mapping(field: str, pairs: Mapping[object, object]) -> Message:
    known = {a.name for a in attrs.fields(Message)}
    unknown = [str(key) for key in pairs if key not in known]
    if unknown:
        raise refuse(field, f"unknown key {unknown[0]!r}", f"a message has {', '.join(sorted(known))}")
    if "role" not in pairs:
        raise refuse(f"{field}.role", "it is missing", 'say who speaks: "system", "user", "assistant", …')
    return Message(**cast("dict[str, Any]", dict(pairs)))


def _check_message(field: str, message: Message) -> Message:
    """Check every field, and copy what is not text, so that later changes by the caller don't reach the request."""
    role = check_text(f"{field}.role", message.role)
    if not role:
        raise refuse(f"{field}.role", "it is empty", 'say who speaks: "system", "user", "assistant", …')
    call = cast("object", message.function_call)
    return Message(
        role,
        _content(f"{field}.content", message.content),
        None if message.name is None else check_text(f"{field}.name", message.name),
        None if call is None else _function_call(f"{field}.function_call", call),
        None if message.tool_calls is None else _tool_calls(f"{field}.tool_calls", message.tool_calls),
        None if message.tool_call_id is None else check_text(f"{field}.tool_call_id", message.tool_call_id),
    )


def _content(field: str, value: object) -> str | tuple[Mapping[str, object], ...] | None:
    if value is None:
        return None
    return check_text(field, value) if isinstance(value, str) else check_mappings(field, value)


def _function_call(field: str, value: object) -> FunctionCall:
    if isinstance(value, FunctionCall):
        value = {"name": value.name, "arguments": value.arguments}
    call = check_mapping(field, value)
    return FunctionCall(
        check_text(f"{field}.name", call.get("name")), check_text(f"{field}.arguments", call.get("arguments"))
    )


def _tool_calls(field: str, value: object) -> tuple[ToolCall, ...]:
    if not isinstance(value, (list, tuple)):
        raise refuse(field, f"{_shown(value)} is not a list", "pass a list")
    return tuple(_tool_call(f"{field}[{i}]", call) for i, call in enumerate(cast("Sequence[object]", value)))


def _tool_call(field: str, value: object) -> ToolCall:
    if isinstance(value, ToolCall):
        value = {"id": value.id, "type": value.type, "function": value.function}
    if not isinstance(value, Mapping):
        raise refuse(field, f"{_shown(value)} is not a tool call", "pass ToolCall(...) or a mapping")
    call = cast("Mapping[str, object]", value)
    return ToolCall(
        function=_function_call(f"{field}.function", call.get("function")),
        id=check_text(f"{field}.id", call.get("id")),
        type=check_text(f"{field}.type", call.get("type") or "function"),
    )
