"""The commands: in-process for what they print, as processes for exit statuses, Ctrl-C and a silent standard error."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path

import anyio
import pytest
from rich.console import Console

from piapi_async import Client, Provider
from piapi_async.__main__ import main
from piapi_async.catalog import CATALOG
from piapi_async.cli import BACKUP_KEY, serve
from piapi_async.cli.demo import QUESTIONS, Outage, Tally, fan_out, finish, load_questions
from piapi_async.cli.demo import run as run_demo
from piapi_async.cli.terminal import make_console, make_error_console, make_table, visible, write_tokens
from piapi_async.errors import PermissionDeniedError
from piapi_async.testing import Cut, Delay, Garbage, LocalServer, Stall, Status

KEY = "sk-local-test-key"
BACKUP = "sk-key-of-the-backup"
COMMAND = (sys.executable, "-m", "piapi_async")
STRICT = (sys.executable, "-X", "dev", "-W", "error", "-m", "piapi_async")
PATIENCE = 20  # seconds for a process to do anything at all on a busy machine
QUIET_END = 20  # seconds for Ctrl-C to end a command: well under one, where nothing else runs

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys, and none of the developer's own settings."""
    monkeypatch.setenv("PIAPI_API_KEY", KEY)
    monkeypatch.setenv(BACKUP_KEY, BACKUP)
    for name in ("PIAPI_BASE_URL", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "TTY_COMPATIBLE", "PYTHONWARNINGS"):
        monkeypatch.delenv(name, raising=False)


async def in_thread(*argv: str) -> int:
    """Run a command beside the test's own loop, in which its server runs."""
    return await anyio.to_thread.run_sync(main, argv)


