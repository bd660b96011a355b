"""The wire format: a request to bytes; bytes to a completion, a chunk or an error. No IO, no clock.

Answers are decoded twice at most. First by msgspec, into a `WireCompletion` or a `WireChunk`: strict and
fast, and enough for nearly every answer. What it refuses, or what names an error, is read again by the tolerant way:
the standard library's JSON, which knows lone surrogates; then `_normalise`, which grants the liberties that real
servers take; then cattrs, which still coerces nothing. Whatever either engine raises, the caller sees this library's
errors only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Literal, NoReturn, TypeAlias, TypeVar, cast, get_args, get_origin
from urllib.parse import urlsplit

import attrs
import cattrs
import msgspec
from cattrs.gen import make_dict_structure_fn, override

from piapi_async.errors import (
    APIError,
    APIResponseError,
    APIStatusError,
    AuthenticationError,
    BadRequestError,
    ConflictError,
    InsufficientQuotaError,
    InternalServerError,
    InvalidRequestError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    RequestTooLargeError,
    Secret,
    UnprocessableEntityError,
    excerpt,
)
from piapi_async.models import (
    MAX_DEPTH,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Choice,
    ChunkChoice,
    Content,
    Delta,
    FunctionCall,
    ToolCall,
    Usage,
)
from piapi_async.sse import ServerSentEvent

__all__ = [
    "Body",
    "ChunkDecoder",
    "WireChoice",
    "WireChunk",
    "WireCompletion",
    "WireDelta",
    "as_chunk",
    "decode_completion",
    "encode_request",
    "error_from_response",
]

MAX_REQUEST_BYTES = 32 << 20
"""Largest request body, 32 MiB (ours: above every vendor's limit for a prompt with pictures)."""

JSON: TypeAlias = dict[str, object]
Anything: TypeAlias = object  # for a class that has a field of this name
T = TypeVar("T")

NO_COMPLETION = "not a completion"
"""Kind of the error for an answer that is something else altogether; one with a wrong detail is a `"response"`."""


# -- requests --------------------------------------------------------------------------------------------------------


class Body(msgspec.Struct, eq=False, gc=False):
    """The body of a request; no `repr`, log or traceback with locals shows it."""

    content: bytes

    __repr__ = object.__repr__


def encode_request(request: ChatRequest, model: str, *, include_usage: bool = False) -> Body:
    """Make the body of a request; equal arguments make equal bytes.

    Args:
        request: The request.
        model: The provider's name of the model.
        include_usage: Whether to ask for token counts in a stream, where the request says nothing of it.

    Raises:
        InvalidRequestError: The body is larger than `MAX_REQUEST_BYTES`.
    """
    # What is sent is what is given, and that is all that a request holds, and each message in it.
    fields = vars(request)
    if model != request.model or include_usage or request.extra_body is not None:
        fields = {**fields, "model": model}
        if include_usage and request.stream:
            fields.setdefault("stream_options", {"include_usage": True})
        if request.extra_body is not None:
            del fields["extra_body"]
            fields.update(request.extra_body)
    body = _encode(fields)
    if len(body) <= MAX_REQUEST_BYTES:
        return Body(body)
    size = len(body)
    del body, fields, request  # a traceback may show locals
    raise InvalidRequestError(
        f"messages: the request has {size:,} bytes, more than {MAX_REQUEST_BYTES:,}; send a shorter prompt"
    )


def _as_builtin(value: object) -> object:
    """A value of a subclass of str, int or float (NumPy has such), which msgspec does not know, as the class itself."""
    if isinstance(value, str):
        return str.__str__(value)
    return int(value) if isinstance(value, int) else float(cast("float", value))


_encode = msgspec.json.Encoder(enc_hook=_as_builtin).encode


# -- answers: the fast way -------------------------------------------------------------------------------------------


class WireCompletion(msgspec.Struct, gc=False):
    """A completion as it comes, before the client says what it cost and how it was got.

    Attributes:
        error: An error object's, which is found here sooner than by a search for the word.
        body: The JSON that it was, whatever a field of this name in it said; empty for a stream's.
    """

    choices: tuple[Choice, ...] = ()
    id: str = ""
    object: str = ""
    created: int = 0
    model: str = ""
    usage: Usage | None = None
    error: Anything = None
    body: bytes = b""


_decode_body = msgspec.json.Decoder(WireCompletion).decode


class WireDelta(msgspec.Struct, frozen=True, gc=False):
    """A `Delta` as it comes."""

    role: str | None = None
    content: str | None = None
    function_call: FunctionCall | None = None
    tool_calls: tuple[ToolCall, ...] | None = None


class WireChoice(msgspec.Struct, frozen=True, gc=False):
    """A `ChunkChoice` as it comes."""

    index: int
    delta: WireDelta = WireDelta()
    finish_reason: str | None = None
    logprobs: object = None


class WireChunk(msgspec.Struct, gc=False):
    """A chunk as it comes: decoded in less than half the time of a `ChatCompletionChunk`, which few callers look at.

    Attributes:
        error: An error object's, which is found here sooner than by a search for the word.
        data: The JSON that it was, whatever a field of this name in it said.
    """

    choices: tuple[WireChoice, ...] = ()
    id: str | None = None
    object: str | None = None
    created: int | None = None
    model: str | None = None
    usage: Usage | None = None
    error: Anything = None
    data: str = "{}"


def as_chunk(found: WireChunk) -> ChatCompletionChunk:
    """Make the chunk that a caller may keep."""
    choices = [
        ChunkChoice(
            choice.index,
            Delta(choice.delta.role, choice.delta.content, choice.delta.function_call, choice.delta.tool_calls),
            choice.finish_reason,
            choice.logprobs,
        )
        for choice in found.choices
    ]
    chunk = ChatCompletionChunk(tuple(choices), found.id, found.object, found.created, found.model, found.usage)
    vars(chunk)["_data"] = found.data
    return chunk


_decode_chunk = msgspec.json.Decoder(WireChunk).decode

# What a JSON engine raises on bad input, on any engine: syntax and types, bad UTF-8 and surrogates, too deep.
_ENGINE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)


