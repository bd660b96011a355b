"""``piapi-async batch``: what it prints, how it ends. The batch itself is tested in `test_batch`."""

from __future__ import annotations

import asyncio
import io
import json
import os
import re
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from decimal import Decimal
from pathlib import Path

import anyio
import pytest
from rich.console import Console

from piapi_async import BatchError, BatchStatus, Client, KeyStatistics
from piapi_async.__main__ import main
from piapi_async.batch import BatchQuote
from piapi_async.cli.batch import (
    Job,
    ProgressLine,
    dollars,
    duration,
    end,
    health,
    print_quotes,
    print_summary,
    remarks,
    rescue,
    run,
    summary,
)
from piapi_async.testing import Delay, LocalServer, Status
from tests.nursery import Child, Nursery

pytestmark = pytest.mark.anyio

KEY = "sk-local-test-key"
CODE = """
from piapi_async.__main__ import main
import piapi_async.batch, piapi_async.cli, piapi_async.fanout
"""
PATIENCE = 30  # seconds for a process to do anything at all on a busy machine


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIAPI_API_KEY", KEY)
    monkeypatch.chdir(tmp_path)
    for name in ("PIAPI_BASE_URL", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE", "PYTHONWARNINGS"):
        monkeypatch.delenv(name, raising=False)


def write(count: int, **body: object) -> str:
    """Write a file of requests in OpenAI's format."""
    rows = (
        {
            "custom_id": f"row {i}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": f"Say {i}."}], **body},
        }
        for i in range(count)
    )
    Path("in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "in.jsonl"


def results(name: str = "out.jsonl") -> dict[str, dict[str, object]]:
    lines = [json.loads(line) for line in Path(name).read_text().splitlines()]
    assert len({line["custom_id"] for line in lines}) == len(lines)
    return {line["custom_id"]: line for line in lines}


def exists(name: str) -> bool:
    return Path(name).exists()


async def in_thread(*argv: str) -> int:
    """Run the command beside the test's own loop, in which its server runs."""
    return await anyio.to_thread.run_sync(main, ("batch", *argv))


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    """Where the command runs in a process of its own, as signals and standard streams need it."""
    with Nursery(CODE, "-W", "error") as nursery:
        yield nursery


def started(
    nursery: Nursery, *argv: str, stdin: str = os.devnull, file_limit: int | None = None
) -> AbstractAsyncContextManager[Child]:
    """The command in its own process."""
    return nursery.child(("batch", *argv), directory=Path.cwd(), stdin=stdin, file_limit=file_limit)


async def ended(process: Child) -> tuple[int, str, str]:
    """Wait for the end; return the status, standard output and standard error."""
    with anyio.fail_after(PATIENCE):
        return await process.wait(), process.said("stdout"), process.said("stderr")


# -- the whole command -----------------------------------------------------------------------------------------------


async def test_all_done_and_again(capsys: pytest.CaptureFixture[str]) -> None:
    async with LocalServer() as server:
        argv = (write(30), "-o", "out.jsonl", "--base-url", server.base_url)
        assert await in_thread(*argv) == 0
        out, err = capsys.readouterr()
        assert "30 of 30" in out
        assert err == ""
        assert await in_thread(*argv) == 0
        assert len(server.requests) == 30
    assert "30 rows are done already." in capsys.readouterr().err
    assert len(results()) == 30


async def test_a_model_without_a_price(capsys: pytest.CaptureFixture[str]) -> None:
    async with LocalServer(models=["mine"]) as server:
        argv = (write(2, model="mine"), "-o", "out.jsonl", "--base-url", server.base_url)
        assert await in_thread(*argv) == 0
    assert re.search("no known price +2 ", capsys.readouterr().out)


async def test_some_failed_and_are_asked_again(capsys: pytest.CaptureFixture[str]) -> None:
    sick = True

    def poison(number: int, body: object) -> Status | None:
        return Status(400) if sick and "Say 3." in str(body) else None

    async with LocalServer(faults=poison) as server:
        argv = (write(6), "-o", "out.jsonl", "--base-url", server.base_url, "--concurrency", "1")
        assert await in_thread(*argv) == 1
        assert "--retry-failed" in capsys.readouterr().out
        assert results()["row 3"]["error"] is not None
        sick = False
        assert await in_thread(*argv, "--retry-failed", "--stream") == 0
    assert results()["row 3"]["error"] is None


async def test_a_bad_key_ends_it(capsys: pytest.CaptureFixture[str]) -> None:
    async with LocalServer(api_key="sk-another-key") as server:
        argv = (write(40), "-o", "out.jsonl", "--base-url", server.base_url, "--concurrency", "2")
        assert await in_thread(*argv) == 1
    out, _ = capsys.readouterr()
    assert "the API key is not accepted" in out
    assert "401" in out
    assert results() == {}


async def test_what_it_would_cost(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIAPI_API_KEY")
    assert await in_thread(write(3, max_tokens=10), "-o", "out.jsonl", "--dry-run") == 0
    out, err = capsys.readouterr()
    assert "gpt-4o-mini" in out
    assert "3 rows to be done" in out
    assert err == ""
    assert os.listdir() == ["in.jsonl"]


async def test_results_on_standard_output(nursery: Nursery) -> None:
    async with LocalServer() as server:
        async with started(nursery, "-", "-o", "-", "--base-url", server.base_url, stdin=write(5)) as process:
            status, out, err = await ended(process)
    assert status == 0
    assert {json.loads(line)["custom_id"] for line in out.splitlines()} == {f"row {i}" for i in range(5)}
    assert "5 of 5" in err


async def test_lines_where_there_is_no_terminal_and_one_where_there_is() -> None:
    for terminal in (False, True):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=terminal, width=200, highlight=False, soft_wrap=not terminal)
        async with LocalServer(faults=lambda number, body: Delay(0.1) if number == 5 else None) as server:
            client = Client(KEY, base_url=server.base_url)
            job = Job(requests=write(6), output=f"out-{terminal}.jsonl", tick=0.001)
            assert await run(client, job, console, console) == 0
        assert "5 of 6 done · 0 failed" in screen.getvalue()
        assert "piapi ok" in screen.getvalue()


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (("missing.jsonl", "-o", "out.jsonl"), "missing.jsonl"),
        (("in.jsonl", "-o", "nowhere/out.jsonl"), "nowhere/out.jsonl"),
        (("in.jsonl", "-o", "in.jsonl"), "in.jsonl"),
        (("in.jsonl", "-o", "."), "directory"),
        (("in.jsonl",), "output"),
        (("in.jsonl", "-o", "out.jsonl", "--budget", "many"), "budget"),
        (("in.jsonl", "-o", "out.jsonl", "--concurrency", "0"), "concurrency"),
        (("in.jsonl", "-o", "out.jsonl", "--stop-after", "-1"), "stop-after"),
        (("in.jsonl", "-o", "out.jsonl", "--backup", "other"), "--backup"),
        (("in.jsonl", "-o", "-", "--report", "report.html"), "--report"),
        (("in.jsonl", "-o", "out.jsonl", "--report", "nowhere/report.html"), "nowhere/report.html"),
    ],
)
def test_bad_input_is_one_sentence(argv: tuple[str, ...], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(1)
    assert main(("batch", *argv)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("piapi-async: ")
    assert err.count("\n") == 1
    assert named in err


async def test_the_report(capsys: pytest.CaptureFixture[str]) -> None:
    async with LocalServer() as server:
        argv = (write(5), "-o", "out.jsonl", "--base-url", server.base_url, "--report", "report.html")
        assert await in_thread(*argv) == 0
    assert exists("report.html")


# -- how it ends -----------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_what_is_under_way_comes_in(nursery: Nursery, number: signal.Signals) -> None:
    async with LocalServer(faults=lambda number, body: Delay(0.5)) as server:
        argv = (write(50), "-o", "out.jsonl", "--base-url", server.base_url, "--concurrency", "4")
        async with started(nursery, *argv) as process:
            await until(lambda: len(server.requests) == 4)
            process.send_signal(number)
            status, out, err = await ended(process)
    assert status == 130
    assert "Ending" in err
    assert len(results()) == len(server.requests)
    assert "to be done" in out
    assert not exists("out.jsonl.inflight")


async def test_a_closed_terminal_does_not_end_what_nohup_began() -> None:
    async with LocalServer(faults=lambda number, body: Delay(0.1)) as server:
        argv = (write(8), "-o", "out.jsonl", "--base-url", server.base_url, "--concurrency", "4")
        shell = ("sh", "-c", "trap '' HUP; exec \"$@\"", "sh", sys.executable, "-m", "piapi_async", "batch")
        async with await anyio.open_process((*shell, *argv)) as process:
            await until(lambda: len(server.requests) == 4)
            process.send_signal(signal.SIGHUP)
            with anyio.fail_after(PATIENCE):
                assert await process.wait() == 0
    assert len(results()) == 8


async def test_the_second_ctrl_c_ends_it_now(nursery: Nursery) -> None:
    async with LocalServer(faults=lambda number, body: Delay(60)) as server:
        argv = (write(50), "-o", "out.jsonl", "--base-url", server.base_url, "--concurrency", "4")
        async with started(nursery, *argv) as process:
            await until(lambda: len(server.requests) == 4)
            process.send_signal(signal.SIGINT)
            await until(lambda: "Ending" in process.said("stderr"))
            process.send_signal(signal.SIGINT)
            status, out, err = await ended(process)
        assert (status, out) == (130, "")
        assert re.fullmatch(r"Ending: .*\(4\) .*\n", err)
        assert results() == {}
        async with started(nursery, *argv) as process:
            await until(lambda: process.said("stderr").endswith("\n"))
            said = process.said("stderr")
    assert said.startswith("4 rows were in flight when an earlier run ended and may have been billed")


async def test_ctrl_c_before_anything_is_sent(nursery: Nursery) -> None:
    os.mkfifo("in.fifo")
    async with LocalServer() as server:
        async with started(nursery, "in.fifo", "-o", "out.jsonl", "--base-url", server.base_url) as process:
            await until(lambda: exists("out.jsonl.inflight"))
            await anyio.sleep(0.05)  # for the first look at the input; the end is the same in any case
            process.send_signal(signal.SIGINT)
            status, _, _ = await ended(process)
    assert status == 130


async def test_a_full_disk_loses_nothing(nursery: Nursery) -> None:
    async with LocalServer() as server:
        argv = (write(30), "-o", "out.jsonl", "--base-url", server.base_url, "--concurrency", "4")
        async with started(nursery, *argv, file_limit=4096) as process:
            status, out, err = await ended(process)
    rescued = {json.loads(line)["custom_id"] for line in out.splitlines()}
    assert status == 1
    assert "out.jsonl: it can not be written" in err
    assert rescued
    assert len(rescued | set(results())) == len(rescued) + len(results()) == len(server.requests) < 30


async def test_a_batch_that_breaks_off_later_is_no_bad_input(capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo("in.fifo")

    def feed() -> None:
        with open("in.fifo", "w") as fifo:
            fifo.write('{"prompt": "one"}\nwhat is this?\n')

    async with LocalServer() as server, anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, feed)
        argv = ("in.fifo", "-o", "out.jsonl", "--base-url", server.base_url, "--model", "gpt-4o")
        assert await in_thread(*argv) == 1
    assert "line 2: it is not JSON" in capsys.readouterr().err
    assert len(results()) == 1


def test_ctrl_c_while_it_reads() -> None:
    async def interrupt() -> None:
        client = Client(KEY, base_url="http://127.0.0.1:9/v1")
        console = Console(file=io.StringIO())
        ending = anyio.Event()
        with anyio.CancelScope() as scope:
            end(ProgressLine(client, console), ending, scope, console)
            await anyio.sleep_forever()
        assert not ending.is_set()

    asyncio.run(interrupt())


# -- what it says ----------------------------------------------------------------------------------------------------


def lane(**state: object) -> KeyStatistics:
    known: dict[str, object] = {"provider": "piapi", "key": "…", "in_flight": 0, "queued": 0, "bound": 1, "pause": 0.0}
    return KeyStatistics(**{**known, "breakers": {}, "retries": 1, **state})  # type: ignore[arg-type]  # as named


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ({}, "ok"),
        ({"breakers": {"a": "closed", "b": "open"}}, "down"),
        ({"breakers": {"a": "half-open"}}, "on trial"),
        ({"pause": 12.3}, "pauses 12 s"),
    ],
)
def test_the_state_of_a_provider(state: dict[str, object], said: str) -> None:
    assert health(lane(**state)) == said


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (119, "119 s"), (150, "2 min"), (7199, "119 min"), (9000, "2.5 h")]
)
def test_durations(seconds: float, said: str) -> None:
    assert duration(seconds) == said


