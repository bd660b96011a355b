"""Everything that a caller is handed: attrs classes, the error tree and the standard library's values, nothing else."""

from __future__ import annotations

import copy
import inspect
import json
import pickle
import traceback
from collections.abc import Callable, Iterator, Mapping
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any, get_type_hints

import attrs
import pytest

import piapi_async
from piapi_async import (
    BatchStatus,
    CallDelta,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Client,
    Health,
    Ledger,
    Limits,
    Message,
    PiAPIError,
    Provider,
    Reasoning,
    Restarted,
    Retry,
    SSEDecoder,
    Timeout,
    quote_batch,
    run_batch,
)
from piapi_async.catalog import CATALOG, ModelInfo
from piapi_async.errors import APIError, Secret
from piapi_async.pool import SessionPool
from piapi_async.testing import Cut, LocalServer, Status

NO_VALUES = {"Client", "ChatStream", "Results", "SSEDecoder"}
"""What is open, holds a connection, or is in the middle of something."""

PROTOCOLS = {"Exchange", "Transport"}

PLAIN = (str, int, float, bool, bytes, Decimal, date, type(None))

WEATHER = {"name": "get_weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}


async def hand_out(tmp_path: Path) -> Any:
    """All that a client hands out: answers, chunks, results, errors, the state of its books and gates, quotes."""
    script = [None, None, None, Status(500), None, Cut(after=2), None, Status(400)]
    async with LocalServer(terminator="[DONE]", faults=script) as server:
        backup = Provider("backup", server.base_url, server.api_key, prices=CATALOG)
        options: dict[str, Any] = {"model": "gpt-4o-mini", "budget": "5.00", "backups": [backup]}
        async with Client(server.api_key, base_url=server.base_url, seed=1, **options) as client:
            yield await client.complete("How are you?", n=2, max_tokens=20)
            yield await client.complete("The weather in Oslo?", functions=[WEATHER], max_tokens=20)
            tools = [{"type": "function", "function": WEATHER}]
            async with client.stream("The weather in Oslo?", tools=tools, max_tokens=20) as stream:
                yield [chunk async for chunk in stream.chunks()]
                yield await stream.completion()
            yield [Reasoning("Oslo is in Norway."), CallDelta("get_weather", "{}")]  # no local model thinks
            yield await client.complete("The first attempt fails.", max_tokens=20)
            async with client.stream("It breaks off.", on_interrupt="restart", max_tokens=20) as restarted:
                yield [event async for event in restarted.events()]
            async with client.map(["refused", "answered", [{"role": ""}]], max_tokens=20, concurrency=1) as results:
                yield [result async for result in results]
            rows = ["one", "two"]
            yield await quote_batch(rows, client=client, max_tokens=20)
            yield await run_batch(rows, tmp_path / "results.jsonl", client=client, max_tokens=20)
            yield client.quote("What would it cost?")
            yield client.statistics()
            yield client.ledger
    yield [backup, Limits(), Retry(), Timeout(), Health(), CATALOG]
    yield SSEDecoder().feed(b"data: a\n\nevent: b\nid: 1\nretry: 5\ndata: c\n\n")


@pytest.fixture(scope="module")
async def handed(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    return [value async for value in hand_out(tmp_path_factory.mktemp("values"))]


def parts_of(value: object) -> Iterator[object]:
    """What a caller reaches from a value, in one step."""
    if isinstance(value, Mapping):
        yield from value.keys()
        yield from value.values()
    elif isinstance(value, (list, tuple)):
        yield from value
    elif isinstance(value, PiAPIError):
        yield from vars(value).values()
    elif attrs.has(type(value)):
        yield from (getattr(value, name) for name in public_names_of(type(value)))


def public_names_of(cls: type[Any]) -> list[str]:
    """Fields and properties of an attrs class."""
    names = [field.name for field in attrs.fields(cls)]
    names += [name for name, _ in inspect.getmembers(cls, lambda member: isinstance(member, property))]
    return [name for name in names if not name.startswith("_")]


def walk(value: object) -> Iterator[object]:
    """A value, and all that is reached from it. (Nothing that is handed out holds itself.)"""
    yield value
    for part in parts_of(value):
        yield from walk(part)


def is_allowed(value: object) -> bool:
    return (
        type(value) in PLAIN or attrs.has(type(value)) or isinstance(value, (Secret, PiAPIError, Mapping, list, tuple))
    )


def attrs_values(handed: list[object]) -> list[Any]:
    return [value for value in walk(handed) if attrs.has(type(value))]


# -- what there is -----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_only_values_are_reached_from_what_is_handed_out(handed: list[object]) -> None:
    assert {type(value) for value in walk(handed) if not is_allowed(value)} == set()


@pytest.mark.anyio
async def test_the_walk_meets_every_public_value(handed: list[object]) -> None:
    public = {name: getattr(piapi_async, name) for name in piapi_async.__all__}
    values = {name for name, value in public.items() if inspect.isclass(value) and attrs.has(value)}
    assert values - {type(value).__name__ for value in walk(handed)} == set()


def test_public_names() -> None:
    """Each is a value's class, an error's, or one of those that are said to be none."""
    for name in piapi_async.__all__:
        value = getattr(piapi_async, name)
        if not inspect.isclass(value):
            assert inspect.isfunction(value) or name in ("ChatParams", "Prompt", "__version__"), name
        elif name in PROTOCOLS:
            assert getattr(value, "_is_protocol", False), name
        elif name not in NO_VALUES | {"ChatParams"}:
            assert attrs.has(value) != issubclass(value, PiAPIError), name


@pytest.mark.parametrize("name", sorted(NO_VALUES))
def test_what_is_no_value_is_no_attrs_class(name: str) -> None:
    assert not attrs.has(getattr(piapi_async, name))


# -- what can be done with it ------------------------------------------------------------------------------------------


@pytest.mark.anyio
async def test_asdict_evolve_and_equality(handed: list[object]) -> None:
    for value in attrs_values(handed):
        fields = attrs.asdict(value, recurse=False)
        assert set(fields) == {field.name for field in attrs.fields(type(value))}
        attrs.asdict(value)
        twin = attrs.evolve(value)
        assert type(twin) is type(value)
        assert twin is not value
        if not isinstance(value, Ledger):  # a view of a client's books, which are not its own
            assert twin == value
            assert attrs.asdict(twin) == attrs.asdict(value)


@pytest.mark.anyio
async def test_equality_looks_at_every_field_but_the_body(handed: list[object]) -> None:
    compared = {type(value): value for value in attrs_values(handed)}
    for cls, value in compared.items():
        hidden = {field.name for field in attrs.fields(cls) if not field.eq}
        assert hidden == {ChatCompletion: {"body"}, ChatCompletionChunk: {"data"}, Ledger: set()}.get(cls, set())
        assert value != object()


@pytest.mark.anyio
async def test_values_are_copied_and_pickled_whole(handed: list[object]) -> None:
    for value in attrs_values(handed):
        if any(isinstance(part, (Secret, PiAPIError, Ledger)) for part in walk(value)):
            continue  # a key refuses to be pickled; errors are equal to themselves only
        if isinstance(value, ModelInfo):
            value.picodollars  # noqa: B018  # what is worked out once must not be in the way
        assert copy.copy(value) == copy.deepcopy(value) == value
        assert pickle.loads(pickle.dumps(value)) == value


@pytest.mark.anyio
async def test_evolve_keeps_what_came(handed: list[object]) -> None:
    answers = [value for value in walk(handed) if isinstance(value, (ChatCompletion, ChatCompletionChunk))]
    assert {type(value) for value in answers} == {ChatCompletion, ChatCompletionChunk}
    for value in answers:
        assert value.raw
        assert attrs.evolve(value).raw == value.raw


@pytest.mark.anyio
async def test_completions_as_json(handed: list[object]) -> None:
    completions = [value for value in walk(handed) if isinstance(value, ChatCompletion)]
    assert len(completions) >= 5
    for completion in completions:
        plain = completion.to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert completion.attempts
        assert plain["attempts"] == [attrs.asdict(attempt) for attempt in completion.attempts]
        assert plain["cost"] == f"{completion.cost:f}"
    assert max(len(completion.attempts) for completion in completions) > 1


@pytest.mark.anyio
async def test_a_restart_is_handed_out(handed: list[object]) -> None:
    (restart,) = (value for value in walk(handed) if isinstance(value, Restarted))
    assert restart.error.partial
    (status,) = (value for value in walk(handed) if isinstance(value, BatchStatus))
    assert (status.done, status.failed, status.stopped) == (2, 0, None)


def test_a_request_is_a_value_too() -> None:
    request = ChatRequest([Message("user", "Hi")], "gpt-4o", temperature=1, tools=[WEATHER])
    assert attrs.evolve(request) == request
    assert attrs.asdict(request)["messages"][0]["content"] == "Hi"


@pytest.mark.parametrize(
    "cls", [ChatCompletion, ChatCompletionChunk, ChatRequest, BatchStatus, Provider], ids=lambda cls: cls.__name__
)
def test_the_types_of_fields_can_be_read(cls: type[Any]) -> None:
    """As cattrs and other converters do."""
    assert set(get_type_hints(cls)) >= {field.name for field in attrs.fields(cls)}


OF_THEIR_OWN = [
    cls
    for cls in (
        *(Client, piapi_async.ChatStream, Ledger, SSEDecoder, Secret, SessionPool, PiAPIError, APIError),
        *(ChatRequest, ModelInfo, Provider),
    )
    if "__repr__" in vars(cls)
]


@pytest.mark.parametrize("cls", OF_THEIR_OWN)
def test_what_is_half_made_can_be_shown(cls: Any) -> None:
    """A traceback out of `__init__` that shows local variables has such an object."""
    assert cls.__name__ in repr(cls.__new__(cls))


@pytest.mark.parametrize(
    "make",
    [
        lambda: ChatRequest(5),
        lambda: ModelInfo("m", "x", "y"),
        lambda: Provider("o", "https://x.example/v1", []),
        lambda: Provider("o", "https://x.example/v1", "sk-0123456789", headers={"X-Team": "blue\n"}),
    ],
)
def test_a_refusal_can_be_shown_with_its_locals(make: Callable[[], object]) -> None:
    with pytest.raises(PiAPIError) as refusal:
        make()
    shown = "".join(traceback.TracebackException.from_exception(refusal.value, capture_locals=True).format())
    assert "self = " in shown


def test_the_values_of_headers_are_not_shown() -> None:
    assert "blue" not in repr(Provider("o", "https://x.example/v1", "sk-0123456789", headers={"X-Team": "blue"}))


def test_there_are_classes_that_show_themselves() -> None:
    assert {Client, Ledger, Secret, SessionPool, ChatRequest, ModelInfo, Provider} <= set(OF_THEIR_OWN)