SHALLOW = 1600
"""Length of JSON up to which nobody counts its brackets, which takes an eighth of the time of decoding it. It nests 800
deep at most: that leaves a fifth of Python's usual limit to those who look at what was decoded."""

MAX_TOKENS = 1_000_000_000
"""A token count above this is not believed (ours; a thousand times today's longest contexts)."""


def _is_possible(usage: Usage) -> bool:
    prompt, completion, total = usage.prompt_tokens, usage.completion_tokens, usage.total_tokens
    return prompt >= 0 and completion >= 0 and prompt + completion == total <= MAX_TOKENS


def _may_be_deep(body: bytes) -> bool:
    """Whether JSON needs the tolerant way from the start, as it may nest too deep.

    It counts the brackets: by what is left without them, as `bytes.count` takes 0.6 µs longer for a short answer.
    """
    return 2 * len(body) - len(body.replace(b"[", b"")) - len(body.replace(b"{", b"")) > MAX_DEPTH


def decode_completion(body: bytes, *, asked: str = "", secrets: Iterable[Secret] = ()) -> WireCompletion:
    """Decode the body of an answer that was not streamed.

    Args:
        body: The answer's bytes; its declared charset is ignored, as JSON is UTF-8.
        asked: The model that was asked, for an answer that names none.
        secrets: Keys that must not appear in an error.

    Raises:
        APIStatusError: The body is an error object; its child class is the one of the status that it stands for.
        APIResponseError: The body is no completion.
    """
    try:
        found = _decode_body(body) if len(body) <= SHALLOW or not _may_be_deep(body) else None
    except _ENGINE_ERRORS:
        found = None
    if found is None or found.error is not None or not found.choices:
        return _decode_slowly(body, asked, secrets)
    if found.usage is not None and not _is_possible(found.usage):
        found.usage = None
    found.object = found.object or "chat.completion"
    found.model = found.model or asked
    found.body = body
    return found


# -- answers: the tolerant way ---------------------------------------------------------------------------------------


