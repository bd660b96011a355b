"""Batches over real sockets: what a row may be, when a run ends, what a resume takes up; `faults.md` section K.

What its files go through byte by byte is in test_checkpoint.py, and the kills are in test_batch_kill.py.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import os
import re
import socket
import sys
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any, Self, cast

import anyio
import anyio.lowlevel
import openai.types.chat
import pytest

from piapi_async import (
    AuthenticationError,
    BatchError,
    BatchStatus,
    BudgetExceededError,
    Client,
    ConfigurationError,
    InternalServerError,
    Limits,
    Message,
    Retry,
    Timeout,
    quote_batch,
    run_batch,
)
from piapi_async.batch import MAX_LINE
from piapi_async.checkpoint import key_of, read_notes
from piapi_async.policy import Due
from piapi_async.pool import Endpoint, Exchange
from piapi_async.testing import Delay, Drop, Garbage, LocalServer, Stall, Status
from piapi_async.wire import Body
from tests import test_batch_kill, test_billing, test_checkpoint, test_ledger
from tests.leaks import KEY, PROMPT, assert_tight
from tests.test_checkpoint import file_limit
from tests.wires import ONCE, completion

pytestmark = pytest.mark.anyio

ROWS = 23
"""Of section K."""

MODEL = "gpt-4o-mini"
NOWHERE = "https://nowhere.invalid/v1"


def test_every_row_has_a_test() -> None:
    modules = (test_batch_kill, test_billing, test_checkpoint, test_ledger)
    names = [*globals(), *(name for module in modules for name in vars(module))]
    tested = {m[1] for name in names if (m := re.match(r"test_(K\d+)_", name))}
    assert tested == {f"K{row}" for row in range(1, ROWS + 1)}


# -- what the tests share --------------------------------------------------------------------------------------------


def echo(messages: Any) -> str:
    return f"echo: {messages[-1]['content']}"


@pytest.fixture
async def server() -> AsyncIterator[LocalServer]:
    async with LocalServer(api_key=KEY, answer=echo, faults=[]) as server:
        yield server


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results.jsonl"


@asynccontextmanager
async def opened(server: LocalServer, **options: Any) -> AsyncIterator[Client]:
    options = {"model": MODEL, "retry": ONCE, "timeout": Timeout(connect=5), **options}
    async with Client(KEY, base_url=server.base_url, **options) as client:
        yield client


async def run(
    server: LocalServer, requests: Any, out: Any, *, options: Mapping[str, Any] | None = None, **arguments: Any
) -> BatchStatus:
    """One run, with a client of its own; it never takes more than half a minute."""
    with anyio.fail_after(30):
        async with opened(server, **(options or {})) as client:
            return await run_batch(requests, out, client=client, **arguments)


async def refused(server: LocalServer, requests: Any, out: Any, match: str, **arguments: Any) -> BatchError:
    """A run that must not begin."""
    sent = len(server.requests)
    with pytest.raises(BatchError, match=match) as caught:
        await run(server, requests, out, **arguments)
    assert_tight(caught.value)
    assert len(server.requests) == sent
    return caught.value


def prompts(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"custom_id": f"id-{n}", "prompt": f"{PROMPT} {n}"} for n in range(start, start + count)]


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def content_of(path: Path) -> bytes:
    return path.read_bytes()


def save(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def exists(path: Path) -> bool:
    return path.exists()


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def records(out: Path) -> dict[str, Any]:
    """The records of a file of results, by id; each is there once, and each answer is what the SDK takes for one."""
    lines = [json.loads(line) for line in out.read_bytes().splitlines()]
    found = {record["custom_id"]: record for record in lines}
    assert len(found) == len(lines)
    for record in lines:
        assert record["id"].startswith("batch_req_")
        if record["error"] is None:
            assert record["response"]["status_code"] == 200
            openai.types.chat.ChatCompletion.model_validate(record["response"]["body"])
    return found


def text(record: Any) -> str:
    return str(record["response"]["body"]["choices"][0]["message"]["content"])


def check_whole(out: Path, count: int) -> None:
    """Every row has its own answer."""
    found = records(out)
    assert {name: text(record) for name, record in found.items()} == {
        f"id-{n}": f"echo: {PROMPT} {n}" for n in range(count)
    }
    assert not out.with_name(f"{out.name}.inflight").exists()


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


async def ended(server: LocalServer, source: Any, out: Path, *, sent: int = 4, **arguments: Any) -> BatchStatus:
    """A run that is told to end when so many are under way."""
    ending = anyio.Event()
    before = len(server.requests)
    found: list[BatchStatus] = []

    async def begin() -> None:
        found.append(await run(server, source, out, ending=ending, **{"concurrency": sent, "grace": 10, **arguments}))

    async with anyio.create_task_group() as group:
        group.start_soon(begin)
        await until(lambda: len(server.requests) - before == sent)
        ending.set()
    return found[0]


# -- what a row may be -----------------------------------------------------------------------------------------------


async def test_openai_batch_lines(server: LocalServer, tmp_path: Path, out: Path) -> None:
    body = {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why is the sky blue?"}],
        "max_tokens": 100,
    }
    rows: list[dict[str, object]] = [
        {"custom_id": f"request-{n}", "method": "POST", "url": "/v1/chat/completions", "body": {**body, "seed": n}}
        for n in range(3)
    ]
    seen: list[tuple[int, int | None]] = []
    status = await run(
        server,
        write(tmp_path / "in.jsonl", rows),
        out,
        progress=lambda status: seen.append((status.done, status.pending)),
    )
    assert (status.done, status.failed, status.total, status.pending, status.stopped) == (3, 0, 3, 0, None)
    assert status.tokens > 0
    assert status.seconds > 0
    assert (seen[0], seen[-1]) == ((0, 3), (3, 0))
    assert [request.body for request in server.requests] == [row["body"] for row in rows]
    found = records(out)
    assert list(found) == ["request-0", "request-1", "request-2"]
    for record in found.values():
        assert record.keys() == {"id", "custom_id", "response", "error", "piapi_async"}
        assert record["response"]["request_id"].startswith("req_")
        assert text(record) == "echo: Why is the sky blue?"
    notes = list(read_notes(out))
    assert sum(Decimal(note.cost or "NaN") for note in notes) == status.spent > 0
    assert {(note.kind, note.provider, note.model, note.attempts, note.first_token) for note in notes} == {
        ("ok", "piapi", "gpt-4o", 1, None)
    }
    assert all(note.tokens_in and note.tokens_out and note.finished and note.elapsed >= note.latency for note in notes)


async def test_plain_lines(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(
        b'\xef\xbb\xbf{"prompt": "a", "temperature": 0.5, "model": null}\r\n'
        b"\r\n"
        b'   {"messages": [{"role": "user", "content": "b"}], "custom_id": "mine", "stop": null, "stream": false}\n'
        b'{"prompt": "c", "model": "gpt-4o", "vendor_key": {"x": [1]}, "extra_body": {"y": 2}, "max_tokens": 7}'
    )
    status = await run(server, source, out, max_tokens=20, seed=5)
    assert (status.done, status.total) == (3, 3)
    base = {"model": MODEL, "max_tokens": 20, "seed": 5}
    bodies = {request.body["messages"][0]["content"]: request.body for request in server.requests}
    for body in bodies.values():
        del body["messages"]
    assert bodies == {
        "a": {**base, "temperature": 0.5},
        "b": base,
        "c": {**base, "model": "gpt-4o", "max_tokens": 7, "vendor_key": {"x": [1]}, "y": 2},
    }
    assert set(records(out)) == {"row-1", "mine", "row-4"}


@pytest.mark.parametrize("ending", [b"\n", b"\r\n"])
async def test_a_prompt_a_line(server: LocalServer, tmp_path: Path, out: Path, ending: bytes) -> None:
    lines = ["\N{ZERO WIDTH NO-BREAK SPACE}Why?", "", "   ", ' "How?" ', "{not JSON, as the first line is none}"]
    source = tmp_path / "in.txt"
    source.write_bytes(ending.join(line.encode() for line in lines))
    status = await run(server, str(source), str(out), model="gpt-4o")
    assert status.total == 3
    assert {name: text(record) for name, record in records(out).items()} == {
        "row-1": "echo: Why?",
        "row-4": 'echo: "How?"',
        "row-5": "echo: {not JSON, as the first line is none}",
    }
    assert {request.body["model"] for request in server.requests} == {"gpt-4o"}


BAD_LINES = {
    "bad JSON": (b'{"prompt": "x"', r"line 2: it is not JSON \(.*\); correct it"),
    "deep": (b'{"prompt": ' + b"[" * 100_000, "line 2: it is not JSON"),
    "not UTF-8": (b'{"prompt": "\xff"}', "line 2: it is not UTF-8; convert it first"),
    "no object": (b'["x"]', "line 2: it is not a JSON object"),
    "nothing asked": (b'{"custom_id": "x"}', "line 2: it has neither body, prompt nor messages"),
    "body": (b'{"body": [1]}', "line 2: body: it is not an object"),
    "method": (b'{"method": "GET", "body": {}}', "line 2: method: it is not POST"),
    "url": (b'{"url": "/v1/embeddings", "body": {}}', "line 2: url: it is not /v1/chat/completions"),
    "url, no text": (b'{"url": 5, "body": {}}', "line 2: url"),
    "id, no text": (b'{"custom_id": 5, "prompt": "x"}', "line 2: custom_id: it is not text"),
    "id, empty": (b'{"custom_id": "", "prompt": "x"}', "line 2: custom_id: it is not text"),
}


@pytest.mark.parametrize(("line", "match"), BAD_LINES.values(), ids=BAD_LINES)
async def test_a_line_that_is_none(server: LocalServer, tmp_path: Path, out: Path, line: bytes, match: str) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(b'{"prompt": "fine"}\n' + line + b"\n")
    await refused(server, source, out, match)
    assert content_of(out) == b""


async def test_a_text_that_is_not_utf8(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = tmp_path / "in.txt"
    source.write_bytes("na\xefve\n".encode("latin-1"))
    await refused(server, source, out, "line 1: it is not UTF-8; convert it first")


async def test_a_line_too_long(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = tmp_path / "in.jsonl"
    with source.open("wb") as file:
        file.truncate(MAX_LINE + 5)
    await refused(server, source, out, "line 1: it is longer than 67,108,864 bytes")


ODD_IDS = [
    "x" * 10_000,
    "\0\x1b[31m\n\r\u2028",
    '","piapi_async":{"version":9}',
    "\N{SNOWMAN}" * 500,
    "'; DROP TABLE",
    " ",
]


async def test_odd_ids(server: LocalServer, tmp_path: Path, out: Path) -> None:
    rows: list[dict[str, object]] = [{"custom_id": name, "prompt": f"{n}"} for n, name in enumerate(ODD_IDS)]
    source = write(tmp_path / "in.jsonl", rows)
    server.faults = lambda _number, _body: Stall()
    status = await ended(server, source, out, sent=len(ODD_IDS), grace=0)
    assert (status.stopped, set(status.cut)) == ("interrupted", set(ODD_IDS))
    server.faults = []
    status = await run(server, source, out)
    assert set(status.maybe_billed) == {name if len(name) < 100 else f"{name[:24]}…" for name in ODD_IDS}
    assert {name: text(record) for name, record in records(out).items()} == {
        name: f"echo: {n}" for n, name in enumerate(ODD_IDS)
    }
    status = await run(server, source, out)
    assert (status.before, status.maybe_billed) == (len(ODD_IDS), ())


async def test_items_of_an_iterable(server: LocalServer, out: Path) -> None:
    rows = ["one", {"prompt": "two", "custom_id": "b"}, {"messages": [Message("user", "three")]}]
    status = await run(server, rows, out)
    assert (status.done, status.total, status.pending) == (3, None, None)
    assert {name: text(record) for name, record in records(out).items()} == {
        "row-1": "echo: one",
        "b": "echo: two",
        "row-3": "echo: three",
    }


@pytest.mark.parametrize(
    ("item", "match"),
    [
        (5, "row 2: a int is no row"),
        ({"prompt": object()}, r"row 2: it is not JSON \("),
        ({"prompt": "\ud800"}, r"row 2: it is not JSON \("),
        ({"custom_id": "\ud800", "prompt": "x"}, r"row 2: it is not JSON \("),
        ({"prompt": "x", "extra_body": {5j: 1}}, r"row 2: it is not JSON \("),
    ],
    ids=["no row", "no JSON", "surrogate", "surrogate id", "key"],
)
async def test_an_item_that_is_none(server: LocalServer, out: Path, item: Any, match: str) -> None:
    with pytest.raises(BatchError, match=match):
        await run(server, ["fine", item], out)
    assert set(records(out)) == {"row-1"}


async def test_what_is_no_input(server: LocalServer, tmp_path: Path, out: Path) -> None:
    await refused(server, 5, out, "requests: a int is no input")
    await refused(server, tmp_path / "missing", out, "missing: it can't be read: No such file or directory")
    await refused(server, tmp_path, out, "it can't be read: Is a directory")
    assert not exists(out)


async def test_streamed_rows(server: LocalServer, tmp_path: Path, out: Path) -> None:
    rows: list[dict[str, object]] = [
        {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}},
        {"prompt": "b"},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    await run(server, source, out)
    assert {request.body["messages"][0]["content"]: request.body.get("stream") for request in server.requests} == {
        "a": True,
        "b": None,
    }
    first, second = sorted(read_notes(out), key=lambda note: note.first_token is None)
    assert first.first_token is not None
    assert 0 < first.first_token <= first.latency
    assert (first.tokens_out, first.cost_estimated, second.first_token) == (second.tokens_out, False, None)
    everything = out.with_name("all")
    await run(server, source, everything, stream=True)
    assert all(note.first_token for note in read_notes(everything))
    assert {text(record) for record in records(everything).values()} == {"echo: a", "echo: b"}


async def test_a_lone_surrogate_in_an_answer(out: Path) -> None:
    async with LocalServer(api_key=KEY, faults=[]) as server:
        half = completion("half \\").replace(b"half \\\\", b"half \\ud83d")
        server.faults = [Garbage(half)]
        status = await run(server, ["x"], out)
    assert (status.done, status.failed) == (1, 0)
    assert text(records(out)["row-1"]).startswith("half ")


# -- files -----------------------------------------------------------------------------------------------------------

CHILD = """
import asyncio, json, sys
from piapi_async import Client, run_batch
from piapi_async.errors import PiAPIError

