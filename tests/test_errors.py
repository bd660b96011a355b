"""The tree, that errors travel whole, and that no key gets out."""

from __future__ import annotations

import copy
import json
import pickle
import traceback
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from typing import Any
from urllib.parse import quote, unquote

import attrs
import cattrs
import pytest
from cattrs.preconf.json import make_converter
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import (
    AllProvidersFailedError,
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    Attempt,
    PiAPIError,
    Provider,
    RateLimitError,
    errors,
)
from piapi_async.errors import EXCERPT_CHARACTERS, Secret, excerpt

# -- the tree ----------------------------------------------------------------------------------------------------------

TREE: dict[str, tuple[str, ...]] = {
    "PiAPIError": ("Exception",),
    "ConfigurationError": ("PiAPIError", "ValueError"),
    "InvalidRequestError": ("PiAPIError", "ValueError"),
    "BudgetExceededError": ("PiAPIError",),
    "BatchError": ("PiAPIError",),
    "APIError": ("PiAPIError",),
    "APIConnectionError": ("APIError",),
    "APITimeoutError": ("APIConnectionError",),
    "APIResponseError": ("APIError",),
    "StreamTruncatedError": ("APIResponseError",),
    "StreamTooLargeError": ("APIResponseError",),
    "APIStatusError": ("APIError",),
    "BadRequestError": ("APIStatusError",),
    "AuthenticationError": ("APIStatusError",),
    "InsufficientQuotaError": ("APIStatusError",),
    "PermissionDeniedError": ("APIStatusError",),
    "NotFoundError": ("APIStatusError",),
    "ConflictError": ("APIStatusError",),
    "RequestTooLargeError": ("APIStatusError",),
    "UnprocessableEntityError": ("APIStatusError",),
    "RateLimitError": ("APIStatusError",),
    "InternalServerError": ("APIStatusError",),
    "AllProvidersFailedError": ("APIError",),
}

CLASSES: list[type[PiAPIError]] = [getattr(errors, name) for name in TREE]
API_CLASSES = [cls for cls in CLASSES if issubclass(cls, APIError)]


def test_the_tree_is_whole() -> None:
    assert set(TREE) == set(errors.__all__) - {"ErrorFields", "ErrorKind", "Secret"}


@pytest.mark.parametrize("name", TREE)
def test_parents(name: str) -> None:
    cls = getattr(errors, name)
    assert tuple(base.__name__ for base in cls.__bases__) == TREE[name]
    assert cls.__doc__


def test_what_is_not_a_value_error_is_none() -> None:
    """`except ValueError` must not swallow a failed exchange."""
    assert [cls.__name__ for cls in CLASSES if issubclass(cls, ValueError)] == [
        "ConfigurationError",
        "InvalidRequestError",
    ]
    assert not any(issubclass(cls, OSError) for cls in CLASSES)


def test_kinds() -> None:
    kinds = {cls.__name__: cls("x").kind for cls in API_CLASSES if not issubclass(cls, APIStatusError)}
    assert kinds == {
        "APIError": "error",
        "APIConnectionError": "connect",
        "APITimeoutError": "total",
        "APIResponseError": "response",
        "StreamTruncatedError": "truncated",
        "StreamTooLargeError": "too large",
        "AllProvidersFailedError": "all providers",
    }
    assert {cls("x").kind for cls in API_CLASSES if issubclass(cls, APIStatusError)} == {"status"}
    assert APITimeoutError("x", kind="progress").timer == "progress"


@pytest.mark.parametrize("cls", API_CLASSES)
def test_what_every_exchange_error_knows(cls: type[APIError]) -> None:
    error = cls("it broke")
    assert str(error) == "it broke"
    assert error.args == ("it broke",)
    known = (error.provider, error.attempts, error.request_id, error.committed, error.maybe_billed, error.retry_after)
    assert (*known, error.partial) == ("", (), None, False, False, None, "")
    assert str(cls()) == ""


# -- errors travel whole -----------------------------------------------------------------------------------------------

WAYS: list[Callable[[Any], Any]] = [
    copy.copy,
    copy.deepcopy,
    *(lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol)) for protocol in range(2, 6)),
]