def _strict(value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, not {type(value).__name__}")
    return value


def _structure_content(value: object, _: object) -> object:
    if isinstance(value, list):
        return tuple(cast("JSON", _strict(part, dict)) for part in cast("list[object]", value))
    return value if value is None else _strict(value, str)


def _object_hook(kind: type[T]) -> Callable[[object, object], T]:
    structure = make_dict_structure_fn(kind, _answers())
    return lambda value, _: structure(cast("JSON", _strict(value, dict)), kind)


def _tuple_hook(kind: Any) -> Callable[[object, object], object]:
    items: Any = list.__class_getitem__(get_args(kind)[0])
    return lambda value, _: tuple(_answers().structure(_strict(value, list), items))


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


@cache
def _answers() -> cattrs.Converter:
    """What structures answers; made at first need, as few answers need the tolerant way."""
    answers = cattrs.Converter()
    for kind in (str, int):
        answers.register_structure_hook(kind, _strict)
    answers.register_structure_hook_factory(attrs.has, _object_hook)
    answers.register_structure_hook_factory(_is_tuple, _tuple_hook)
    answers.register_structure_hook_func(lambda kind: kind is object, lambda value, _: value)
    answers.register_structure_hook(Content, _structure_content)
    own = override(omit=True)  # what of a completion is not on the wire
    structure = make_dict_structure_fn(
        ChatCompletion,
        answers,
        cost=own,
        cost_estimated=own,
        provider=own,
        attempts=own,
        request_id=own,
        _body=own,
    )
    answers.register_structure_hook(ChatCompletion, lambda value, _: structure(value, ChatCompletion))
    return answers


# The closing quote is optional, as a search for one that is missing would begin anew at each quote.
_BRACKETS = r'(?s)[\[\]{}]|"(?:[^"\\]+|\\.)*"?'


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse(text: str, secrets: Iterable[Secret]) -> JSON:
    """Parse any JSON object; the last of two equal keys wins."""
    text = text.removeprefix("\ufeff")
    problem, kind = "it is empty", "empty"
    if text.strip("\ufeff \t\r\n"):
        try:
            _check_depth(text)
            value: object = json.loads(text, parse_constant=_refuse_constant)
        except RecursionError:
            problem, kind = "its JSON nests too deep", "response"
        except json.JSONDecodeError as error:
            cut = error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string")
            problem, kind = ("it is cut", "truncated") if cut else (f"it is not JSON ({error.msg})", NO_COMPLETION)
        except ValueError as error:
            problem, kind = f"it is not JSON ({error.args[0]})", "response"
        else:
            if isinstance(value, dict):
                return cast("JSON", value)
            problem, kind = f"it is JSON, but not an object: {type(value).__name__}", NO_COMPLETION
    raise _malformed(problem, text, secrets, kind)


def _check_depth(text: str) -> None:
    depth, most = 0, MAX_DEPTH if len(text) > SHALLOW else SHALLOW // 2
    for bracket in re.findall(_BRACKETS, text):
        depth += 1 if bracket in "[{" else -1 if bracket in "]}" else 0
        if depth > most:
            raise RecursionError


def _malformed(problem: str, text: str, secrets: Iterable[Secret], kind: str = "response") -> APIResponseError:
    if text.lstrip("\ufeff \t\r\n")[:1] == "<":
        problem, kind = "it is a web page", "edge page"
    start = f": {excerpt(text[:4000], secrets)[:300]}" if text.strip() else ""
    return APIResponseError(f"the answer is not a chat completion, {problem}{start}", kind=kind, maybe_billed=True)


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _whole(text: str) -> str:
    """Join surrogate pairs and replace lone halves by U+FFFD."""
    return text if _is_utf8(text) else text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _clean(value: T) -> T:
    """Make every string of a JSON value fit for UTF-8."""
    if isinstance(value, str):
        return cast("T", _whole(value))
    if isinstance(value, list):
        return cast("T", [_clean(item) for item in cast("list[object]", value)])
    if isinstance(value, dict):
        return cast("T", {_whole(k): _clean(v) for k, v in cast("JSON", value).items()})
    return value


def _integer(value: object) -> int | None:
    """`created` as some servers send it: 1695900828.0 or "1695900828"."""
    try:
        return int(cast("str", value)) if isinstance(value, (int, float, str)) else None
    except (ValueError, OverflowError):
        return None


def _normalise(fields: JSON) -> JSON:
    """Grant the liberties that servers were seen to take with fields that no answer depends on."""
    clean = dict(fields)
    for name in ("id", "object", "model"):
        if not isinstance(clean.get(name), str):
            clean.pop(name, None)
    clean["created"] = _integer(clean.get("created"))
    clean["usage"] = _normalise_usage(clean.get("usage"))
    if clean.get("choices") is None:
        clean["choices"] = []
    if isinstance(choices := clean["choices"], list):
        clean["choices"] = [_normalise_choice(i, choice) for i, choice in enumerate(cast("list[object]", choices))]
    return clean


def _normalise_usage(usage: object) -> JSON | None:
    """Usage that can't be one is treated as missing; a missing total is the sum."""
    if not isinstance(usage, dict):
        return None
    counts = cast("JSON", usage)
    prompt, completion = counts.get("prompt_tokens"), counts.get("completion_tokens")
    if type(prompt) is not int or type(completion) is not int:
        return None
    total = counts.get("total_tokens", prompt + completion)
    if type(total) is not int or not _is_possible(Usage(prompt, completion, total)):
        return None
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": total}


def _normalise_choice(position: int, choice: object) -> object:
    if not isinstance(choice, dict):
        return choice
    clean = dict(cast("JSON", choice))
    clean.setdefault("index", position)
    if clean.get("delta") is None:
        clean.pop("delta", None)
    for name in ("message", "delta"):
        if isinstance(part := clean.get(name), dict):
            clean[name] = _normalise_message(cast("JSON", part), name)
    return clean


def _normalise_message(part: JSON, name: str) -> JSON:
    clean = dict(part)
    if name == "message":
        clean.setdefault("role", "assistant")
    if isinstance(call := clean.get("function_call"), dict):
        clean["function_call"] = _without_nulls(cast("JSON", call))
    if isinstance(calls := clean.get("tool_calls"), list):
        clean["tool_calls"] = [_normalise_tool(call) for call in cast("list[object]", calls)]
    return clean


def _normalise_tool(call: object) -> object:
    if not isinstance(call, dict):
        return call
    clean = dict(cast("JSON", call))
    function = clean.pop("function", None)
    if function is not None:
        clean["function"] = _without_nulls(cast("JSON", function)) if isinstance(function, dict) else function
    return clean


def _without_nulls(value: JSON) -> JSON:
    return {k: v for k, v in value.items() if v is not None}


def _decode_slowly(body: bytes, asked: str, secrets: Iterable[Secret]) -> WireCompletion:
    fields = _clean(_parse(body.decode("utf-8", "replace"), secrets))
    text = json.dumps(fields)
    _raise_error_object(fields, secrets)
    if not isinstance(fields.get("choices"), list) or not fields["choices"]:
        raise _malformed("it has no choices", text, secrets, NO_COMPLETION)
    clean = _normalise(fields)
    for name, default in (("id", ""), ("object", "chat.completion"), ("created", 0), ("model", asked)):
        clean[name] = clean.get(name) or default
    completion = _structure(clean, ChatCompletion, text, secrets)
    found = msgspec.convert(completion, WireCompletion, from_attributes=True)
    found.body = text.encode()
    return found


def _structure(fields: JSON, kind: type[T], text: str, secrets: Iterable[Secret]) -> T:
    try:
        return _answers().structure(fields, kind)
    except Exception as error:  # cattrs gathers whatever the hooks raise into an exception group
        problem = cattrs.transform_error(error, format_exception=_problem)[0]
    raise _malformed(problem, text, secrets)


def _problem(error: BaseException, kind: type[object] | None) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing"
    return str(error) if isinstance(error, TypeError) else "wrong type"


# -- answers: errors -------------------------------------------------------------------------------------------------

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


def read_id(value: str | None, secrets: Iterable[Secret]) -> str | None:
    """An id from a header, made fit for an error message: at most 128 characters, no key."""
    if value is None:
        return None
    # Nearly every id is fit as it is. What may be a key ("sk-…", "Bearer …") is looked at more closely.
    plain = value.isascii() and value.isprintable() and len(value) <= 128 and "k-" not in value and "K-" not in value
    for secret in secrets:
        plain = plain and secret.reveal() not in value
    return value if plain and " " not in value else excerpt(value, secrets)[:128]


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
            fields = _clean(_parse(text, ()))
    details = _error_object(fields) or {"message": fields.get("detail") or fields.get("message") or text}
    return _status_error(status, details, text, secrets, edge=page or (520 <= status <= 530 and status != 529))


def _status_error(
    status: int, details: JSON, text: str, secrets: Iterable[Secret], *, edge: bool = False
) -> APIStatusError:
    code, type_ = _word(details.get("code"), secrets), _word(details.get("type"), secrets)
    cls = _status_class(status, code, type_)
    said = details.get("message")
    message = said if isinstance(said, str) else "" if said is None else json.dumps(said)
    message = "a web page" if edge and message.lstrip()[:1] == "<" else excerpt(message, secrets)[:500]
    advice = _ADVICE.get(cls, "see the provider's documentation")
    return cls(
        f"the provider answered {status}{f' ({code})' if code and code != str(status) else ''}"
        f"{f': {message}' if message else ''}; {advice}",
        kind="edge" if edge else None,
        status_code=status,
        code=code,
        type=type_,
        param=_word(details.get("param"), secrets),
        body=excerpt(text, secrets),
        # A gateway's time-out says nothing about the model behind it, which may have done, and billed, the work.
        maybe_billed=status in (504, 524),
    )


def _error_object(fields: JSON) -> JSON | None:
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


def _raise_error_object(fields: JSON, secrets: Iterable[Secret]) -> None:
    details = _error_object(fields)
    if details is not None:
        raise _status_error(_implied_status(details), details, json.dumps(fields), secrets)


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


# -- streams ---------------------------------------------------------------------------------------------------------

End: TypeAlias = Literal["end"]


class ChunkDecoder:
    """Turns the events of one stream into chunks.

    It keeps one thing between chunks: the first half of a surrogate pair, until its second half comes, so that every
    string it hands out encodes to UTF-8.
    """

    __slots__ = ("_halves", "_secrets")

    def __init__(self, secrets: Iterable[Secret] = ()) -> None:
        self._secrets = secrets
        self._halves: dict[_Place, str] | None = None  # made at need, as few streams ever do

    def decode(self, event: ServerSentEvent) -> WireChunk | End | None:
        """Decode one event.

        Returns:
            A chunk; or `"end"` for a terminator; or None for an event without meaning (a keep-alive or ping).

        Raises:
            APIStatusError: The event is an error object.
            APIResponseError: The event is neither a chunk nor an error.
        """
        data = event.data
        odd = event.event != "message" or self._halves
        if not odd and data.startswith("{") and (len(data) <= SHALLOW or not _may_be_deep(data.encode())):
            try:
                chunk = _decode_chunk(data)
            except _ENGINE_ERRORS:
                pass
            else:
                # Every field of a chunk may be missing, so this may be an error object or another foreign thing.
                if chunk.error is None and (chunk.choices or chunk.usage is not None):
                    if chunk.usage is not None and not _is_possible(chunk.usage):
                        chunk.usage = None
                    chunk.data = data
                    return chunk
        return self._decode_slowly(event)

    def flush(self) -> WireChunk | None:
        """Return what was held back when the stream has ended, as a last chunk, if anything was."""
        if not self._halves:
            return None
        choices = tuple(_replacement(*place) for place in self._halves)
        self._halves = None
        return WireChunk(choices)

    def _decode_slowly(self, event: ServerSentEvent) -> WireChunk | End | None:
        data = event.data.strip("\ufeff \t\r\n")
        if data.lower() in ("[done]", "[none]"):
            return "end"
        if event.event == "error" and not data.startswith("{"):
            raise _status_error(500, {"message": data}, data, self._secrets)
        if not data or event.event == "ping":
            return None
        fields = self._join_halves(_parse(data, self._secrets))
        if event.event == "error" and _error_object(fields) is None:
            fields = cast("JSON", {"error": fields})
        _raise_error_object(fields, self._secrets)
        found = _structure(_normalise(fields), ChatCompletionChunk, data, self._secrets)
        chunk = msgspec.convert(found, WireChunk, from_attributes=True)
        chunk.data = json.dumps(fields)
        return chunk

    def _join_halves(self, fields: JSON) -> JSON:
        """Join the surrogate pairs that were cut between this chunk and those before it."""
        for position, choice in enumerate(_dicts(fields.get("choices"))):
            index = _index(choice, position)
            for delta in _dicts([choice.get("delta")]):
                self._join((index, "content", 0), delta, "content")
                for call in _dicts([delta.get("function_call")]):
                    self._join((index, "function_call", 0), call, "arguments")
                for i, tool in enumerate(_dicts(delta.get("tool_calls"))):
                    for call in _dicts([tool.get("function")]):
                        self._join((index, "tool_calls", _index(tool, i)), call, "arguments")
        return _clean(fields)

    def _join(self, place: _Place, part: JSON, field: str) -> None:
        text = part.get(field)
        if isinstance(text, str) and text:
            if self._halves is None:
                self._halves = {}
            text = self._halves.pop(place, "") + text
            if "\ud800" <= text[-1] <= "\udbff":
                self._halves[place] = text[-1]
                text = text[:-1]
            part[field] = text


_Place: TypeAlias = tuple[int, str, int]
"""Where a text of a stream grows: the choice's index, the field, the tool call's index."""


def _dicts(value: object) -> list[JSON]:
    return (
        [cast("JSON", v) for v in cast("list[object]", value) if isinstance(v, dict)] if isinstance(value, list) else []
    )


def _index(part: JSON, position: int) -> int:
    """The index of a choice or tool call; where it has none, or a wrong one, which is refused later, its position."""
    index = part.get("index")
    return index if isinstance(index, int) else position


def _replacement(index: int, field: str, tool: int) -> WireChoice:
    call = FunctionCall(arguments="\ufffd")
    delta = {
        "content": WireDelta(content="\ufffd"),
        "function_call": WireDelta(function_call=call),
        "tool_calls": WireDelta(tool_calls=(ToolCall(call, index=tool),)),
    }[field]
    return WireChoice(index, delta)
