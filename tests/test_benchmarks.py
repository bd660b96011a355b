from __future__ import annotations

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from benchmarks import clients, rows, server, worker
from benchmarks.__main__ import Worker, load_server, main
from benchmarks.clients import Peer, Sink

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[1]


class Scripted(Peer):
    """Says what it was told to say, and sends nothing."""

    def __init__(self, tokens: list[str]) -> None:
        super().__init__(nullcontext())
        self.tokens = tokens

    async def complete(self, prompt: str) -> str:
        return "".join(self.tokens)

    async def stream(self, prompt: str, sink: Sink) -> None:
        for token in self.tokens:
            sink(token)


def task(job: str, peer: str = "scripted", count: int = 4, ports: dict[str, int] | None = None) -> worker.Task:
    return worker.Task(peer=peer, job=job, count=count, width=2, depth=3, ports=ports or {"fast": 1})


async def one_round(task: worker.Task) -> worker.Measurement:
    async with worker.JOBS[task.job](task) as measure:
        return await measure()


def row(name: str) -> rows.Row:
    return next(row for row in rows.ROWS if row.name == name)


def first_column(table: str) -> list[str]:
    return [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:]


def test_command_measures_completions_and_streams_side_by_side(tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--quick", "--rows", "complete,tokens", "--scale", "0.004", "--rounds", "1", "--json", str(report)]
    command = [sys.executable, "-m", "benchmarks", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert first_column(done.stdout) == [row("complete").figure, row("tokens").figure]
    outcomes = json.loads(report.read_bytes())["rows"]
    assert [outcome["name"] for outcome in outcomes] == ["complete", "tokens"]
    for outcome in outcomes:
        assert list(outcome["peers"]) == ["bare", "ours", "openai"]
        assert all(cell["failed"] == 0 and cell["median"] > 0 for cell in outcome["peers"].values())
        assert outcome["peers"]["bare"]["ratio"] == 1


def test_paced_streams_and_map(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    names = "chunks,paced,memory,live,map"
    options = ["--rows", names, "--peers", "ours", "--scale", "0.002", "--rounds", "1", "--json", str(report)]
    assert main(options) == 0
    printed = capsys.readouterr()
    assert len(first_column(printed.out)) == 5
    outcomes = json.loads(report.read_bytes())["rows"]
    assert all(list(outcome["peers"]) == ["bare", "ours"] for outcome in outcomes)
    assert all(cell["failed"] == 0 for outcome in outcomes for cell in outcome["peers"].values())


@pytest.mark.parametrize("arguments", [["--rows", "complete,speed"], ["--peers", "nobody"]])
def test_unknown_names_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "known: " in capsys.readouterr().err


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tokens that the peer called "scripted" says."""
    tokens = list(server.TOKENS)
    monkeypatch.setitem(clients.PEERS, "scripted", lambda base_url, width: Scripted(tokens))
    return tokens


@pytest.mark.parametrize("job", ["complete", "tokens", "chunks"])
async def test_a_right_answer_counts(job: str, script: list[str]) -> None:
    result = await one_round(task(job))
    assert result.failed == 0
    assert result.units == (4 if job == "complete" else 4 * len(server.TOKENS))


@pytest.mark.parametrize("job", ["complete", "tokens", "chunks", "map"])
@pytest.mark.parametrize("wrong", [[], [*server.TOKENS[:-1]], [*server.TOKENS, "!"]], ids=["empty", "short", "long"])
async def test_a_wrong_answer_does_not_count(job: str, wrong: list[str], script: list[str]) -> None:
    script[:] = wrong
    result = await one_round(task(job))
    assert result.failed == 4
    assert result.error.startswith("wrong text")


async def test_a_stream_that_ends_early_has_failed(script: list[str]) -> None:
    script[:] = server.TOKENS[:1]
    with load_server() as ports:
        result = await one_round(task("streams", ports=ports))
    assert (result.live, result.units, result.failed) == (0, 0, 4)


def test_a_worker_that_cannot_work_fails_all_its_calls() -> None:
    worker = Worker(task("import", peer="nobody", count=7))
    for result in (worker.one_round(), worker.one_round(), worker.close()):
        assert result.failed == 7
        assert "nobody" in result.error


@pytest.mark.parametrize("peer", ["httpx-sse", "ours", "openai"])
async def test_decoders_give_every_event(peer: str) -> None:
    if peer == "httpx-sse":
        pytest.importorskip("httpx", reason="httpx-sse needs httpx")
    result = await one_round(task("decode", peer=peer, count=300))
    assert (result.units, result.failed) == (300, 0)


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    def runs(*cpus: float) -> list[worker.Measurement]:
        return [worker.Measurement(units=10, cpu=cpu) for cpu in cpus]

    outcome = rows.evaluate(row("complete"), 1, {"bare": runs(1, 1, 4), "ours": runs(1, 2, 6), "openai": runs(9, 9, 9)})
    ours = outcome.peers["ours"]
    assert (ours.median, ours.ratio, ours.spread) == (200_000, 1.5, (1.25, 1.75))
    assert outcome.meets is False
    assert "1.50 ✗ (200,000 µs; 1.25 to 1.75)" in rows.table([outcome])


def test_a_missed_bar_is_marked() -> None:
    slow = worker.Measurement(units=10, cpu=3)
    fast = worker.Measurement(units=10, cpu=2)
    calls = rows.evaluate(row("complete"), 1, {"bare": [fast], "ours": [slow]})
    events = rows.evaluate(row("sse"), 1, {"httpx-sse": [fast], "ours": [slow]})
    assert calls.meets is events.meets is False
    assert rows.table([calls, events]).count("✗") == 2


def test_a_round_without_a_right_answer_has_no_figure() -> None:
    nothing = worker.Measurement(failed=4, error="refused")
    for name in ("complete", "memory", "map", "sse"):
        outcome = rows.evaluate(row(name), 1, {row(name).peers[0]: [nothing], "ours": [nothing]})
        assert outcome.meets is None
        assert outcome.peers["ours"].median is None
        assert "n/a" in rows.table([outcome])


def test_failures_are_the_figure_of_the_live_row() -> None:
    outcome = rows.evaluate(row("live"), 0.1, {"bare": [worker.Measurement()], "ours": [worker.Measurement(failed=3)]})
    assert outcome.figure == "failed of 800 live streams in one process"
    assert outcome.meets is False
    assert "3 failed" in rows.table([outcome])
