"""Every code block of the README runs."""

from __future__ import annotations

import os
import re
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
    assert commands == [form.format("cli", "piapi-async demo"), form.format("test", "pytest")]
    assert {language for language, _ in BLOCKS} == {"sh", "python"}


@pytest.mark.parametrize("program", PROGRAMS, ids=[str(i) for i in range(len(PROGRAMS))])
async def test_program(program: str, piapi_server: LocalServer) -> None:
    settings = {"PIAPI_API_KEY": piapi_server.api_key, "PIAPI_BASE_URL": piapi_server.base_url}
    done = await anyio.run_process(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program], env={**os.environ, **settings}, check=False
    )
    assert done.stderr.decode() == ""
    assert done.returncode == 0
    assert done.stdout