@pytest.mark.parametrize(
    ("amount", "said"),
    [
        ("0", "$0"),
        ("0E-12", "$0"),
        ("0.0000234", "$0.000023"),
        ("0.00123", "$0.0012"),
        ("0.456", "$0.46"),
        ("12345.6", "$12,345.60"),
    ],
)
def test_dollars(amount: str, said: str) -> None:
    assert dollars(Decimal(amount)) == said


def test_what_earlier_runs_left() -> None:
    status = BatchStatus(before=3, torn=True, broken=1, aside="r.set-aside", maybe_billed=tuple("abcdefg"))
    assert list(remarks(status)) == [
        "3 rows are done already.",
        "2 broken lines were set aside in r.set-aside; asking those rows again.",
        "7 rows were in flight when an earlier run ended and may have been billed; asking again: "
        "a, b, c, d, e and 2 more",
    ]
    assert next(iter(remarks(BatchStatus(broken=1)))).startswith("1 broken line was")
    assert next(iter(remarks(BatchStatus(aside="x")))).startswith(
        "Damaged notes of requests in flight were set aside in x"
    )
    assert "1 row was" in next(iter(remarks(BatchStatus(maybe_billed=("a",)))))


def test_the_line() -> None:
    line = ProgressLine(Client(KEY), Console(file=io.StringIO()))
    assert line.text() == "reading"
    line.note(BatchStatus(total=100, done=40, failed=2, before=10, tokens=3200, seconds=16.0, spent=Decimal("4")))
    assert line.text() == "40 of 100 done · 2 failed · 200 tokens/s · $4.00 of ~$9.80 · 29 s left · piapi ok"
    stream = ProgressLine(Client(KEY), Console(file=io.StringIO()))
    stream.note(BatchStatus(done=1))
    assert stream.text() == "1 done · 0 failed · 0 tokens/s · $0 · piapi ok"


