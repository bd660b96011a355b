"""Standard streams that are closed, or go away while a command runs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CODE = "import sys; from piapi_async.__main__ import main; sys.exit(main(sys.argv[1:]))"


def command(how: str) -> list[str]:
    return ["sh", "-c", f'exec "$@" {how}', "sh", sys.executable, "-c", CODE]


@pytest.mark.parametrize(
    "how", ["0<&- 2>&-", *(pytest.param(how, marks=pytest.mark.slow) for how in ("2>&-", "2>/dev/full"))]
)
def test_standard_error_is_gone(how: str) -> None:
    if "full" in how and not os.path.exists("/dev/full"):
        pytest.skip("needs /dev/full")
    done = subprocess.run([*command(how), "models"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, "gpt-4o-mini" in done.stdout) == (0, True)
    done = subprocess.run([*command(how), "batch", "missing", "-o", "x"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (2, "")  # the error is lost, and not its status


def test_standard_output_is_closed() -> None:
    done = subprocess.run([*command(">&-"), "models"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
