"""The liberties that real servers were seen to take with fields that no answer depends on, undone. Pure.

`repair` stands in front of the converter, for answers that it refused as they came.
"""

from __future__ import annotations

from typing import cast

from piapi_async.models import Usage
from piapi_async.models.answers import LONGEST_NUMBER
from piapi_async.wire.parse import JSON

MAX_TOKENS = 1_000_000_000
"""A token count above this is not believed (ours; a thousand times today's longest contexts)."""


def repair(fields: JSON) -> JSON:
    """Return an answer's JSON object in the form that the converter expects, as far as no text has to be made up."""
    repaired = dict(fields)
    for name in ("id", "object", "model"):
        if not isinstance(repaired.get(name), str):
            repaired.pop(name, None)
    repaired["created"] = _integer(repaired.get("created"))
    repaired["usage"] = _usage(repaired.get("usage"))
    if repaired.get("choices") is None:
        repaired["choices"] = []
    if isinstance(choices := repaired["choices"], list):
        repaired["choices"] = [_choice(i, choice) for i, choice in enumerate(cast("list[object]", choices))]
    return repaired


def is_possible(usage: Usage) -> bool:
    """Whether token counts can be true."""
    prompt, completion, total = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
    return prompt >= 0 and completion >= 0 and prompt + completion == total <= MAX_TOKENS


def _integer(value: object) -> object:
    """`created` as some servers send it: 1695900828.0 or "1695900828". A number too long for Python is refused."""
    if isinstance(value, str) and len(value) >= LONGEST_NUMBER:
        return value
    try:
        return int(cast("str", value)) if isinstance(value, (int, float, str)) else None
    except (ValueError, OverflowError):
        return None


def _usage(usage: object) -> JSON | None:
    """Usage that can't be true is treated as missing; a missing total is the sum."""
    if not isinstance(usage, dict):
        return None
    counts = cast("JSON", usage)
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int:
        return None
    total = counts.get("total_tokens", prompt + completion)
    if type(total) is not int or not is_possible(Usage(prompt, completion, total)):
        return None
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def _choice(position: int, choice: object) -> object:
    if not isinstance(choice, dict):
        return choice
    repaired = dict(cast("JSON", choice))
    repaired.setdefault("index", position)
    if repaired.get("delta") is None:
        repaired.pop("delta", None)
    for name in ("message", "delta"):
        if isinstance(part := repaired.get(name), dict):
            repaired[name] = _message(cast("JSON", part), name)
    return repaired


def _message(part: JSON, name: str) -> JSON:
    repaired = dict(part)
    if name == "message":
        repaired.setdefault("role", "assistant")
    if isinstance(call := repaired.get("function_call"), dict):
        repaired["function_call"] = _without_nulls(cast("JSON", call))
    if isinstance(calls := repaired.get("tool_calls"), list):
        repaired["tool_calls"] = [_tool_call(call) for call in cast("list[object]", calls)]
    return repaired


def _tool_call(call: object) -> object:
    if not isinstance(call, dict):
        return call
    repaired = dict(cast("JSON", call))
    function = repaired.pop("function", None)
    if function is not None:
        repaired["function"] = _without_nulls(cast("JSON", function)) if isinstance(function, dict) else function
    return repaired


def _without_nulls(value: JSON) -> JSON:
    return {k: v for k, v in value.items() if v is not None}