@contextmanager
def started(*argv: str) -> Generator[subprocess.Popen[str]]:
    """A command in its own process; it is gone at the end."""
    pipe = subprocess.PIPE
    with subprocess.Popen((*COMMAND, *argv), stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def interrupted(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Press Ctrl-C; return the exit status and what is on standard error."""
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=QUIET_END)
    return process.returncode, errors


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """What is on standard error, which must be one sentence; standard output must be empty."""
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("piapi-async: ")
    assert err.count("\n") == 1
    return err


# -- what needs no server --------------------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == version("piapi-async") + "\n"


def test_the_package_runs_as_a_program(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["piapi-async", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(main.__code__.co_filename, run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == version("piapi-async") + "\n"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["piapi-async", "--help"])
    assert main() == 0
    out = capsys.readouterr().out
    assert all(f" {name} " in out for name in ("chat", "demo", "models", "serve"))
    assert "PIAPI_API_KEY" in out


def test_models_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    heading, *rows, note = capsys.readouterr().out.splitlines()
    assert heading.split()[0] == "model"
    assert "million tokens" in note
    assert [row.split()[0] for row in rows] == list(CATALOG)
    assert rows[0].split() == ["gpt-4o-mini", "0.1125", "0.45", "-", "free", "yes"]
    assert rows[-1].split() == ["gpt-4-gizmo-*", "2.5", "10", "0.005", "creator", "yes"]
    assert rows[2].split()[-1] == "no"


def test_what_calls_of_each_model_cost(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--calls", "1000", "--tokens", "1000", "300"]) == 0
    table = capsys.readouterr().out
    assert "| gpt-4o | $4.1250 | $5.5000 |\n" in table
    assert "| gpt-4-gizmo-* | $5.5000 | $5.5000 |\n" in table
    readme = Path(__file__).parent.parent.joinpath("README.md").read_text(encoding="utf-8")
    assert table in readme  # as the README says


def test_models_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in rows] == list(CATALOG)
    assert rows[0]["input_price"] == "0.1125"


def test_the_questions_are_many_and_different() -> None:
    questions = load_questions()
    assert len(questions) == QUESTIONS == len({question.casefold() for question in questions})
    assert all(question.strip() == question and question.endswith("?") for question in questions)
    assert load_questions(3) == questions[:3]


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["chat"], "PROMPT"),
        (["chat", "Hello!", "--temperature", "warm"], "--temperature"),
        (["chat", "Hello!", "--temperature", "3"], "temperature"),
        (["chat", "Hello!", "--max-tokens", "0"], "max_tokens"),
        (["chat", "Hello!", "--base-url", "localhost"], "base_url"),
        (["chat", ""], "empty"),
        (["chat", "Hello!", "--backup", "https://127.0.0.1:9/v1"], "NAME=URL"),
        (["chat", "Hello!", "--backup", "=https://127.0.0.1:9/v1"], "NAME=URL"),
        (["chat", "Hello!", "--backup", "other=127.0.0.1:9"], "--backup: base_url"),
        (["chatter"], "chatter"),
        (["demo", "--questions", "201"], "200"),
        (["demo", "--concurrency", "0"], "--concurrency"),
        (["demo", "--live", "--base-url", "http://127.0.0.1:9/v1"], "--live"),
        (["demo", "--backup", "other=http://127.0.0.1:9/v1"], "--backup"),
        (["serve", "--port", "65536"], "--port"),
        (["serve", "--plan", "gold"], "--plan"),
        (["serve", "--tokens-per-second", "0"], "--tokens-per-second"),
    ],
)
def test_bad_input_is_one_sentence(argv: list[str], named: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(argv) == 2
    assert named in one_line(capsys)


@pytest.mark.parametrize("argv", [["chat", "Hello!"], ["demo", "--live"]])
def test_a_missing_key_is_one_sentence(
    argv: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PIAPI_API_KEY")
    assert main(argv) == 2
    assert "PIAPI_API_KEY" in capsys.readouterr().err


@pytest.mark.parametrize("key", [None, ""])
def test_a_missing_key_of_the_backup_is_one_sentence(
    key: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(BACKUP_KEY)
    if key is not None:
        monkeypatch.setenv(BACKUP_KEY, key)
    assert main(["chat", "Hello!", "--backup", "other=http://127.0.0.1:9/v1"]) == 2
    assert BACKUP_KEY in one_line(capsys)


@pytest.mark.parametrize("name", ["cyclopts", "rich.console"])
def test_a_missing_extra_is_one_sentence(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    forget_commands(monkeypatch)
    monkeypatch.setitem(sys.modules, name, None)
    assert main(["models"]) == 2
    assert "pip install 'piapi-async[cli]'" in one_line(capsys)


def test_another_missing_module_is_no_matter_of_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_commands(monkeypatch)
    monkeypatch.setitem(sys.modules, "piapi_async.catalog", None)
    with pytest.raises(ModuleNotFoundError, match=r"piapi_async\.catalog"):
        main(["models"])


def forget_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("piapi_async.cli")]:
        monkeypatch.delitem(sys.modules, name)


def test_ctrl_c_while_the_prompt_is_typed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Typing(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            signal.raise_signal(signal.SIGINT)
            raise AssertionError("the interrupt comes first")

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Typing()))
    assert main(["chat", "-"]) == 130
    assert capsys.readouterr() == ("", "")


def test_a_prompt_that_is_not_utf8(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"Gr\xfc\xdfe")))
    assert main(["chat", "-"]) == 2
    assert "UTF-8" in one_line(capsys)


class Broken(io.StringIO):
    """An output that takes nothing."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error

    def flush(self) -> None:
        raise self.error


def test_a_full_disk_is_one_sentence(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(OSError(errno.ENOSPC, "No space left on device")))
    assert main(["models", "--json"]) == 1
    assert "No space left" in one_line(capsys)


def test_a_closed_pipe_is_quiet(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Broken(BrokenPipeError()))
    assert main(["models", "--json"]) == 1
    assert capsys.readouterr().err == ""


@pytest.mark.slow
@pytest.mark.parametrize("argv", [("models",), ("models", "--json"), ("demo", "--questions", "1")])
def test_a_reader_that_leaves_is_no_matter(argv: tuple[str, ...]) -> None:
    with started(*argv) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
        assert process.wait(timeout=PATIENCE) == 1


# -- chat ------------------------------------------------------------------------------------------------------------


async def test_chat_prints_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    async with LocalServer(answer=lambda messages: "Two words, \x1b[1mno more\x1b[0m.") as server:
        status = await in_thread(
            "chat", "How many words?", "--base-url", server.base_url, "--model", "gpt-4o", "--system", "Be brief.",
            "--temperature", "0.5", "--max-tokens", "50",
        )  # fmt: skip
    assert status == 0
    # In a pipe the answer is what the model sent, byte for byte.
    assert capsys.readouterr() == ("Two words, \x1b[1mno more\x1b[0m.\n", "")
    expected = {
        "model": "gpt-4o",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How many words?"}],
        "temperature": 0.5,
        "max_tokens": 50,
        "stream": True,
    }
    assert expected.items() <= server.requests[0].body.items()


async def test_chat_reads_standard_input(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\ufeffWas heißt „Grüße“?\n".encode())))
    async with LocalServer() as server:
        assert await in_thread("chat", "-", "--base-url", server.base_url) == 0
    assert server.requests[0].body["messages"] == [{"role": "user", "content": "Was heißt „Grüße“?"}]
    assert server.requests[0].body["model"] == "gpt-4o-mini"


async def test_chat_falls_back_on_the_backup(capsys: pytest.CaptureFixture[str]) -> None:
    async with (
        LocalServer(faults=[Status(503)]) as server,
        LocalServer(api_key=BACKUP, answer=lambda messages: "I am the other.") as other,
    ):
        servers = ("--base-url", server.base_url, "--backup", f"other={other.base_url}")
        assert await in_thread("chat", "Who are you?", *servers) == 0
    assert capsys.readouterr() == ("I am the other.\n", "")
    assert (len(server.requests), len(other.requests)) == (1, 1)


async def test_chat_that_breaks_off(capsys: pytest.CaptureFixture[str]) -> None:
    async with LocalServer(answer=lambda messages: "one two three four five", faults=[Cut(2, "fin")]) as server:
        assert await in_thread("chat", "Count!", "--base-url", server.base_url) == 1
    out, err = capsys.readouterr()
    assert out == "one two\n"
    assert err.startswith("piapi-async: ")
    assert err.count("\n") == 1


async def test_chat_that_is_refused(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIAPI_API_KEY", "sk-wrong-key-of-mine")
    async with LocalServer() as server:
        assert await in_thread("chat", "Hello!", "--base-url", server.base_url) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert "wrong-key" not in err


def test_chat_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert main(["chat", "Hello!", "--base-url", f"http://127.0.0.1:{closed.getsockname()[1]}/v1"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


# -- demo ------------------------------------------------------------------------------------------------------------


def rows_of(out: str) -> dict[str, str]:
    """The demo's table, as it is in a pipe: what the second column says of the first."""
    return dict(re.findall(r"^ *(\w[\w ,]*?)  +(\S+(?: \S+)*)", out, re.MULTILINE))


@pytest.mark.slow
def test_the_demo_runs_alone_and_leaves_standard_error_empty() -> None:
    options = ("--questions", "30", "--concurrency", "10")
    done = subprocess.run((*STRICT, "demo", *options), capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert re.search(r"^ +[0-9.]+ s  piapi dies, with [0-9]+ requests in flight$", done.stdout, re.MULTILINE)
    rows = rows_of(done.stdout)
    assert rows["answers"] == "30 of 30"
    assert (rows["lost"], rows["errors"]) == ("0", "0")
    assert int(rows["by piapi"]) + int(rows["by backup"]) == 30
    assert int(rows["by piapi"]) >= 10
    assert int(rows["by backup"]) >= int(rows["failovers"]) >= 1
    assert {"tokens a second", "time to first token, median", "time to first token, p95"} <= rows.keys()


def news(screen: io.StringIO) -> list[str]:
    """The lines of an outage, without their times."""
    return [line.partition(" s  ")[2] for line in screen.getvalue().splitlines()]


async def test_the_outage_kills_the_provider_and_revives_it() -> None:
    shown, screen = console(terminal=False, width=100)
    async with (
        LocalServer() as server,
        LocalServer(api_key=BACKUP) as other,
        Client(KEY, base_url=server.base_url, backups=[Provider("other", other.base_url, BACKUP)]) as client,
    ):
        outage = Outage("piapi", server, client, shown, after=2, lasts=0)
        served: list[str] = []
        for count in range(1, 8):
            served.append((await client.complete("Hello!", model="gpt-4o-mini")).provider)
            await outage.follow(served[-1], count)
    assert served == ["piapi", "piapi", "other", "other", "piapi", "piapi", "piapi"]
    assert news(screen) == [
        "piapi dies, with 0 requests in flight",
        "other answers in its place",
        "piapi is up again",
        "piapi answers again",
    ]


async def test_no_answer_is_lost_when_the_provider_dies_in_the_fan_out() -> None:
    shown, screen = console(terminal=True, width=100)
    tally = Tally(Counter(piapi=0, other=0))
    async with (
        LocalServer() as server,
        LocalServer(api_key=BACKUP) as other,
        Client(
            KEY, base_url=server.base_url, model="gpt-4o", backups=[Provider("other", other.base_url, BACKUP)]
        ) as client,
    ):
        await fan_out(shown, client, server, load_questions(12), 1, tally)
        assert client.statistics().in_flight == 0
    assert (tally.results, tally.answers, tally.errors) == (12, 12, [])
    assert tally.served["piapi"] >= 4
    assert tally.served["other"] >= tally.failovers >= 1
    assert "piapi dies, with " in screen.getvalue()
    assert f"piapi {tally.served['piapi']} · other {tally.served['other']}" in screen.getvalue()  # beside the bar


async def test_an_outage_lasts_and_may_not_end() -> None:
    shown, screen = console(terminal=False, width=100)
    async with LocalServer() as server, Client(KEY, base_url=server.base_url) as client:
        outage = Outage("piapi", server, client, shown, after=1, lasts=60)
        await outage.follow("piapi", 1)
        await outage.follow("piapi", 2)  # was answered before the end
        await outage.follow("other", 3)
        await outage.follow("other", 4)
        assert outage.stage == "replaced"
        outage.up_at = 0.0
        with socket.create_server(("127.0.0.1", server.port)):
            await outage.follow("other", 5)
        await outage.follow("other", 6)
    assert news(screen)[2:] == ["piapi can't come back"]


async def test_ctrl_c_does_not_stop_what_kills_a_server() -> None:
    begun, may_end, ended = anyio.Event(), anyio.Event(), anyio.Event()

    async def step() -> None:
        begun.set()
        await may_end.wait()
        ended.set()

    task = asyncio.create_task(finish(step()))
    await begun.wait()
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    assert not task.done()
    may_end.set()
    await asyncio.wait([task])
    assert (task.cancelled(), ended.is_set()) == (True, True)


def test_the_demo_with_a_model_that_its_server_has_not(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--model", "no-such-model"]) == 1
    assert "no-such-model" in capsys.readouterr().err


async def test_the_demo_asks_another_server(capsys: pytest.CaptureFixture[str]) -> None:
    async with LocalServer(models=["smollm2-135m"], terminator="[DONE]") as server:
        options = ("--model", "smollm2-135m", "--questions", "7", "--concurrency", "3")
        assert await in_thread("demo", "--base-url", server.base_url, *options) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "7 of 7" in out
    assert server.base_url in out
    assert "$" not in out  # nobody knows this model's price
    assert {request.body["model"] for request in server.requests} == {"smollm2-135m"}
    asked = [request.body["messages"][0]["content"] for request in server.requests if not request.body.get("stream")]
    assert sorted(asked[1:]) == sorted(load_questions(7))


async def test_the_live_demo_asks_where_the_environment_says(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with LocalServer() as server:
        monkeypatch.setenv("PIAPI_BASE_URL", server.base_url)
        assert await in_thread("demo", "--live", "--questions", "1") == 0
    assert len(server.requests) == 4
    assert "1 of 1" in capsys.readouterr().out


@pytest.mark.parametrize("down", [True, False])
async def test_the_demo_falls_back_on_the_backup(down: bool, capsys: pytest.CaptureFixture[str]) -> None:
    async with (
        LocalServer(faults=lambda number, body: Status(503) if down else None) as server,
        LocalServer(api_key=BACKUP) as other,
    ):
        servers = ("--base-url", server.base_url, "--backup", f"other={other.base_url}")
        assert await in_thread("demo", *servers, "--questions", "4", "--concurrency", "1") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "dies" not in out
    rows = rows_of(out)
    assert rows["answers"] == "4 of 4"
    assert (rows["by piapi"], rows["by other"]) == (("0", "4") if down else ("4", "0"))
    assert (rows["retries"], rows["lost"], rows["errors"]) == ("0", "0", "0")
    assert len(other.requests) == (10 if down else 0)


async def test_the_demo_counts_errors(capsys: pytest.CaptureFixture[str]) -> None:
    def refuse(number: int, body: object) -> Status | None:
        return Status(400, message="No, thank you.") if number > 1 else None

    async with LocalServer(faults=refuse) as server:
        assert await in_thread("demo", "--base-url", server.base_url, "--questions", "3") == 1
    out, err = capsys.readouterr()
    assert err == ""
    assert "0 of 3" in out
    assert re.search(r"^errors +6 ", out, re.MULTILINE)
    assert "No, thank you." in out
    assert "first token, median" not in out


async def test_the_demo_on_a_terminal() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, markup=False, highlight=False)
    async with LocalServer() as server:
        status = await run_demo(
            console, live=False, base_url=server.base_url, model="gpt-4o-mini", concurrency=2, questions=2
        )
    assert status == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    assert "2/2" in plain  # the progress bar
    assert "│ answers" in plain


async def test_an_answer_without_tokens_or_usage(capsys: pytest.CaptureFixture[str]) -> None:
    empty = {"index": 0, "message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}
    answer = json.dumps({"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [empty]})
    async with LocalServer(faults=lambda number, body: Garbage(answer.encode())) as server:
        assert await in_thread("demo", "--base-url", server.base_url, "--questions", "1", "--model", "m") == 0
    out = capsys.readouterr().out
    assert "no token" in out
    assert "not reported" in out
    assert "first token, median" not in out


# -- serve -----------------------------------------------------------------------------------------------------------


def test_serve_says_how_to_call_it_and_ends_on_ctrl_c() -> None:
    with started("serve", "--port", "0", "--api-key", "sk-mine", "--terminator", "[DONE]") as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(6)]
        base_url = lines[0].split()[-1]
        assert re.fullmatch(r"http://127\.0\.0\.1:[0-9]+/v1", base_url)
        assert lines[1].split() == ["API", "key", "sk-mine"]
        assert lines[3].startswith(f"curl -N {base_url}/chat/completions ")
        environment = {**os.environ, "PIAPI_API_KEY": "sk-mine"}
        asked = (*COMMAND, "chat", "Hello!", "--base-url", base_url)
        done = subprocess.run(asked, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.strip()
        assert interrupted(process) == (130, "")


@pytest.mark.slow
def test_serve_ends_while_it_streams() -> None:
    with started("serve", "--port", "0", "--api-key", KEY, "--tokens-per-second", "0.1") as server:
        assert server.stdout is not None
        base_url = server.stdout.readline().split()[-1]
        with started("chat", "Why is the sky blue?", "--base-url", base_url) as chat:
            assert chat.stdout is not None
            assert chat.stdout.read(1)
            assert interrupted(server) == (130, "")
            _, errors = chat.communicate(timeout=QUIET_END)
    assert chat.returncode == 1
    assert errors.count("\n") == 1


async def test_serve_takes_its_options(monkeypatch: pytest.MonkeyPatch) -> None:
    said = anyio.Event()

    class Told(io.StringIO):
        def flush(self) -> None:
            said.set()

    monkeypatch.setattr(sys, "stdout", told := Told())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(serve, port=0, plan="free", api_key="sk-mine", tokens_per_second=1e6))
        await said.wait()
        base_url = told.getvalue().split()[2]
        async with Client("sk-mine", base_url=base_url) as client:
            assert (await client.complete("Hello!", model="gpt-4o-mini")).text
            with pytest.raises(PermissionDeniedError):
                await client.complete("Hello!", model="gpt-4o")
        tasks.cancel_scope.cancel()


def test_serve_on_a_taken_port(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--port", port]) == 2
        sentence = one_line(capsys)
        with started("serve", "--port", port) as process:
            out, err = process.communicate(timeout=PATIENCE)
    assert re.search(rf"port {port} .* taken", sentence)
    assert (process.returncode, out, err) == (2, "", sentence)


def test_serve_on_an_address_of_another_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["serve", "--host", "192.0.2.1", "--port", "0"]) == 2
    assert "192.0.2.1" in one_line(capsys)


# -- Ctrl-C ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["Stream", pytest.param("dies", marks=pytest.mark.slow)])
def test_ctrl_c_ends_the_demo_and_its_servers(line: str) -> None:
    with started("demo", "--questions", "30", "--concurrency", "10") as process:
        assert process.stdout is not None
        while line not in process.stdout.readline():
            pass
        assert interrupted(process) == (130, "")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "good", "fault"),
    [
        ("chat", 0, Delay(60)),
        ("chat", 0, Stall(after=2)),
        ("demo", 0, Stall()),
        ("demo", 1, Stall(after=2)),
        ("demo", 10, Stall(after=0)),  # among the first tokens
        ("demo", 30, Delay(60)),  # in the fan-out
    ],
)
async def test_ctrl_c_ends_what_hangs(command: str, good: int, fault: Stall | Delay) -> None:
    arrived = anyio.Event()

    def rule(number: int, body: object) -> Stall | Delay | None:
        if number < good:
            return None
        arrived.set()
        return fault

    async with LocalServer(faults=rule) as server:
        argv = (command, "--base-url", server.base_url, *(("Hello!",) if command == "chat" else ()))
        with started(*argv) as process:
            with anyio.fail_after(PATIENCE):
                await arrived.wait()
            assert await anyio.to_thread.run_sync(interrupted, process) == (130, "")


# -- the terminal ----------------------------------------------------------------------------------------------------


async def tokens(*values: str) -> AsyncIterator[str]:
    for value in values:
        yield value


def console(*, terminal: bool, width: int = 20) -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    return Console(file=screen, force_terminal=terminal, width=width, legacy_windows=False), screen


async def test_tokens_break_between_words() -> None:
    narrow, screen = console(terminal=True)
    assert await write_tokens(
        tokens("Twelve", " words", " do", " not", " fit", " in", " one", " line"), narrow, wrap=True
    )
    assert screen.getvalue() == "Twelve words do not\nfit in one line\n"


async def test_tokens_are_not_wrapped_in_a_pipe() -> None:
    pipe, screen = console(terminal=False)
    await write_tokens(tokens("Twelve", " words", " do", " not", " fit", " in", " one", " line"), pipe, wrap=True)
    assert screen.getvalue() == "Twelve words do not fit in one line\n"


@pytest.mark.parametrize(
    ("values", "written"), [((), ""), (("",), ""), (("", "a\n"), "a\n"), (("a\n", "", "b"), "a\nb\n")]
)
async def test_the_last_line_ends_once(values: tuple[str, ...], written: str) -> None:
    pipe, screen = console(terminal=False)
    first = await write_tokens(tokens(*values), pipe)
    assert screen.getvalue() == written
    assert (first is None) is (not any(values))


def test_no_escape_sequence_of_an_answer_reaches_a_terminal() -> None:
    terminal, _ = console(terminal=True)
    assert visible("a\x1b[2Jb\tc\r\n\x9b1m", terminal) == "a\ufffd[2Jb\tc\n\ufffd1m"


def test_a_table_is_ruled_on_a_terminal_only() -> None:
    for terminal in (True, False):
        shown, screen = console(terminal=terminal)
        table = make_table(shown)
        table.add_column("heading")
        shown.print(table)
        assert ("─" in screen.getvalue()) is terminal


@pytest.mark.parametrize(("name", "make"), [("stdout", make_console), ("stderr", make_error_console)])
@pytest.mark.parametrize("terminal", [True, False])
def test_a_pipe_gets_unwrapped_lines(
    terminal: bool, name: str, make: Callable[[], Console], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Output(io.StringIO):
        def isatty(self) -> bool:
            return terminal

    monkeypatch.setattr(sys, name, output := Output())
    monkeypatch.setenv("COLUMNS", "20")
    make().print("A sentence of more than twenty characters.")
    assert (output.getvalue().count("\n") > 1) is terminal
