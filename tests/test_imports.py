"""The shape of the package: which module may import which, and what is public."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path

import pytest

import piapi_async
from piapi_async import errors

PACKAGE = Path(piapi_async.__file__).parent

ORDER = (
    "errors",
    "models",
    "sse",
    "wire",
    "catalog",
    "policy",
    "provider",
    "ledger",
    "billing",
    "gate",
    "breaker",
    "pool",
    "stream",
    "schema",
    "functions",
    "observe",
    "route",
    "dispatch",
    "fanout",
    "run",
    "client",
    "batch",
    "report",
    "__init__",
    "testing",
    "integrations",
    "cli",
    "__main__",
)
"""A module imports only from those before it. `from piapi_async import Client` imports `__init__`."""

DEFERRED = {
    "pool": {"pool"},  # content encodings: it asks for none, so few answers have one
    "stream": {"stream"},  # the classes of events, which few programs ask for
    "client": {"fanout"},  # it brings anyio along, which who never fans out need not load
    "__init__": {"batch", "client", "dispatch", "fanout", "stream"},  # the same, SQLite, and what few programs ask for
    "dispatch": {"dispatch", "stream"},  # the statistics again, hedges, and restarts of a stream
    "__main__": {"cli"},  # it must start, and say so, where the extra `cli` is not installed
}
"""Imports of our own inside functions, each with its reason; there are no others."""

PURE = (*ORDER[: ORDER.index("gate")], "breaker", "schema", "observe", "route")
"""They decide; IO lives elsewhere."""

OUTSIDE = ("testing", "integrations", "cli", "__main__", "report")
"""What is not the library itself: it may import as it needs."""


def part_of(path: Path) -> str:
    """The entry of `ORDER` that a file belongs to; a package is one."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


FILES = sorted(PACKAGE.rglob("*.py"))
CORE = [path for path in FILES if part_of(path) not in OUTSIDE]


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def names_in(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """What import statements import, in full: `aiohttp.web`, `piapi_async.errors.APIError`."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "no relative imports here"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_import(path: Path) -> set[str]:
    """What runs when a file is imported; what stands under `if TYPE_CHECKING:` does not."""
    return set(names_in(ast.parse(path.read_text(encoding="utf-8")).body))


def inside_functions(path: Path) -> set[str]:
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return {name for node in tree if isinstance(node, functions) for name in names_in(ast.walk(node))}


def parts(names: Iterable[str]) -> set[str]:
    """The entries of `ORDER` among what is imported."""
    own = [name.split(".")[1:] for name in names if name.split(".")[0] == "piapi_async"]
    return {rest[0] if rest and rest[0] in ORDER else "__init__" for rest in own}


def test_every_module_has_its_place() -> None:
    assert {part_of(path) for path in FILES} <= set(ORDER)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_imports_only_from_those_above_it(path: Path) -> None:
    own = part_of(path)
    for other in parts(at_import(path)) - {own}:
        assert ORDER.index(other) < ORDER.index(own), f"{own} imports {other}"


@pytest.mark.parametrize("path", CORE, ids=name_of)
def test_imports_inside_functions_have_a_reason(path: Path) -> None:
    assert parts(inside_functions(path)) <= DEFERRED.get(part_of(path), set())


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_only_pool_imports_aiohttp(path: Path) -> None:
    if part_of(path) not in ("pool", "testing"):
        names = at_import(path) | inside_functions(path)
        assert not [name for name in names if name.split(".")[0] == "aiohttp"]


@pytest.mark.parametrize("path", [path for path in CORE if part_of(path) in PURE], ids=name_of)
def test_what_does_no_io_imports_none(path: Path) -> None:
    """Nor a clock, nor tasks: times and randomness come in from outside."""
    io = {"aiohttp", "anyio", "asyncio", "os", "socket", "ssl", "threading", "time"}
    assert not {name.split(".")[0] for name in at_import(path)} & io


def test_importing_the_package_stays_light() -> None:
    heavy = {"anyio", "rich", "cyclopts", "aiohttp.web", "openai"}
    code = f"import sys, piapi_async; print(*sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""
    assert run.stderr == ""


def test_all_is_what_is_public() -> None:
    loaded_later = {name: getattr(piapi_async, name) for name in piapi_async.__all__}
    names = vars(piapi_async) | loaded_later
    public = {name for name, value in names.items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public - {"annotations", "TYPE_CHECKING"} == set(piapi_async.__all__) - {"__version__"}


def test_no_other_name_is_there() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = piapi_async.nothing  # type: ignore[attr-defined]  # as meant


def test_the_errors_that_most_callers_catch_are_at_the_top_level() -> None:
    names = ["PiAPIError", "ConfigurationError", "InvalidRequestError", "BudgetExceededError", "BatchError", "APIError"]
    names += ["APIConnectionError", "APITimeoutError", "APIResponseError", "StreamTruncatedError", "APIStatusError"]
    names += ["AuthenticationError", "RateLimitError", "AllProvidersFailedError"]
    assert set(names) == {name for name in piapi_async.__all__ if hasattr(errors, name)}


PARTS = sorted({part_of(path) for path in CORE} - {"__init__"})


@pytest.mark.parametrize("part", PARTS)
def test_every_module_says_what_is_public(part: str) -> None:
    module = import_module(f"piapi_async.{part}")
    assert len(set(module.__all__)) == len(module.__all__)
    assert [name for name in module.__all__ if name.startswith("_") or not hasattr(module, name)] == []
