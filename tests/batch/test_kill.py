"""A batch that is killed again and again at random moments loses nothing and doubles nothing; `faults.md` K1.

`python -m tests.batch.test_kill` kills it a hundred times and prints the table; PIAPI_KILLS and PIAPI_SEED have others.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest

from piapi_async.batch.checkpoint import Checkpoint
from piapi_async.testing import Delay, LocalServer
from tests.batch.checkpoints import inflight
from tests.leaks import KEY
from tests.nursery import Child, Nursery

pytestmark = pytest.mark.anyio

KILLS = int(os.environ.get("PIAPI_KILLS", "20"))
SEED = int(os.environ.get("PIAPI_SEED", "2026"))
CONCURRENCY = 16
ROWS_A_KILL = 45
"""Most rows that one kill uses up. The input has more of them, so there are always some left for the next."""

CODE = """
import asyncio
from piapi_async import Client, run_batch
import piapi_async.fanout

def main(key, base_url, number, requests, output, concurrency):
    async def run():
        async with Client(key, base_url=base_url, model="gpt-4o-mini", headers={"X-Run": str(number)}) as client:
            await run_batch(requests, output, client=client, concurrency=concurrency)

    asyncio.run(run())
"""


@attrs.frozen
class Kill:
    """One run, and what it left when it was killed.

    Attributes:
        number: Counts the runs from 0.
        finished: Ids of the rows that have a result by then.
        maybe_billed: Ids that the next run would report as maybe billed.
        torn: Whether the last line was cut.
    """

    number: int
    finished: frozenset[str]
    maybe_billed: frozenset[str]
    torn: bool


@attrs.frozen
class Outcome:
    """All runs, and what the server saw of them.

    Attributes:
        kills: One an interrupted run.
        sent: Ids that the server received, by run.
        lines: The records at the end, in the order of the file.
        rows: How many there are to be.
    """

    kills: list[Kill]
    sent: list[Counter[str]]
    lines: list[dict[str, Any]]
    rows: int

    def unanswered(self, kill: Kill) -> set[str]:
        """Ids that this run had sent, and that had no result when it was killed."""
        return set(self.sent[kill.number]) - kill.finished

    def table(self) -> str:
        """Figures of each kill, and their sums."""
        lines = ["  kill  results     sent  re-sent  in flight  maybe billed"]
        finished, before = 0, set[str]()
        sums = [0, 0, 0, 0, 0]
        for kill in self.kills:
            ids = set(self.sent[kill.number])
            left = self.unanswered(kill)
            figures = [len(kill.finished) - finished, len(ids), len(ids & before), len(left), len(kill.maybe_billed)]
            lines.append("{:6}{:9}{:9}{:9}{:11}{:14}".format(kill.number + 1, *figures))
            sums = [a + b for a, b in zip(sums, figures, strict=True)]
            finished, before = len(kill.finished), before | ids
        last = set(self.sent[len(self.kills)])
        figures = [self.rows - finished, len(last), len(last & before), 0, 0]
        lines.append("{:>6}{:9}{:9}{:9}{:11}{:14}".format("end", *figures))
        sums = [a + b for a, b in zip(sums, figures, strict=True)]
        lines.append("{:>6}{:9}{:9}{:9}{:11}{:14}".format("sum", *sums))
        most = max((len(self.unanswered(kill)) for kill in self.kills), default=0)
        doubled = len(self.lines) - len({line["custom_id"] for line in self.lines})
        lost = self.rows - len({line["custom_id"] for line in self.lines})
        lines.append(
            f"{len(self.kills)} kills, {self.rows} rows, concurrency {CONCURRENCY}, seed {SEED}: {lost} lost, "
            f"{doubled} doubled, {sum(sum(run.values()) for run in self.sent) - self.rows} sent again, at most {most} "
            "in flight at a kill"
        )
        return "\n".join(lines)


async def kill_again_and_again(directory: Path, kills: int) -> Outcome:
    """Run a batch that is killed so many times, and then left to end."""
    dice = random.Random(SEED)
    rows = kills * ROWS_A_KILL + 50
    source, out = directory / "in.jsonl", directory / "out.jsonl"
    lines = [json.dumps({"custom_id": f"id-{n}", "prompt": f"question {n}"}) for n in range(rows)]
    source.write_text("\n".join(lines))
    found: list[Kill] = []
    async with LocalServer(
        api_key=KEY,
        answer=lambda messages: f"the answer to {messages[-1]['content']}",
        faults=lambda number, _body: Delay(random.Random(f"{SEED}/{number}").uniform(0, 0.02)),
    ) as server:
        files = str(source), str(out)
        with Nursery(CODE) as nursery:
            for number in range(kills):
                with anyio.fail_after(60):
                    async with nursery.child(
                        KEY, server.base_url, number, *files, CONCURRENCY, directory=directory
                    ) as child:
                        await kill(child, server, dice)
                        status = await child.wait()
                    assert status == -signal.SIGKILL, "it ended before it was killed: there are too few rows"
                    found.append(look(number, out, directory))
            with anyio.fail_after(60):
                async with nursery.child(
                    KEY, server.base_url, kills, *files, CONCURRENCY, directory=directory
                ) as child:
                    assert await child.wait() == 0
        sent: list[Counter[str]] = [Counter() for _ in range(kills + 1)]
        for request in server.requests:
            if request.body is not None:  # a request that the kill cut short
                name = request.body["messages"][0]["content"].replace("question ", "id-")
                sent[int(request.headers["X-Run"])][name] += 1
    assert not inflight(out).exists()
    records = [json.loads(line) for line in out.read_bytes().splitlines()]
    return Outcome(found, sent, records, rows)


async def kill(child: Child, server: LocalServer, dice: random.Random) -> None:
    """Kill a run when the server has received a random number of requests; now and then before it sends any."""
    wanted = len(server.requests) + dice.randrange(-5, ROWS_A_KILL - CONCURRENCY)
    delay = dice.uniform(0, 0.01)
    while len(server.requests) < wanted:
        await asyncio.sleep(0.001)
    await asyncio.sleep(delay)
    child.send_signal(signal.SIGKILL)


def look(number: int, out: Path, directory: Path) -> Kill:
    """What the next run would find, seen in a copy."""
    finished: list[str] = []
    copy = directory / "copy" / out.name
    copy.parent.mkdir(exist_ok=True)
    for path in copy.parent.iterdir():
        path.unlink()
    for path in directory.glob(f"{out.name}*"):
        shutil.copy(path, copy.parent)
    found = Checkpoint(copy, room=CONCURRENCY)
    for _ in found.load():
        pass
    found.close()
    assert found.earlier.broken == 0
    for line in copy.read_bytes().splitlines():
        finished.append(json.loads(line)["custom_id"])
    assert len(set(finished)) == len(finished) == found.earlier.done
    return Kill(number, frozenset(finished), frozenset(found.maybe_billed), found.earlier.torn)


@pytest.mark.parametrize("kills", [3, pytest.param(KILLS, marks=pytest.mark.slow)])
async def test_K1_killed_again_and_again(tmp_path: Path, kills: int) -> None:
    outcome = await kill_again_and_again(tmp_path, kills)
    sys.stdout.write(f"\n{outcome.table()}\n")
    check(outcome)


def check(outcome: Outcome) -> None:
    """Assert that each id is there once with its own answer, and that little was sent again, all of it on record."""
    answers = {
        line["custom_id"]: line["response"]["body"]["choices"][0]["message"]["content"] for line in outcome.lines
    }
    assert len(outcome.lines) == outcome.rows == len(answers)
    assert answers == {f"id-{n}": f"the answer to question {n}" for n in range(outcome.rows)}
    left = set[str]()
    earlier = frozenset[str]()
    for kill in outcome.kills:
        assert earlier <= kill.finished  # what was there stays
        assert not set(outcome.sent[kill.number]) & earlier  # and is not asked again
        assert len(outcome.unanswered(kill)) <= CONCURRENCY
        left = (left | outcome.unanswered(kill)) - kill.finished
        assert left <= kill.maybe_billed
        assert not kill.maybe_billed & kill.finished
        earlier = kill.finished
    again = sum(sum(run.values()) for run in outcome.sent) - outcome.rows
    assert again == sum(len(outcome.unanswered(kill)) for kill in outcome.kills)
    assert again <= CONCURRENCY * len(outcome.kills)
    assert any(outcome.unanswered(kill) for kill in outcome.kills)  # they did fall into the midst of it


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        result = asyncio.run(kill_again_and_again(Path(name), int(os.environ.get("PIAPI_KILLS", "100"))))
    sys.stdout.write(f"{result.table()}\n")
    check(result)
