"""The error in a JSON value: where servers put it, what they call its parts, and the status that it stands for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import cast

from piapi_async.wire.parse import JSON, as_unicode, parse_value

__all__ = ["error_in", "error_object", "implied_status", "means_credit", "read_error"]

_STATUS_OF: Mapping[str, int] = {
    "1113": 402,
    "arrearage": 402,
    "authentication_error": 401,
    "bad_request": 400,
    "billing_hard_limit_reached": 402,
    "context_length_exceeded": 400,
    "deadline_exceeded": 504,
    "engine_overloaded": 503,
    "exceeded_current_quota_error": 402,
    "forbidden": 403,
    "insufficient_balance": 402,
    "insufficient_credits": 402,
    "insufficient_quota": 402,
    "insufficient_user_quota": 402,
    "internal": 500,
    "internal_error": 500,
    "internal_server_error": 500,
    "invalid_api_key": 401,
    "invalid_argument": 400,
    "invalid_request_error": 400,
    "model_not_found": 404,
    "not_found": 404,
    "not_found_error": 404,
    "over_capacity": 503,
    "overloaded": 503,
    "overloaded_error": 529,
    "permission_denied": 403,
    "permission_error": 403,
    "pre_consume_token_quota_failed": 402,
    "quota_exceeded": 402,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "requests": 429,
    "resource_exhausted": 429,
    "server_error": 500,
    "service_unavailable": 503,
    "throttling_error": 429,
    "timeout": 504,
    "tokens": 429,
    "too_many_requests": 429,
    "unauthenticated": 401,
    "unauthorized": 401,
    "unavailable": 503,
}
"""What an error's words mean where no status came with them: the status that OpenAI or Google sends with them, 402 for
the words of resellers that mean the account's credit."""

_STATUS_OF_MINIMAX: Mapping[str, int] = {
    "1001": 504,
    "1002": 429,
    "1004": 401,
    "1008": 402,
    "1039": 429,
    "2013": 400,
}
"""MiniMax has numbers of its own, in a `base_resp` that comes with every answer."""

_HINTS = ("http_code", "status_code", "statusCode", "status")
"""Where a status stands, the plainest name first."""

_CODES = ("code", "error_code", "errcode", "errorCode")
_ERROR_TEXTS = ("error_msg", "error_message", "errorMessage", "detail", "errors")
"""Names of a text, object or list that means an error by being there."""

_TEXTS = ("message", "msg", "errmsg", *_ERROR_TEXTS)
_PARTS: Mapping[str, tuple[str, ...]] = {
    "message": (*_TEXTS, "error"),
    "code": _CODES,
    "type": ("type",),
    "param": ("param",),
    **{hint: (hint,) for hint in _HINTS},
}
"""An error's parts, and what servers call them."""

_FINE = frozenset({"", "0", "200", "success", "ok", "true", "false"})
_FAILED = frozenset({"error", "fail", "failed", "failure"})

_LEVELS = 12
"""How far an error is looked for inside errors; each JSON in JSON takes three (ours)."""

_MOST = 256
"""Items of a list that are looked at, so that no answer, however large, takes long (ours)."""

_LONGEST = 1 << 16
"""Length of a message up to which it may be JSON in JSON (ours)."""


def error_in(value: object) -> JSON | None:
    """Find the error in any JSON value: an object, or the first that is one in a list.

    Returns:
        As `error_object`.
    """
    found = (error_object(item) for item in _objects(value))
    return next((details for details in found if details is not None), None)


def error_object(fields: JSON) -> JSON | None:
    """Find the error in a JSON object, in any of the shapes that servers use.

    Returns:
        Its `message`, `code`, `type`, `param` and hints at its status, as far as it has them; None if there is none.
    """
    error, choices = fields.get("error"), fields.get("choices")
    if _says(error) and not (choices and _is_success(error)):
        return _beside(fields, error)
    # The usage at the end of a stream comes without choices, and is no error either.
    if not choices and not fields.get("usage") and isinstance(error, (dict, list)):
        return _beside(fields, cast("object", error))
    found = _of_groq(fields) or _of_choices(choices) or _of_minimax(fields)
    if found is None and not choices and _is_error(fields):
        found = read_error(fields)
    return found


