"""The liberties that real servers were seen to take with fields that no answer depends on, undone. Pure.

`repair_completion` and `repair_chunk` stand in front of the converter, for answers that it refused as they came. No
text, count or finish reason is made up; what can't be mended is left as it is, and the converter refuses it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from types import NoneType
from typing import cast

from piapi_async.models import Usage
from piapi_async.models.answers import LONGEST_NUMBER
from piapi_async.models.messages import text_of
from piapi_async.wire.parse import JSON

MAX_TOKENS = 1_000_000_000
"""A token count above this is not believed (ours; a thousand times today's longest contexts)."""

MAY_HOLD_MORE = frozenset({"x_groq", "base_resp"})
"""Keys of an answer, or a chunk, that may hold its usage or an error."""

_PROMPT = ("prompt_tokens", "input_tokens")
_COMPLETION = ("completion_tokens", "output_tokens")
_NO_WORDS = ("", "null", "none")
"""What stands for no `finish_reason`."""


def repair_completion(fields: JSON) -> JSON:
    """Return the JSON object of an answer in the form that the converter expects."""
    return _repair(fields, "message", ("delta", "text"))


def repair_chunk(fields: JSON) -> JSON:
    """Return the JSON object of a chunk in the form that the converter expects."""
    return _repair(fields, "delta", ("message", "text"))


def _tell_apart(choices: list[object]) -> None:
    """Number choices by their positions where two have the same index."""
    mended = [cast("JSON", choice) for choice in choices if isinstance(choice, dict)]
    if len({cast("int", choice["index"]) for choice in mended}) < len(mended):
        for i, choice in enumerate(mended):
            choice["index"] = i


def is_word(finish_reason: str | None) -> bool:
    """Whether a `finish_reason` says that the answer has ended."""
    return finish_reason is not None and finish_reason.strip().lower() not in _NO_WORDS


def is_possible(usage: Usage) -> bool:
    """Whether token counts can be true. The sum may leave out what total has: the reasoning."""
    prompt, completion, total = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
    return prompt >= 0 and completion >= 0 and prompt + completion <= total <= MAX_TOKENS


def _repair(fields: JSON, name: str, instead: tuple[str, str]) -> JSON:
    repaired = dict(fields)
    for text in ("id", "object", "model"):
        if not isinstance(repaired.get(text), str):
            repaired.pop(text, None)
    created = repaired.get("created")
    repaired["created"] = int(created) if isinstance(created, float) else _integer(created)
    repaired["usage"] = next((usage for sent in _usages(fields) if (usage := _usage(sent))), None)
    choices = [_choice(i, choice, name, instead) for i, choice in _numbered(fields)]
    _tell_apart(choices)
    repaired["choices"] = choices
    return repaired


def _numbered(fields: JSON) -> Iterable[tuple[int, object]]:
    choices = fields.get("choices")
    if isinstance(choices, list):
        return enumerate(choice for choice in cast("list[object]", choices) if choice is not None)
    return [] if choices is None else [(0, choices)]


def _integer(value: object) -> int | None:
    """A whole number as some servers send it: 1695900828.0 or "1695900828"; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    if isinstance(value, str) and len(value) >= LONGEST_NUMBER:
        return None
    try:
        number = float(value) if isinstance(value, str) and not value.strip().lstrip("-").isdecimal() else value
        whole = int(number)
    except (ValueError, OverflowError):
        return None
    return whole if whole == number or isinstance(number, str) else None


# -- usage -------------------------------------------------------------------------------------------------------------


def _usages(fields: JSON) -> Iterable[object]:
    """The places where servers put their counts."""
    yield fields.get("usage")
    if isinstance(groq := fields.get("x_groq"), dict):
        yield cast("JSON", groq).get("usage")
    for _, choice in _numbered(fields):
        if isinstance(choice, dict):
            yield cast("JSON", choice).get("usage")


def _usage(sent: object) -> JSON | None:
    """Counts that can't be true are treated as missing; a total that can't be is the sum."""
    if not isinstance(sent, dict):
        return None
    counts = cast("JSON", sent)
    prompt, completion = _first(counts, _PROMPT), _first(counts, _COMPLETION)
    if prompt is None or completion is None:
        return None
    total = _integer(counts.get("total_tokens"))
    total = prompt + completion if total is None or total < prompt + completion else total
    if not is_possible(Usage(prompt, completion, total)):
        return None
    mended = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}
    # Fields that need not be there; what is wrong in them must not cost the counts.
    details = {name: _integer(counts.get(name)) for name in ("cached_tokens", "reasoning_tokens")}
    return {**counts, **details, **mended}


def _first(counts: JSON, names: tuple[str, ...]) -> int | None:
    return next((count for name in names if (count := _integer(counts.get(name))) is not None), None)


# -- choices -----------------------------------------------------------------------------------------------------------


def _choice(position: int, sent: object, name: str, instead: tuple[str, str]) -> object:
    """Mend a choice, and put what stands instead of its `message`, or its `delta`, there."""
    if not isinstance(sent, dict):
        return sent
    choice = dict(cast("JSON", sent))
    index = _integer(choice.get("index"))
    choice["index"] = position if index is None else index
    reason = choice.get("finish_reason")
    choice["finish_reason"] = reason if isinstance(reason, str) and is_word(reason) else None
    if not _brings(choice.get(name)) and (part := _take(choice, instead)):
        choice[name] = part
    elif not choice.get(name) and choice.get(name) != {}:
        choice.pop(name, None)
    if isinstance(part := choice.get(name), dict):
        choice[name] = _message(cast("JSON", part), name)
    return choice


def stands_instead(choice: JSON, name: str, other: str) -> bool:
    """Whether the `other` part of a choice brings what is looked for in the one of this name."""
    return not _brings(choice.get(name)) and _brings(choice.get(other))


def _brings(part: object) -> bool:
    """Whether a message or delta brings anything beside its role."""
    return isinstance(part, dict) and any(value for key, value in cast("JSON", part).items() if key != "role")


def _take(choice: JSON, names: tuple[str, str]) -> object:
    """What stands in place of a message or delta; its role is kept where it has one."""
    other, text = names
    if _brings(choice.get(other)):
        return choice.pop(other)
    return {"content": choice.pop(text)} if isinstance(choice.get(text), str) and choice[text] else None


def _message(sent: JSON, name: str) -> JSON:
    part = dict(sent)
    if not isinstance(part.get("role"), str):
        part["role"] = "assistant" if name == "message" else None
    for optional in ("name", "refusal", "tool_call_id"):
        if not isinstance(part.get(optional), str):
            part.pop(optional, None)
    if name == "delta" and isinstance(parts := part.get("content"), list):
        _split_parts(part, cast("list[object]", parts))
    call = part.pop("function_call", None)
    if isinstance(call, dict) and any(cast("JSON", call).values()):
        part["function_call"] = _function(cast("JSON", call))
    elif call and not isinstance(call, dict):
        part["function_call"] = call  # which is refused
    calls = part.pop("tool_calls", None)
    if isinstance(calls, list):
        part["tool_calls"] = [_tool_call(call) for call in cast("list[object]", calls) if call]
    elif calls:
        part["tool_calls"] = [_tool_call(calls)]
    return part


def _split_parts(delta: JSON, parts: list[object]) -> None:
    """Put the text of parts where tokens are looked for, and the parts beside it."""
    if all(isinstance(part, dict) for part in parts):
        delta["content"] = text_of(tuple(cast("list[JSON]", parts))) or None
        delta["content_parts"] = parts


def _tool_call(sent: object) -> object:
    if not isinstance(sent, dict):
        return sent
    call = dict(cast("JSON", sent))
    id_ = call.get("id")
    call["id"] = str(id_) if isinstance(id_, (str, int)) and not isinstance(id_, bool) and str(id_).strip() else None
    if not isinstance(call.get("type"), (str, NoneType)):
        call.pop("type")
    index = _integer(call.get("index"))
    call["index"] = None if index is None or index < 0 else index
    if not isinstance(call.get("function"), dict) and ("arguments" in call or isinstance(call.get("name"), str)):
        call["function"] = {name: call.pop(name) for name in ("name", "arguments") if name in call}
    function = call.pop("function", None)
    if function is not None:
        call["function"] = _function(function)
    return call


def _function(sent: object) -> object:
    if not isinstance(sent, dict):
        return sent
    call = {name: value for name, value in cast("JSON", sent).items() if value is not None}
    if isinstance(call.get("arguments"), (dict, list)):
        call["arguments"] = json.dumps(call["arguments"], ensure_ascii=False)
    return call
