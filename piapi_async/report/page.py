"""What the page says: figures at the top, then six sections, each with a chart and its numbers in a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from piapi_async.report.chart_data import PERCENTILES, Histogram, Throughput
from piapi_async.report.charts import Bar, draw_bars, draw_histogram, draw_throughput
from piapi_async.report.formatting import (
    decimal_places,
    format_count,
    format_dollars,
    format_rate,
    format_seconds,
    format_share,
)
from piapi_async.report.markup import card, colour_key, document, fold, quote, section, table, timestamp
from piapi_async.report.summary import MAX_ATTEMPTS, PAUSE, Names, Summary, Totals
from piapi_async.report.svg import BAD, LIGHT, MAIN, matplotlib_settings

__all__ = ["render_page"]

OTHERS = "others"
PERCENTILES_AND_LONGEST = (*(f"p{part * 100:g}" for part in PERCENTILES), "longest")


def render_page(name: str, summary: Summary) -> str:
    """Return the whole page, HTML.

    Args:
        name: Name of the file of results.
        summary: What is in it.
    """
    title = f"Batch report: {name}"
    if not summary.total.rows:
        return document(title, [_header(f"{quote(name)} holds no results: there is nothing to show.")])
    period = f"{timestamp(summary.work.began)} to {timestamp(summary.work.ended)}"
    with matplotlib_settings():
        sections = [
            _latency_section(summary),
            _first_token_section(summary),
            _throughput_section(summary),
            _attempts_section(summary),
            _cost_section(summary),
            _failures_section(summary),
        ]
    figures = f"<dl>{''.join(_cards(summary))}</dl>"
    return document(title, [_header(f"{quote(name)} · {period} UTC"), figures, "<main>", *sections, "</main>"])


def _header(text: str) -> str:
    return f"<header><h1>Batch report</h1><p>{text}</p></header>"


def _cards(summary: Summary) -> Iterator[str]:
    total, answered, work = summary.total, len(summary.latency), summary.work
    uncounted = f"not counted for {format_count(total.uncounted, 'answer')}" if total.uncounted else ""
    yield card("Rows", f"{total.rows:,}")
    yield card("Answered", f"{answered:,}", format_share(answered, total.rows))
    yield card("Failed", f"{total.failed:,}", format_share(total.failed, total.rows))
    yield card("Tokens in", f"{total.tokens_in:,}", uncounted)
    yield card("Tokens out", f"{total.tokens_out:,}", uncounted)
    yield _cost_card(total)
    yield _unknown_card(summary)
    pauses = f"and {format_seconds(work.paused)} of pauses" if work.paused > PAUSE else "without a pause"
    yield card("Time at work", format_seconds(work.seconds), pauses)
    yield card("Tokens a second", format_rate(total.tokens_out / work.seconds), "out, while at work")
    median = format_seconds(Histogram.from_values(summary.latency).percentiles[0]) if answered else "–"
    yield card("Median latency", median, "of the answers")


def _cost_card(total: Totals) -> str:
    places = decimal_places(total.dollars)
    notes = [f"of it {format_dollars(total.estimated, places)} estimated"] if total.estimated else []
    notes += [f"{format_count(total.unpriced, 'answer')} without a known price"] if total.unpriced else []
    return card("Cost", format_dollars(total.dollars, places), "; ".join(notes))


def _unknown_card(summary: Summary) -> str:
    if not summary.unknown:
        return card("Unknown bills", format_dollars(summary.unknown, 2))
    places = decimal_places(max(summary.total.dollars, summary.unknown))
    return card("Unknown bills", format_dollars(summary.unknown, places), "at most, beside the cost")


def _latency_section(summary: Summary) -> str:
    if not summary.latency:
        return section("Latency", "No row was answered, so there is no latency to show.")
    latency, elapsed = Histogram.from_values(summary.latency), Histogram.from_values(summary.elapsed)
    numbers = table(
        "Latency of answers",
        ("Time of", *PERCENTILES_AND_LONGEST),
        [("the request", *_times(latency)), ("the row, with waits and retries", *_times(elapsed))],
    )
    text = f"How long the request took that brought the answer, for {format_count(latency.count, 'answer')}."
    return section("Latency", text, draw_histogram(latency, "latency", "answers"), numbers)


def _first_token_section(summary: Summary) -> str:
    title = "Time to first token"
    if not summary.first_token:
        return section(title, "No answer was streamed, so none tells when its first token came.")
    histogram = Histogram.from_values(summary.first_token)
    numbers = table(title, ("Time to", *PERCENTILES_AND_LONGEST), [("the first token", *_times(histogram))])
    text = f"How soon an answer began, of what was streamed: {format_count(histogram.count, 'answer')}."
    return section(title, text, draw_histogram(histogram, "time to first token", "answers"), numbers)


def _times(histogram: Histogram) -> list[str]:
    return [format_seconds(value) for value in (*histogram.percentiles, histogram.longest)]


def _throughput_section(summary: Summary) -> str:
    throughput = Throughput.from_summary(summary)
    periods = format_count(len(throughput.answered), "part")
    text = f"When rows ended, in {periods} of {format_seconds(throughput.period)}."
    numbers = _rates_table(summary, throughput) + fold(f"{periods} in numbers", _periods_table(throughput))
    return section("Throughput", text, draw_throughput(throughput), numbers)


def _rates_table(summary: Summary, throughput: Throughput) -> str:
    both = throughput.answered, throughput.failed
    average = [format_rate(sum(counts) / summary.work.seconds * throughput.unit.seconds) for counts in both]
    highest = [format_rate(max(throughput.rates(counts))) for counts in both]
    heads = (f"Rows {throughput.unit.name}", "Answered", "Failed")
    return table("Throughput", heads, [("on average, while at work", *average), ("at most", *highest)])


def _periods_table(throughput: Throughput) -> str:
    begins = (f"{datetime.fromtimestamp(edge, UTC):%Y-%m-%d %H:%M:%S}" for edge in throughput.edges[:-1])
    periods = zip(begins, throughput.answered, throughput.failed, strict=True)
    rows = [(begin, f"{answered:,}", f"{failed:,}") for begin, answered, failed in periods]
    return table("Throughput over time", ("From, UTC", "Answered", "Failed"), rows)


def _attempts_section(summary: Summary) -> str:
    bars: list[Bar] = []
    rows: list[Sequence[str]] = []
    for number, totals in sorted(summary.by_attempts.items()):
        name, answered = _requests(number), totals.rows - totals.failed
        bars.append(Bar(name, f"{totals.rows:,}", ((answered, MAIN), (totals.failed, BAD))))
        rows.append((name, f"{totals.rows:,}", f"{answered:,}", f"{totals.failed:,}"))
    chart = draw_bars(bars, "rows", "Rows by how many requests were sent for them")
    chart += colour_key(("main", "answered"), ("bad", "failed"))
    numbers = table("Requests for a row", ("Sent", "Rows", "Answered", "Failed"), rows)
    return section("Attempts", "How many requests were sent until a row was answered or given up.", chart, numbers)


def _requests(number: int) -> str:
    names = {0: "no request", 1: "1 request", MAX_ATTEMPTS: f"{MAX_ATTEMPTS} requests or more"}
    return names.get(number, f"{number} requests")


def _cost_section(summary: Summary) -> str:
    title = "Cost by model and provider"
    if not summary.latency:
        return section(title, "No row was answered, so there is no cost to show.", is_wide=True)
    top = summary.answers.top(lambda totals: totals.dollars)
    places = decimal_places(summary.total.dollars)
    chart = draw_bars([_cost_bar(names, totals, places) for names, totals in top], "US dollars", title, is_whole=False)
    if summary.total.estimated:
        chart += colour_key(("main", "by counted tokens"), ("light", "by estimated tokens"))
    heads = ("Model", "Provider", "Answers", "Tokens in", "Tokens out", "US dollars", "estimated")
    numbers = table(title, heads, [_cost_row(names, totals, places) for names, totals in top], names=2)
    text = "What the answers cost, by the model that was asked for and the provider that answered."
    return section(title, text, chart, numbers, is_wide=True)


def _has_price(totals: Totals) -> bool:
    return totals.unpriced < totals.rows


def _cost_bar(names: Names, totals: Totals, places: int) -> Bar:
    text = format_dollars(totals.dollars, places) if _has_price(totals) else "no known price"
    parts = (float(totals.dollars - totals.estimated), MAIN), (float(totals.estimated), LIGHT)
    return Bar(_joined(names), text, parts)


def _cost_row(names: Names, totals: Totals, places: int) -> Sequence[str]:
    counts = (f"{count:,}" for count in (totals.rows, totals.tokens_in, totals.tokens_out))
    amounts = totals.dollars, totals.estimated
    dollars = (format_dollars(amount, places) if _has_price(totals) else "–" for amount in amounts)
    return (*_in_cells(names), *counts, *dollars)


def _failures_section(summary: Summary) -> str:
    title = "Failures by kind"
    if not summary.total.failed:
        return section(title, "No row failed.", is_wide=True)
    bars: list[Bar] = []
    rows: list[Sequence[str]] = []
    for names, totals in summary.failures.top(lambda totals: totals.rows):
        bars.append(Bar(_joined(names), f"{totals.rows:,}", ((totals.rows, BAD),)))
        rows.append((*_in_cells(names), f"{totals.rows:,}", format_share(totals.rows, summary.total.rows)))
    numbers = table(title, ("Kind", "Provider", "Rows", "of all rows"), rows, names=2)
    text = "Why rows have no answer, and which provider failed last."
    return section(title, text, draw_bars(bars, "rows", title), numbers, is_wide=True)


def _joined(names: Names) -> str:
    """Names in one line, those that are empty left out."""
    return " · ".join(filter(None, names)) or OTHERS


def _in_cells(names: Names) -> Names:
    """Names for the two cells of a row, with a dash for those that are empty."""
    return tuple(name or "–" for name in names) or (OTHERS, "–")
