"""What a page says, and that it is safe to open."""

from __future__ import annotations

import re
from pathlib import Path

import matplotlib
import pytest

from piapi_async.report import write_report
from piapi_async.report.svg import WIDTH
from tests.report.pages import CHARTS, HOSTILE, NOON, Page, bars_in, make_failure, make_note, report

# -- numbers ---------------------------------------------------------------------------------------------------------


def test_the_figures_at_the_top(tmp_path: Path) -> None:
    notes = [make_note(number, cost="0.1", cost_estimated=number < 3) for number in range(8)]
    notes += [
        make_note(8, cost=None, tokens_in=None, tokens_out=None, unknown="0.05"),
        make_failure(9, unknown="0.025"),
    ]
    assert report(tmp_path, notes).cards == {
        "Rows": ("10", ""),
        "Answered": ("9", "90.0%"),
        "Failed": ("1", "10.0%"),
        "Tokens in": ("80", "not counted for 1 answer"),
        "Tokens out": ("160", "not counted for 1 answer"),
        "Cost": ("$0.8000", "of it $0.3000 estimated; 1 answer without a known price"),
        "Unknown bills": ("$0.0500", "at most, beside the cost"),
        "Time at work": ("12 s", "without a pause"),  # from 3 s before noon to 9 s after it
        "Tokens a second": ("13.3", "out, while at work"),
        "Median latency": ("2 s", "of the answers"),
    }


def test_the_head_says_what_and_when(tmp_path: Path) -> None:
    page = report(tmp_path, [make_note(0), make_note(5)])
    assert page.text.startswith("<!DOCTYPE html>\n")
    assert page.text.endswith("</html>\n")
    assert "<title>Batch report: results.jsonl</title>" in page.text
    assert '<time datetime="2026-11-18T11:59:57Z">2026-11-18 11:59:57</time>' in page.text
    assert '<time datetime="2026-11-18T12:00:05Z">2026-11-18 12:00:05</time>' in page.text


def test_latency_and_time_to_first_token(tmp_path: Path) -> None:
    notes = [
        make_note(n, latency=n / 100, elapsed=n / 10, first_token=n / 1000 if n <= 50 else None) for n in range(1, 101)
    ]
    page = report(tmp_path, reversed(notes))
    assert page.tables["Latency of answers"] == [
        ["Time of", "p50", "p90", "p99", "longest"],
        ["the request", "500 ms", "900 ms", "990 ms", "1 s"],
        ["the row, with waits and retries", "5 s", "9 s", "9.9 s", "10 s"],
    ]
    assert page.tables["Time to first token"][1:] == [["the first token", "25 ms", "45 ms", "50 ms", "50 ms"]]
    assert "of what was streamed: 50 answers." in page.sections["Time to first token"]
    assert "50% within 500 ms" in page.chart("of the latency")[0]
    assert "50% within 25 ms" in page.chart("of the time to first token")[0]


def test_costs_are_by_model_and_provider(tmp_path: Path) -> None:
    notes = [make_note(n, provider=("piapi", "backup")[n % 2], cost="2", cost_estimated=n == 1) for n in range(5)]
    notes += [make_note(7, model="own", cost=None), make_failure(8)]
    page = report(tmp_path, notes)
    assert page.tables["Cost by model and provider"] == [
        ["Model", "Provider", "Answers", "Tokens in", "Tokens out", "US dollars", "estimated"],
        ["gpt-4o", "piapi", "3", "30", "60", "$6.0000", "$0"],
        ["gpt-4o", "backup", "2", "20", "40", "$4.0000", "$2.0000"],
        ["own", "piapi", "1", "10", "20", "–", "–"],
    ]
    description, texts = page.chart("Cost")
    assert description.endswith("gpt-4o · piapi $6.0000; gpt-4o · backup $4.0000; own · piapi no known price.")
    assert {"gpt-4o · piapi", "$6.0000", "no known price", "US dollars"} <= set(texts)
    assert page.text.count("by estimated tokens") == 1
    assert bars_in(page.text)["light"] == [(WIDTH * 2 / 6, WIDTH * 4 / 6)]


def test_failures_are_by_kind_and_provider(tmp_path: Path) -> None:
    notes = [make_note(n) for n in range(4)] + [make_failure(n) for n in range(4, 7)]
    page = report(tmp_path, [*notes, make_failure(8, kind="invalid request", provider="", attempts=0)])
    assert page.tables["Failures by kind"] == [
        ["Kind", "Provider", "Rows", "of all rows"],
        ["status 503", "piapi", "3", "37.5%"],
        ["invalid request", "–", "1", "12.5%"],
    ]
    assert page.chart("Failures")[0] == "Failures by kind: status 503 · piapi 3; invalid request 1."


