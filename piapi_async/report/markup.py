"""The elements of the page, and its style sheet. Every text that may come from outside is escaped here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from piapi_async.report.formatting import escape

__all__ = ["card", "colour_key", "document", "fold", "quote", "section", "table", "timestamp"]

STYLE = """
:root { color-scheme: light dark; --back: #f4f5f7; --card: #fff; --ink: #1b1f24; --muted: #59636e; --rule: #d9dee4;
  --main: #2563c9; --light: #93b7ee; --bad: #c8372d; }
@media (prefers-color-scheme: dark) { :root { --back: #0e1116; --card: #181c23; --ink: #e8ebef; --muted: #9aa4b0;
  --rule: #303742; --main: #5b9bff; --light: #2c5596; --bad: #ff7a6e; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.25rem; max-width: 70rem; background: var(--back); color: var(--ink);
  font: 1rem/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif; }
h1 { margin: 0; font-size: 1.75rem; line-height: 1.2; }
h2 { margin: 0 0 .25rem; font-size: 1.125rem; }
p { margin: 0 0 .75rem; color: var(--muted); overflow-wrap: anywhere; }
header p { margin: .375rem 0 1.5rem; }
dl { display: grid; grid-template-columns: repeat(5, 1fr); gap: 1px; margin: 0 0 1rem; overflow: hidden;
  border: 1px solid var(--rule); border-radius: .75rem; background: var(--rule); }
dl div { padding: .75rem 1rem; background: var(--card); }
dt, dd.more { color: var(--muted); font-size: .8125rem; }
dd { margin: 0; font-size: 1.375rem; font-weight: 600; line-height: 1.35; overflow-wrap: anywhere; }
dd.more { font-weight: 400; }
main { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; }
section { min-width: 0; padding: 1rem 1.25rem; border: 1px solid var(--rule); border-radius: .75rem;
  background: var(--card); break-inside: avoid; }
section.wide { grid-column: 1 / -1; }
section.wide > div { display: grid; grid-template-columns: 3fr 4fr; gap: 1.5rem; }
section.wide > div > * { min-width: 0; }
figure { margin: 0; }
svg { display: block; width: 100%; max-width: 34rem; height: auto; overflow: visible; }
svg text { font-family: inherit; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
table { width: 100%; margin: .5rem 0 0; border-collapse: collapse; font-size: .8125rem;
  font-variant-numeric: tabular-nums; }
caption { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
th, td { padding: .3125rem 0 .3125rem .75rem; border-bottom: 1px solid var(--rule); text-align: right;
  vertical-align: top; font-weight: 400; white-space: nowrap; }
th:first-child { padding-left: 0; }
time { white-space: nowrap; }
tr > .name { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 5rem; }
thead th { color: var(--muted); vertical-align: bottom; }
tbody tr:last-child > * { border-bottom: 0; }
details { margin-top: .5rem; color: var(--muted); font-size: .8125rem; }
details table { color: var(--ink); }
.key { display: flex; flex-wrap: wrap; gap: 0 1rem; margin: .25rem 0 0; font-size: .8125rem; }
.key svg { display: inline-block; width: .75rem; height: .75rem; margin-right: .375rem; }
@media (max-width: 56rem) { main, section.wide > div { grid-template-columns: minmax(0, 1fr); } }
@media (max-width: 40rem) { body { padding: 1.25rem .75rem; } dl { grid-template-columns: 1fr 1fr; }
  dd { font-size: 1.125rem; } p { font-size: .9375rem; }
  section { padding: .875rem; } }
@media print { :root { color-scheme: light; --back: #fff; --card: #fff; --ink: #000; --muted: #444; --rule: #ccc;
  --main: #2563c9; --light: #93b7ee; --bad: #c8372d; } * { print-color-adjust: exact; }
  body { padding: 0; font-size: .8125rem; } dl { grid-template-columns: repeat(5, 1fr); } dd { font-size: .875rem; }
  dt, dd.more, table, .key { font-size: .6875rem; } p { font-size: .8125rem; }
  main { grid-template-columns: 1fr 1fr; gap: .5rem; } section { padding: .75rem; }
  svg { max-width: 22rem; } details { display: none; } }
"""

HEAD = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<style>{STYLE}</style>
"""


def document(title: str, body: Iterable[str]) -> str:
    """Make the whole page.

    Args:
        title: Its title, as text.
        body: What it shows, as HTML, one item to a line.
    """
    head = f"{HEAD}<title>{escape(title)}</title>\n</head>\n<body>"
    return "\n".join((head, *body, "</body>", "</html>", ""))


def quote(text: str) -> str:
    """Set a text from outside in a line of ours, so that one written from right to left does not turn the line."""
    return f"<bdi>{escape(text)}</bdi>"


def timestamp(seconds: float) -> str:
    """Write a time, in seconds since 1970, as date and time, UTC."""
    moment = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{moment:%Y-%m-%d %H:%M:%S}</time>'


def card(name: str, value: str, more: str = "") -> str:
    """Make one of the figures at the top of the page, with a line of small print below it."""
    small_print = f'<dd class="more">{escape(more)}</dd>' if more else ""
    return f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd>{small_print}</div>"


def section(title: str, text: str, chart: str = "", tables: str = "", *, is_wide: bool = False) -> str:
    """Make a section.

    Args:
        title: Its title, as HTML.
        text: A sentence or two, as HTML.
        chart: What it shows, as HTML. Where there is none, the text says why.
        tables: The numbers of the chart, as HTML.
        is_wide: Whether it takes the whole width, with the tables beside the chart.
    """
    content = f"<div><figure>{chart}</figure><div>{tables}</div></div>" if chart else ""
    return f"<section{' class=wide' if is_wide else ''}><h2>{title}</h2><p>{text}</p>{content}</section>"


def table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, names: int = 1) -> str:
    """Make a table, of text alone.

    Args:
        title: What it is about. It is read out, not shown.
        heads: Names of the columns.
        rows: Cells of each row.
        names: How many columns, from the left, hold names. The others hold numbers.
    """
    head = f"<thead><tr>{_cells(heads, names, 'th', 'col')}</tr></thead>"
    body = "\n".join(f"<tr>{_cells(row, names, 'td', 'row')}</tr>" for row in rows)
    scroll = f'<div class="scroll" role="region" aria-label="{escape(title)}" tabindex="0">'
    return f"{scroll}<table><caption>{escape(title)}</caption>{head}<tbody>{body}</tbody></table></div>"


def _cells(texts: Sequence[str], names: int, tag: str, scope: str) -> str:
    first = "".join(f'<th scope="{scope}" class="name">{quote(text)}</th>' for text in texts[:names])
    return first + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts[names:])


def fold(summary: str, content: str) -> str:
    """Hide HTML until the reader opens it."""
    return f"<details><summary>{escape(summary)}</summary>{content}</details>"


def colour_key(*entries: tuple[str, str]) -> str:
    """Say what the colours of a chart mean: pairs of a colour of the style sheet and a text."""
    square = '<svg viewBox="0 0 1 1" aria-hidden="true"><path d="M0 0h1v1H0z" style="fill: var(--{})"/></svg>'
    spans = (f"<span>{square.format(colour)}{escape(text)}</span>" for colour, text in entries)
    return f'<p class="key">{"".join(spans)}</p>'
