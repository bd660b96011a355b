from __future__ import annotations

import asyncio
import importlib
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from importlib.util import find_spec
from pathlib import Path

import attrs
import msgspec
import pytest

from benchmarks import calls, clients, curves, instructions, picture, rows, server, worker
from benchmarks.__main__ import main
from benchmarks.clients import Peer, Sink
from benchmarks.rounds import Worker, load_server

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

    async def read_slowly(self, prompt: str, sink: Callable[[str], Awaitable[None]]) -> None:
        for token in self.tokens:
            await sink(token)


class Hoarder(Scripted):
    """Reads everything before it hands on any of it."""

    async def read_slowly(self, prompt: str, sink: Callable[[str], Awaitable[None]]) -> None:
        hoard = b"." * (64 << 20)  # more than the allocator could have left over from before
        await super().read_slowly(prompt, sink)
        del hoard


def task(job: str, peer: str = "scripted", count: int = 4, ports: dict[str, int] | None = None) -> worker.Task:
    return worker.Task(peer=peer, job=job, count=count, width=2, depth=3, ports=ports or {"fast": 1})


async def one_round(task: worker.Task) -> worker.Measurement:
    async with worker.JOBS[task.job](task) as measure:
        return await measure()


def row(name: str) -> rows.Row:
    return next(row for row in rows.ROWS if row.name == name)


def needs(peer: str, *marks: pytest.MarkDecorator) -> object:
    missing = not clients.installed(peer)
    return pytest.param(
        peer, marks=[*marks, pytest.mark.skipif(missing, reason=f"{peer} is not installed (group bench)")]
    )


def first_column(table: str) -> list[str]:
    return [line.split("|")[1].strip() for line in table.splitlines() if line.startswith("|")][2:]


