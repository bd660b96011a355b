"""The ``piapi-async`` command. However a command ends, the user gets an exit status and never a traceback.

The commands themselves are in `piapi_async.cli`, which needs the extra ``cli``.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO, cast

_CLI_EXTRA = {"cyclopts", "rich"}
_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: The arguments after the program's name; None: ``sys.argv[1:]``.

    Returns:
        The exit status: 0 for success, 1 if a request failed, 2 for bad input, a missing key or a missing extra, 130
        after Ctrl-C.
    """
    _open_missing_streams()
    with contextlib.redirect_stderr(cast("TextIO", _Forgiving(sys.stderr))):
        return _run(argv)


def _run(argv: Sequence[str] | None) -> int:
    try:
        from piapi_async.cli import run

        status = run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] not in _CLI_EXTRA:
            raise
        return _failed("the commands need the extra 'cli': pip install 'piapi-async[cli]'", 2)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except OSError as error:
        # The library turns its own OSErrors into others, so this one is about standard output: a closed pipe, a full
        # disk. What is still buffered must not fail again when Python exits.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1 if isinstance(error, BrokenPipeError) else _failed(f"cannot write the output: {error.strerror}", 1)
    return status


def _open_missing_streams() -> None:
    """Open what the parent closed (`2>&-`), or the first file that is opened becomes standard error."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115  # for as long as the process lives
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115


class _Forgiving:
    """Standard error that may go away: a closed pipe, a terminal that is gone, a full disk. Only the text is lost."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):
            self._give_up()
        return len(text)

    def flush(self) -> None:
        """Every write was flushed."""

    def _give_up(self) -> None:
        """Send the rest nowhere, so that what is still buffered does not fail again when Python exits."""
        with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def _failed(reason: str, status: int) -> int:
    sys.stderr.write(f"piapi-async: {reason}\n")
    return status


if __name__ == "__main__":
    sys.exit(main())
