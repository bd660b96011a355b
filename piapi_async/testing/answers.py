"""What the local server says: tokens, sentences, and JSON values made from a schema. No IO, no chance.

There is no language model in here. An answer is a few sentences that pick up words of the question, chosen by a hash
of the messages, so that tests and demonstrations have plausible text that never changes.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

__all__ = ["Schema", "answer", "example", "mentions", "report", "tokenize"]

# Latin words up to 12 characters, other scripts two characters at a time, single marks, runs of spaces; a token takes
# the one space before it, as the vendors' tokenizers do. Every character is in one of the four classes.
_TOKEN: Final = re.compile(r" ?[A-Za-z0-9_\u00c0-\u024f]{1,12}| ?[^\W_]{1,2}| ?[^\w\s]|\s{1,16}(?=\s)|\s|.", re.DOTALL)


def tokenize(text: str) -> list[str]:
    """Cut a text into tokens; joined again they are the text.

    The one tokenizer of the server: it counts prompts and answers, cuts at `max_tokens` and makes the pieces of a
    stream. On the example of the provider's page it counts what the page says, 19 and 9.
    """
    return _TOKEN.findall(text)


# --- Sentences --------------------------------------------------------------------------------------------------------

# The words of a question may be nouns, verbs or adjectives, so the sentences name them rather than use them.
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
        prompt: The last message of the user.
        seed: What else the answer depends on, such as the messages before.
        index: Of the choice; another one gets another answer.
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
    """Three words to talk about: the first ones that carry meaning."""
    topics: dict[str, str] = {}
    for position, word in enumerate(words):
        lower = word.lower()
        if len(word) > 2 and lower not in _COMMON:
            # A capital at the start of the question says nothing; inside it, it marks a name.
            topics.setdefault(lower, word if position else lower)
        if len(topics) == 3:
            break
    found = list(topics.values())
    return found + list(_FALLBACKS[len(found) :])


def report(function: str, result: str) -> str:
    """Say what a function gave back, in one sentence.

    Args:
        function: Its name.
        result: The content of the function's message; of a JSON object the plain fields are read out.
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
    """Tell whether a prompt speaks of a function: it has every word of its name, plain verbs such as `get` aside."""
    words = [word.lower() for word in _NAME_WORD.findall(function)]
    wanted = [word for word in words if word not in _VERBS] or words
    said = {word.lower() for word in re.findall(r"[^\W_]+", prompt)}
    return function in prompt or (bool(wanted) and said.issuperset(wanted))


# --- Values from a schema ---------------------------------------------------------------------------------------------


class Schema(msgspec.Struct, rename="camel", frozen=True):
    """The part of JSON Schema that function parameters use; keywords that aren't here are ignored."""

    type: str | list[str] | None = None
    enum: list[object] | None = None
    const: object = msgspec.UNSET
    default: object = msgspec.UNSET
    format: str | None = None
    min_length: int = 0
    max_length: int | None = None
    minimum: float | None = None
    maximum: float | None = None
    exclusive_minimum: float | bool | None = None
    exclusive_maximum: float | bool | None = None
    multiple_of: float | None = None
    properties: dict[str, Schema | bool] = {}
    required: list[str] = []
    items: Schema | bool | None = None
    min_items: int = 0
    max_items: int | None = None
    any_of: list[Schema | bool] = []
    one_of: list[Schema | bool] = []
    all_of: list[Schema | bool] = []
    ref: str | None = msgspec.field(default=None, name="$ref")
    defs: dict[str, Schema | bool] = msgspec.field(default={}, name="$defs")
    definitions: dict[str, Schema | bool] = {}