def filled(cls: type[PiAPIError]) -> PiAPIError:
    """An error with every attribute set."""
    if not issubclass(cls, APIError):
        return cls("it broke; mend it")
    fields: dict[str, Any] = {
        "kind": "edge",
        "provider": "piapi",
        "attempts": (Attempt("piapi", "…1234", 500, "status", 0.5, 1.5), Attempt("backup", "…")),
        "request_id": "req-1",
        "committed": True,
        "maybe_billed": True,
        "retry_after": 2.5,
        "partial": "Hel",
    }
    if issubclass(cls, APIStatusError):
        fields |= {"status_code": 429, "code": "c", "type": "t", "param": "p", "body": "b"}
    error = cls("it broke; mend it", **fields)
    if isinstance(error, AllProvidersFailedError):
        error.errors = (APIConnectionError("one", partial="x"), RateLimitError("two", status_code=429))
    error.add_note("a note")
    return error


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_travels_whole(cls: type[PiAPIError], way: Callable[[object], Any]) -> None:
    error = filled(cls)
    twin = way(error)
    assert type(twin) is cls
    assert twin is not error
    assert (str(twin), repr(twin), twin.args) == (str(error), repr(error), error.args)
    shown = {name: repr(value) for name, value in vars(error).items()}
    assert {name: repr(value) for name, value in vars(twin).items()} == shown
    assert getattr(twin, "kind", "edge") == "edge"


def test_a_status_error_holds_what_the_provider_said() -> None:
    error = APIStatusError("no", status_code=418, code="c", type="t", param="p", body="{}", retry_after=1)
    assert (error.status_code, error.code, error.type, error.param, error.body) == (418, "c", "t", "p", "{}")
    bare = APIStatusError("no")
    assert (bare.status_code, bare.code, bare.type, bare.param, bare.body) == (0, None, None, None, "")


# -- secrets -----------------------------------------------------------------------------------------------------------

KEY = "canary-0123456789-key"


def provider() -> Provider:
    return Provider("piapi", "https://api.piapi.ai", KEY)


@pytest.mark.parametrize(
    "show",
    [
        repr,
        str,
        "{}".format,
        "{!r:>40}".format,
        lambda value: f"{value}",
        lambda value: "%s %r" % (value, value),  # noqa: UP031  # as logging does it
        lambda value: repr([value, {"key": value}]),
        lambda value: repr(copy.copy(value)) + repr(copy.deepcopy(value)),
        lambda value: repr(attrs.asdict(value)) if attrs.has(type(value)) else "",
        lambda value: repr(attrs.astuple(value)) if attrs.has(type(value)) else "",
        lambda value: repr(cattrs.unstructure(value)),
        lambda value: repr(make_converter().unstructure(value)),
        lambda value: json.dumps(value, default=repr),
        lambda value: repr(dir(value)),
    ],
)
def test_a_secret_never_shows(show: Callable[[object], str]) -> None:
    for value in (Secret(KEY), provider(), (Secret(KEY),)):
        shown = show(value)
        assert KEY not in shown
        assert KEY[:-4] not in shown


def test_a_secret_is_a_value() -> None:
    secret = Secret(KEY)
    assert secret.reveal() == KEY
    assert secret == Secret(KEY)
    assert secret != Secret("another")
    assert secret != KEY
    assert len({secret, Secret(KEY)}) == 1
    assert copy.copy(secret) is copy.deepcopy(secret) is secret
    assert not hasattr(secret, "__dict__")


@pytest.mark.parametrize(
    ("key", "fingerprint"), [(KEY, "…-key"), ("0123456789ab", "…89ab"), ("0123456789a", "…"), ("", "…")]
)
def test_fingerprints(key: str, fingerprint: str) -> None:
    assert Secret(key).fingerprint == fingerprint
    assert repr(Secret(key)) == str(Secret(key)) == f"Secret({fingerprint})"


@pytest.mark.parametrize("protocol", range(6))
def test_a_secret_is_not_pickled(protocol: int) -> None:
    for value in (Secret(KEY), provider()):
        with pytest.raises(TypeError, match="an API key can't be pickled") as raised:
            pickle.dumps(value, protocol)
        assert KEY not in str(raised.value)


def test_a_traceback_with_locals_shows_no_key() -> None:
    def fail(secret: Secret, whole: Provider) -> None:
        keys = {"Authorization": secret}
        raise RuntimeError(f"{secret} {whole} {keys}")

    with pytest.raises(RuntimeError) as raised:
        fail(Secret(KEY), provider())
    shown = "".join(traceback.TracebackException.from_exception(raised.value, capture_locals=True).format())
    assert "Secret(…-key)" in shown
    assert KEY not in shown.replace(f"KEY = {KEY!r}", "")