async def main(base_url, key, requests, output):
    async with Client(key, base_url=base_url, model="gpt-4o-mini") as client:
        try:
            status = await run_batch(requests, output, client=client)
        except PiAPIError as error:
            sys.exit(str(error))
    print(status.done, status.total, file=sys.stderr)

asyncio.run(main(*sys.argv[1:]))
"""


async def in_a_child(server: LocalServer, requests: str, output: str, **streams: Any) -> tuple[int, bytes, str]:
    process = await anyio.run_process(
        [sys.executable, "-c", CHILD, server.base_url, KEY, requests, output], check=False, **streams
    )
    return process.returncode, process.stdout or b"", process.stderr.decode()


async def test_standard_input_as_a_pipe(server: LocalServer, out: Path) -> None:
    content = b"\n".join(b'{"custom_id": "id-%d", "prompt": "%b %d"}' % (n, PROMPT.encode(), n) for n in range(5))
    status, shown, message = await in_a_child(server, "-", str(out), input=content)
    assert (status, shown, message) == (0, b"", "5 None\n")
    check_whole(out, 5)
    status, _, message = await in_a_child(server, "-", str(out), input=content + b"\n\n{}\n")
    assert status == 1
    assert "line 7: it has neither" in message


async def test_standard_input_and_output_as_files(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(5))
    with source.open("rb") as stdin, out.open("wb") as stdout:
        assert await in_a_child(server, "-", "-", stdin=stdin, stdout=stdout) == (0, b"", "5 5\n")
    check_whole(out, 5)
    with out.open("rb") as stdin:
        status, _, message = await in_a_child(server, "-", str(out), stdin=stdin)
    assert (status, message) == (1, "-: it is the file of results too; name another\n")
    check_whole(out, 5)


async def test_standard_output_as_a_pipe(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(5))
    status, shown, message = await in_a_child(server, str(source), "-")
    assert (status, message) == (0, "5 5\n")
    save(out, shown)
    check_whole(out, 5)
    assert names_in(tmp_path) == {source.name, out.name}


async def test_a_named_pipe(server: LocalServer, tmp_path: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def feed(content: bytes) -> threading.Thread:
        thread = threading.Thread(target=lambda: pipe.write_bytes(content))
        thread.start()
        return thread

    source = write(tmp_path / "in.jsonl", prompts(3))
    thread = feed(source.read_bytes())
    status = await run(server, pipe, out)
    thread.join(10)
    assert (status.done, status.total) == (3, None)
    check_whole(out, 3)
    monkeypatch.setattr("piapi_async.batch.MAX_LINE", 100)  # its own is 64 MiB
    thread = feed(b'{"prompt": "short"}\n{"prompt": "' + b"long" * 50)
    with pytest.raises(BatchError, match="line 2: it is longer than 100 bytes"):
        await run(server, pipe, tmp_path / "other.jsonl")
    thread.join(10)


async def test_what_writes_into_a_pipe_may_never_come(server: LocalServer, tmp_path: Path, out: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def waits() -> bool:
        return any(thread.name == f"waiting for {pipe}" for thread in threading.enumerate())

    status = await run(server, pipe, out, deadline=0.02, grace=0.02)
    assert status.stopped == "deadline"
    assert waits()
    os.close(os.open(pipe, os.O_RDWR))  # the thread that waits is let go, and nobody listens to it any more
    await until(lambda: not waits())
    await anyio.lowlevel.checkpoint()


async def test_a_socket_is_no_input(server: LocalServer, tmp_path: Path, out: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        await refused(server, tmp_path / "socket", out, "socket: it can't be read: No such device or address")


async def test_a_long_file(tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(2500))
    for before in (0, 2500):
        async with Client(KEY, base_url=NOWHERE, model=MODEL, transport=InstantTransport()) as client:
            status = await run_batch(source, out, client=client)
        assert (status.before, status.done, status.total) == (before, 2500, 2500)
    assert len(records(out)) == 2500


async def test_the_input_as_output(server: LocalServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(2))
    content = source.read_bytes()
    twin = tmp_path / "twin"
    twin.hardlink_to(source)
    for output in (source, str(source), twin):
        await refused(server, source, output, "it is the file of results too")
    with pytest.raises(BatchError, match="it is the file of results too"):
        async with opened(server) as client:
            await quote_batch(source, twin, client=client)
    assert source.read_bytes() == content


@pytest.mark.parametrize("content", [b"My novel\n", b"My novel", b'{"custom_id": "a"}'])
async def test_a_foreign_file_as_output(server: LocalServer, tmp_path: Path, out: Path, content: bytes) -> None:
    save(out, content)
    await refused(server, write(tmp_path / "in.jsonl", prompts(2)), out, "something else than results of a batch")
    assert content_of(out) == content
    assert names_in(tmp_path) == {"in.jsonl", out.name}


# -- what it would cost ----------------------------------------------------------------------------------------------


async def test_quote(server: LocalServer, tmp_path: Path, out: Path) -> None:
    rows: list[dict[str, object]] = [
        *prompts(4),
        {"prompt": "x", "model": "gpt-4o", "max_tokens": 10},
        {"prompt": "x", "model": "unheard-of"},
        {"prompt": "x", "temperature": 7},
        {"prompt": 5},
    ]
    source = write(tmp_path / "in.jsonl", rows)
    async with opened(server) as client:
        first = {quote.model: quote for quote in await quote_batch(source, out, client=client, max_tokens=100)}
        assert not exists(out)
        await run_batch(rows[:2], out, client=client, max_tokens=100)
        content, sent = content_of(out), len(server.requests)
        second = {quote.model: quote for quote in await quote_batch(source, out, client=client, max_tokens=100)}
        assert await quote_batch(source, client=client, max_tokens=100) == list(first.values())
    assert (content_of(out), len(server.requests)) == (content, sent)
    mini = first[MODEL]
    assert (mini.rows, mini.refused, second[MODEL].rows) == (6, 2, 4)
    assert mini.tokens == 2 * second[MODEL].tokens > 0
    assert mini.least is not None
    assert mini.most is not None
    assert second[MODEL].most == mini.most / 2
    assert 0 < mini.least < mini.most
    assert (first["gpt-4o"].rows, first["unheard-of"].least, first["unheard-of"].most) == (1, None, None)


# -- K4, K5: where it can't be written -------------------------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
async def test_K4_dev_full(server: LocalServer, tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="No space left on device") as caught:
        await run(server, write(tmp_path / "in.jsonl", prompts(50)), "/dev/full", concurrency=4)
    unsaved = [json.loads(line)["custom_id"] for line in caught.value.unsaved]
    assert 1 <= len(unsaved) == len(server.requests) <= 4


async def test_K4_disk_full(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(50))
    server.latency = 0.005
    with pytest.raises(BatchError, match="File too large") as caught, file_limit(5000):
        await run(server, source, out, concurrency=4)
    sent, saved = len(server.requests), records(out)
    assert 4 <= len(saved) < sent < 20
    unsaved = [json.loads(line)["custom_id"] for line in caught.value.unsaved]
    assert len(unsaved) + len(saved) == sent
    assert not set(unsaved) & set(saved)
    status = await run(server, source, out)  # there is room again
    assert (status.done, status.before, set(status.maybe_billed)) == (50, len(saved), set(unsaved))
    assert len(server.requests) == 50 + len(unsaved)
    check_whole(out, 50)


async def test_K4_what_came_in_is_added_by_hand(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(12))
    with pytest.raises(BatchError) as caught, file_limit(3000):
        await run(server, source, out, concurrency=2)
    with out.open("ab") as file:
        file.writelines(caught.value.unsaved)
    sent = len(server.requests)
    status = await run(server, source, out)
    assert status.maybe_billed == ()
    assert status.spent == sum(Decimal(note.cost or 0) for note in read_notes(out))
    assert len(server.requests) == 12 == status.done > sent
    check_whole(out, 12)


async def test_K4_room_again_by_the_end(server: LocalServer, out: Path) -> None:
    async def rows() -> AsyncIterator[dict[str, object]]:
        for row in prompts(9):
            yield row

    limit = file_limit(2000)

    def give_room(status: BatchStatus) -> None:
        if status.stopped:
            limit.__exit__(None, None, None)

    limit.__enter__()
    status = await run(server, rows(), out, concurrency=1, progress=_once(give_room))
    assert (status.stopped, status.cut) == ("disk", ())
    assert len(records(out)) == status.done == len(server.requests)
    assert not exists(out.with_name("results.jsonl.inflight"))


def _once(act: Callable[[BatchStatus], object]) -> Callable[[BatchStatus], object]:
    done: list[bool] = []

    def do(status: BatchStatus) -> None:
        if status.stopped and not done:
            done.append(True)
            act(status)

    return do


async def test_K4_no_room_to_note_what_is_sent(server: LocalServer, out: Path) -> None:
    server.faults = lambda _number, _body: Status(503)  # held back, each with its slot
    with file_limit(1024), pytest.raises(BatchError, match="File too large") as caught:
        await run(server, prompts(50), out, concurrency=1)
    assert len(server.requests) == 5  # the fifth slot had no room
    assert [json.loads(line)["custom_id"] for line in caught.value.unsaved]


async def test_K4_a_full_disk_comes_before_a_bad_row(server: LocalServer, out: Path) -> None:
    async def rows() -> AsyncIterator[Any]:
        for row in prompts(3):
            yield row
        await until(lambda: len(server.requests) == 3)
        yield 5

    server.latency = 0.02
    with file_limit(1100), pytest.raises(BatchError, match="File too large") as caught:
        await run(server, rows(), out, concurrency=4)
    assert len(caught.value.unsaved) == 3 - len(records(out)) > 0


async def test_K5_paths_that_can_not_be(server: LocalServer, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(2))
    target = write(tmp_path / "target", [])
    (tmp_path / "link").symlink_to(target)
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    for name, match in (
        ("missing/out.jsonl", "its directory does not exist; make it first"),
        (".", "it is a directory; name a file"),
        ("link", "it is a symbolic link, and none is followed"),
        ("dangling", "it is a symbolic link, and none is followed"),
        ("in.jsonl/out.jsonl", "it can not be written: Not a directory"),
    ):
        await refused(server, source, tmp_path / name, match)
    assert not (tmp_path / "nowhere").exists()
    assert target.read_bytes() == b""


async def test_K5_read_only_directory(server: LocalServer, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o500)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write anywhere")
    await refused(server, write(tmp_path / "in.jsonl", prompts(2)), closed / "out.jsonl", "Permission denied")


# -- K6, K8 to K10: what does not go together ------------------------------------------------------------------------


async def test_K6_second_run(server: LocalServer, out: Path) -> None:
    tried = anyio.Event()

    async def rows() -> AsyncIterator[dict[str, object]]:
        for n, row in enumerate(prompts(9)):
            if n == 4:
                await tried.wait()
            yield row

    async with anyio.create_task_group() as group:
        group.start_soon(run, server, rows(), out)
        await until(lambda: server.requests)
        with pytest.raises(BatchError, match="another batch is writing it"):
            await run(server, prompts(9), out)
        tried.set()
    check_whole(out, 9)
    assert len(server.requests) == 9


async def test_K8_duplicate_ids(server: LocalServer, tmp_path: Path, out: Path) -> None:
    rows = [*prompts(3), *prompts(1)]
    source = write(tmp_path / "in.jsonl", rows)
    await refused(server, source, out, "line 4: the custom_id 'id-0' was there before; give each row its own")
    await refused(server, source, "/dev/null", "line 4: the custom_id 'id-0' was there before")
    with pytest.raises(BatchError, match="row 4: the custom_id 'id-0' was there before"):
        await run(server, rows, out)
    check_whole(out, 3)  # what was sent before is saved
    await refused(server, source, out, "line 4: the custom_id 'id-0' was there before")


async def test_K8_an_id_that_is_anothers_number(server: LocalServer, out: Path) -> None:
    with pytest.raises(BatchError, match="row 2: the custom_id 'row-2'"):
        await run(server, [{"custom_id": "row-2", "prompt": "x"}, "y"], out)


async def test_K9_another_body(server: LocalServer, tmp_path: Path, out: Path) -> None:
    rows = prompts(3)
    source = write(tmp_path / "in.jsonl", rows)
    await run(server, source, out)
    content = content_of(out)
    for change in ({"prompt": f"{PROMPT} x"}, {"temperature": 1}, {"stop": ["x"]}, {"vendor": 1}, {"stream": True}):
        write(source, [rows[0], {**rows[1], **change}, rows[2]])
        await refused(server, source, out, "line 2: .* has a result for 'id-1' that answers another request")
    write(source, [{**rows[0], "prompt": None, "messages": [{"role": "user", "content": "x"}]}])
    await refused(server, source, out, "line 1")
    assert content_of(out) == content


async def test_K9_the_same_in_other_bytes(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_text('{"custom_id": "a", "body": {"messages": [{"role": "user", "content": "é"}], "seed": 1}}')
    await run(server, source, out)
    for same in (
        '{"body":{"seed":1,"messages":[{"content":"\\u00e9","role":"user"}]},"custom_id":"a"}\r\n',
        '\n{"custom_id": "a", "messages": [{"role": "user", "content": "é"}], "seed": 1, "top_p": null}',
        '{"custom_id": "a", "messages": [{"role": "user", "content": "é"}], "seed": 1, "model": "gpt-4o-mini"}',
    ):
        source.write_text(same)
        status = await run(server, source, out)
        assert (status.before, status.done) == (1, 1)
    assert len(server.requests) == 1


async def test_K10_another_model_provider_or_parameter(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(2))
    await run(server, source, out, seed=1)
    content = content_of(out)
    match = "line 1: .* answers another request: its body, the model, a parameter or the base URL was different"
    await refused(server, source, out, match, seed=2)
    await refused(server, source, out, match)
    await refused(server, source, out, match, seed=1, model="gpt-4o")
    await refused(server, source, out, match, seed=1, options={"model": "gpt-4o"})
    async with LocalServer(api_key=KEY) as other:
        await refused(other, source, out, match, seed=1)
    assert content_of(out) == content
    assert (await run(server, source, out, seed=1, options={"model": None}, model=MODEL)).before == 2
    assert len(server.requests) == 2


# -- K11, K12: the input's own troubles ------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["iterable", "async iterable"])
async def test_K11_an_input_that_breaks_off(server: LocalServer, out: Path, how: str) -> None:
    def rows() -> Iterator[Any]:
        yield from prompts(5)
        raise LookupError("the database is gone")

    async def slow_rows() -> AsyncIterator[Any]:
        for row in rows():
            await anyio.lowlevel.checkpoint()
            yield row

    server.latency = 0.01
    with pytest.raises(LookupError, match="the database is gone"):
        await run(server, rows() if how == "iterable" else slow_rows(), out)
    check_whole(out, 5)
    status = await run(server, prompts(7), out)
    assert (status.before, status.done) == (5, 7)
    assert len(server.requests) == 7


@pytest.mark.parametrize("how", ["iterable", "async iterable"])
async def test_K11_an_endless_input(server: LocalServer, out: Path, how: str) -> None:
    pulled, most = 0, 0
    done: list[int] = [0]
    ending = anyio.Event()

    def rows() -> Iterator[Any]:
        nonlocal pulled, most
        for n in itertools.count():
            pulled += 1
            most = max(most, pulled - done[0])
            yield prompts(1, n)[0]

    async def slow_rows() -> AsyncIterator[Any]:
        for row in rows():
            yield row

    def watch(status: BatchStatus) -> None:
        done[0] = status.done
        if status.done >= 40:
            ending.set()

    source = rows() if how == "iterable" else slow_rows()
    status = await run(server, source, out, concurrency=4, ending=ending, progress=watch)
    assert (status.stopped, status.cut, status.total) == ("interrupted", (), None)
    assert most <= 2 * 4 + 1  # one may be counted as it is handed over
    assert len(server.requests) == status.done >= 40
    check_whole(out, status.done)


async def test_K11_an_input_that_falls_silent(server: LocalServer, out: Path) -> None:
    ending = anyio.Event()

    async def rows() -> AsyncIterator[Any]:
        for row in prompts(3):
            yield row
        await anyio.sleep_forever()

    def watch(status: BatchStatus) -> None:
        if status.done == 3:
            ending.set()

    status = await run(server, rows(), out, ending=ending, progress=watch)
    assert (status.stopped, status.done) == ("interrupted", 3)
    status = await run(server, rows(), out, deadline=0.01, grace=0.01)
    assert (status.stopped, status.done) == ("deadline", 3)


async def test_K12_a_poison_row(server: LocalServer, tmp_path: Path, out: Path) -> None:
    rows = prompts(30)
    rows[7]["temperature"] = 9  # refused here
    rows[20]["vendor"] = "poison"
    source = write(tmp_path / "in.jsonl", rows)
    server.faults = lambda _number, body: Status(400, error_code="bad_vendor") if body.get("vendor") else None
    status = await run(server, source, out)
    assert (status.done, status.failed, status.pending, status.stopped) == (28, 2, 0, None)
    found = records(out)
    assert found["id-7"]["response"] is None
    assert found["id-7"]["error"]["code"] == "invalid request"
    assert "temperature" in found["id-7"]["error"]["message"]
    poison = found["id-20"]
    assert (poison["response"]["status_code"], poison["error"]["code"]) == (400, "bad_vendor")
    assert poison["response"]["request_id"].startswith("req_")
    assert poison["response"]["body"]["error"].keys() == {"message", "type", "param", "code"}
    notes = {note.key: note for note in read_notes(out)}
    assert (notes[key_of("id-20")].kind, notes[key_of("id-20")].attempts) == ("bad_vendor", 1)
    assert (notes[key_of("id-7")].failed, notes[key_of("id-7")].attempts) == (True, 0)
    assert (await run(server, source, out)).failed == 2
    assert len(server.requests) == 29  # they are not asked again …
    server.faults = []
    status = await run(server, source, out, retry_failed=True)  # … unless that is wanted
    assert (status.before, status.done, status.failed) == (28, 29, 1)
    assert len(records(out)) == 30


# -- K13: nothing but failures ---------------------------------------------------------------------------------------


async def test_K13_bad_key(tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(9))
    async with LocalServer(api_key="sk-another-key-0000", answer=echo, more_keys=[]) as server:
        status = await run(server, source, out, concurrency=1)
        assert (status.stopped, status.done, status.failed, status.pending) == ("key", 0, 0, 9)
        assert isinstance(status.error, AuthenticationError)
        assert_tight(status.error)
        assert len(server.requests) == 1
        assert content_of(out) == b""
        assert not exists(out.with_name("results.jsonl.inflight"))
        assert (await run(server, source, out, concurrency=4)).failed == 0
        assert len(server.requests) <= 5
        port = server.port
    async with LocalServer(api_key=KEY, answer=echo, port=port) as server:
        assert (await run(server, source, out)).done == 9
    check_whole(out, 9)


async def test_K13_ten_failures_in_a_row(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(30))
    server.faults = lambda number, _body: Status(503) if number >= 3 else None
    status = await run(server, source, out, concurrency=1)
    assert (status.stopped, status.done, status.failed, status.pending) == ("failures", 3, 0, 27)
    assert isinstance(status.error, InternalServerError)
    assert len(server.requests) == 13
    assert status.cut == ()  # a 503 is not billed
    check_whole(out, 3)
    server.faults = []
    assert (await run(server, source, out)).done == 30
    check_whole(out, 30)


async def test_K13_failures_are_recorded_when_a_success_follows(server: LocalServer, out: Path) -> None:
    server.faults = [Status(503)] * 9
    status = await run(server, prompts(12), out, concurrency=1)
    assert (status.stopped, status.done, status.failed) == (None, 3, 9)
    assert Counter(note.kind for note in read_notes(out)) == {"status 503": 9, "ok": 3}
    assert not exists(out.with_name("results.jsonl.inflight"))


async def test_K13_failures_of_many_kinds(server: LocalServer, out: Path) -> None:
    server.faults = lambda number, _body: Status(503 if number % 9 else 500)
    status = await run(server, prompts(40), out, concurrency=1)
    assert (status.stopped, status.failed) == (None, 40)


async def test_K13_a_limit_of_ones_own(server: LocalServer, out: Path) -> None:
    server.faults = lambda _number, _body: Status(503)
    assert (await run(server, prompts(40), out, concurrency=1, stop_after=3)).stopped == "failures"
    assert len(server.requests) == 3
    status = await run(server, prompts(40), out, stop_after=None)
    assert (status.stopped, status.failed) == (None, 40)


async def test_K13_what_was_sent_at_the_stop_comes_in(server: LocalServer, out: Path) -> None:
    server.faults = [Delay(0.6), *[Status(503)] * 40]
    status = await run(server, prompts(40), out, concurrency=2)
    assert (status.stopped, status.done, status.failed) == ("failures", 1, 0)
    assert len(server.requests) == 11


async def test_K13_failures_that_were_never_sent(server: LocalServer, tmp_path: Path, out: Path) -> None:
    server.latency = 0.2
    source = write(tmp_path / "in.jsonl", prompts(30))
    options = {"limits": Limits(concurrency=1), "timeout": Timeout(pool=0.05)}
    status = await run(server, source, out, options=options, concurrency=12)
    assert (status.stopped, status.done, status.failed, status.cut) == ("failures", 1, 0, ())
    assert len(server.requests) == 1


# -- K14: told to end ------------------------------------------------------------------------------------------------


async def test_K14_what_is_under_way_is_saved(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(20))
    server.latency = 0.1
    status = await ended(server, source, out)
    assert (status.stopped, status.done, status.pending, status.cut) == ("interrupted", 4, 16, ())
    assert len(server.requests) == 4
    check_whole(out, 4)
    server.latency = 0
    assert (await run(server, source, out)).done == 20
    assert len(server.requests) == 20


async def test_K14_what_does_not_come_in_is_listed(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(20))
    server.faults = lambda _number, _body: Stall()
    status = await ended(server, source, out, grace=0.02)
    assert (status.stopped, status.done, status.failed) == ("interrupted", 0, 0)
    assert set(status.cut) == {f"id-{n}" for n in range(4)}
    assert content_of(out) == b""
    server.faults = []
    status = await run(server, source, out)
    assert set(status.maybe_billed) == {f"id-{n}" for n in range(4)}
    assert status.cut == ()
    check_whole(out, 20)


async def test_K14_what_waits_to_be_sent_is_let_go(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(20))
    server.latency = 0.1
    status = await ended(server, source, out, concurrency=12, options={"limits": Limits(concurrency=4)})
    assert (status.done, status.failed, len(server.requests)) == (4, 0, 4)
    check_whole(out, 4)


async def test_K14_told_before_it_began(server: LocalServer, tmp_path: Path, out: Path) -> None:
    ending = anyio.Event()
    ending.set()
    status = await run(server, write(tmp_path / "in.jsonl", prompts(9)), out, ending=ending)
    assert (status.stopped, status.pending, server.requests) == ("interrupted", 9, [])


async def test_K14_a_task_that_is_cancelled(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(20))
    server.faults = [None] * 5 + [Stall()] * 4
    async with anyio.create_task_group() as group:

        async def begin() -> None:
            await run(server, source, out, concurrency=4)

        group.start_soon(begin)
        await until(lambda: len(server.requests) == 9)
        group.cancel_scope.cancel()
    check = records(out)
    assert len(check) == 5
    status = await run(server, source, out)
    assert len(status.maybe_billed) == 4
    assert not set(status.maybe_billed) & set(check)
    check_whole(out, 20)
    assert len(server.requests) == 24


async def test_K14_deadline(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(20))
    server.faults = [None] * 5 + [Stall()] * 4
    status = await run(server, source, out, concurrency=4, deadline=0.8)
    assert (status.stopped, status.done, status.failed, status.pending) == ("deadline", 5, 0, 15)
    assert len(status.cut) == 4
    assert len(server.requests) == 9
    assert (await run(server, source, out, deadline=60)).done == 20


async def test_the_callers_errors_come_out(server: LocalServer, tmp_path: Path, out: Path) -> None:
    def complain(status: BatchStatus) -> None:
        raise LookupError("the window is closed")

    source = write(tmp_path / "in.jsonl", prompts(2))
    with pytest.raises(LookupError):
        await run(server, source, out, progress=complain)
    with pytest.raises(ConfigurationError, match="concurrency"):
        await run(server, source, out, concurrency=0)
    with pytest.raises(RuntimeError, match="the client is not open"):
        await run_batch(source, out, client=Client(KEY, base_url=server.base_url, model=MODEL))
    assert server.requests == []
    assert (await run(server, source, out)).done == 2


# -- K15 to K19: money -----------------------------------------------------------------------------------------------


async def test_K15_cap_hit_with_64_in_flight(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(300))
    server.latency = 0.005
    arguments: Any = {"concurrency": 64, "max_tokens": 100, "model": "gpt-4o"}
    status = await run(server, source, out, options={"budget": "0.02"}, **arguments)
    assert status.stopped == "budget"
    assert isinstance(status.error, BudgetExceededError)
    assert (status.failed, status.cut) == (0, ())
    assert status.done == len(server.requests) > 64
    assert status.pending == 300 - status.done > 0
    assert status.spent == sum(Decimal(note.cost or 0) for note in read_notes(out)) <= Decimal("0.02")
    worst = Decimal("0.02") - status.spent
    again = await run(server, source, out, options={"budget": "0.02"}, **arguments)
    assert (again.stopped, again.spent <= Decimal("0.02")) == ("budget", True)
    assert again.done - status.done <= worst / (status.spent / status.done)  # what was spent before counts
    rest = await run(server, source, out, options={"budget": "5"}, **arguments)
    assert (rest.stopped, rest.done) == (None, 300)
    assert rest.spent == sum(Decimal(note.cost or 0) for note in read_notes(out))
    check_whole(out, 300)


async def test_K15_room_for_one_at_a_time(server: LocalServer, tmp_path: Path, out: Path) -> None:
    worst = await worst_case(server)
    one = (await run(server, prompts(1), tmp_path / "one.jsonl", max_tokens=100)).spent
    budget = worst + 10 * one  # others wait until the one under way has cost less than it might have
    status = await run(server, prompts(10), out, options={"budget": budget}, concurrency=8, max_tokens=100)
    assert (status.stopped, status.done) == (None, 10)
    check_whole(out, 10)


async def worst_case(server: LocalServer) -> Decimal:
    """What one row of these tests may cost."""
    async with opened(server) as client:
        worst = client.quote(f"{PROMPT} 0", max_tokens=100).most
    assert worst is not None
    return worst


async def test_K15_told_to_end_while_waiting_for_the_budget(server: LocalServer, out: Path) -> None:
    worst = await worst_case(server)
    server.latency = 0.1
    options = {"budget": worst * 3 / 2}
    status = await ended(server, prompts(10), out, sent=1, options=options, concurrency=8, max_tokens=100)
    assert (status.stopped, status.done, len(server.requests)) == ("interrupted", 1, 1)


async def test_K15_nothing_fits(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(10))
    status = await run(server, source, out, options={"budget": "0.000001"}, max_tokens=100)
    assert (status.stopped, status.done, status.pending) == ("budget", 0, 10)
    assert server.requests == []


async def stalled(server: LocalServer, source: Any, out: Path, **options: Any) -> BatchStatus:
    """A run of two rows that is cut while both are under way."""
    server.faults = lambda _number, _body: Stall()
    status = await ended(server, source, out, sent=2, options=options, max_tokens=100, grace=0)
    server.faults = []
    return status


async def test_K16_unknown_bills_outlive_the_run(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(2))
    worst = await worst_case(server)
    status = await stalled(server, source, out)
    assert (status.unknown, set(status.cut)) == (2 * worst, {"id-0", "id-1"})
    status = await stalled(server, source, out, budget=5 * worst)
    assert (status.unknown, status.stopped) == (4 * worst, "interrupted")
    assert set(status.maybe_billed) == {"id-0", "id-1"}
    status = await run(server, source, out, options={"budget": 5 * worst - Decimal("1e-9")}, max_tokens=100)
    assert (status.stopped, status.unknown, status.done) == ("budget", 4 * worst, 0)
    status = await run(server, source, out, options={"budget": 7 * worst}, max_tokens=100)
    assert (status.stopped, status.unknown, status.done, status.maybe_billed) == (None, 4 * worst, 2, ("id-1", "id-0"))
    status = await run(server, source, out, max_tokens=100)  # their slots are gone, and the notes tell
    assert (status.unknown, status.maybe_billed) == (4 * worst, ())
    notes = list(read_notes(out))
    assert max(Decimal(note.unknown) for note in notes) == 4 * worst


async def test_K16_a_failure_that_bills_nothing_takes_nothing_back(
    server: LocalServer, tmp_path: Path, out: Path
) -> None:
    source = write(tmp_path / "in.jsonl", prompts(2))
    before = await stalled(server, source, out)
    server.faults = lambda _number, _body: Status(503)
    status = await run(server, source, out, max_tokens=100, stop_after=1)
    assert (status.stopped, status.unknown) == ("failures", before.unknown)
    assert set(status.cut) == {"id-0", "id-1"}
    server.faults = []
    status = await run(server, source, out, max_tokens=100)
    assert (set(status.maybe_billed), status.unknown, status.done) == ({"id-0", "id-1"}, before.unknown, 2)


async def test_K16_failures_that_may_be_billed_count_once(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(12))
    worst = await worst_case(server)
    server.faults = [Delay(0.6), *[Drop("fin")] * 10]
    status = await run(server, source, out, concurrency=2, max_tokens=100)
    assert (status.stopped, status.done, len(status.cut)) == ("failures", 1, 10)
    unknown = status.unknown
    assert unknown >= 10 * worst
    status = await run(server, source, out, max_tokens=100)
    assert (status.done, status.unknown) == (12, unknown)
    assert (await run(server, source, out, max_tokens=100)).unknown == unknown


async def test_K19_price_unknown(server: LocalServer, tmp_path: Path, out: Path) -> None:
    rows: list[dict[str, object]] = [{"prompt": "x", "model": "gpt-3.5-turbo"}, {"prompt": "y"}]
    source = write(tmp_path / "in.jsonl", rows)
    status = await run(server, source, out, options={"budget": "5"}, max_tokens=10)
    assert (status.done, status.failed, len(server.requests)) == (1, 1, 1)
    assert "gpt-3.5-turbo" in records(out)["row-1"]["error"]["message"]
    status = await run(server, source, out, retry_failed=True, max_tokens=10)
    assert (status.done, status.failed) == (2, 0)
    notes = {note.model: note.cost for note in read_notes(out)}
    assert notes["gpt-3.5-turbo"] is None
    assert status.spent == Decimal(notes[MODEL] or 0) > 0


# -- K21: one slow row -----------------------------------------------------------------------------------------------


async def test_K21_a_slow_row_stops_no_other(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(50))
    server.faults = [Stall()]
    others = anyio.Event()

    def watch(status: BatchStatus) -> None:
        if status.done == 49:
            others.set()

    async def begin() -> None:
        await run(server, source, out, concurrency=2, progress=watch)

    async with anyio.create_task_group() as group:
        group.start_soon(begin)
        with anyio.fail_after(20):
            await others.wait()
        assert set(records(out)) == {f"id-{n}" for n in range(1, 50)}
        await server.close()  # the slow row fails, as the last one
    assert list(records(out))[-1] == "id-0"


# -- retries, backups, memory ----------------------------------------------------------------------------------------


async def test_retries_run_beside_first_attempts(server: LocalServer, tmp_path: Path, out: Path) -> None:
    seen: list[str] = []

    def first_of_some(_number: int, body: Any) -> Status | None:
        prompt = body["messages"][0]["content"]
        seen.append(prompt)
        return Status(503) if seen.count(prompt) == 1 and prompt.endswith("7") else None

    server.faults = first_of_some
    source = write(tmp_path / "in.jsonl", prompts(60))
    status = await run(server, source, out, options={"retry": Retry(base=0.001)}, concurrency=8)
    assert (status.done, status.failed) == (60, 0)
    check_whole(out, 60)
    assert Counter(note.attempts for note in read_notes(out)) == {1: 54, 2: 6}


class Instant(Exchange):
    """An answer that is there at once."""

    async def read_all(self, due: Due, start: bytes = b"") -> bytes:
        return start + completion()


class InstantTransport:
    """Sends nothing, so that a long batch takes seconds."""

    async def __aenter__(self) -> Self:
        return self

    async def close(self) -> None:
        """There is nothing to close."""

    async def send(
        self, endpoint: Endpoint, body: Body, headers: Mapping[str, str], due: Due, *, fresh: bool = False
    ) -> Exchange:
        await asyncio.sleep(0)
        nothing: Any = None
        return Instant(nothing, nothing, 0, 0.0, status=200, headers=cast("Any", {"x-request-id": "req_1"}))


def resident() -> int:
    """KiB of this process in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 10


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
async def test_memory_is_flat(out: Path) -> None:
    sizes: list[int] = []

    def rows() -> Iterator[str]:
        for n in range(12_000):
            if n % 3000 == 2999:
                gc.collect()
                sizes.append(resident())
            yield f"{PROMPT} {n}"

    async with Client(KEY, base_url=NOWHERE, model=MODEL, transport=InstantTransport()) as client:
        status = await run_batch(rows(), out, client=client, concurrency=64)
    assert (status.done, len(sizes)) == (12_000, 4)
    assert sizes[-1] - sizes[0] < 4 << 10, sizes  # KiB; the ids take half a MiB of it
