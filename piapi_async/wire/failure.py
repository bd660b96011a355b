"""Errors that a provider sends, in any of the shapes that servers use → this library's errors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import cast
from urllib.parse import urlsplit

from piapi_async.errors import (
    APIError,
    APIResponseError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InsufficientQuotaError,
    InternalServerError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestTooLargeError,
    Secret,
    UnprocessableEntityError,
    excerpt,
)
from piapi_async.wire.parse import JSON, as_unicode, parse_object

_BY_STATUS: Mapping[int, type[APIStatusError]] = {
    400: BadRequestError,
    401: AuthenticationError,
    402: InsufficientQuotaError,
    403: PermissionDeniedError,
    404: NotFoundError,
    409: ConflictError,
    413: RequestTooLargeError,
    414: RequestTooLargeError,
    422: UnprocessableEntityError,
    429: RateLimitError,
    431: RequestTooLargeError,
}

# What an error object's `code` or `type` means where no status came with it: the status that OpenAI sends with it.
_STATUS_OF: Mapping[str, int] = {
    "authentication_error": 401,
    "billing_hard_limit_reached": 402,
    "context_length_exceeded": 400,
    "engine_overloaded": 503,
    "insufficient_credits": 402,
    "insufficient_quota": 402,
    "internal_error": 500,
    "internal_server_error": 500,
    "invalid_api_key": 401,
    "invalid_request_error": 400,
    "model_not_found": 404,
    "not_found_error": 404,
    "overloaded": 503,
    "overloaded_error": 529,
    "permission_denied": 403,
    "permission_error": 403,
    "quota_exceeded": 402,
    "rate_limit_error": 429,
    "rate_limit_exceeded": 429,
    "requests": 429,
    "server_error": 500,
    "service_unavailable": 503,
    "throttling_error": 429,
    "timeout": 504,
    "tokens": 429,
    "unauthorized": 401,
}
_QUOTA_CODES = frozenset(code for code, status in _STATUS_OF.items() if status == 402)

_ADVICE: Mapping[type[APIStatusError], str] = {
    BadRequestError: "correct the request",
    AuthenticationError: "check the API key",
    InsufficientQuotaError: "top up the account or use a backup",
    PermissionDeniedError: "use another model or a higher plan",
    NotFoundError: "check the model name and the base URL",
    ConflictError: "try again",
    RequestTooLargeError: "send a shorter prompt",
    UnprocessableEntityError: "correct the request",
    RateLimitError: "wait, or send less at once",
    InternalServerError: "try again later or use a backup",
}


def _status_class(status: int, code: str | None, type_: str | None) -> type[APIStatusError]:
    if code in _QUOTA_CODES or type_ in _QUOTA_CODES:
        return InsufficientQuotaError
    if code == "context_length_exceeded" and status == 413:
        return BadRequestError
    if status >= 500:
        return InternalServerError
    return _BY_STATUS.get(status, APIStatusError)


def _word(value: object, secrets: Iterable[Secret]) -> str | None:
    if value is None or isinstance(value, (dict, list)):
        return None
    return excerpt(str(value), secrets)[:100]


def _host(location: str) -> str | None:
    try:
        return urlsplit(location).hostname
    except ValueError:
        return None


def error_from_response(
    status: int,
    body: bytes,
    *,
    content_type: str = "",
    location: str | None = None,
    secrets: Iterable[Secret] = (),
) -> APIError:
    """Make the error that an answer with an error status is.

    Args:
        status: HTTP status, not 200.
        body: The answer's body, or its beginning.
        content_type: Its media type.
        location: Where a redirect points to; the error names the host only.
        secrets: Keys that must not appear in the error.
    """
    text = body.decode("utf-8", "replace")
    if status in (204, 205):
        return APIResponseError(f"the answer is empty: status {status}", kind="empty", maybe_billed=True)
    if 300 <= status < 400:
        where = f" to {excerpt(_host(location) or 'another path', secrets)}" if location else ""
        return APIStatusError(
            f"the provider redirects{where} (status {status}), which is not followed; correct the base URL",
            kind="redirect",
            status_code=status,
            body=excerpt(text, secrets),
        )
    start = text.lstrip("\ufeff \t\r\n")[:1]
    page = start == "<" or ("html" in content_type.lower() and start != "{")
    if page and status < 500:
        return APIResponseError(
            f"the answer is a web page, not JSON (status {status}); a proxy or firewall in front of the provider may "
            f"have sent it: {excerpt(text, secrets)[:300]}",
            kind="edge page",
        )
    fields: JSON = {}
    if not page:
        with suppress(APIResponseError):  # plain text is an error text too
            fields = as_unicode(parse_object(text, ()))
    details = error_object(fields) or {"message": fields.get("detail") or fields.get("message") or text}
    return status_error(status, details, text, secrets, edge=page or (520 <= status <= 530 and status != 529))


def status_error(
    status: int, details: JSON, text: str, secrets: Iterable[Secret], *, edge: bool = False
) -> APIStatusError:
    """Make the error of a status.

    Args:
        status: HTTP status, or the one that an error object stands for.
        details: The error object: `code`, `type`, `message`, `param`.
        text: What came.
        secrets: Keys that must not appear in the error.
        edge: Whether something in front of the provider sent it.
    """
    code, type_ = _word(details.get("code"), secrets), _word(details.get("type"), secrets)
    cls = _status_class(status, code, type_)
    said = details.get("message")
    message = said if isinstance(said, str) else "" if said is None else json.dumps(said)
    message = "a web page" if edge and message.lstrip()[:1] == "<" else excerpt(message, secrets)[:500]
    advice = _ADVICE.get(cls, "see the provider's documentation")
    return cls(
        f"the provider answered {status}{f' ({code})' if code and code != str(status) else ''}"
        f"{f': {message}' if message else ''}; {advice}",
        kind="edge" if edge else "status",
        status_code=status,
        code=code,
        type=type_,
        param=_word(details.get("param"), secrets),
        body=excerpt(text, secrets),
        # A gateway's time-out says nothing about the model behind it, which may have done, and billed, the work.
        maybe_billed=status in (504, 524),
    )


def error_object(fields: JSON) -> JSON | None:
    """The error in a JSON object, in any of the shapes that servers use, or None."""
    error = fields.get("error")
    if isinstance(error, dict):
        return cast("JSON", error)
    if error not in (None, False, ""):
        return {"message": error, "code": fields.get("code"), "type": fields.get("type")}
    if fields.get("object") == "error":
        return fields
    code = fields.get("code")
    if "choices" not in fields and code not in (None, 0, 200) and ("message" in fields or "detail" in fields):
        return {"message": fields.get("message", fields.get("detail")), "code": code}
    return None


def raise_error_object(fields: JSON, secrets: Iterable[Secret]) -> None:
    """Raise the error that a JSON object is, if it is one."""
    details = error_object(fields)
    if details is not None:
        raise status_error(_implied_status(details), details, json.dumps(fields), secrets)


def _implied_status(details: JSON) -> int:
    """The HTTP status that an error object in a 200 stands for; 500 when it gives no hint."""
    for name in ("status", "status_code", "code", "type"):
        value = details.get(name)
        text = str(value).lower()
        if not isinstance(value, bool) and text.isdecimal() and text.isascii() and 400 <= int(text[:9]) <= 599:
            return int(text)
        if text in _STATUS_OF:
            return _STATUS_OF[text]
    return 500
