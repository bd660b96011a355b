"""Rows that fail, singly or one after the other; `faults.md` K12 and K13."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from piapi_async import AuthenticationError, Limits, Timeout
from piapi_async.batch.records import key_of, read_notes
from piapi_async.errors import InternalServerError
from piapi_async.testing import Delay, LocalServer, Status
from tests.batch.checkpoints import inflight
from tests.batch.runs import check_whole, content_of, echo, exists, prompts, records, run, write
from tests.leaks import KEY, assert_tight

pytestmark = pytest.mark.anyio


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
        assert not exists(inflight(out))
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
    assert not exists(inflight(out))


async def test_K13_failures_of_many_kinds(server: LocalServer, out: Path) -> None:
    server.faults = lambda number, _body: Status(503 if number % 9 else 500)
    status = await run(server, prompts(40), out, concurrency=1)
    assert (status.stopped, status.failed) == (None, 40)


async def test_K13_another_limit(server: LocalServer, out: Path) -> None:
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
