"""The page of a batch: its numbers, its safety, and how it looks in a real browser."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from html import escape
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import matplotlib
import pytest
from PIL import Image

from piapi_async.batch.records import Note, key_of, make_line
from piapi_async.errors import BatchError, ConfigurationError
from piapi_async.report import check_report, write_report

NOON = 1_795_003_200.0
"""2026-11-18 12:00:00 UTC."""

HOSTILE = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', r"$\frac{", "@0@", "&amp;", "名\u202e\x00"

PICTURES = 6


def make_note(number: int = 0, **changes: object) -> Note:
    key = key_of(f"row-{number}")
    usual = {"provider": "piapi", "model": "gpt-4o", "cost": "0.5", "tokens_in": 10, "tokens_out": 20, "attempts": 1}
    times = {"latency": 2.0, "elapsed": 3.0, "finished": NOON + number}
    return Note(key=key, request=key, **{**usual, **times, **changes})  # type: ignore[arg-type]  # each is its field's


def make_failure(number: int = 0, **changes: object) -> Note:
    lacks = {"failed": True, "kind": "status 503", "cost": None, "tokens_in": None, "tokens_out": None}
    return make_note(number, **{**lacks, **changes})


class Page(HTMLParser):
    """A page as its reader has it.

    Attributes:
        text: All of it, as it was written.
        tags: Names of all elements.
        attributes: Names of all their attributes.
        cards: The numbers at the top and what stands below them, by name.
        tables: Rows of cells, by caption.
        pictures: What is written on each picture, by its description.
        sections: The text of each section outside of tables and pictures, by title.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.cards: dict[str, tuple[str, str]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.pictures: dict[str, list[str]] = {}
        self.sections: dict[str, str] = {}
        self._open: list[str] = []
        self._names: list[str] = []
        self.text = path.read_bytes().decode()
        self.feed(self.text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "path"):
            self._open.append(tag)
        if tag == "svg" and dict(attrs).get("role") == "img":
            self.pictures[dict(attrs)["aria-label"] or ""] = []
        elif tag == "tr":
            next(reversed(self.tables.values())).append([])
        elif tag in ("td", "th"):
            next(reversed(self.tables.values()))[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("meta", "path"):
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside == "caption":
            self.tables[data] = []
        elif "td" in self._open or "th" in self._open:
            next(reversed(self.tables.values()))[-1][-1] += data
        elif inside == "text":
            next(reversed(self.pictures.values())).append(data)
        elif inside == "dt":
            self.cards[data] = ("", "")
        elif inside == "dd":
            name, (value, more) = next(reversed(self.cards.items()))
            self.cards[name] = (value, data) if value else (data, more)
        elif inside == "h2":
            self.sections[data] = ""
        elif inside == "p" and "section" in self._open:
            self.sections[next(reversed(self.sections))] += data


def write_results(path: Path, notes: Iterable[Note]) -> Path:
    with path.open("wb") as file:
        for note in notes:
            file.write(make_line(note.key, None, None, note))
    return path


@pytest.fixture
def results(tmp_path: Path) -> Path:
    return write_results(tmp_path / "results.jsonl", [make_note(0), make_failure(1)])


def report(folder: Path, notes: Iterable[Note]) -> Page:
    write_report(write_results(folder / "results.jsonl", notes), folder / "report.html")
    return Page(folder / "report.html")


def many_notes(count: int = 400) -> Iterator[Note]:
    """A night as it may have been: models, providers and failures of all kinds, and names that nobody gives."""
    for number in range(count):
        late = NOON + number * 0.7 + (9000 if number > count // 2 else 0)
        if number % 17 == 3:
            yield make_failure(
                number, kind=("status 503", "truncated", *HOSTILE)[number % 8], finished=late, attempts=3
            )
            continue
        yield make_note(
            number,
            model=("gpt-4o", "claude-3-5-sonnet-20240620", "gpt-4o-mini", *HOSTILE)[number % 9],
            provider=("piapi", "backup-eu")[number % 5 == 0],
            cost=None if number % 7 == 0 else str(number * 0.001),
            cost_estimated=number % 3 == 0,
            latency=0.3 * 1.01 ** (number % 331),
            first_token=0.2 * 1.004 ** (number % 101) if number % 2 else None,
            finished=late,
            attempts=1 + (number % 20 == 0),
            unknown="1.25",
        )


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_the_headline_sums_up_the_notes(tmp_path: Path) -> None:
    notes = [make_note(number, cost="0.1", cost_estimated=number < 3) for number in range(8)]
    notes += [make_note(8, cost=None, tokens_in=None, tokens_out=None, unknown="0.75"), make_failure(9, unknown="0.5")]
    cards = report(tmp_path, notes).cards
    assert cards["Rows"] == ("10", "")
    assert cards["Answered"] == ("9", "90.0%")
    assert cards["Failed"] == ("1", "10.0%")
    assert cards["Tokens in"] == ("80", "not counted for 1 answer")
    assert cards["Tokens out"] == ("160", "not counted for 1 answer")
    assert cards["Cost"] == ("$0.8000", "of it $0.3000 estimated; 1 answer without a known price")
    assert cards["Unknown bills"] == ("$0.7500", "at most, beside the cost")
    assert cards["Time at work"] == ("12 s", "without a pause")  # from 3 s before noon to 9 s after it
    assert cards["Tokens a second"] == ("13.3", "out, while at work")
    assert cards["Median latency"] == ("2 s", "of the answers")


def test_the_head_says_what_and_when(tmp_path: Path) -> None:
    page = report(tmp_path, [make_note(0), make_note(5)])
    assert "<title>Batch report: results.jsonl</title>" in page.text
    assert '<time datetime="2026-11-18T11:59:57Z">2026-11-18 11:59:57</time>' in page.text
    assert '<time datetime="2026-11-18T12:00:05Z">2026-11-18 12:00:05</time>' in page.text


def test_percentiles_are_by_nearest_rank(tmp_path: Path) -> None:
    notes = [
        make_note(n, latency=n / 100, elapsed=n / 10, first_token=n / 1000 if n <= 50 else None) for n in range(1, 101)
    ]
    page = report(tmp_path, reversed(notes))
    assert page.tables["Latency of answers"][1:] == [
        ["the request", "500 ms", "900 ms", "990 ms", "1 s"],
        ["the row, with waits and retries", "5 s", "9 s", "9.9 s", "10 s"],
    ]
    assert page.tables["Time to first token"][1:] == [["the first token", "25 ms", "45 ms", "50 ms", "50 ms"]]
    (label,) = [label for label in page.pictures if "of the latency" in label]
    assert label == "Histogram of the latency: 50% within 500 ms, 90% within 900 ms, 99% within 990 ms, all in 1 s."
    assert {"p50  500 ms", "p90  900 ms", "p99  990 ms", "answers", "latency, logarithmic scale"} <= set(
        page.pictures[label]
    )
    assert "of what was streamed: 50 answers." in page.sections["Time to first token"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.00042, "0.42 ms"),
        (0.9994, "999 ms"),
        (0.9996, "1 s"),
        (59.9, "59.9 s"),
        (59.96, "1 min 0 s"),
        (3599.6, "1 h 0 min"),
        (7380.0, "2 h 3 min"),
        (90000.0, "1 d 1 h"),
    ],
)
def test_times_have_the_units_that_suit_them(tmp_path: Path, seconds: float, text: str) -> None:
    page = report(tmp_path, [make_note(latency=seconds)])
    assert page.cards["Median latency"][0] == text


def test_costs_are_by_model_and_provider(tmp_path: Path) -> None:
    notes = [make_note(n, provider=("piapi", "backup")[n % 2], cost="2", cost_estimated=n == 1) for n in range(5)]
    notes += [make_note(7, model="own", cost=None), make_failure(8)]
    page = report(tmp_path, notes)
    assert page.tables["Cost by model and provider"] == [
        ["Model", "Provider", "Answers", "Tokens in", "Tokens out", "US dollars", "estimated"],
        ["gpt-4o", "piapi", "3", "30", "60", "$6.0000", "$0.0000"],
        ["gpt-4o", "backup", "2", "20", "40", "$4.0000", "$2.0000"],
        ["own", "piapi", "1", "10", "20", "–", "–"],
    ]
    (label,) = [label for label in page.pictures if "Cost" in label]
    assert label.endswith("gpt-4o · piapi $6.0000; gpt-4o · backup $4.0000; own · piapi no known price.")
    assert {"gpt-4o · piapi", "$6.0000", "no known price", "US dollars"} <= set(page.pictures[label])
    assert page.text.count("by estimated tokens") == 1


def test_failures_are_by_kind_and_provider(tmp_path: Path) -> None:
    notes = [make_note(n) for n in range(4)] + [make_failure(n) for n in range(4, 7)]
    page = report(tmp_path, [*notes, make_failure(8, kind="invalid request", provider="", attempts=0)])
    assert page.tables["Failures by kind"] == [
        ["Kind", "Provider", "Rows", "of all rows"],
        ["status 503", "piapi", "3", "37.5%"],
        ["invalid request", "–", "1", "12.5%"],
    ]
    assert any(label == "Failures by kind: status 503 · piapi 3; invalid request 1." for label in page.pictures)


def test_attempts_are_counted(tmp_path: Path) -> None:
    notes = [
        make_note(0),
        make_note(1),
        make_note(2, attempts=2),
        make_failure(3, attempts=2),
        make_failure(4, attempts=0),
    ]
    page = report(tmp_path, [*notes, make_note(5, attempts=9), make_note(6, attempts=40)])
    assert page.tables["Requests for a row"] == [
        ["Sent", "Rows", "Answered", "Failed"],
        ["no request", "1", "0", "1"],
        ["1 request", "2", "2", "0"],
        ["2 requests", "2", "1", "1"],
        ["9 requests or more", "2", "2", "0"],
    ]


def test_pauses_between_runs_are_no_work(tmp_path: Path) -> None:
    """A night, nine hours of nothing, and another hour: rates are those of the work."""
    notes = [make_note(0, finished=NOON + second, elapsed=10.0) for second in range(0, 3600, 30)]
    late = [make_note(0, finished=NOON + 36000 + second, elapsed=10.0) for second in range(0, 3600, 30)]
    page = report(tmp_path, [*notes, *late, notes[0]])  # the last one is out of order
    assert page.cards["Time at work"] == ("1 h 59 min", "and 9 h 0 min of pauses")
    average = ["on average, while at work", "2.02", "0"]
    assert page.tables["Throughput"][:2] == [["Rows a minute", "Answered", "Failed"], average]
    parts = page.tables["Throughput over time"][1:]
    assert len(parts) == 60
    assert sum(int(answered) for _, answered, _ in parts) == 241
    assert parts[0][0] == "2026-11-18 11:59:50"


@pytest.mark.parametrize(
    ("span", "unit", "pattern"),
    [
        (0.0, "a second", r"\d\d:\d\d:\d\d\.\d"),
        (20.0, "a second", r"\d\d:\d\d:\d\d"),
        (3000.0, "a minute", r"\d\d:\d\d"),
        (100_000.0, "an hour", r"\d\d:\d\d|\d\d-\d\d"),
        (4e6, "a day", r"\d{4}-\d\d-\d\d"),
        (1e8, "a day", r"\d{4}-\d\d-\d\d"),
    ],
)
def test_the_time_has_a_scale_that_suits_it(tmp_path: Path, span: float, unit: str, pattern: str) -> None:
    notes = [make_note(n, elapsed=0.0, finished=NOON + span * n / 40, tokens_out=0) for n in range(41)]
    page = report(tmp_path, notes)
    (texts,) = [texts for label, texts in page.pictures.items() if "Throughput" in label]
    times = [text for text in texts if re.fullmatch(pattern, text)]
    assert 2 <= len(times) <= 6
    assert all(time != later for time, later in pairwise(times))
    assert {"time, UTC", f"answers {unit}"} <= set(texts)
    assert f"failures {unit}" not in texts


@pytest.mark.parametrize(
    ("latencies", "ticks"),
    [
        ((2.0,), {"1.5 s", "2 s"}),
        ((0.0, 0.0), {"0.06 ms", "0.1 ms"}),
        ((1.0, 1.5, 2.0), {"1.2 s", "2 s"}),
        ((0.1, 5.0), {"100 ms", "1 s", "5 s"}),
        ((0.01, 10000.0), {"10 ms", "10,000 s"}),
        ((0.0, 1e11), {"0.1 ms", "100,000 s"}),
    ],
)
def test_a_distribution_has_a_scale_that_suits_it(
    tmp_path: Path, latencies: tuple[float, ...], ticks: set[str]
) -> None:
    page = report(tmp_path, [make_note(n, latency=latency) for n, latency in enumerate(latencies)])
    (texts,) = [texts for label, texts in page.pictures.items() if "of the latency" in label]
    scale = [text for text in texts if re.fullmatch(r"[\d.,]+ m?s", text)]
    assert ticks <= set(scale)
    assert len(scale) <= 7


def test_shares_never_lie_by_rounding(tmp_path: Path) -> None:
    page = report(tmp_path, (make_failure(n) if n == 5 else make_note(n) for n in range(4000)))
    assert page.cards["Answered"] == ("3,999", ">99.9%")
    assert page.cards["Failed"] == ("1", "<0.1%")


@pytest.mark.parametrize(("cost", "ticks"), [("4000", "4,000"), ("40000", "40k"), ("4e6", "4M"), ("5e10", "50G")])
def test_large_numbers_are_short_in_pictures(tmp_path: Path, cost: str, ticks: str) -> None:
    page = report(tmp_path, [make_note(cost=cost)])
    (texts,) = [texts for label, texts in page.pictures.items() if "Cost" in label]
    assert ticks in texts


# -- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no line of ours\n"])
def test_no_results_are_no_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "empty.jsonl").write_bytes(content)
    write_report(tmp_path / "empty.jsonl", tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "empty.jsonl" in page.text
    assert "holds no results: there is nothing to show." in page.text
    assert "svg" not in page.tags


def test_where_nothing_was_streamed_there_is_a_sentence(tmp_path: Path) -> None:
    page = report(tmp_path, [make_note(0), make_failure(1)])
    assert page.sections["Time to first token"] == "No answer was streamed, so none tells when its first token came."
    assert len(page.pictures) == PICTURES - 1


def test_where_nothing_failed_there_is_a_sentence(tmp_path: Path) -> None:
    page = report(tmp_path, [make_note(0)])
    assert page.sections["Failures by kind"] == "No row failed."


def test_where_nothing_was_answered_there_are_sentences(tmp_path: Path) -> None:
    page = report(tmp_path, [make_failure(0), make_failure(1)])
    assert page.sections["Latency"] == "No row was answered, so there is no latency to show."
    assert page.sections["Cost by model and provider"] == "No row was answered, so there is no cost to show."
    assert page.cards["Median latency"][0] == "–"
    assert page.cards["Cost"] == ("$0.00", "")
    assert page.cards["Unknown bills"] == ("$0.00", "")


def test_where_no_price_is_known_the_axis_stays(tmp_path: Path) -> None:
    page = report(tmp_path, [make_note(0, cost=None)])
    assert any(label.endswith("gpt-4o · piapi no known price.") for label in page.pictures)


# -- safety ----------------------------------------------------------------------------------------------------------


def test_names_from_outside_stay_text(tmp_path: Path) -> None:
    page = report(tmp_path, many_notes())
    assert not {"script", "img"} & set(page.tags)
    models = {row[0] for row in page.tables["Cost by model and provider"]}
    kinds = {row[0] for row in page.tables["Failures by kind"]}
    drawn = {text for texts in page.pictures.values() for text in texts}
    for name in HOSTILE[:-1]:  # html.parser has its own view of a NUL
        assert name in models
        assert name in kinds
        assert f"{name} · piapi" in drawn


def test_the_name_of_the_file_stays_text(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/<b>\xff.jsonl"))
    write_report(write_results(path, [make_note()]), tmp_path / "report.html")
    page = Page(tmp_path / "report.html")
    assert "<title>Batch report: &lt;b&gt;?.jsonl</title>" in page.text
    assert "b" not in page.tags


def test_the_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    page = report(tmp_path, many_notes())
    assert not re.search(r"https?:|@import|url\(", page.text)
    assert not {name for name in page.attributes if name.startswith("on")}
    assert not {"action", "data", "href", "id", "src", "srcset", "xlink:href", "xmlns"} & page.attributes
    assert not {"base", "embed", "iframe", "link", "object", "script"} & set(page.tags)
    assert "default-src 'none'; style-src 'unsafe-inline'" in page.text
    assert len(page.pictures) == PICTURES
    assert all(label.endswith(".") and texts for label, texts in page.pictures.items())
    assert len(page.tables) == PICTURES + 1


def test_a_million_kinds_make_no_endless_page(tmp_path: Path) -> None:
    notes = [make_failure(n, kind=f"{n} {'x' * 500}") for n in range(1500)] + [make_note(0)]
    page = report(tmp_path, notes)
    rows = page.tables["Failures by kind"][1:]
    assert len(rows) == 13
    assert rows[-1] == ["others", "–", "1,488", "99.1%"]
    assert all(len(row[0]) <= 80 for row in rows)
    assert len(page.text) < 100_000


def test_the_page_is_the_same_every_time(tmp_path: Path) -> None:
    first = report(tmp_path, many_notes()).text
    with matplotlib.rc_context({"svg.fonttype": "path", "axes.grid": True, "font.size": 30, "lines.linewidth": 9}):
        assert report(tmp_path, many_notes()).text == first
        assert matplotlib.rcParams["font.size"] == 30


def test_the_page_is_for_its_owner_alone(tmp_path: Path, results: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text("what was there before")
    page.chmod(0o644)
    write_report(results, page)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert sorted(tmp_path.iterdir()) == [page, results]


def test_memory_is_bounded(tmp_path: Path) -> None:
    """The 10⁵ rows beyond the first thousand take less than 30 MiB: so do a million with 200 MiB in all."""
    code = (
        "import sys\n"
        "from piapi_async.report import write_report\n"
        "for path in sys.argv[1:]:\n"
        "    write_report(path, f'{path}.html')\n"
        "    print(*[line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')])\n"
    )
    small = write_results(tmp_path / "small", many_notes(1_000))
    large = write_results(tmp_path / "large", many_notes(101_000))
    command = [sys.executable, "-c", code, str(small), str(large)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = (int(kib) for kib in run.stdout.split())
    assert after - before < 30 * 1024
    assert Page(tmp_path / "large.html").cards["Rows"] == ("101,000", "")


def test_the_plotting_library_waits_until_it_is_needed() -> None:
    code = "import sys, piapi_async.report; print({'matplotlib', 'numpy'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# -- errors ----------------------------------------------------------------------------------------------------------


def test_without_the_extra_it_says_what_to_install(
    tmp_path: Path, results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'piapi-async\[report\]'"):
        check_report(tmp_path / "report.html")
    with pytest.raises(ConfigurationError):
        write_report(results, tmp_path / "report.html")


def test_a_place_where_no_page_can_be_is_refused_ahead(tmp_path: Path, results: Path) -> None:
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


def test_results_of_a_newer_release(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(make_line("a", None, None, make_note(latency="soon")))
    with pytest.raises(BatchError, match="a newer release wrote it; upgrade to read it"):
        write_report(path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"cost": "much"},
        {"cost": "NaN"},
        {"cost": "-1"},
        {"cost": "1e999999"},
        {"unknown": "Infinity"},
        {"latency": -1.0},
        {"first_token": 1e300},
        {"finished": 1e12},
        {"tokens_in": -1},
        {"tokens_out": 10**15},
        {"attempts": -1},
    ],
)
def test_numbers_that_make_no_sense(tmp_path: Path, changes: dict[str, object]) -> None:
    with pytest.raises(BatchError, match="a number in it makes no sense"):
        report(tmp_path, [make_note(**changes)])  # type: ignore[arg-type]  # they are fields, not the number
    assert not (tmp_path / "report.html").exists()


def test_a_time_before_all_times_is_none(tmp_path: Path) -> None:
    page = report(tmp_path, [make_note(elapsed=2e11, finished=5.0)])
    assert "1970-01-01 00:00:00" in page.text


# -- in a browser ----------------------------------------------------------------------------------------------------

BROWSER = shutil.which("chromium")

in_a_browser = pytest.mark.skipif(
    BROWSER is None, reason="Debian's chromium is not installed: apt-get install chromium"
)


def browse(folder: Path, page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in a browser that talks to nobody."""
    quiet = "no-first-run", "disable-background-networking", "disable-component-update", "disable-sync", "disable-quic"
    shown = (
        "headless",
        "no-sandbox",
        "disable-gpu",
        "hide-scrollbars",
        "disable-dev-shm-usage",
        "enable-logging=stderr",
        "run-all-compositor-stages-before-draw",
    )
    switches = [f"--{switch}" for switch in (*quiet, *shown, "virtual-time-budget=10000")]
    command = [str(BROWSER), *switches, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)


MEASURE = """<!DOCTYPE html><meta charset="utf-8"><body>
<iframe srcdoc="{}" style="width: {}px; height: 3000px"></iframe>
<script>
onload = () => {{
  const page = document.querySelector("iframe").contentDocument, found = {{ overlaps: [], outside: [], sizes: [] }};
  for (const svg of page.querySelectorAll("svg[role=img]")) {{
    const texts = [...svg.querySelectorAll("text")].map(text => [text.textContent, text.getBoundingClientRect()]);
    const frame = svg.closest("section").getBoundingClientRect();
    texts.forEach(([text, box], number) => {{
      found.sizes.push(box.height);
      if (box.left < frame.left || box.right > frame.right || box.top < frame.top || box.bottom > frame.bottom)
        found.outside.push(text);
      for (const [other, place] of texts.slice(number + 1))
        if (Math.min(box.right, place.right) - Math.max(box.left, place.left) > 1
            && Math.min(box.bottom, place.bottom) - Math.max(box.top, place.top) > 3)
          found.overlaps.push([text, other]);
    }});
  }}
  found.width = page.documentElement.scrollWidth;
  found.visible = page.documentElement.clientWidth;
  const result = document.createElement("pre");
  result.textContent = JSON.stringify(found);
  document.body.replaceChildren(result);
}}
</script>"""
"""A page that has another one in it, some pixels wide, and becomes what it measured there.

Boxes of letters are taller than what is seen of them, so they may touch.
"""


@in_a_browser
def test_a_browser_shows_every_picture_and_complains_of_nothing(tmp_path: Path) -> None:
    report(tmp_path, many_notes())
    run = browse(tmp_path, tmp_path / "report.html", "--dump-dom")
    assert "CONSOLE" not in run.stderr
    (tmp_path / "dom.html").write_text(run.stdout)
    assert len(re.findall(r'<svg viewBox="[\d. ]+" role="img"', run.stdout)) == PICTURES
    assert not re.search("<(script|img)", run.stdout)


@in_a_browser
def test_a_browser_would_complain_of_what_is_loaded(tmp_path: Path) -> None:
    """The test above can fail: the page's own policy refuses a picture from elsewhere, and the browser says so."""
    page = tmp_path / "report.html"
    page.write_text(report(tmp_path, [make_note()]).text.replace("<main>", '<img src="other.png"><main>'))
    assert "CONSOLE" in browse(tmp_path, page, "--dump-dom").stderr


def rgb(colour: str) -> tuple[int, int, int]:
    red, green, blue = bytes.fromhex(colour)
    return red, green, blue


@in_a_browser
@pytest.mark.parametrize(
    ("options", "colours"),
    [((), ("f4f5f7", "2563c9", "c8372d")), (("--force-dark-mode",), ("0e1116", "5b9bff", "ff7a6e"))],
    ids=["light", "dark"],
)
def test_a_screenshot_has_the_colours(tmp_path: Path, options: tuple[str, ...], colours: tuple[str, ...]) -> None:
    report(tmp_path, many_notes())
    picture = tmp_path / "page.png"
    browse(tmp_path, tmp_path / "report.html", f"--screenshot={picture}", "--window-size=1200,2600", *options)
    with Image.open(picture) as image:
        assert image.size == (1200, 2600)
        found = image.convert("RGB").tobytes()
    counts = Counter(zip(found[::3], found[1::3], found[2::3], strict=True))
    assert all(counts[colour] > 500 for colour in map(rgb, colours))


@in_a_browser
@pytest.mark.parametrize("width", [390, 1200])
@pytest.mark.parametrize("kind", ["many", "narrow", "long", "one"])
def test_nothing_overlaps_or_overflows(tmp_path: Path, width: int, kind: str) -> None:
    notes = {
        "many": many_notes(),
        "narrow": (make_note(n, latency=2 + n / 1e6, first_token=0.1 if n < 90 else 10.0) for n in range(99)),
        "long": (make_note(n, latency=1e-3 * 1.2**n, cost=str(1e9 * n), finished=NOON + 86400 * n) for n in range(99)),
        "one": [make_note(model="model-" * 80, first_token=0.0)],
    }[kind]
    page = tmp_path / "measure.html"
    page.write_text(MEASURE.format(escape(report(tmp_path, notes).text), width))
    dom = browse(tmp_path, page, "--dump-dom", "--window-size=1400,1000").stdout
    found = json.loads(re.sub("&lt;|&gt;|&amp;", "", dom.partition("<pre>")[2].partition("</pre>")[0]))
    assert found["width"] <= found["visible"] <= width
    assert len(found["sizes"]) > 20
    assert min(found["sizes"]) > 8
    assert found["overlaps"] == []
    assert found["outside"] == []
