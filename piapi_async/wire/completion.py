"""The body of an answer that was not streamed → `ChatCompletion`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache

import msgspec

from piapi_async.errors import Secret
from piapi_async.models import ChatCompletion
from piapi_async.wire.convert import converter, structure
from piapi_async.wire.failure import raise_error_object
from piapi_async.wire.parse import JSON, as_unicode, malformed, may_be_deep, parse_object
from piapi_async.wire.repair import is_possible, repair


def decode_completion(body: bytes, *, asked: str = "", secrets: Iterable[Secret] = ()) -> ChatCompletion:
    """Decode the body of an answer that was not streamed.

    Nearly every answer is good as it comes. One that is not is read again, by an engine that takes more, and repaired.

    Args:
        body: The answer's bytes; its declared charset is ignored, as JSON is UTF-8.
        asked: The model that was asked, for an answer that names none.
        secrets: Keys that must not appear in an error.

    Raises:
        APIStatusError: The body is an error object; its child class is the one of the status that it stands for.
        APIResponseError: The body is no completion.
    """
    completion = _decode_as_it_comes(body) or _decode_tolerantly(body, secrets)
    if completion.usage is not None and not is_possible(completion.usage):
        completion.usage = None
    completion.object = completion.object or "chat.completion"
    completion.model = completion.model or asked
    return completion


def _decode_as_it_comes(body: bytes) -> ChatCompletion | None:
    if may_be_deep(body):
        return None
    try:
        fields = msgspec.json.decode(body)
        if fields.get("error") is not None or not fields["choices"]:
            return None
        completion = _structure()(fields, ChatCompletion)
    except Exception:  # the hooks raise whatever a wrong type leads to; the tolerant way says what is wrong
        return None
    completion.body = body
    return completion


@cache
def _structure() -> Callable[[object, object], ChatCompletion]:
    """The converter's hook for completions; to look it up for each answer would cost more than a field."""
    return converter().get_structure_hook(ChatCompletion)


def _decode_tolerantly(body: bytes, secrets: Iterable[Secret]) -> ChatCompletion:
    fields = as_unicode(parse_object(body.decode("utf-8", "replace"), secrets))
    text = json.dumps(fields)
    raise_error_object(fields, secrets)
    if not isinstance(fields.get("choices"), list) or not fields["choices"]:
        raise malformed("it has no choices", text, secrets, "not a completion")
    repaired = repair(fields)
    defaults: JSON = {"id": "", "object": "", "created": 0, "model": ""}
    completion = structure(
        {**repaired, **{name: repaired.get(name) or default for name, default in defaults.items()}},
        ChatCompletion,
        text,
        secrets,
    )
    completion.body = text.encode()
    return completion
