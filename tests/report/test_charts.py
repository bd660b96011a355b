"""What is drawn, and how it is described to those who can't see it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import pairwise

import matplotlib
import pytest

from piapi_async.report.chart_data import Histogram, RateUnit, Throughput
from piapi_async.report.charts import Bar, draw_bars, draw_histogram, draw_throughput
from piapi_async.report.svg import BAD, FONT_SIZE, INK, LIGHT, MAIN, MUTED, RULE, WIDTH, matplotlib_settings
from tests.report.pages import HOSTILE, NOON, Page, bars_in


@pytest.fixture(autouse=True)
def settings() -> Iterator[None]:
    with matplotlib_settings():
        yield


def read_chart(svg: str) -> tuple[str, list[str]]:
    """The description of a chart, and the texts in it."""
    return Page(svg).chart("")


def throughput(answered: list[int], failed: list[int]) -> Throughput:
    edges = [NOON + 60 * number for number in range(len(answered) + 1)]
    return Throughput(edges, 60.0, answered, failed, RateUnit(60.0, "a minute"))


def test_a_histogram_has_its_percentiles() -> None:
    histogram = Histogram.from_values(number / 100 for number in range(1, 101))
    description, texts = read_chart(draw_histogram(histogram, "latency", "answers"))
    assert (
        description == "Histogram of the latency: 50% within 500 ms, 90% within 900 ms, 99% within 990 ms, all in 1 s."
    )
    assert {"p50  500 ms", "p90  900 ms", "p99  990 ms", "answers", "latency, logarithmic scale"} <= set(texts)
    assert {"10 ms", "100 ms", "1 s", "0", "20"} <= set(texts)


def test_no_flag_covers_another() -> None:
    """Where all percentiles are the same, they stand above each other."""
    svg = draw_histogram(Histogram.from_values([2.0]), "latency", "answers")
    heights = [float(y) for y in re.findall(r' y="([\d.]+)">p\d\d  2 s<', svg)]
    assert len(heights) == 3
    assert all(lower - height > FONT_SIZE for height, lower in pairwise(heights))


def test_a_histogram_may_be_linear() -> None:
    _, texts = read_chart(draw_histogram(Histogram.from_values([1.0, 1.5, 2.0]), "latency", "answers"))
    assert "latency" in texts
    assert {"1 s", "1.2 s", "2 s"} <= set(texts)


def test_the_throughput_has_a_panel_for_failures() -> None:
    description, texts = read_chart(draw_throughput(throughput([30, 10], [0, 2])))
    assert description == "Throughput over time: at most 30 answers and 2 failures a minute."
    assert {"answers a minute", "failures a minute", "time, UTC", "12:00:00", "12:02:00"} <= set(texts)


@pytest.mark.parametrize(("answered", "description"), [(30, "at most 30 answers"), (0, "at most 0 answers")])
def test_where_nothing_failed_the_throughput_has_one_panel(answered: int, description: str) -> None:
    found, texts = read_chart(draw_throughput(throughput([answered, 0], [0, 0])))
    assert description in found
    assert "answers a minute" in texts
    assert "failures a minute" not in texts


def test_bars_have_names_and_amounts() -> None:
    bars = [Bar("gpt-4o", "$3.00", ((2.5, MAIN), (0.5, LIGHT))), Bar("own", "no known price", ((0.0, MAIN),))]
    svg = draw_bars(bars, "US dollars", "Cost", is_whole=False)
    description, texts = read_chart(svg)
    assert description == "Cost: gpt-4o $3.00; own no known price."
    assert {"gpt-4o", "$3.00", "own", "no known price", "US dollars", "0", "1", "2", "3"} <= set(texts)
    assert svg.count("var(--light)") == 1


def test_the_parts_of_a_bar_stand_side_by_side() -> None:
    svg = draw_bars([Bar("gpt-4o", "4", ((1, MAIN), (3, LIGHT)))], "rows", "Title")
    assert bars_in(svg) == {"main": [(0.0, WIDTH / 4)], "light": [(WIDTH / 4, WIDTH)]}


def test_bars_of_rows_have_whole_ticks() -> None:
    _, texts = read_chart(draw_bars([Bar("once", "2", ((2, MAIN),))], "rows", "Attempts"))
    assert {"0", "1", "2"} <= set(texts)
    assert "0.5" not in texts


@pytest.mark.parametrize("amount", [0.0, 1e-12])
def test_bars_of_nothing_have_an_axis(amount: float) -> None:
    _, texts = read_chart(draw_bars([Bar("free", "$0.00", ((amount, MAIN),))], "US dollars", "Cost", is_whole=False))
    assert {"0", "0.2", "1", "free"} <= set(texts)


@pytest.mark.parametrize(("dollars", "tick"), [(4e3, "4,000"), (4e4, "40k"), (4e6, "4M"), (5e10, "50G")])
def test_the_ticks_of_large_amounts_are_short(dollars: float, tick: str) -> None:
    _, texts = read_chart(draw_bars([Bar("gpt-4o", "much", ((dollars, MAIN),))], "US dollars", "Cost"))
    assert tick in texts


def test_names_from_outside_are_drawn_as_they_are() -> None:
    names = HOSTILE[:-1]  # html.parser has its own view of a NUL
    page = Page(draw_bars([Bar(name, "1", ((1, BAD),)) for name in names], "rows", "Failures"))
    ((description, texts),) = page.charts.items()
    assert set(names) <= set(texts)
    assert all(f"{name} 1" in description for name in names)
    assert not {"script", "img"} & set(page.tags)


def test_a_long_name_leaves_room_for_its_amount() -> None:
    description, texts = read_chart(draw_bars([Bar("model-" * 20, "1", ((1, MAIN),))], "rows", "Cost"))
    assert "model-" * 7 not in " ".join(texts)
    assert "model-" * 6 + "model…" in texts
    assert "model-" * 20 in description


def test_a_chart_leaves_font_and_colours_to_the_page() -> None:
    svg = draw_throughput(throughput([30, 10], [0, 2])) + draw_bars([Bar("name", "1", ((1, LIGHT),))], "rows", "Title")
    assert not [colour for colour in (INK, MUTED, RULE, MAIN, LIGHT, BAD) if colour in svg]
    assert all(f"var(--{name})" in svg for name in ("ink", "muted", "rule", "main", "light", "bad"))
    assert "font-family" not in svg
    assert " id=" not in svg


def test_the_user_s_own_settings_neither_matter_nor_change() -> None:
    bars = [Bar("name", "1", ((1, MAIN),))]
    usual = draw_bars(bars, "rows", "Title")
    with matplotlib.rc_context({"svg.fonttype": "path", "axes.grid": True, "font.size": 30, "lines.linewidth": 9}):
        with matplotlib_settings():
            assert draw_bars(bars, "rows", "Title") == usual
        assert matplotlib.rcParams["font.size"] == 30
