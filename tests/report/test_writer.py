"""Where a page may go, what is refused, and that it is written whole or not at all."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from piapi_async.errors import BatchError, ConfigurationError
from piapi_async.report import check_report, write_report
from tests.report.pages import Page, make_note, many_notes, write_results


def test_the_page_is_for_its_owner_alone(tmp_path: Path, results: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("what was there before")
    page.chmod(0o644)
    write_report(results, page)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == [page, results]


def test_the_name_of_the_file_stays_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/<b>\xff.jsonl"))
    write_report(write_results(path, [make_note()]), tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert "<title>Batch report: &lt;b&gt;?.jsonl</title>" in page.text
    assert "b" not in page.tags


def test_matplotlib_is_imported_only_when_a_chart_is_drawn() -> None:
    code = "import sys, piapi_async.report; print({'matplotlib', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'piapi-async\[report\]'"):
        check_report(tmp_path / "report.html")
    with pytest.raises(ConfigurationError):
        write_report(results, tmp_path / "report.html")


def test_a_place_where_no_page_can_go_is_refused(tmp_path: Path, results: Path) -> None:
    (tmp_path / "link").symlink_to(results)
    (tmp_path / "other").hardlink_to(results)
    for place, message in (
        (tmp_path / "none" / "report.html", "its directory does not exist"),
        (tmp_path, "it is a directory"),
        (tmp_path / "link", "it is a symbolic link"),
        (Path(os.devnull), "it is no regular file"),
        (results, "it is a file of the batch itself"),
        (tmp_path / "other", "it is a file of the batch itself"),
        (tmp_path / "new", "it is a file of the batch itself"),
        (Path("/proc/self/report.html"), "it can not be written: "),
    ):
        with pytest.raises(BatchError, match=message) as caught:
            check_report(place, results, tmp_path / "new")
        assert str(caught.value).startswith(str(place))
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    check_report(tmp_path / "report.html", results)
    with pytest.raises(BatchError, match="it is a file of the batch itself"):
        write_report(results, results)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "other", "results.jsonl"]


@contextmanager
def full_disk(room: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_the_old_page_stays(tmp_path: Path, results: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("what was there before")
    with full_disk(1000), pytest.raises(BatchError, match="it can not be written: File too large; choose another file"):
        write_report(results, page)
    assert page.read_text() == "what was there before"
    assert sorted(tmp_path.iterdir()) == [page, results]


def test_results_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(BatchError, match="it can not be read: No such file or directory"):
        write_report(tmp_path / "none.jsonl", tmp_path / "report.html")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency": "soon"}, "a newer release wrote it; upgrade to read it"),
        ({"cost": "much"}, "a number in it makes no sense; is it a file of results?"),
        ({"latency": -1.0}, "a number in it makes no sense; is it a file of results?"),
    ],
)
def test_results_that_make_no_sense(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    results = write_results(tmp_path / "results.jsonl", [make_note(**changes)])  # type: ignore[arg-type]  # they are fields, not the number
    with pytest.raises(BatchError, match=message) as caught:
        write_report(results, tmp_path / "report.html")
    assert str(caught.value).startswith(f"{results}: ")
    assert caught.value.__cause__ is None
    assert list(tmp_path.iterdir()) == [results]


@pytest.mark.slow
def test_memory_is_bounded(tmp_path: Path) -> None:
    """Each of 50,000 more rows takes less than 200 bytes, drawing included."""
    code = (
        "import sys\n"
        "from piapi_async.report import write_report\n"
        "for path in sys.argv[1:]:\n"
        "    write_report(path, f'{path}.html')\n"
        "    print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])\n"
    )
    small = write_results(tmp_path / "small", many_notes(1000))
    large = tmp_path / "large"
    large.write_bytes(small.read_bytes() * 51)
    command = [sys.executable, "-c", code, str(small), str(large)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = (int(kib) * 1024 for kib in run.stdout.split())
    assert after - before < 50_000 * 200
    assert Page((tmp_path / "large.html").read_text()).cards["Rows"] == ("51,000", "")
