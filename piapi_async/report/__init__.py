"""A page of charts about a batch, made from its file of results.

    results → summary (sums) → chart_data (histogram, rates) → charts (SVG) → page (HTML) → file

- `writer` checks that a page can be written, and writes it.
- `summary` reads the results and adds them up.
- `chart_data` turns the sums into what a chart shows: bars, percentiles, rates, ticks.
- `svg` holds the settings of matplotlib. No other module imports it, and only when a chart is drawn.
- `charts` draws the three kinds of chart.
- `formatting` writes numbers for people.
- `markup` makes the elements of the page, and has its style sheet.
- `page` decides what the page says.

The page is a single file. It loads nothing and runs nothing, and its Content-Security-Policy forbids both, so it can be
mailed, archived, printed, or read by a screen reader. Every chart has its numbers in a table beside it.

Names of models, providers and failures come from outside. They are shortened, and escaped wherever they are written.
"""

from piapi_async.report.writer import check_report, write_report

__all__ = ["check_report", "write_report"]
