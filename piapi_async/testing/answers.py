"""What the local server says: tokens, sentences, and JSON values made from a schema. No IO, nothing random.

There is no language model here. An answer is a few sentences that pick up words of the question. A hash of the messages
chooses them, so tests and demonstrations get plausible text that never changes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final, TypedDict

import msgspec

__all__ = ["Schema", "answer", "example", "mentions", "report", "tokenize"]

# Latin words of up to 12 characters, other scripts two characters at a time, single marks, runs of spaces. As with the
# vendors' tokenizers, a token includes the one space before it. Every character falls into one of these four classes.
_TOKEN: Final = re.compile(r" ?[A-Za-z0-9_\u00c0-\u024f]{1,12}| ?[^\W_]{1,2}| ?[^\w\s]|\s{1,16}(?=\s)|\s|.", re.DOTALL)


def tokenize(text: str) -> list[str]:
    """Cut a text into tokens. Joined again, they are the text.

    The server uses this one tokenizer for everything: to count prompts and answers, to cut at `max_tokens` and to make
    the pieces of a stream. For the example on the provider's page it counts what the page says, 19 and 9.
    """
    return _TOKEN.findall(text)


# --- Sentences --------------------------------------------------------------------------------------------------------

# A word of the question may be a noun, a verb or an adjective, so the sentences only mention it.
_OPENINGS: Final = (
    "Three words carry this question: {a}, {b} and {c}.",
    "Take it in order: first {a}, then {b}.",
    "The short answer lies between {a} and {b}.",
    "It comes down to two things, {a} and {b}.",
    "Think of {a} first; {b} follows from it.",
    "Start with {a}, because {b} makes little sense without it.",
    "There is a link between {a} and {b}, and it is simpler than it looks.",
    "Most of this is about {a}; {b} is the part that surprises people.",
)
_FOLLOWINGS: Final = (
    "A small example makes {a} clearer than any definition.",
    "The details differ from case to case, but the part that {c} plays stays the same.",
    "Two causes work together, and {c} is the one that is easy to miss.",
    "If you remember one thing, let it be how {a} and {c} depend on each other.",
    "There are exceptions, though they are rarer than they look.",
    "People still argue about {c}, yet the practical advice hardly changes.",
    "That is why {b} is worth a look before anything else.",
    "Start small, measure what changes, and keep what helps.",
    "With a little patience, {a} tends to explain itself.",
    "Once {b} is settled, the rest is mostly a matter of care.",
    "It helps to write down what you expect of {a} before you look.",
)
_GREETING: Final = "Hello! What can I do for you?"
_GREETINGS: Final = frozenset({"hello", "hi", "hey", "good", "morning", "evening", "afternoon", "day", "there"})
_FALLBACKS: Final = ("that question", "the basics", "the context")
_WORD: Final = re.compile(r"[^\W\d_][\w'\u2019-]*")
_COMMON: Final = frozenset(
    """about after all also and any are can could did does don't each explain for from give had has have how into is
    it its just like list make many may me more most much must my name not now of on one only or other our over please
    say should show some such tell than that the their them then there these they this those to too two use used using
    very want was way we were what what's when where which while who whom whose why will with would write you
    your""".split()  # noqa: SIM905 -- a hundred quoted words would be harder to read
)


def answer(prompt: str, seed: bytes, index: int = 0) -> str:
    """Answer a prompt in one to four sentences.

    Args:
        prompt: The user's last message.
        seed: What else the answer depends on, such as the messages before.
        index: The choice's index. Each choice gets another answer.
    """
    words = _WORD.findall(prompt[:2000])
    if words and _GREETINGS.issuperset(word.lower() for word in words):
        return _GREETING if index == 0 else f"{_GREETING} I have all the time you need, for question {index + 1} too."
    digest = hashlib.blake2b(seed + b"\0" + prompt.encode() + b"\0%d" % index, digest_size=8).digest()
    a, b, c = _topics(words)
    parts = [_OPENINGS[digest[0] % len(_OPENINGS)]]
    parts += [_FOLLOWINGS[(digest[1] + 3 * k) % len(_FOLLOWINGS)] for k in range(digest[2] % 4)]
    text = " ".join(parts)
    return text.format(a=a, b=b, c=c)


def _topics(words: Sequence[str]) -> list[str]:
    """Three words to talk about: the first ones that mean something."""
    topics: dict[str, str] = {}
    for position, word in enumerate(words):
        lower = word.lower()
        if len(word) > 2 and lower not in _COMMON:
            # The first word of a question is capitalised anyway; further on, a capital marks a name.
            topics.setdefault(lower, word if position else lower)
        if len(topics) == 3:
            break
    found = list(topics.values())
    return found + list(_FALLBACKS[len(found) :])


def report(function: str, result: str) -> str:
    """Say in one sentence what a function returned.

    Args:
        function: Its name.
        result: The content of the function's message. If that is a JSON object, its plain fields are read out.
    """
    fields: list[str] = []
    try:
        values = msgspec.json.decode(result, type=dict[str, object])
    except msgspec.DecodeError:
        values = {}
    for key, value in values.items():
        if isinstance(value, (str, int, float)):
            fields.append(f"{key.replace('_', ' ')} is {value}")
    said = " and ".join(fields[:4]) or result.strip()[:200] or "nothing"
    return f"According to {function}, {said}."


_VERBS: Final = frozenset(
    {"get", "set", "find", "fetch", "list", "make", "create", "do", "run", "call", "search", "the"}
)
_NAME_WORD: Final = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")


def mentions(prompt: str, function: str) -> bool:
    """Tell whether a prompt mentions a function: every word of its name, except for verbs such as `get`."""
    words = [word.lower() for word in _NAME_WORD.findall(function)]
    wanted = [word for word in words if word not in _VERBS] or words
    said = {word.lower() for word in re.findall(r"[^\W_]+", prompt)}
    return function in prompt or (bool(wanted) and said.issuperset(wanted))


# --- Values from a schema ---------------------------------------------------------------------------------------------


# The part of JSON Schema that the parameters of functions use. `msgspec.convert` checks the types and drops all other
# keywords. It is a dict and not a class because JSON's names (`$ref`) can't all be attributes.
Schema = TypedDict(
    "Schema",
    {
        "type": str | list[str] | None,
        "enum": list[object] | None,
        "const": object,
        "default": object,
        "format": str | None,
        "minLength": int,
        "maxLength": int | None,
        "minimum": float | None,
        "maximum": float | None,
        "exclusiveMinimum": float | bool | None,
        "exclusiveMaximum": float | bool | None,
        "multipleOf": float | None,
        "properties": "dict[str, Schema | bool]",
        "required": list[str],
        "items": "Schema | bool | None",
        "minItems": int,
        "maxItems": int | None,
        "anyOf": "list[Schema | bool]",
        "oneOf": "list[Schema | bool]",
        "allOf": "list[Schema | bool]",
        "$ref": str | None,
        "$defs": "dict[str, Schema | bool]",
        "definitions": "dict[str, Schema | bool]",
    },
    total=False,
)


_DEEP: Final = 4  # from this level on, only required properties: a schema may refer to itself
_TOO_DEEP: Final = 32  # stop here: a schema that requires itself has no finite value
_ANYTHING: Final[Schema] = {}

_BY_FORMAT: Final = {
    "date": "2024-05-17",
    "date-time": "2024-05-17T09:30:00Z",
    "time": "09:30:00Z",
    "email": "ada@example.com",
    "uri": "https://example.com/",
    "uuid": "5f0c6f2e-7b1d-4c8e-9a3b-2d4e6f8a0b1c",
    "ipv4": "192.0.2.1",
}
_BY_NAME: Final = {
    "city": "Paris",
    "location": "Paris",
    "place": "Paris",
    "country": "France",
    "date": "2024-05-17",
    "time": "09:30",
    "email": "ada@example.com",
    "url": "https://example.com/",
    "name": "Ada",
    "language": "English",
    "unit": "celsius",
    "query": "a good example",
    "currency": "EUR",
}


def example(schema: Schema | bool, name: str = "", *, root: Schema = _ANYTHING, depth: int = 0) -> object:
    """Make a plausible value that fits a schema.

    Ignores `pattern`, `not` and conditions. A schema without a type gives a string, or an object if it has properties.

    Args:
        schema: The schema to fit.
        name: The property's name. It makes the value plausible: a city is called Paris, not "example".
        root: The schema that `$ref` refers to.
        depth: How many levels below the root this schema is.
    """
    if isinstance(schema, bool):
        schema = _ANYTHING
    ref = schema.get("$ref")
    if ref is not None:
        schema = _resolve(ref, root)
    if depth > _TOO_DEEP:
        return None
    if "const" in schema:
        return schema["const"]
    if "default" in schema:
        return schema["default"]
    if values := schema.get("enum"):
        return values[0]
    if schema.get("allOf"):
        return _merged(schema, name, root, depth)
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ())):
        if isinstance(option, bool) or option.get("type") != "null":
            return example(option, name, root=root, depth=depth + 1)
    return _of_type(schema, name, root, depth)


def _resolve(ref: str, root: Schema) -> Schema:
    """The schema that `#`, `#/$defs/NAME` or `#/definitions/NAME` stands for. Any other reference fits any value."""
    if ref == "#":
        return root
    named = {**root.get("definitions", {}), **root.get("$defs", {})}
    found = named.get(ref.rpartition("/")[2], _ANYTHING)
    return _ANYTHING if isinstance(found, bool) else found


def _merged(schema: Schema, name: str, root: Schema, depth: int) -> object:
    own: list[Schema] = [{**schema, "allOf": []}] if schema.get("properties") else []
    values = [example(part, name, root=root, depth=depth + 1) for part in (*schema.get("allOf", ()), *own)]
    merged: dict[object, object] = {}
    for value in values:
        if not isinstance(value, Mapping):
            return value
        merged.update(value)  # pyright: ignore[reportUnknownArgumentType] -- its keys are those of a JSON object
    return merged


def _of_type(schema: Schema, name: str, root: Schema, depth: int) -> object:
    properties, wanted = schema.get("properties", {}), schema.get("type")
    kinds = [wanted] if isinstance(wanted, str) else wanted or []
    kind = next((kind for kind in kinds if kind != "null"), "object" if properties else "string")
    if kind == "object":
        return {
            key: example(part, key, root=root, depth=depth + 1)
            for key, part in properties.items()
            if depth < _DEEP or key in schema.get("required", ())
        }
    if kind == "array":
        return _array(schema, name, root, depth)
    if kind in ("integer", "number"):
        return _number(schema, whole=kind == "integer")
    if kind == "boolean":
        return True
    return None if kinds == ["null"] else _string(schema, name)


def _array(schema: Schema, name: str, root: Schema, depth: int) -> list[object]:
    length = max(schema.get("minItems", 0), 1 if depth < _DEEP else 0)
    most = schema.get("maxItems")
    items = schema.get("items")
    return [
        example(_ANYTHING if items is None else items, name, root=root, depth=depth + 1)
        for _ in range(length if most is None else min(length, most))
    ]


def _number(schema: Schema, *, whole: bool) -> float:
    """A number between the bounds; 3 where that fits, as hardly any schema's default is 3."""
    low, low_excluded = _bound(schema.get("minimum"), schema.get("exclusiveMinimum"))
    high, high_excluded = _bound(schema.get("maximum"), schema.get("exclusiveMaximum"))
    step = schema.get("multipleOf") or (1 if whole else None)
    if step is None:
        return _between(low, high)
    # In steps. A bound that is excluded is one step out of reach.
    least = -math.inf if low is None else math.ceil(low / step) + (low_excluded and low % step == 0)
    most = math.inf if high is None else math.floor(high / step) - (high_excluded and high % step == 0)
    value = min(max(round(3 / step), least), most) * step
    return int(value) if whole else value


def _between(low: float | None, high: float | None) -> float:
    if low is not None and high is not None:
        return (low + high) / 2
    if low is not None:
        return low + 1
    return 3.5 if high is None else high - 1


def _bound(inclusive: float | None, exclusive: float | bool | None) -> tuple[float | None, bool]:
    """A bound, and whether it is excluded. Draft 4 of JSON Schema says so with a boolean beside the bound."""
    if exclusive is None or isinstance(exclusive, bool):
        return inclusive, bool(exclusive)
    return exclusive, True


def _string(schema: Schema, name: str) -> str:
    by_name = (value for key, value in _BY_NAME.items() if key in name.lower())
    value = _BY_FORMAT.get(schema.get("format") or "") or next(by_name, "example")
    return value.ljust(schema.get("minLength", 0), "x")[: schema.get("maxLength")]
