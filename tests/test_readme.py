"""Every code block of the README runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from piapi_async.testing import LocalServer

pytestmark = pytest.mark.anyio

README = Path(__file__).parent.parent.joinpath("README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
PROGRAMS = [text for language, text in BLOCKS if language == "python"]


def test_every_block_is_run_here_or_by_the_continuous_integration() -> None:
    commands = [text.strip() for language, text in BLOCKS if language == "sh"]
    form = "python3 -m venv .venv && .venv/bin/pip install -e '.[{}]' && .venv/bin/{}"
    assert commands[:2] == [form.format("cli", "piapi-async demo"), form.format("test", "pytest")]
    assert len(commands) == 3  # the third one is run here; `console` shows what those who work on it type
    assert {language for language, _ in BLOCKS} == {"console", "python", "sh"}


async def run(command: list[str], server: LocalServer, folder: Path) -> tuple[str, str]:
    """Run a command where the package is installed; return what is on standard output and on standard error."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    settings = {"PIAPI_API_KEY": server.api_key, "PIAPI_BASE_URL": server.base_url, "PATH": path}
    done = await anyio.run_process(command, env={**os.environ, **settings}, cwd=folder, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode(), done.stderr.decode()


async def test_batch(piapi_server: LocalServer, tmp_path: Path) -> None:
    tmp_path.joinpath("questions.txt").write_text("Why is the sky blue?\nHow deep is the sea?\n")
    command = [text for language, text in BLOCKS if language == "sh"][2]
    out, _ = await run(["bash", "-c", command], piapi_server, tmp_path)  # matplotlib may say that it looks for fonts
    assert "2 of 2" in out
    assert {"questions.txt", "results.jsonl", "report.html"} <= set(os.listdir(tmp_path))


@pytest.mark.parametrize("program", PROGRAMS, ids=[str(i) for i in range(len(PROGRAMS))])
async def test_program(program: str, piapi_server: LocalServer, tmp_path: Path) -> None:
    out, errors = await run([sys.executable, "-X", "dev", "-W", "error", "-c", program], piapi_server, tmp_path)
    assert out
    # asyncio also says when a step took over 100 ms: that is a busy machine, no fault of the program.
    assert re.sub(r"^Executing <.*> took [\d.]+ seconds\n", "", errors, flags=re.MULTILINE) == ""


@pytest.mark.slow
def test_programs_are_typed(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    for i, program in enumerate(PROGRAMS):
        tmp_path.joinpath(f"program_{i}.py").write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(tmp_path)]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert checked.returncode == 0, checked.stdout
