"""The budget of a batch, and bills that are unknown; `faults.md` K15, K16 and K19."""

from __future__ import annotations

import shutil
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import anyio
import pytest

from piapi_async import BatchStatus, BudgetExceededError, Retry, run_batch
from piapi_async.batch.earlier import Earlier
from piapi_async.batch.records import read_notes
from piapi_async.cli.batch import summary
from piapi_async.testing import Delay, Drop, LocalServer, Stall, Status
from tests.batch.checkpoints import inflight
from tests.batch.checkpoints import opened as opened_checkpoint
from tests.batch.runs import (
    MODEL,
    check_whole,
    ended,
    exists,
    opened,
    prompts,
    records,
    run,
    until,
    worst_case,
    write,
)

pytestmark = pytest.mark.anyio


# -- K15: the budget -------------------------------------------------------------------------------------------------


async def test_K15_cap_hit_with_64_in_flight(server: LocalServer, tmp_path: Path, out: Path) -> None:
    source = write(tmp_path / "in.jsonl", prompts(200))
    server.latency = 0.005
    arguments: Any = {"concurrency": 64, "max_tokens": 100, "model": "gpt-4o"}
    status = await run(server, source, out, options={"budget": "0.02"}, **arguments)
    assert status.stopped == "budget"
    assert isinstance(status.error, BudgetExceededError)
    assert (status.failed, status.cut) == (0, ())
    assert status.done == len(server.requests) > 64
    assert status.pending == 200 - status.done > 0
    assert status.spent == sum(Decimal(note.cost or 0) for note in read_notes(out)) <= Decimal("0.02")
    worst = Decimal("0.02") - status.spent
    again = await run(server, source, out, options={"budget": "0.02"}, **arguments)
    assert (again.stopped, again.spent <= Decimal("0.02")) == ("budget", True)
    assert again.done - status.done <= worst / (status.spent / status.done)  # what was spent before counts
    rest = await run(server, source, out, options={"budget": "5"}, **arguments)
    assert (rest.stopped, rest.done) == (None, 200)
    assert rest.spent == sum(Decimal(note.cost or 0) for note in read_notes(out))
    check_whole(out, 200)


async def test_K15_room_for_one_at_a_time(server: LocalServer, tmp_path: Path, out: Path) -> None:
    worst = await worst_case(server)
    one = (await run(server, prompts(1), tmp_path / "one.jsonl", max_tokens=100)).spent
    budget = worst + 10 * one  # others wait until the one under way has cost less than it might have
    status = await run(server, prompts(10), out, options={"budget": budget}, concurrency=8, max_tokens=100)
    assert (status.stopped, status.done) == (None, 10)
    check_whole(out, 10)


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


# -- K16: unknown bills ----------------------------------------------------------------------------------------------


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


def killed(out: Path) -> Earlier:
    """What a run would find that begins now, if the one under way were killed."""
    copy = out.parent / "copy"
    copy.mkdir()
    for path in (out, inflight(out)):
        if path.exists():
            shutil.copy(path, copy)
    with opened_checkpoint(copy / out.name) as found:
        earlier = found.earlier
    shutil.rmtree(copy)
    return earlier


async def killed_while_it_waits(server: LocalServer, out: Path, sent: int, **arguments: Any) -> tuple[Earlier, Earlier]:
    """What a run leaves when it is killed once so many requests went out, and what it leaves when it is cancelled."""
    before = len(server.requests)
    async with anyio.create_task_group() as group:
        group.start_soon(partial(run, server, prompts(1), out, max_tokens=100, **arguments))
        await until(lambda: len(server.requests) - before == sent)
        found = killed(out)
        group.cancel_scope.cancel()
    return found, killed(out)


