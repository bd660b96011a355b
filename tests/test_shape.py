"""The shape of the classes and of the files: one class system, nothing hidden from type checkers, no circles."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import msgspec
import pytest

import piapi_async

PACKAGE = Path(piapi_async.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def module_name(path: Path) -> str:
    return ".".join((PACKAGE.name, *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


def load(path: Path) -> ModuleType:
    return import_module(module_name(path))


def classes_of(module: ModuleType) -> list[type[Any]]:
    """The classes that a module defines, those inside classes too."""
    found: list[type[Any]] = []
    left = [value for value in vars(module).values() if inspect.isclass(value)]
    while left:
        cls = left.pop()
        if cls.__module__ == module.__name__ and cls not in found:
            found.append(cls)
            left += [value for value in vars(cls).values() if inspect.isclass(value)]
    return found


# -- one class system --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_class_is_a_struct(path: Path) -> None:
    assert [cls for cls in classes_of(load(path)) if issubclass(cls, msgspec.Struct)] == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_attrs_writes_the_init_of_an_attrs_class(path: Path) -> None:
    for cls in classes_of(load(path)):
        if "__attrs_attrs__" in vars(cls):
            made = vars(cls).get("__init__") or vars(cls).get("__attrs_init__")
            assert made is not None, cls
            assert made.__code__.co_filename.startswith("<attrs generated"), cls


def test_there_are_attrs_classes() -> None:
    """What the tests above look at is there."""
    classes = [cls for path in FILES for cls in classes_of(load(path))]
    assert {piapi_async.Message, piapi_async.ChatRequest, piapi_async.ChatCompletion} <= set(classes)
    assert sum(attrs.has(cls) for cls in classes) > 30


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_field_is_set_behind_the_back_of_a_class(path: Path) -> None:
    """As by `vars(value)["name"] = …`."""
    stores = [
        node.lineno
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Subscript)
        and isinstance(node.ctx, (ast.Store, ast.Del))
        and (
            (isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "vars")
            or (isinstance(node.value, ast.Attribute) and node.value.attr == "__dict__")
        )
    ]
    assert stores == []


# -- nothing is hidden from type checkers ------------------------------------------------------------------------------


def checks_types(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_type_checkers_see_the_code_that_runs(path: Path) -> None:
    """The one exception is a `__getattr__` that loads modules late, whose names are declared beside it."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.If, ast.IfExp)):
            negated = isinstance(node.test, ast.UnaryOp) and checks_types(node.test.operand)
            assert not negated, f"line {node.lineno}"
        if isinstance(node, ast.If) and checks_types(node.test):
            others = [getattr(each, "name", type(each).__name__) for each in node.orelse]
            assert others == [] or (path.name, others) == ("__init__.py", ["__getattr__"]), f"line {node.lineno}"


# -- no circles --------------------------------------------------------------------------------------------------------

FILE_OF = {module_name(path): path for path in FILES}
NO_CIRCLES = [path for path in FILES if path.relative_to(PACKAGE).parts[0] in ("errors.py", "models", "sse.py")]


def imported_names(path: Path) -> Iterator[str]:
    """What a file imports, anywhere in it: in functions and for types alone too."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in FILE_OF else str(node.module)


def reached_from(path: Path) -> set[Path]:
    """The files that a file's imports lead to, step by step."""
    reached: set[Path] = set()
    left = [path]
    while left:
        for name in imported_names(left.pop()):
            other = FILE_OF.get(name)
            if other is not None and other not in reached:
                reached.add(other)
                left.append(other)
    return reached


@pytest.mark.parametrize("path", NO_CIRCLES, ids=name_of)
def test_imports_do_not_lead_back_to_a_file(path: Path) -> None:
    assert path not in reached_from(path)


def test_imports_are_followed() -> None:
    assert PACKAGE / "models" / "messages.py" in reached_from(PACKAGE / "errors.py")
    assert {PACKAGE / "errors.py", PACKAGE / "models" / "messages.py"} <= reached_from(PACKAGE / "sse.py")
    assert len(NO_CIRCLES) > 5
