"""The one converter between JSON and the classes of `models`. Nothing is coerced: `"5"` is no number, nor is `True`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, cast, get_args, get_origin

import attrs
import cattrs
import msgspec
from cattrs.gen import make_dict_structure_fn, override

from piapi_async.errors import Secret
from piapi_async.models import (
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChunkChoice,
    Content,
    Delta,
    FunctionCall,
    Message,
    ToolCall,
    Usage,
)
from piapi_async.wire.parse import JSON, malformed

T = TypeVar("T")

OWN_FIELDS = ("cost", "cost_estimated", "provider", "attempts", "request_id", "body", "data", "extra")
"""Fields that the client fills in; whatever a provider sends under these names is not believed."""

_PARTS: Mapping[type[attrs.AttrsInstance], tuple[str, ...]] = {
    ChatCompletion: ("choices", "usage"),
    Choice: ("message",),
    Message: ("function_call", "tool_calls"),
    ChatCompletionChunk: ("choices", "usage"),
    ChunkChoice: ("delta",),
    Delta: ("function_call", "tool_calls"),
    ToolCall: ("function",),
    FunctionCall: (),
    Usage: (),
}
"""The classes of an answer, and which of their fields hold others."""

_KNOWN = {
    kind: frozenset((*attrs.fields_dict(kind), *(OWN_FIELDS if kind is ChatCompletion else ()))) for kind in _PARTS
}
"""What is no `extra` of each: its fields, and what could be taken for the client's word."""

_SENT = {kind: fields.difference(OWN_FIELDS) for kind, fields in _KNOWN.items()}
"""Those of them that the provider fills in."""

ENGINE_ERRORS = (msgspec.MsgspecError, ValueError, RecursionError)
"""What msgspec raises for bad input: syntax and types, bad UTF-8 and surrogates, too deep."""


@cache
def converter(*, detailed: bool = False) -> cattrs.Converter:
    """Return the converter; a `detailed` one is slower and knows which field is wrong."""
    made = cattrs.Converter(detailed_validation=detailed)
    for kind in (str, int):
        made.register_structure_hook(kind, _expect)
    made.register_structure_hook_factory(attrs.has, _structure_object)
    made.register_structure_hook_factory(_is_tuple, _structure_tuple)
    made.register_structure_hook_factory(_is_optional, _structure_optional)
    made.register_structure_hook_func(lambda kind: kind is object, lambda value, _: value)
    made.register_structure_hook(Content, _structure_content)
    made.register_structure_hook(ChatCompletionChunk, _structure_chunk(made))
    return made


def _expect(value: object, kind: type[T]) -> T:
    if type(value) is not kind:
        raise TypeError(f"expected {kind.__name__}, not {type(value).__name__}")
    return value


def _structure_fields(kind: Any, converter: cattrs.Converter) -> Callable[[Mapping[str, Any], Any], Any]:
    own: dict[str, Any] = {name: override(omit=True) for name in OWN_FIELDS if name in attrs.fields_dict(kind)}
    return make_dict_structure_fn(kind, converter, _cattrs_detailed_validation=converter.detailed_validation, **own)


def _structure_object(kind: Any, converter: cattrs.Converter) -> Callable[[object, object], Any]:
    structure = _structure_fields(kind, converter)
    sent = _SENT[kind]

    def structure_object(value: Any, _: object) -> Any:
        if value.__class__ is not dict:
            _expect(value, dict)
        made = structure(value, kind)
        if not sent.issuperset(value):
            _set_extra(made, value)
        return made

    return structure_object


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


def _structure_tuple(kind: Any, converter: cattrs.Converter) -> Callable[[object, object], object]:
    item: Any = get_args(kind)[0]
    items: Any = list.__class_getitem__(item)
    if converter.detailed_validation:
        in_list = converter.get_structure_hook(items)  # it notes the index of a wrong item
        return lambda value, _: tuple(in_list(_expect(value, list), items))
    structure = converter.get_structure_hook(item)
    return lambda value, _: tuple([structure(each, item) for each in cast("list[object]", _expect(value, list))])


def _is_optional(kind: Any) -> bool:
    return get_origin(kind) in (Union, UnionType) and len(get_args(kind)) == 2 and NoneType in get_args(kind)