@pytest.mark.parametrize(
    ("faults", "billed"),
    [
        ([Status(504), Status(504)], 3),
        ([Status(503), Status(503)], 1),
        ([Status(504), Status(503), Status(504)], 3),
        ([Status(429)] * 4, 1),
        ([], 1),
    ],
)
@pytest.mark.parametrize("retry", [Retry(attempts=6, base=0.001, cap=0.001, throttle_base=0.001, throttle_cap=0.001)])
async def test_K16_every_request_of_a_row_is_on_record(
    server: LocalServer, out: Path, faults: list[Any], billed: int, retry: Retry
) -> None:
    worst = await worst_case(server)
    server.faults = [*faults, Stall()]
    options: Any = {"retry": retry}
    found, ended = await killed_while_it_waits(server, out, len(faults) + 1, options=options)
    assert (found.unknown, ended.unknown) == (billed * worst, billed * worst)
    server.faults = [*faults[:1], Stall()]
    more = billed + (1 + (faults[:1] == [Status(504)]))
    found, ended = await killed_while_it_waits(server, out, len(faults[:1]) + 1, options=options)
    assert (found.unknown, ended.unknown) == (more * worst, more * worst)
    server.faults = []
    status = await run(server, prompts(1), out, max_tokens=100)
    assert (status.done, status.unknown) == (1, more * worst)
    assert killed(out).unknown == more * worst
    assert not exists(inflight(out))


async def test_K16_a_request_that_has_ended_is_on_record_no_more(server: LocalServer, out: Path) -> None:
    worst = await worst_case(server)
    server.faults = [Status(503), Stall()]
    options: Any = {"retry": Retry(attempts=2, base=0.001, cap=0.001, hedge=True)}
    found, _ = await killed_while_it_waits(server, out, 2, options=options)
    assert found.unknown == worst  # the first one was refused, which nobody bills


async def test_K16_retry_failed_forgets_no_bill(server: LocalServer, out: Path) -> None:
    worst = await worst_case(server)
    server.faults = [Status(504)]
    assert (await run(server, prompts(1), out, max_tokens=100)).unknown == worst
    server.faults = [Stall()]
    found, ended = await killed_while_it_waits(server, out, 1, retry_failed=True)
    assert (found.failed, found.unknown, ended.unknown) == (0, 2 * worst, 2 * worst)
    server.faults = []
    status = await run(server, prompts(1), out, max_tokens=100)
    assert (status.done, status.unknown, killed(out).unknown) == (1, 2 * worst, 2 * worst)


async def test_K16_a_row_that_stays_pending_keeps_the_bills_of_its_first_requests(
    server: LocalServer, out: Path
) -> None:
    worst = await worst_case(server)
    server.faults = [Status(504), Status(503)]
    options: Any = {"retry": Retry(attempts=2, base=0.001, cap=0.001)}
    status = await run(server, prompts(1), out, max_tokens=100, stop_after=1, options=options)
    assert (status.stopped, status.unknown, killed(out).unknown) == ("failures", worst, worst)
    server.faults = []
    assert (await run(server, prompts(1), out, max_tokens=100)).unknown == worst
    assert (await run(server, prompts(1), out, max_tokens=100)).unknown == worst


# -- K19: no price ---------------------------------------------------------------------------------------------------


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


# -- what is told ----------------------------------------------------------------------------------------------------


async def test_spent_and_saved_have_one_basis_after_a_resume(server: LocalServer, tmp_path: Path, out: Path) -> None:
    rows, third = prompts(6), Decimal(1) / 3
    ledgers = []
    for count in (3, 6, 6):
        async with opened(server, budget="5") as client:
            status = await run_batch(write(tmp_path / "in.jsonl", rows[:count]), out, client=client, max_tokens=10)
            assert status.spent == client.ledger.spent > 0
            assert abs(client.ledger.saved - status.spent * third) < Decimal("1e-9")  # PiAPI takes three quarters
            ledgers.append((client.ledger.spent, client.ledger.saved))
            assert any("less than" in remark for _, _, remark in summary(status, client))
    assert ledgers[0] < ledgers[1] == ledgers[2]
    assert sum(Decimal(note.saved) for note in read_notes(out)) == ledgers[2][1]


async def test_an_empty_batch_cost_nothing(server: LocalServer, out: Path) -> None:
    status = await run(server, [], out)
    assert (str(status.spent), str(status.unknown)) == ("0", "0")
    server.faults = lambda _number, _body: Status(503)
    status = await run(server, prompts(1), out, max_tokens=10)
    assert (str(status.spent), str(status.unknown)) == ("0", "0")


async def test_a_minimum_charge_is_more_than_the_vendor_takes(server: LocalServer, out: Path) -> None:
    async with opened(server, model="gpt-4-gizmo-g-gFt1ghYJl") as client:
        status = await run_batch(prompts(1), out, client=client, max_tokens=10)
        assert next(row[:2] for row in summary(status, client) if row[0] == "cost") == ("cost", "$0.0050")
        assert any("more than" in remark for _, _, remark in summary(status, client))
