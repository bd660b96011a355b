"""Lines and items: which are rows, and which requests they become."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from piapi_async import BatchError, Message, Retry
from piapi_async.batch import MAX_LINE
from piapi_async.batch.records import read_notes
from piapi_async.catalog import ModelInfo
from piapi_async.testing import Cut, LocalServer, Stall
from tests.batch.runs import MODEL, content_of, ended, records, refused, run, text, write

pytestmark = pytest.mark.anyio


# -- lines -----------------------------------------------------------------------------------------------------------


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
async def test_a_line_that_is_no_row(server: LocalServer, tmp_path: Path, out: Path, line: bytes, match: str) -> None:
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
    with pytest.raises(BatchError, match="line 1: it is longer than 67,108,864 bytes"):
        await run(server, source, out)


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


# -- items -----------------------------------------------------------------------------------------------------------


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
async def test_an_item_that_is_no_row(server: LocalServer, out: Path, item: Any, match: str) -> None:
    with pytest.raises(BatchError, match=match):
        await run(server, ["fine", item], out)
    assert set(records(out)) == {"row-1"}


# -- rows that are streamed ------------------------------------------------------------------------------------------


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


async def test_rows_of_a_model_that_answers_by_stream_only(server: LocalServer, out: Path) -> None:
    prices = {MODEL: ModelInfo(MODEL, "1", "1", stream_only=True)}
    status = await run(server, ["a", {"prompt": "b", "stream": False}], out, options={"prices": prices})
    assert (status.done, status.failed) == (2, 0)
    assert [request.body["stream"] for request in server.requests] == [True, True]
    assert all(note.first_token for note in read_notes(out))


async def test_a_streamed_row_that_breaks_off_is_asked_again(server: LocalServer, out: Path) -> None:
    server.faults = [Cut(after=1)]
    status = await run(server, ["a"], out, stream=True, options={"retry": Retry(2, base=0)})
    assert (status.done, status.failed, len(server.requests)) == (1, 0, 2)
    assert text(records(out)["row-1"]) == "echo: a"
