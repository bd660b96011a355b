"""How the commands write: a terminal gets colours and wrapped lines, a pipe gets plain ones."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterable

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

from piapi_async.errors import CONTROLS

# Control characters in an answer, such as escape sequences, must not reach a terminal. In a pipe they do no harm.
_CONTROLS = CONTROLS | {0x09: "\t", 0x0A: "\n", 0x0D: None}


_PIPE_WIDTH = 120  # the width of a table, in characters, where no terminal sets one


def make_console() -> Console:
    """A console on the present standard output. It prints text as it is, without markup."""
    if sys.stdout.isatty():
        return Console(highlight=False, markup=False)
    return Console(highlight=False, markup=False, soft_wrap=True, width=_PIPE_WIDTH)


def make_error_console() -> Console:
    """A console on the present standard error, otherwise like that of `make_console`."""
    if sys.stderr.isatty():
        return Console(stderr=True, highlight=False, markup=False)
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True, width=_PIPE_WIDTH)


def make_table(console: Console) -> Table:
    """An empty table in the commands' style: with lines on a terminal, plain columns elsewhere."""
    if console.is_terminal:
        return Table(box=box.ROUNDED)
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def visible(text: str, console: Console) -> str:
    """Make a text fit for `console`: on a terminal, control characters are replaced."""
    return text.translate(_CONTROLS) if console.is_terminal else text


def clean(text: str) -> str:
    """Make a line of ours fit for any console: ids, names and errors in it may hold control characters."""
    return text.translate(CONTROLS)


async def write_tokens(tokens: AsyncIterable[str], console: Console, *, wrap: bool = False) -> float | None:
    """Write each token as it arrives. The last line is always ended, even if the stream fails.

    Args:
        tokens: The tokens of one answer.
        console: Where to write.
        wrap: On a terminal, break lines between words rather than inside them.

    Returns:
        When the first token arrived, as `time.perf_counter` tells it; None if there was none.
    """
    first: float | None = None
    column = 0  # where the cursor is, in terminal cells
    try:
        async for token in tokens:
            if first is None and token:
                first = time.perf_counter()
            text = visible(token, console)
            if wrap and console.is_terminal and text.startswith(" ") and column + cell_len(text) > console.width:
                text = "\n" + text[1:]
            console.file.write(text)
            console.file.flush()
            _, newline, last = text.rpartition("\n")
            column = cell_len(last) + (0 if newline else column)
    finally:
        if column:
            console.file.write("\n")
            console.file.flush()
    return first