def test_a_price_that_is_not_known() -> None:
    screen = io.StringIO()
    print_quotes([BatchQuote("mine", 2, 10, None, None, 1)], Console(file=screen, width=120))
    assert screen.getvalue().count("unknown") == 2


async def test_the_summary_of_a_run_that_broke_off() -> None:
    status = BatchStatus(total=9, done=3, cut=("a", "b"), unknown=Decimal("0.5"), stopped="deadline")
    said = {name: (figure, remark) for name, figure, remark in summary(status, Client(KEY))}
    assert said["to be done"] == ("6", "its time was over (--deadline); run it again to go on")
    assert said["maybe billed"] == ("2", "sent, but not answered: a, b")
    assert said["unknown bills"][0] == "$0.50"
    endless = {name: figure for name, figure, _ in summary(BatchStatus(stopped="interrupted"), Client(KEY))}
    assert endless["to be done"] == "some"


@pytest.mark.parametrize(
    ("unsaved", "said"),
    [
        ((), ""),
        ((b'{"id":"batch_req_1"}\n',), "1 result is on standard output"),
        ((b'{"id":"batch_req_1"}\n', b'{"id":"batch_req_2"}\n'), "2 results are on standard output"),
    ],
)
def test_what_could_not_be_written(unsaved: tuple[bytes, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    screen = io.StringIO()
    line = ProgressLine(Client(KEY), Console(file=screen, width=200))
    error = BatchError("results.jsonl: it can not be written")
    error.unsaved = unsaved
    with pytest.raises(BatchError):  # nothing was sent: the command says so
        rescue(error, line, Console(file=screen, width=200))
    line.note(BatchStatus())
    assert rescue(error, line, Console(file=screen, width=200)) == 1
    assert capsys.readouterr().out == b"".join(unsaved).decode()
    assert said in screen.getvalue()
    assert ("standard output" in screen.getvalue()) is bool(unsaved)


def test_what_a_reader_does_not_take_is_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    screen = io.StringIO()
    line = ProgressLine(Client(KEY), Console(file=screen, width=400))
    line.note(BatchStatus(stopped="interrupted"))
    error = BatchError("standard output: its reader does not read")
    error.unsaved = (b"one\n", b"two\n")
    assert rescue(error, line, Console(file=screen, width=400), to_file=True) == 130
    (path,) = tmp_path.iterdir()
    assert path.read_bytes() == b"one\ntwo\n"
    assert f"2 results are in {path} instead" in screen.getvalue()


ESCAPE = "\x1b]0;title\x07\x9b31m"


def test_no_escape_sequence_reaches_a_terminal() -> None:
    screen = io.StringIO()
    console = Console(file=screen, width=400, force_terminal=True, color_system=None, highlight=False)
    line = ProgressLine(Client(KEY), console)
    line.note(BatchStatus(maybe_billed=(f"id{ESCAPE}",), broken=1, aside=f"x{ESCAPE}"))
    print_quotes([BatchQuote(f"model{ESCAPE}")], console)
    print_summary(BatchStatus(cut=(ESCAPE,), error=BatchError(ESCAPE)), Client(KEY), console)
    rescue(BatchError(f"error{ESCAPE}"), line, console)
    shown = screen.getvalue()
    assert "id\N{REPLACEMENT CHARACTER}]0;title" in shown
    assert not {"\x1b", "\x07", "\x9b"} & set(shown)