_DEEP: Final = 4  # from here on only what is required: a schema may refer to itself
_TOO_DEEP: Final = 32  # a schema that requires itself has no finite value
_ANYTHING: Final = Schema()

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

    `pattern`, `not` and conditions aren't looked at. A schema without a type gives a string, or an object if it has
    properties.

    Args:
        schema: What to fit.
        name: The property's name: a city is called Paris, not "example".
        root: The schema that `$ref` refers to.
        depth: How far down the root this is.
    """
    if isinstance(schema, bool):
        schema = _ANYTHING
    if schema.ref is not None:
        schema = _resolve(schema.ref, root)
    if depth > _TOO_DEEP:
        return None
    for value in (schema.const, schema.default):
        if value is not msgspec.UNSET:
            return value
    if schema.enum:
        return schema.enum[0]
    if schema.all_of:
        return _merged(schema, name, root, depth)
    for option in (*schema.any_of, *schema.one_of):
        if isinstance(option, bool) or option.type != "null":
            return example(option, name, root=root, depth=depth + 1)
    return _of_type(schema, name, root, depth)


def _resolve(ref: str, root: Schema) -> Schema:
    """The schema that `#`, `#/$defs/NAME` or `#/definitions/NAME` stands for; anything else fits any value."""
    if ref == "#":
        return root
    found = {**root.definitions, **root.defs}.get(ref.rpartition("/")[2], _ANYTHING)
    return _ANYTHING if isinstance(found, bool) else found


def _merged(schema: Schema, name: str, root: Schema, depth: int) -> object:
    own = [msgspec.structs.replace(schema, all_of=[])] if schema.properties else []
    values = [example(part, name, root=root, depth=depth + 1) for part in (*schema.all_of, *own)]
    merged: dict[object, object] = {}
    for value in values:
        if not isinstance(value, Mapping):
            return value
        merged.update(value)  # pyright: ignore[reportUnknownArgumentType] -- its keys are those of a JSON object
    return merged


def _of_type(schema: Schema, name: str, root: Schema, depth: int) -> object:
    kinds = [schema.type] if isinstance(schema.type, str) else schema.type or []
    kind = next((kind for kind in kinds if kind != "null"), "object" if schema.properties else "string")
    if kind == "object":
        return {
            key: example(part, key, root=root, depth=depth + 1)
            for key, part in schema.properties.items()
            if depth < _DEEP or key in schema.required
        }
    if kind == "array":
        return _array(schema, name, root, depth)
    if kind in ("integer", "number"):
        return _number(schema, whole=kind == "integer")
    if kind == "boolean":
        return True
    return None if kinds == ["null"] else _string(schema, name)


def _array(schema: Schema, name: str, root: Schema, depth: int) -> list[object]:
    length = max(schema.min_items, 1 if depth < _DEEP else 0)
    if schema.max_items is not None:
        length = min(length, schema.max_items)
    items = _ANYTHING if schema.items is None else schema.items
    return [example(items, name, root=root, depth=depth + 1) for _ in range(length)]


def _number(schema: Schema, *, whole: bool) -> float:
    """A number between the bounds; 3 where it may be, as it is nobody's default."""
    low, high = _bound(schema.minimum, schema.exclusive_minimum), _bound(schema.maximum, schema.exclusive_maximum)
    step = schema.multiple_of or (1 if whole else None)
    if step is None:
        if low is not None and high is not None:
            return (low + high) / 2
        return low + 1 if low is not None else high - 1 if high is not None else 3.5
    # An excluded bound is one step out of reach.
    least = (
        -math.inf if low is None else math.ceil(low / step) + (_excludes(schema.exclusive_minimum) and low % step == 0)
    )
    most = (
        math.inf
        if high is None
        else math.floor(high / step) - (_excludes(schema.exclusive_maximum) and high % step == 0)
    )
    value = min(max(round(3 / step), least), most) * step
    return int(value) if whole else value


def _bound(inclusive: float | None, exclusive: float | bool | None) -> float | None:
    return inclusive if exclusive is None or isinstance(exclusive, bool) else exclusive


def _excludes(exclusive: float | bool | None) -> bool:
    """Whether a bound is excluded; draft 4 of JSON Schema said so with a boolean."""
    return exclusive is not None and exclusive is not False


def _string(schema: Schema, name: str) -> str:
    by_name = (value for key, value in _BY_NAME.items() if key in name.lower())
    value = _BY_FORMAT.get(schema.format or "") or next(by_name, "example")
    return value.ljust(schema.min_length, "x")[: schema.max_length]