def _structure_optional(kind: Any, converter: cattrs.Converter) -> Callable[[object, object], object]:
    item: Any = next(each for each in get_args(kind) if each is not NoneType)
    structure = converter.get_structure_hook(item)
    if structure is _expect:
        return lambda value, _: value if value is None or type(value) is item else _expect(value, item)
    return lambda value, _: None if value is None else structure(value, item)


def _structure_content(value: object, _: object) -> object:
    if isinstance(value, list):
        return tuple(cast("JSON", _expect(part, dict)) for part in cast("list[object]", value))
    return value if value is None or type(value) is str else _expect(value, str)


def _structure_chunk(converter: cattrs.Converter) -> Callable[[object, object], ChatCompletionChunk]:
    """A chunk comes as text, which msgspec reads into the class at once; or as an object, after `repair`."""
    structure = _structure_object(ChatCompletionChunk, converter)
    decode = msgspec.json.Decoder(ChatCompletionChunk).decode

    def structure_chunk(value: object, _: object) -> ChatCompletionChunk:
        if not isinstance(value, str):
            return cast("ChatCompletionChunk", structure(value, ChatCompletionChunk))
        chunk = decode(value)
        chunk.data = value  # whatever field of this name the text has
        _set_all_extra(chunk, msgspec.json.decode(value))
        return chunk

    return structure_chunk


def _set_extra(made: Any, sent: JSON) -> None:
    """Keep what was sent beside the fields."""
    known = _KNOWN[type(made)]
    made.extra = {name: value for name, value in sent.items() if name not in known and value is not None}
    if isinstance(made, Usage):
        _read_details(made)


def _set_all_extra(made: Any, sent: JSON) -> None:
    """Do so for an object that msgspec has made, which may have filled `extra` like any field, and for those in it."""
    kind = cast("type[attrs.AttrsInstance]", type(made))
    if not _SENT[kind].issuperset(sent):
        _set_extra(made, sent)
    for name in _PARTS[kind]:
        part = getattr(made, name)
        if isinstance(part, tuple):
            parts = zip(cast("tuple[object, ...]", part), cast("list[JSON]", sent.get(name) or ()), strict=True)
            for each, each_sent in parts:
                _set_all_extra(each, each_sent)
        elif part is not None and sent.get(name):
            _set_all_extra(part, cast("JSON", sent[name]))


def _read_details(usage: Usage) -> None:
    """Find the counts that most servers put into objects of their own."""
    if usage.cached_tokens is None:
        usage.cached_tokens = _detail(usage, ("prompt_tokens_details", "input_tokens_details"), "cached_tokens")
    if usage.cached_tokens is None:  # DeepSeek's, and Anthropic's
        usage.cached_tokens = _count(usage.extra, "prompt_cache_hit_tokens", "cache_read_input_tokens")
    if usage.reasoning_tokens is None:
        names = ("completion_tokens_details", "output_tokens_details")
        usage.reasoning_tokens = _detail(usage, names, "reasoning_tokens")


def _detail(usage: Usage, places: tuple[str, ...], name: str) -> int | None:
    found = (usage.extra.get(place) for place in places)
    return next((_count(cast("JSON", details), name) for details in found if isinstance(details, dict)), None)


def _count(fields: Mapping[str, object], *names: str) -> int | None:
    return next((v for name in names if type(v := fields.get(name)) is int and v >= 0), None)


def structure(fields: JSON, kind: type[T], text: str, secrets: Iterable[Secret]) -> T:
    """Make an answer of a JSON object.

    Args:
        fields: The object, as `repair` left it.
        kind: The class of the answer.
        text: What came, for an error.
        secrets: Keys that must not appear in an error.

    Raises:
        APIResponseError: A field is missing or of a wrong type; the text has its path, `$.choices[0].message.content`.
    """
    with suppress(Exception):
        return converter().structure(fields, kind)
    try:
        return converter(detailed=True).structure(fields, kind)
    except Exception as error:  # cattrs gathers whatever the hooks raise into an exception group
        problem = cattrs.transform_error(error, format_exception=_say)[0]
    raise malformed(problem, text, secrets, "not a completion")


def _say(error: BaseException, kind: type[object] | None) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing"
    return str(error) if isinstance(error, TypeError) else "wrong type"