@pytest.mark.parametrize(
    ("names", "peers"),
    [(["tokens"], ["ours"]), pytest.param(["complete", "tokens"], ["ours", "openai", "httpx"], marks=pytest.mark.slow)],
)
def test_command_measures_rows_side_by_side(names: list[str], peers: list[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--quick", "--rows", ",".join(names), "--peers", ",".join(peers), "--scale", "0.004"]
    command = [sys.executable, "-m", "benchmarks", *options, "--rounds", "1", "--json", str(report)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert first_column(done.stdout) == [row(name).figure for name in names]
    outcomes = json.loads(report.read_bytes())["rows"]
    assert [outcome["name"] for outcome in outcomes] == names
    for outcome in outcomes:
        assert list(outcome["peers"]) == ["bare", *peers]
        assert all(cell["failed"] == 0 and cell["median"] > 0 for cell in outcome["peers"].values())
        assert outcome["peers"]["bare"]["ratio"] == 1


@pytest.mark.parametrize(
    "names", [["paced"], pytest.param(["chunks", "memory", "live", "map", "slow"], marks=pytest.mark.slow)]
)
def test_paced_streams_and_map(names: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--rows", ",".join(names), "--peers", "ours", "--scale", "0.002", "--rounds", "1", "--json", str(report)]
    assert main(options) == 0
    printed = capsys.readouterr()
    assert len(first_column(printed.out)) == len(names)
    outcomes = json.loads(report.read_bytes())["rows"]
    assert all(list(outcome["peers"]) == ["bare", "ours"] for outcome in outcomes)
    assert all(cell["failed"] == 0 for outcome in outcomes for cell in outcome["peers"].values())


@pytest.mark.parametrize("arguments", [["--rows", "complete,speed"], ["--peers", "nobody"]])
def test_unknown_names_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "known: " in capsys.readouterr().err


@pytest.mark.parametrize("names", [["complete"], pytest.param(["tokens", "paced"], marks=pytest.mark.slow)])
def test_both_loops_side_by_side(names: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("uvloop", reason="uvloop comes with the extra speed")
    assert main(["--loops", "--rows", ",".join(names), "--scale", "0.002", "--rounds", "1"]) == 0
    figures = [row(name).title(0.002) for name in names]
    printed = capsys.readouterr().out
    assert first_column(printed) == [title for figure in figures for title in (figure, f"{figure}, on uvloop")]
    assert "failed" not in printed


def test_uvloop_is_asked_for_only_where_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    for command, option in ((main, "--uvloop"), (main, "--loops"), (curves.main, "--uvloop")):
        with pytest.raises(SystemExit, match="2"):
            command([option])
        assert "piapi-async[speed]" in capsys.readouterr().err


def test_a_peer_that_is_not_installed_is_reported(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(clients.MODULES, "litellm", ("no_such_module",))
    report = tmp_path / "report.json"
    options = ["--rows", "tokens", "--peers", "litellm", "--scale", "0.01", "--rounds", "1", "--json", str(report)]
    assert main(options) == 0
    assert "| not installed" in capsys.readouterr().out
    (outcome,) = json.loads(report.read_bytes())["rows"]
    assert outcome["peers"]["litellm"] == {
        "values": [], "median": None, "ratio": None, "spread": None, "added": None, "failed": 0,
        "error": "not installed",
    }  # fmt: skip


@pytest.mark.parametrize(
    "peer", [needs(peer, *([] if peer == "ours" else [pytest.mark.slow])) for peer in clients.PEERS]
)
def test_each_peer_answers_rightly(peer: str) -> None:
    jobs = ["complete"] if peer == "pyreqwest" else ["complete", "tokens", "first"]
    with load_server() as ports:
        for job in jobs:
            worker = Worker(attrs.evolve(task(job, peer=peer, ports=ports), width=4))
            results = worker.one_round(), worker.close()
            assert [(result.failed, result.error) for result in results] == [(0, ""), (0, "")]
            assert results[0].units > 0


needs_valgrind = pytest.mark.skipif(
    shutil.which("valgrind") is None, reason="valgrind is not installed: apt-get install valgrind"
)


@pytest.mark.slow
@needs_valgrind
def test_instructions_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert instructions.main(["--rows", "complete", "--scale", "0.01"]) == 0
    _, _, line = capsys.readouterr().out.strip().splitlines()
    bare, ours, ratio = (float(cell.replace(",", "")) for cell in line.strip(" |").split(" | ")[1:])
    assert 100_000 < bare < ours < 10 * bare
    assert ratio == pytest.approx(ours / bare, abs=0.01)


STAND_IN = """#!{python} -S
import json, sys

task = json.loads(sys.argv[-1])
each = 2_000 if task["peer"] == "ours" else 1_000
rounds = len(sys.stdin.readlines())
print("ready")
for _ in range(rounds):
    print(json.dumps({{"units": task["count"], "failed": {failed}, "error": "refused"}}))
print(f"==7== I   refs:      {{5_000_000 + rounds * task['count'] * each:,}}", file=sys.stderr)
"""
"""Answers as valgrind and a worker do, in milliseconds."""


def stand_in(folder: Path, monkeypatch: pytest.MonkeyPatch, failed: int = 0) -> None:
    """Put the stand-in where valgrind is looked for."""
    (folder / "valgrind").write_text(STAND_IN.format(python=sys.executable, failed=failed))
    (folder / "valgrind").chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)


def test_instructions_of_a_unit_are_those_of_the_additional_rounds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stand_in(tmp_path, monkeypatch)
    assert instructions.main(["--rows", "complete,chunks", "--scale", "0.01"]) == 0
    _, _, *lines = capsys.readouterr().out.splitlines()
    assert lines == [f"| {row(name).title(0.01)} | 1,000 | 2,000 | 2.00 |" for name in ("complete", "chunks")]


def test_instructions_of_calls_that_fail_are_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, monkeypatch, failed=1)
    with pytest.raises(RuntimeError, match="1 failed; first: refused"):
        instructions.per_unit(task("complete", peer="bare", count=1))


def test_instructions_need_valgrind(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(SystemExit, match="2"):
        instructions.main([])
    assert "apt-get install valgrind" in capsys.readouterr().err


OUTER = """
import asyncio
import contextlib
from shop import inner

async def buy():
    [inner.price(item) for item in (1, 2)]
    with inner.door():
        await asyncio.sleep(0)
        await inner.pay()
    return sum(number for number in inner.count())

def leave():
    buy.left = True
"""

INNER = """
import asyncio
import contextlib

def price(item):
    return item

@contextlib.contextmanager
def door():
    yield
    price(3)

async def pay():
    await asyncio.sleep(0)
    await asyncio.sleep(0)

def count():
    yield 1
    yield 2
"""


async def test_functions_are_counted_once_and_changes_of_module_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    for name, text in (("__init__", ""), ("outer", OUTER), ("inner", INNER)):
        (shop / f"{name}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    outer = importlib.import_module("shop.outer")
    recorder = calls.Recorder(shop)
    with recorder.recording():
        assert await outer.buy() == 3
        asyncio.get_running_loop().call_soon(outer.leave)
        await asyncio.sleep(0)
    await outer.buy()  # not recorded
    assert [(str(entry), entry.changes) for entry in recorder.entries] == [
        ("outer.buy", False),
        ("  inner.price", True),
        ("  inner.price", True),
        ("  inner.door", True),
        ("  inner.pay", True),
        ("    inner.price", False),
        ("  outer.buy.<locals>.<genexpr>", False),
        ("    inner.count", True),
        ("outer.leave", False),
    ]


def test_calls_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    assert calls.main(["--trace"]) == 0
    *traced, _, _, completion, stream = capsys.readouterr().out.splitlines()
    for line, name in ((completion, "complete()"), (stream, "a stream of 8 tokens")):
        counted, changes = (int(cell) for cell in line.strip(" |").split(" | ")[1:])
        begin = traced.index(name)
        assert len(traced[begin + 1 : traced.index("", begin)]) == counted
        assert 0 < changes < counted
    assert "  client.client.Client.complete" in traced
    assert "  client.client.Client.stream" in traced


def test_each_peer_has_a_label_and_what_it_needs() -> None:
    assert set(clients.PEERS) <= set(rows.LABELS)
    assert set(clients.PEERS) - {"bare", "ours", "lean"} <= set(clients.MODULES)
    assert set(rows.PEERS) == set(clients.PEERS)
    assert set(row("import").peers) <= set(clients.IMPORTS)
    assert clients.installed("bare")


@pytest.mark.slow
def test_curve_of_first_tokens(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--curves", "first", "--peers", "ours", "--scale", "0.005", "--rounds", "1", "--json", str(report)]
    assert curves.main(options) == 0
    assert "first token, p90" in capsys.readouterr().out
    (outcomes,) = json.loads(report.read_bytes())["curves"].values()
    for outcome in outcomes:
        assert list(outcome["peers"]) == ["bare", "ours"]
        assert all(cell["failed"] == 0 for cell in outcome["peers"].values())


@pytest.mark.slow
def test_curves(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = ["--peers", "ours", "--scale", "0.005", "--rounds", "1", "--json", str(report)]
    assert curves.main(options) == 0
    printed = capsys.readouterr().out
    assert "CPU per prompt of a map, piapi-async: " in printed
    measured = json.loads(report.read_bytes())["curves"]
    assert list(measured) == ["first", "flight", "uncollected", "length", "map"]
    assert [outcome["figure"] for outcome in measured["length"]] == [
        f"CPU per streamed token, {tokens} tokens" for tokens in ("10", "100", "1,000", "10,000")
    ]
    for outcome in (outcome for outcomes in measured.values() for outcome in outcomes):
        assert outcome["bar"] is None
        assert list(outcome["peers"]) == ["bare", "ours"]
        assert all(cell["failed"] == 0 for cell in outcome["peers"].values())
    assert measured["first"][1]["peers"]["ours"]["added"] is not None


def test_unknown_curves_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        curves.main(["--curves", "steep"])
    assert "known: first, flight, uncollected, length, map" in capsys.readouterr().err


def test_flatness_is_the_dearest_point_over_the_cheapest() -> None:
    curve = next(curve for curve in curves.CURVES if curve.name == "length")
    runs = [{peer: [worker.Measurement(units=10, cpu=cpu)] for peer in ("bare", "ours")} for cpu in (3, 1, 2, 1.5)]
    lines = curves.flatness(curve, curve.evaluate(1, runs))
    assert len(lines) == 2
    assert all(line.endswith("dearest ÷ cheapest: 3.00") for line in lines)


def test_memory_per_call_needs_enough_calls() -> None:
    memory = next(figure for curve in curves.CURVES if curve.name == "flight" for figure in curve.figures[1:])
    assert memory.metric(worker.Measurement(memory=100 * 2048, live=100)) == 2
    with pytest.raises(ZeroDivisionError):
        memory.metric(worker.Measurement(memory=100 * 2048, live=10))


def test_the_difference_to_the_baseline_is_shown_on_request() -> None:
    fast, slow = worker.Measurement(units=10, cpu=2e-3), worker.Measurement(units=10, cpu=3e-3)
    outcome = rows.evaluate(row("complete"), 1, {"bare": [fast], "ours": [slow]})
    assert outcome.peers["ours"].added == pytest.approx(100)
    assert "+100" in rows.table([outcome], added=True)
    assert "+100" not in rows.table([outcome])


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


@pytest.mark.slow
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


async def test_a_first_token_that_never_comes_has_failed(monkeypatch: pytest.MonkeyPatch, script: list[str]) -> None:
    monkeypatch.setattr(worker, "PATIENCE", 0.01)
    monkeypatch.setattr(Scripted, "stream", lambda self, prompt, sink: asyncio.Event().wait())
    with load_server() as ports:
        result = await one_round(task("first", ports=ports))
    assert (result.units, result.failed, result.first) == (0, 4, None)
    assert "none at all" in result.error


async def test_streams_that_do_not_end_have_failed(monkeypatch: pytest.MonkeyPatch, script: list[str]) -> None:
    async def stream(peer: Scripted, prompt: str, sink: Sink) -> None:
        sink(server.TOKENS[0])
        await asyncio.Event().wait()

    monkeypatch.setattr(worker, "PATIENCE", 0.01)
    monkeypatch.setattr(Scripted, "stream", stream)
    with load_server() as ports, pytest.raises(RuntimeError, match="2 streams did not end whole"):
        await one_round(task("first", ports=ports))


async def test_a_slow_reader_that_misses_tokens_has_failed(script: list[str]) -> None:
    script[:] = [server.TOKENS[0], "wrong"]
    result = await one_round(task("slow"))
    assert (result.units, result.failed) == (2, 1 + 2)


async def test_what_a_slow_reader_hoards_is_seen(monkeypatch: pytest.MonkeyPatch, script: list[str]) -> None:
    monkeypatch.setattr(worker, "PAUSE", 0.001)
    monkeypatch.setitem(clients.PEERS, "scripted", lambda base_url, width: Hoarder(script))
    result = await one_round(task("slow", count=200))
    assert result.failed == 0
    assert result.memory > 1 << 20
    assert rows.evaluate(row("slow"), 1, {"bare": [], "ours": [result]}).meets is False


def test_a_worker_that_cannot_work_fails_all_its_calls() -> None:
    worker = Worker(task("import", peer="nobody", count=7))
    for result in (worker.one_round(), worker.one_round(), worker.close()):
        assert result.failed == 7
        assert "nobody" in result.error


COUNT_FAULTS = """
import resource
import socket
from contextlib import asynccontextmanager
from benchmarks import worker

@asynccontextmanager
async def faults(task):
    here, there = socket.socketpair()
    filling = [bytes(100_000) for _ in range(200)]  # else a gap that the imports left may do for the buffers

    async def one_round():
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(task.count):
            there.send(b"a token")
            here.recv(256 << 10)
        return worker.Measurement(units=resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

    with here, there:
        yield one_round

worker.JOBS["faults"] = faults
worker.main()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators than glibc's do as they like")
def test_a_worker_keeps_the_memory_that_it_reads_into() -> None:
    job = msgspec.json.encode(task("faults", count=100)).decode()
    command = [sys.executable, "-c", COUNT_FAULTS, job]
    printed = subprocess.run(
        command, cwd=ROOT, input=b"round\n" * 2, capture_output=True, check=True, timeout=60
    ).stdout
    _ready, _first, second = printed.splitlines()
    # Each buffer that is mapped anew has a page fault at least.
    assert msgspec.json.decode(second, type=worker.Measurement).units < 50


@pytest.mark.parametrize("peer", [needs(peer) for peer in row("sse").peers])
async def test_decoders_give_every_event(peer: str) -> None:
    result = await one_round(task("decode", peer=peer, count=300))
    assert (result.units, result.failed) == (300, 0)


def test_ratio_is_the_median_of_the_rounds_ratios() -> None:
    def runs(*cpus: float) -> list[worker.Measurement]:
        return [worker.Measurement(units=10, cpu=cpu) for cpu in cpus]

    outcome = rows.evaluate(row("tokens"), 1, {"bare": runs(1, 1, 4), "ours": runs(1, 2, 6), "openai": runs(9, 9, 9)})
    ours = outcome.peers["ours"]
    assert (ours.median, ours.ratio, ours.spread) == (200_000, 1.5, (1.25, 1.75))
    assert outcome.meets is False
    assert "1.50 ✗ (200,000 µs; 1.25 to 1.75)" in rows.table([outcome])


def test_a_missed_bar_is_marked() -> None:
    slow = worker.Measurement(units=10, cpu=4)
    fast = worker.Measurement(units=10, cpu=2)
    calls = rows.evaluate(row("complete"), 1, {"bare": [fast], "ours": [slow]})
    events = rows.evaluate(row("sse"), 1, {"httpx-sse": [fast], "ours": [slow]})
    assert calls.meets is events.meets is False
    assert rows.table([calls, events]).count("✗") == 2


def test_the_table_shows_what_ours_must_reach_and_the_aim() -> None:
    outcomes = [rows.evaluate(row(name), 1, {row(name).peers[0]: []}) for name in ("complete", "sse", "live")]
    lines = [line.split("|")[2:4] for line in rows.table(outcomes).splitlines()[2:]]
    assert [[cell.strip() for cell in line] for line in lines] == [["≤ 1.5", "≤ 1.25"], ["≥ 2", "≥ 3"], ["≤ 0", ""]]


def test_an_aim_is_beyond_its_bar() -> None:
    goals = [(row, row.aim) for row in rows.ROWS if row.aim is not None]
    assert goals
    assert all(row.meets(aim) for row, aim in goals)


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


def report(**ratios: float | None) -> picture.Report:
    cells = {
        peer: rows.Cell(
            values=[1.0], median=1.0, ratio=ratio, spread=None, added=None, failed=int(peer == "openai"), error=""
        )
        for peer, ratio in ratios.items()
    }
    complete, events = (rows.evaluate(row(name), 1, {row(name).peers[0]: []}) for name in ("complete", "sse"))
    return picture.Report(
        environment={"python": "3.11.7", "litellm": "not installed", "cattrs": "25.1"},
        rows=[events, attrs.evolve(complete, peers=cells)],
    )


def test_the_picture_shows_ratios_with_ours_on_top() -> None:
    (group,) = picture.groups(report(bare=1.0, openai=14.6, ours=1.054, litellm=None).rows)
    assert (group.title, group.goal) == (picture.TITLES["complete"], 1.5)
    assert [(bar.label, bar.note, bar.ours) for bar in group.bars] == [
        ("piapi-async", "1.05 ×", True),
        ("OpenAI SDK", "15 ×, calls failed", False),
    ]


def test_the_picture_says_where_its_figures_come_from() -> None:
    assert report().source() == "python 3.11.7"


def test_a_report_without_ratios_gives_no_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "report.json").write_text('{"environment": {}, "rows": []}')
    for missing in ("report.json", "nowhere.json"):
        with pytest.raises(SystemExit, match="2"):
            picture.main([str(tmp_path / missing)])
    assert "python -m benchmarks --json" in capsys.readouterr().err


@pytest.mark.skipif(find_spec("matplotlib") is None, reason="matplotlib is not installed (group bench)")
def test_the_same_report_gives_the_same_picture(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    file.write_bytes(msgspec.json.encode(report(bare=1.0, ours=0.9, openai=14.6, pyreqwest=0.03)))
    pictures = [tmp_path / "first.svg", tmp_path / "second.svg"]
    for target in pictures:
        assert picture.main([str(file), "-o", str(target)]) == 0
    first, second = (target.read_text() for target in pictures)
    assert first == second
    assert len(first) < 50_000
    assert all(text in first for text in ("piapi-async", "0.90 ×", "15 ×, calls failed", "0.03 ×", picture.HEADLINE))
    assert "dc:date" not in first
