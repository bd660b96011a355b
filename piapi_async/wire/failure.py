"""Errors that a provider sends, in any of the shapes that servers use → this library's errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
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
from piapi_async.wire.error_objects import error_in, error_object, implied_status, means_credit, read_error
from piapi_async.wire.parse import BLANK, JSON, as_unicode, parse_value

__all__ = ["error_from_response", "error_in", "error_object", "raise_error_object", "status_error"]

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
_OTHER_ADVICE = "see the provider's documentation"


_BASE_URL_ADVICE = "check the base URL; it usually ends in /v1. If it is right, check the model name"
"""For a 404 that the API itself did not send."""

_FIREWALL = (
    r"(?i)cloudflare|\bcf-|just a moment|attention required|checking your browser|captcha|challenge|access denied"
    r"|request blocked|akamai|edgesuite|incapsula|imperva|sucuri|datadome|web application firewall|cloudfront"
)
"""Marks of a firewall or a proxy that refuses the client itself, whatever it asks for."""


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
        return _redirect(status, text, location, secrets)
    start = text.lstrip(BLANK)[:1]
    is_json = start in ("{", "[")
    page = start == "<" or ("html" in content_type.lower() and not is_json)
    if page and (status < 400 or (status == 403 and re.search(_FIREWALL, text))):
        return _edge_page(status, text, secrets)
    details: JSON = {"message": "a web page"} if page else _read_body(text)
    edge = (page and status >= 500) or (520 <= status <= 530 and status != 529)
    advice = _BASE_URL_ADVICE if status == 404 and not is_json else None
    return status_error(status, details, text, secrets, edge=edge, advice=advice)


def _redirect(status: int, text: str, location: str | None, secrets: Iterable[Secret]) -> APIStatusError:
    where = f" to {excerpt(_host(location) or 'another path', secrets)}" if location else ""
    return APIStatusError(
        f"the provider redirects{where} (status {status}), which is not followed; correct the base URL",
        kind="redirect",
        status_code=status,
        body=excerpt(text, secrets),
    )


def _host(location: str) -> str | None:
    try:
        return urlsplit(location).hostname
    except ValueError:
        return None


def _edge_page(status: int, text: str, secrets: Iterable[Secret]) -> APIResponseError:
    return APIResponseError(
        f"the answer is a web page, not JSON (status {status}); a proxy or firewall in front of the provider may "
        f"have sent it: {excerpt(text, secrets)[:300]}",
        kind="edge page",
    )


def _read_body(text: str) -> JSON:
    """The error in a body that is known to be one; plain text is an error text too."""
    try:
        value = as_unicode(parse_value(text.strip(BLANK)))
    except (ValueError, RecursionError):
        return {"message": text}
    found = error_in(value)
    details = read_error(value) if found is None else found
    return details if details.keys() & {"message", "code", "type"} else {**details, "message": text}


def raise_error_object(fields: JSON, secrets: Iterable[Secret]) -> None:
    """Raise the error that a JSON object is, if it is one."""
    details = error_object(fields)
    if details is not None:
        raise status_error(implied_status(details), details, json.dumps(fields), secrets)


def status_error(
    status: int,
    details: JSON,
    text: str,
    secrets: Iterable[Secret],
    *,
    edge: bool = False,
    advice: str | None = None,
) -> APIStatusError:
    """Make the error of a status.

    Args:
        status: HTTP status, or the one that an error object stands for.
        details: The error object: `code`, `type`, `message`, `param`.
        text: What came.
        secrets: Keys that must not appear in the error.
        edge: Whether something in front of the provider sent it.
        advice: What to do; None for what one usually does about such a status.
    """
    code = _word(details.get("code"), secrets)
    cls = _status_class(status, details)
    said = details.get("message")
    message = excerpt(said if isinstance(said, str) else "" if said is None else json.dumps(said), secrets)[:500]
    return cls(
        f"the provider answered {status}{f' ({code})' if code and code != str(status) else ''}"
        f"{f': {message}' if message else ''}; {advice or _ADVICE.get(cls, _OTHER_ADVICE)}",
        kind="edge" if edge else "status",
        status_code=status,
        code=code,
        type=_word(details.get("type"), secrets),
        param=_word(details.get("param"), secrets),
        body=excerpt(text, secrets),
        # A gateway's time-out says nothing about the model behind it, which may have done, and billed, the work.
        maybe_billed=status in (504, 524),
    )


def _status_class(status: int, details: JSON) -> type[APIStatusError]:
    if means_credit(details):
        return InsufficientQuotaError
    if details.get("code") == "context_length_exceeded" and status == 413:
        return BadRequestError
    if status >= 500:
        return InternalServerError
    return _BY_STATUS.get(status, APIStatusError)


def _word(value: object, secrets: Iterable[Secret]) -> str | None:
    if value is None or isinstance(value, (dict, list)):
        return None
    return excerpt(str(value), secrets)[:100]