def read_error(value: object, levels: int = _LEVELS) -> JSON:
    """Read what is known to be an error, whatever its form.

    Args:
        value: An object, a list of objects or texts, a text that may be JSON once more, or a number.
        levels: How many errors inside errors are left to be opened.

    Returns:
        As `error_object`, without what says nothing.
    """
    if isinstance(value, dict):
        return _read_object(cast("JSON", value), levels)
    if isinstance(value, list):
        return _read_list(cast("list[object]", value), levels)
    if isinstance(value, int) and not isinstance(value, bool):
        return {"code": value} if value else {}
    opened = _open(value)
    if opened is not None and levels > 0:
        inner = read_error(opened, levels - 1)
        if "message" in inner:
            return inner
    return {"message": value} if _says(value) else {}


def implied_status(details: JSON) -> int:
    """The HTTP status that an error in a 200 stands for; 500 when it gives no hint."""
    # The message last: one word may be all that there is, as in `{"error": "rate_limit_exceeded"}`.
    names = (*_HINTS, "code", "type", "message")
    return next((status for name in names if (status := _status_of(details.get(name)))), 500)


def means_credit(details: JSON) -> bool:
    """Whether an error says that the account's credit is used up."""
    return any(_status_of(details.get(name)) == 402 for name in ("code", "type", "status"))


def _status_of(value: object) -> int | None:
    """The error status that a number or a word stands for; None if it is neither."""
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        return None
    text = str(value)[:50].strip().lower().replace(" ", "_")
    if text.isdecimal() and text.isascii() and 400 <= int(text) <= 599:
        return int(text)
    return _STATUS_OF.get(text)


def _says(value: object, levels: int = _LEVELS) -> bool:
    """Whether anything in a value is more than null, false, 0, or empty."""
    if levels and isinstance(value, dict):
        return any(_says(item, levels - 1) for item in cast("JSON", value).values())
    if levels and isinstance(value, list):
        return any(_says(item, levels - 1) for item in cast("list[object]", value)[:_MOST])
    return bool(value.strip() if isinstance(value, str) else value)


def _is_success(error: object) -> bool:
    """Whether an error object says that there is none, such as `{"code": 0, "message": "success"}`."""
    if not isinstance(error, dict):
        return False
    said = [value for value in cast("JSON", error).values() if _says(value)]
    return all(isinstance(value, (str, int)) and not _is_bad_code(value) for value in said)


def _objects(value: object) -> list[JSON]:
    """The objects in a list, or the one that a value is."""
    items = cast("list[object]", value)[:_MOST] if isinstance(value, list) else [value]
    return [cast("JSON", item) for item in items if isinstance(item, dict)]


def _known(error: object) -> JSON:
    """What a server calls an error, as it is where it can't be read."""
    return read_error(error) or ({"message": error} if _says(error) else {})


def _beside(fields: JSON, error: object) -> JSON:
    """The error under `error`, with what stands beside it where it has nothing of its own."""
    beside = read_error({name: value for name, value in fields.items() if name != "error"})
    if error is True and "message" in beside:  # {"error": true, "message": "no such model"}
        return beside
    own = _known(error)
    if isinstance(error, str) and "message" in beside:  # {"error": "Bad Request", "message": "n must be a number"}
        texts = _as_text(own["message"]), _as_text(beside["message"])
        own["message"] = ": ".join(dict.fromkeys(texts))
    return {**beside, **own}


def _read_object(value: JSON, levels: int) -> JSON:
    details: JSON = {}
    for part, names in _PARTS.items():
        said = next((value[name] for name in names if _says(value.get(name))), None)
        if said is not None:
            details[part] = said
    if details.get("type") == "error":
        del details["type"]
    if "message" not in details or levels <= 0:
        return details
    inner = read_error(details["message"], levels - 1)
    if not isinstance(details["message"], str) and "message" not in inner:
        return details  # an object that is no error is shown as it is
    return {**inner, **details, "message": inner["message"]}