# -- foreign texts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("  plain text \n", "plain text"),
        ("a\nb\r\nc\td", "a\\nb\\r\\nc\\td"),
        ("\x1b[31mred\x07\x00\x7f", "\\x1b[31mred\\x07\\x00\\x7f"),
        ("é 漢 😀", "é 漢 😀"),
        ("a\u2028b\u2029c\x85d\u202ee\ufefff\u200bg", "a\\u2028b\\u2029c\\x85d\\u202ee\\ufefff\\u200bg"),
        ("\ud800", "\\ud800"),
        ("\U000e0001", "\\U000e0001"),
        ("bad key sk-0123456789 given", "bad key [key] given"),
        ("SK-abcdef, pk-abcdef; rk-abc_def-1", "[key], [key]; [key]"),
        ("Authorization: Bearer abc.DEF/12=", "Authorization: Bearer [key]"),
        ("bearer abcdef", "bearer [key]"),
        ("sk-short task-0123456 Bearer me", "sk-short task-0123456 Bearer me"),
        (f"your key {KEY} is bad, {KEY}!", "your key [key] is bad, [key]!"),
    ],
)
def test_excerpt(text: str, shown: str) -> None:
    assert excerpt(text, [Secret(KEY)]) == shown


@pytest.mark.parametrize("text", ["x" * 10_000_000, "\n" * 5000 + "x", "\x00" * 5000, "é" * 5000, "sk-abcdef " * 5000])
def test_an_excerpt_has_two_thousand_characters_at_most(text: str) -> None:
    shown = excerpt(text)
    assert len(shown) <= EXCERPT_CHARACTERS == 2000
    assert shown.isprintable()


@pytest.mark.parametrize("before", [0, 1, 1980, 1995, 2000, 2020, 2040, 3000, 3020, 3024, 3030])
@pytest.mark.parametrize("key", [KEY, "k" * 100, "0123456789" * 51, "sk-" + "a" * 500])
def test_no_half_of_a_key_is_left_where_the_text_is_cut(before: int, key: str) -> None:
    for text in ("." * before + key, "." * before + key * 40, (key + ".") * 300):
        shown = excerpt(text, [Secret(key)])
        assert not any(key[start : start + 8] in shown for start in range(0, len(key) - 8, 4))


def test_a_key_that_begins_another() -> None:
    keys = [Secret("abcdefgh"), Secret("abcdefghij"), Secret("cdefghij")]
    for order in (keys, keys[::-1]):
        assert excerpt("abcdefghij abcdefgh cdefghij", order) == "[key] [key] [key]"


AWKWARD = "k/ey+with=odd-characters_and/more"
ECHOED = {
    "JSON": json.dumps({"key": AWKWARD}),
    "JSON with slashes escaped": json.dumps({"key": AWKWARD}).replace("/", "\\/"),
    "JSON in JSON": json.dumps(json.dumps({"key": AWKWARD}).replace("/", "\\/")),
    "JSON by code": '{"key": "' + "".join(f"\\u{ord(c):04X}" for c in AWKWARD) + '"}',
    "some by code": AWKWARD.replace("+", "\\u002b").replace("=", "\\u003d"),
    "a URL": f"https://h.example/?key={quote(AWKWARD, safe='')}&x=1",
    "a URL in lower case": quote(AWKWARD, safe="").lower(),
    "a URL, twice": quote(quote(AWKWARD, safe=""), safe=""),
    "hexadecimal": "".join(f"\\x{ord(c):02x}" for c in AWKWARD),
    "HTML": "".join(f"&#{ord(c)};" for c in AWKWARD),
    "Basic": f"Basic {b64encode(f'user:{AWKWARD}'.encode()).decode()}",
    "Bearer": b64encode(f"Bearer {AWKWARD}".encode()).decode(),
    "base64": b64encode(AWKWARD.encode()).decode(),
    "base64 for a URL": urlsafe_b64encode(f"xyz{AWKWARD}/!?".encode()).decode(),
}


@pytest.mark.parametrize("text", ECHOED.values(), ids=ECHOED)
def test_a_key_is_found_in_every_form(text: str) -> None:
    shown = excerpt(text, [Secret(AWKWARD)])
    assert "[key]" in shown
    assert len(shown) < len(text)
    assert "odd" not in unquote(shown)
    for size in range(8, len(AWKWARD)):
        assert b64encode(AWKWARD.encode()).decode()[size : size + 8] not in shown


@pytest.mark.parametrize("key", ["a", "e.g", "abcdefg"])
def test_a_short_key_is_not_looked_for(key: str) -> None:
    assert excerpt("a banana, e.g. abcdefg", [Secret(key)]) == "a banana, e.g. abcdefg"


def test_a_secret_half_made_shows_nothing_and_does_not_raise() -> None:
    assert repr(Secret.__new__(Secret)) == "Secret(…)"


@given(
    text=st.text(st.characters(exclude_categories=()) | st.sampled_from("sk-Bearer abcdef\n")),
    keys=st.sets(st.text("abc", min_size=1)),
)
def test_property_an_excerpt_is_one_clean_line(text: str, keys: set[str]) -> None:
    shown = excerpt(text, [Secret(key) for key in keys])
    assert shown.isprintable()
    assert len(shown) <= EXCERPT_CHARACTERS
    shown.encode()
