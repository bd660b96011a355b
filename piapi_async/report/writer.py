"""Check that a page can be written, and write it whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator, Iterable
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path

import msgspec

from piapi_async.errors import BatchError, ConfigurationError
from piapi_async.report.page import render_page
from piapi_async.report.summary import summarize

__all__ = ["check_report", "write_report"]


def check_report(page: str | os.PathLike[str], *others: str | os.PathLike[str]) -> None:
    """Check that a report can be written, before the work that it will be about.

    Args:
        page: Where the page will go. A file that is there will be replaced.
        others: Files that the page must not replace, such as the requests and the results.

    Raises:
        ConfigurationError: matplotlib is not installed.
        BatchError: No page can be written there.
    """
    path = Path(page)
    if find_spec("matplotlib") is None:
        raise ConfigurationError("a report needs a plotting library; install it: pip install 'piapi-async[report]'")
    if (problem := _problem_of(path, others)) is not None:
        raise BatchError(f"{path}: {problem}")
    with _explaining(path, "written"), tempfile.TemporaryFile(dir=path.parent):
        pass  # only making a file proves that one can be made there


def write_report(results: str | os.PathLike[str], page: str | os.PathLike[str]) -> None:
    """Write what a batch did, how long it took and what it cost as one page of HTML.

    It takes seconds for a million rows, so call it in a thread where an event loop runs.

    Args:
        results: A file of results, as `run_batch` leaves it.
        page: Where the page goes. Only its owner may read it. A file that is there is replaced.

    Raises:
        ConfigurationError: matplotlib is not installed.
        BatchError: The results can't be read, or the page can't be written.
    """
    check_report(page, results)
    source, target = Path(results), Path(page)
    with _explaining(source, "read"):
        summary = summarize(source)
    # The name of the file may hold bytes that are not text.
    content = render_page(source.name, summary).encode("utf-8", "replace")
    with _explaining(target, "written"):
        _replace(target, content)


def _problem_of(path: Path, others: Iterable[str | os.PathLike[str]]) -> str | None:
    """Why the page can't go there, if the file system already says so."""
    if not path.parent.is_dir():
        return "its directory does not exist; make it first"
    if path.is_symlink():
        return "it is a symbolic link, and none is followed; name the file itself"
    if path.is_dir():
        return "it is a directory; name a file"
    if path.exists() and not path.is_file():
        return "it is no regular file, and would be replaced; name another one"
    if any(_is_same_file(path, Path(other)) for other in others):
        return "it is a file of the batch itself; name another one"
    return None


def _is_same_file(path: Path, other: Path) -> bool:
    with suppress(OSError):  # one of them does not exist yet
        return path.samefile(other)
    return path.absolute() == other.absolute()


@contextmanager
def _explaining(path: Path, action: str) -> Generator[None]:
    """Turn what goes wrong with a file into a `BatchError` that says what to do.

    Args:
        path: The file.
        action: What is done with it: "read" or "written".
    """
    problem = ""
    try:
        yield
    except OSError as error:
        problem = f"it can not be {action}: {error.strerror}; choose another file"
    except msgspec.DecodeError:
        problem = "a newer release wrote it; upgrade to read it"
    except (ArithmeticError, ValueError):
        problem = "a number in it makes no sense; is it a file of results?"
    if problem:
        raise BatchError(f"{path}: {problem}") from None


def _replace(path: Path, content: bytes) -> None:
    """Put a whole file in place at once, so that nobody ever sees half of it."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=".report.")  # only its owner may read it
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
