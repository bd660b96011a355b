"""Files of results to make reports of, and a parser of the pages that come out."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path

from piapi_async.batch.records import Note, key_of, make_line
from piapi_async.report import write_report

NOON = 1_795_003_200.0
"""2026-11-18 12:00:00 UTC."""

HOSTILE = "<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', r"$\frac{", "@0@", "&amp;", "名\u202e\x00"

CHARTS = 6
"""Charts of a page where nothing is missing."""


def make_note(number: int = 0, **changes: object) -> Note:
    key = key_of(f"row-{number}")
    usual = {"provider": "piapi", "model": "gpt-4o", "cost": "0.5", "tokens_in": 10, "tokens_out": 20, "attempts": 1}
    times = {"latency": 2.0, "elapsed": 3.0, "finished": NOON + number}
    return Note(key=key, request=key, **{**usual, **times, **changes})  # type: ignore[arg-type]  # each is its field's


def make_failure(number: int = 0, **changes: object) -> Note:
    lacks = {"failed": True, "kind": "status 503", "cost": None, "tokens_in": None, "tokens_out": None}
    return make_note(number, **{**lacks, **changes})


def many_notes(count: int = 400) -> Iterator[Note]:
    """Two runs with a pause between them: several models and providers, failures of many kinds, and hostile names."""
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


def write_results(path: Path, notes: Iterable[Note]) -> Path:
    with path.open("wb") as file:
        for note in notes:
            file.write(make_line(note.key, None, None, note))
    return path


class Page(HTMLParser):
    """What a reader finds on a page, or on a part of one.

    Attributes:
        text: Its HTML.
        tags: Names of all elements.
        attributes: Names of all their attributes.
        cards: The figures at the top, each with its small print, by name.
        tables: Rows of cells, by caption.
        charts: The texts in each chart, by its description.
        sections: The text of each section outside of tables and charts, by title.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.cards: dict[str, tuple[str, str]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.charts: dict[str, list[str]] = {}
        self.sections: dict[str, str] = {}
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def chart(self, words: str) -> tuple[str, list[str]]:
        """The one chart whose description holds some words: its description, and the texts in it."""
        (found,) = [chart for chart in self.charts.items() if words in chart[0]]
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in ("meta", "path"):
            self._open.append(tag)
        if tag == "svg" and dict(attrs).get("role") == "img":
            self.charts[dict(attrs)["aria-label"] or ""] = []
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
            next(reversed(self.charts.values())).append(data)
        elif inside == "dt":
            self.cards[data] = ("", "")
        elif inside == "dd":
            name, (value, more) = next(reversed(self.cards.items()))
            self.cards[name] = (value, data) if value else (data, more)
        elif inside == "h2":
            self.sections[data] = ""
        elif inside == "p" and "section" in self._open:
            self.sections[next(reversed(self.sections))] += data


BAR = re.compile(r'd="M ([\d.]+) \S+\nL ([\d.]+) [^"]*z\n" style="fill: var\(--(\w+)\)')


def bars_in(html: str) -> dict[str, list[tuple[float, float]]]:
    """From where to where each bar of a bar chart reaches, in points, by colour. Empty bars are left out."""
    bars: dict[str, list[tuple[float, float]]] = {}
    for left, right, colour in BAR.findall(html):
        if left != right:
            bars.setdefault(colour, []).append((float(left), float(right)))
    return bars


def report(folder: Path, notes: Iterable[Note]) -> Page:
    """Write `results.jsonl` and its page, `report.html`, and read the page."""
    page = folder / "report.html"
    write_report(write_results(folder / "results.jsonl", notes), page)
    return Page(page.read_bytes().decode())
