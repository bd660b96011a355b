"""``python -m benchmarks.calls``: how many functions a call enters in the package, and how often it changes module.

Two calls are counted: one `complete()`, and one stream of 8 tokens that arrive all at once. The load server runs in a
process of its own. Before each of them, a call that is not counted opens the connection and loads what is loaded late.

- A function is counted when Python enters it, if its source file is in the package's folder. A generator or coroutine
  is entered once, when it first runs; it is not counted again when it resumes after a ``yield`` or an ``await``. A
  lambda counts, and so does a generator expression. Other comprehensions don't: from Python 3.12 on they have no frame.
- Functions of other packages, code that attrs or cattrs generate for our classes, and C functions are not counted.
- A change of module is a function that is entered from another module of the package; a subpackage counts as one. What
  counts as its caller is the nearest function of the package on the stack, even if functions of other packages come
  between, as those of `contextlib` or cattrs do. A function that the event loop calls has no caller in the package, so
  it is no change.
- Every task of the process counts, from the start of the call until the event loop has turned once after its end.

``--trace`` prints the functions as ``module.function``, in order and indented by depth.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from opcode import opmap
from pathlib import Path
from types import FrameType

import attrs

import piapi_async
from benchmarks.rounds import load_server
from benchmarks.server import API_KEY, MODEL, TEXT, text_of
from piapi_async import Client

PACKAGE = Path(piapi_async.__file__).parent

PROMPT = "What is a token?"
TOKENS = 8

_COMPREHENSIONS = {"<listcomp>", "<setcomp>", "<dictcomp>"}


def part_of(module: str) -> str:
    """Returns the module or subpackage of the package that a module is, or belongs to."""
    return module.partition(".")[0]


@attrs.frozen
class Entry:
    """A function that was entered.

    Attributes:
        module: Its module, without the name of the package.
        function: Its qualified name.
        depth: How many functions of the package were below it on the stack.
        changes: Whether its caller is in another module of the package.
    """

    module: str
    function: str
    depth: int
    changes: bool

    def __str__(self) -> str:
        return f"{'  ' * self.depth}{self.module}.{self.function}"


class Recorder:
    """Records which functions of one package this thread enters.

    Args:
        package: The package's folder.

    Attributes:
        entries: The functions, in the order in which they were entered.
    """

    def __init__(self, package: Path) -> None:
        self._folder = f"{package}{os.sep}"
        self.entries: list[Entry] = []

    @contextmanager
    def recording(self) -> Generator[None]:
        """Records while the context is open."""
        before = sys.getprofile()
        sys.setprofile(self._on_event)
        try:
            yield
        finally:
            sys.setprofile(before)

    def _on_event(self, frame: FrameType, event: str, _argument: object) -> None:
        if event != "call" or not self._counts(frame) or not _is_first(frame):
            return
        callers = [caller for caller in _callers(frame) if self._counts(caller)]
        module = self._module(frame)
        changes = bool(callers) and part_of(self._module(callers[0])) != part_of(module)
        self.entries.append(Entry(module, frame.f_code.co_qualname, len(callers), changes))

    def _counts(self, frame: FrameType) -> bool:
        code = frame.f_code
        return code.co_filename.startswith(self._folder) and code.co_name not in _COMPREHENSIONS

    def _module(self, frame: FrameType) -> str:
        path = Path(frame.f_code.co_filename.removeprefix(self._folder)).with_suffix("")
        return ".".join(path.parts).removesuffix(".__init__")


def _is_first(frame: FrameType) -> bool:
    """Returns whether a frame was just entered, and not resumed.

    ``RESUME`` is the instruction at both places, and the lowest two bits of its argument are 0 only at the start of a
    function (see the module `dis`). If an exception is thrown into a generator, it is at another instruction.
    """
    code, at = frame.f_code.co_code, frame.f_lasti
    return code[at] == opmap["RESUME"] and code[at + 1] & 3 == 0


def _callers(frame: FrameType) -> Iterator[FrameType]:
    caller = frame.f_back
    while caller is not None:
        yield caller
        caller = caller.f_back


async def record_completion(port: int) -> list[Entry]:
    """Returns the functions that one `complete()` enters."""
    recorder = Recorder(PACKAGE)
    async with _client(port) as client:
        await client.complete(PROMPT)
        with recorder.recording():
            completion = await client.complete(PROMPT)
            await asyncio.sleep(0)  # so that what the call left to the loop counts too
    _check(completion.text, TEXT)
    return recorder.entries


async def record_stream(port: int) -> list[Entry]:
    """Returns the functions that one stream of `TOKENS` tokens enters."""
    recorder = Recorder(PACKAGE)
    async with _client(port, f"/tokens/{TOKENS}") as client:
        await _read(client)
        with recorder.recording():
            text = await _read(client)
            await asyncio.sleep(0)  # as above
    _check(text, text_of(TOKENS))
    return recorder.entries


def _client(port: int, path: str = "") -> Client:
    return Client(API_KEY, base_url=f"http://127.0.0.1:{port}{path}/v1", model=MODEL)


async def _read(client: Client) -> str:
    async with client.stream(PROMPT) as stream:
        return "".join([token async for token in stream])


def _check(text: str, wanted: str) -> None:
    if text != wanted:
        raise RuntimeError(f"wrong text: {text!r}")


JOBS = {"complete()": record_completion, f"a stream of {TOKENS} tokens": record_stream}
"""Name of a call → what records it, given the port of the load server."""


def table(recorded: Mapping[str, Sequence[Entry]]) -> str:
    """Returns a Markdown table of the counts."""
    lines = ["| one call | functions entered | changes of module |", "| --- | ---: | ---: |"]
    for name, entries in recorded.items():
        lines.append(f"| {name} | {len(entries)} | {sum(entry.changes for entry in entries)} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Counts and prints a table."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.calls",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,  # keeps the lines of the list
    )
    parser.add_argument("--trace", action="store_true", help="also print each call, in order and indented by depth")
    options = parser.parse_args(arguments)
    with load_server() as ports:
        recorded = {name: asyncio.run(job(ports["fast"])) for name, job in JOBS.items()}
    if options.trace:
        for name, entries in recorded.items():
            print(name, *(f"  {entry}" for entry in entries), "", sep="\n")
    print(table(recorded))
    return 0


if __name__ == "__main__":
    sys.exit(main())
