"""A request → the bytes and headers to send."""

from __future__ import annotations

import attrs
import msgspec

from piapi_async.errors import InvalidRequestError
from piapi_async.models import ChatRequest, Message, ToolCall
from piapi_async.wire.parse import JSON

MAX_REQUEST_BYTES = 32 << 20
"""Largest request body, 32 MiB (ours: above every vendor's limit for a prompt with pictures)."""


@attrs.frozen(repr=False, eq=False, slots=False)
class Body:
    """The body of a request; no `repr`, log or traceback with locals shows it."""

    content: bytes


def encode_request(request: ChatRequest, model: str, *, include_usage: bool = False) -> Body:
    """Make the body of a request; equal arguments make equal bytes.

    Args:
        request: The request.
        model: The provider's name of the model.
        include_usage: Whether to ask for token counts in a stream, where the request says nothing of it.

    Raises:
        InvalidRequestError: The body is larger than `MAX_REQUEST_BYTES`.
    """
    body = Body(msgspec.json.encode(_fields(request, model, include_usage=include_usage)))
    size = len(body.content)
    if size <= MAX_REQUEST_BYTES:
        return body
    del request, body  # else a traceback would keep the prompt alive
    raise InvalidRequestError(
        f"messages: the request has {size:,} bytes, more than {MAX_REQUEST_BYTES:,}; send a shorter prompt"
    )


def _fields(request: ChatRequest, model: str, *, include_usage: bool) -> JSON:
    fields = _given(request)
    fields["model"] = model
    fields["messages"] = [_message(message) for message in request.messages]
    if not request.stream:
        del fields["stream"]
    elif include_usage:
        fields.setdefault("stream_options", {"include_usage": True})
    if request.extra_body is not None:
        del fields["extra_body"]
        fields.update(request.extra_body)
    return fields


def _message(message: Message) -> JSON:
    fields = _given(message)
    if message.tool_calls is not None:
        fields["tool_calls"] = [_given(call) for call in message.tool_calls]
    return fields


def _given(value: ChatRequest | Message | ToolCall) -> JSON:
    """The fields that are not None; all are JSON already, as they were checked and copied."""
    return {name: field for name, field in value.__dict__.items() if field is not None}


def request_headers(idempotency_key: str, attempt: int, *, stream: bool) -> dict[str, str]:
    """Return the headers of one request, beside those that its session always sends.

    Args:
        idempotency_key: The same for every attempt of a call.
        attempt: Counted from 1.
        stream: Whether the answer is to come as events.
    """
    return {
        "Accept": "text/event-stream" if stream else "application/json",
        "Idempotency-Key": idempotency_key,
        "X-Attempt": str(attempt),
    }
