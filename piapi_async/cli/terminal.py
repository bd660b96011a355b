"""What the commands share about standard output: a terminal gets colours and wrapped lines, a pipe gets plain ones."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterable

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

# Control characters in an answer (an escape sequence, say) must not reach a terminal; in a pipe they do no harm.
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160)), "�") | {0x09: "\t", 0x0A: "\n", 0x0D: None}

_PIPE_WIDTH = 120  # characters that a table may have where there is no terminal to say so


def make_console() -> Console:
    """A console on standard output as it is at this moment; it takes text as it is, without markup."""
    if sys.stdout.isatty():
        return Console(highlight=False, markup=False)
    return Console(highlight=False, markup=False, soft_wrap=True, width=_PIPE_WIDTH)


def make_error_console() -> Console:
    """The same on standard error."""
    if sys.stderr.isatty():
        return Console(stderr=True, highlight=False, markup=False)
    return Console(stderr=True, highlight=False, markup=False, soft_wrap=True, width=_PIPE_WIDTH)


def make_table(console: Console) -> Table:
    """An empty table in the commands' style: ruled on a terminal, bare columns elsewhere."""
    if console.is_terminal:
        return Table(box=box.ROUNDED)
    return Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))


def visible(text: str, console: Console) -> str:
    """The text as it may be written to `console`: control characters are replaced where it is a terminal."""
    return text.translate(_CONTROLS) if console.is_terminal else text


async def write_tokens(tokens: AsyncIterable[str], console: Console, *, wrap: bool = False) -> float | None:
    """Write each token as it arrives, and end the last line, whatever the end is.

    Args:
        tokens: The tokens of one answer.
        console: Where to write.
        wrap: Break lines between words where a terminal would break them inside one.

    Returns:
        When the first token arrived, on the clock of `time.perf_counter`; None if there was none.
    """
    first: float | None = None
    column = 0  # in terminal cells
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