def test_attempts_are_counted(tmp_path: Path) -> None:
    answers = [make_note(n, attempts=attempts) for n, attempts in enumerate((1, 1, 2, 9, 40))]
    page = report(tmp_path, [*answers, make_failure(5, attempts=2), make_failure(6, attempts=0)])
    assert page.tables["Requests for a row"] == [
        ["Sent", "Rows", "Answered", "Failed"],
        ["no request", "1", "0", "1"],
        ["1 request", "2", "2", "0"],
        ["2 requests", "2", "1", "1"],
        ["9 requests or more", "2", "2", "0"],
    ]


def test_rates_are_those_of_the_work(tmp_path: Path) -> None:
    """An hour of work, nine hours of nothing, and another hour of work."""
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
    _, texts = page.chart("Throughput")
    assert {"answers a minute", "time, UTC", "12:00", "15:00"} <= set(texts)
    assert "failures a minute" not in texts


# -- what is missing -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"no line of ours\n"])
def test_no_results_are_no_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "empty.jsonl").write_bytes(content)
    write_report(tmp_path / "empty.jsonl", tmp_path / "report.html")
    page = Page((tmp_path / "report.html").read_text())
    assert "<bdi>empty.jsonl</bdi> holds no results: there is nothing to show." in page.text
    assert "svg" not in page.tags


def test_where_all_was_answered_at_once_there_are_sentences(tmp_path: Path) -> None:
    page = report(tmp_path, [make_note(0, cost=None)])
    assert page.sections["Time to first token"] == "No answer was streamed, so none tells when its first token came."
    assert page.sections["Failures by kind"] == "No row failed."
    assert len(page.charts) == CHARTS - 2
    assert page.chart("Cost")[0].endswith("gpt-4o · piapi no known price.")
    assert "by estimated tokens" not in page.text
    assert page.cards["Cost"] == ("$0", "1 answer without a known price")


def test_where_nothing_was_answered_there_are_sentences(tmp_path: Path) -> None:
    page = report(tmp_path, [make_failure(0), make_failure(1)])
    assert page.sections["Latency"] == "No row was answered, so there is no latency to show."
    assert page.sections["Cost by model and provider"] == "No row was answered, so there is no cost to show."
    assert len(page.charts) == CHARTS - 3
    assert page.cards["Median latency"][0] == "–"
    assert page.cards["Cost"] == ("$0", "")
    assert page.cards["Unknown bills"] == ("$0", "")


# -- safety ----------------------------------------------------------------------------------------------------------


def test_names_from_outside_stay_text(many: Page) -> None:
    assert not {"script", "img"} & set(many.tags)
    models = {row[0] for row in many.tables["Cost by model and provider"]}
    kinds = {row[0] for row in many.tables["Failures by kind"]}
    drawn = {text for texts in many.charts.values() for text in texts}
    for name in HOSTILE[:-1]:  # html.parser has its own view of a NUL
        assert name in models
        assert name in kinds
        assert f"{name} · piapi" in drawn


def test_the_page_needs_nothing_from_elsewhere(many: Page) -> None:
    assert not re.search(r"https?:|@import|url\(", many.text)
    assert not {name for name in many.attributes if name.startswith("on")}
    assert not {"action", "data", "href", "id", "src", "srcset", "xlink:href", "xmlns"} & many.attributes
    assert not {"base", "embed", "iframe", "link", "object", "script"} & set(many.tags)
    assert "default-src 'none'; style-src 'unsafe-inline'" in many.text


def test_every_chart_has_a_description_and_a_table(many: Page) -> None:
    assert len(many.charts) == CHARTS
    assert all(description.endswith(".") and texts for description, texts in many.charts.items())
    assert len(many.tables) == CHARTS + 1  # and one for each period of the throughput


def test_a_million_kinds_make_no_endless_page(tmp_path: Path) -> None:
    notes = [make_failure(n, kind=f"{n} {'x' * 500}") for n in range(1500)] + [make_note(0)]
    page = report(tmp_path, notes)
    rows = page.tables["Failures by kind"][1:]
    assert len(rows) == 13
    assert rows[-1] == ["others", "–", "1,488", "99.1%"]
    assert all(len(row[0]) <= 80 for row in rows)
    assert len(page.text) < 100_000


def test_the_page_is_the_same_every_time(tmp_path: Path) -> None:
    notes = [make_note(0), make_failure(1)]
    first = report(tmp_path, notes).text
    with matplotlib.rc_context({"svg.fonttype": "path", "axes.grid": True, "font.size": 30, "lines.linewidth": 9}):
        assert report(tmp_path, notes).text == first
        assert matplotlib.rcParams["font.size"] == 30