def _read_list(items: list[object], levels: int) -> JSON:
    """The first error object of a list, or all its texts; of FastAPI's faults, each with its place."""
    objects = _objects(items)
    faults = [fault for item in objects if (fault := _fault(item))]
    if faults:
        return {"message": "; ".join(faults), "status": 422}
    for item in objects:
        details = read_error(item, levels - 1) if levels > 0 else {}
        if details:
            return details
    texts = [item for item in items[:_MOST] if isinstance(item, str) and _says(item)]
    return {"message": "; ".join(texts) if texts else items} if _says(items) else {}


def _fault(item: JSON) -> str:
    """One of FastAPI's faults, such as `{"loc": ["body", "n"], "msg": "field required"}`, as text."""
    place, said = item.get("loc"), item.get("msg")
    if not isinstance(place, list) or not isinstance(said, str):
        return ""
    return f"{'.'.join(str(part) for part in cast('list[object]', place) if isinstance(part, (str, int)))}: {said}"


def _open(value: object) -> object:
    """The JSON in a text, or None."""
    if not isinstance(value, str) or len(value) > _LONGEST or value.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return as_unicode(parse_value(value))
    except (ValueError, RecursionError):
        return None


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _of_groq(fields: JSON) -> JSON | None:
    groq = fields.get("x_groq")
    error = cast("JSON", groq).get("error") if isinstance(groq, dict) else None
    return _known(error) if _says(error) else None


def _of_choices(choices: object) -> JSON | None:
    """The error that a choice holds, or ended with."""
    objects = _objects(choices)
    for choice in objects:
        for part in (choice, choice.get("delta"), choice.get("message")):
            error = cast("JSON", part).get("error") if isinstance(part, dict) else None
            if _says(error):
                return _known(error)
    if any(choice.get("finish_reason") == "error" for choice in objects):
        return {"message": 'it ended the answer with finish_reason "error"'}
    return None


def _of_minimax(fields: JSON) -> JSON | None:
    base = fields.get("base_resp")
    answer = cast("JSON", base) if isinstance(base, dict) else {}
    code = answer.get("status_code")
    if not _is_bad_code(code):
        return None
    return {"message": answer.get("status_msg"), "code": code, "status": _STATUS_OF_MINIMAX.get(str(code), 500)}


def _is_error(fields: JSON) -> bool:
    """Whether an object that has neither `error` nor choices says that it is an error."""
    kind = fields.get("type")
    if fields.get("success") is False or "error" in (kind, fields.get("object")):
        return True
    if not _is_fine(fields) and any(_is_text_of_error(fields.get(name)) for name in _ERROR_TEXTS):
        return True
    return any(name in fields for name in _TEXTS) and (
        (isinstance(kind, str) and kind.lower().endswith("error"))
        or any(_is_bad_code(fields.get(name)) for name in _CODES)
        or any(_is_bad_status(fields.get(name)) for name in _HINTS)
    )


def _is_fine(fields: JSON) -> bool:
    """Whether an object says that all went well, or is under way."""
    status = fields.get("status")
    codes = [fields[name] for name in _CODES if fields.get(name) is not None]
    return (
        fields.get("success") is True
        or (bool(codes) and not any(_is_bad_code(code) for code in codes))
        or (isinstance(status, str) and _says(status) and not _is_bad_status(status))
    )


def _is_text_of_error(value: object) -> bool:
    return _says(value) and not (isinstance(value, str) and value.strip().lower() in _FINE)


def _is_bad_code(code: object) -> bool:
    return isinstance(code, (int, str)) and str(code).strip().lower() not in _FINE


def _is_bad_status(status: object) -> bool:
    return _status_of(status) is not None or (isinstance(status, str) and status.lower() in _FAILED)
