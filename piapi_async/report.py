"""`write_report`: a file of results in, a page to look at out.

    read_notes → `_Tally` (numbers alone) → `_Spread`, `_Flow` (what is drawn) → `_Picture` (SVG) → HTML

The page is one file that loads nothing and runs nothing, and its own policy forbids both. It can be mailed, kept beside
the results, read by a screen reader, and printed. Every picture has its numbers in a table beside it.

Names of models, providers and failures come from outside. They are escaped, cut, and never shown to the plotting
library, which would take some of them for formulas: it draws `_Picture.stand_in`, and the page puts the name there.
"""

# The library's stubs leave most of its keywords open, and nothing else is to be forgiven.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import math
import os
import re
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from decimal import Decimal
from html import escape
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import attrs
import msgspec

from piapi_async.batch.records import Note, read_notes
from piapi_async.errors import BatchError, ConfigurationError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["check_report", "write_report"]

PAUSE = 60.0
"""Seconds without a row under way that count as a pause between two runs, not as work (ours)."""

MANY = 1000
"""Most names that are told apart; a provider may make up a new kind of failure for every row (ours)."""

SHOWN = 12
"""Most names in a table or picture; the others are summed up (ours)."""

NAME = 80
"""Characters of a name that are kept (ours)."""

SHORT_NAME = 42
"""Characters of a name in a picture, where what it amounts to stands on the same line (ours)."""

LIMIT = 250_000_000_000
"""What no number of a note reaches: seconds since 1970 do in the year 9892, where dates soon end (ours)."""

SHORTEST = 1e-4
"""Seconds at which a logarithmic scale begins, as it has no zero (ours)."""

PARTS = 0.5, 0.9, 0.99
"""Percentiles that are marked."""

MOST_ATTEMPTS = 9
"""Requests for one row that are told apart; more are counted with these (ours)."""

BARS = 36
"""Most bars of a distribution, 10 points wide each (ours)."""

PERIODS = 60
"""Most parts of the time (ours)."""

DAY = 86400.0
UNITS = (1.0, "a second"), (60.0, "a minute"), (3600.0, "an hour"), (DAY, "a day")
CLOCK = 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, DAY
"""Seconds from a tick of a time axis to the next."""

OTHERS = "others"

Names: TypeAlias = tuple[str, ...]
"""What sums are kept by; empty for all that are not kept apart."""


def check_report(page: str | os.PathLike[str], *others: str | os.PathLike[str]) -> None:
    """See whether a report can be written, before the work that it is about.

    Args:
        page: Where it shall go. A file that is there is replaced in the end.
        others: Files that it must not replace, as the requests and the results.

    Raises:
        ConfigurationError: The plotting library is not installed.
        BatchError: There can be no page in that place.
    """
    path = Path(page)
    if find_spec("matplotlib") is None:
        raise ConfigurationError("a report needs a plotting library; install it: pip install 'piapi-async[report]'")
    if (problem := _problem_of(path, others)) is not None:
        raise BatchError(f"{path}: {problem}")
    with _explaining(path, "written"), tempfile.TemporaryFile(dir=path.parent):
        pass  # nothing else tells for certain that a file can be made there


def _problem_of(path: Path, others: Iterable[str | os.PathLike[str]]) -> str | None:
    """Why there shall be no page in a place, if there is a reason."""
    if not path.parent.is_dir():
        return "its directory does not exist; make it first"
    if path.is_symlink():
        return "it is a symbolic link, and none is followed; name the file itself"
    if path.is_dir():
        return "it is a directory; name a file"
    if path.exists() and not path.is_file():
        return "it is no regular file, and would be replaced; name another one"
    if any(_are_one(path, Path(other)) for other in others):
        return "it is a file of the batch itself; name another one"
    return None


def _are_one(path: Path, other: Path) -> bool:
    with suppress(OSError):  # one of them is not there
        return path.samefile(other)
    return path.absolute() == other.absolute()


def write_report(results: str | os.PathLike[str], page: str | os.PathLike[str]) -> None:
    """Write what a batch did, took and cost as one page of HTML that needs nothing beside it.

    It takes some seconds for a million rows; an event loop should have it done in a thread.

    Args:
        results: A file of results, as `run_batch` leaves it.
        page: Where the page goes, readable for its owner alone; a file that is there is replaced.

    Raises:
        ConfigurationError: The plotting library is not installed.
        BatchError: The results can't be read, or the page can't be written.
    """
    check_report(page, results)
    source, target = Path(results), Path(page)
    with _explaining(source, "read"):
        tally = _read(source)
    # The file's own name may hold bytes that are no text.
    content = _page(source.name, tally).encode("utf-8", "replace")
    with _explaining(target, "written"):
        _replace(target, content)


@contextmanager
def _explaining(path: Path, what: str) -> Generator[None]:
    problem = ""
    try:
        yield
    except OSError as error:
        problem = f"it can not be {what}: {error.strerror}; choose another file"
    except msgspec.DecodeError:
        problem = "a newer release wrote it; upgrade to read it"
    except (ArithmeticError, ValueError):
        problem = "a number in it makes no sense; is it a file of results?"
    if problem:
        raise BatchError(f"{path}: {problem}") from None


def _replace(path: Path, content: bytes) -> None:
    """Put a whole file in a place at once; whoever looks sees the old one or the new one."""
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=".report.")  # for its owner alone
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(content)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


# -- what is in the notes --------------------------------------------------------------------------------------------


@attrs.define
class _Group:
    """Sums over some rows.

    Attributes:
        rows: How many.
        failed: How many of them failed.
        tokens_in: Tokens of their prompts, as far as they were counted.
        tokens_out: Tokens of their answers, as far as they were counted.
        uncounted: Answers whose tokens were not counted.
        dollars: US dollars for them, as far as prices are known.
        estimated: The part of it that rests on estimated tokens.
        unpriced: Answers whose price is unknown.
    """

    rows: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    uncounted: int = 0
    dollars: Decimal = Decimal(0)
    estimated: Decimal = Decimal(0)
    unpriced: int = 0

    def take(self, note: Note) -> None:
        self.rows += 1
        self.failed += note.failed
        self.tokens_in += note.tokens_in or 0
        self.tokens_out += note.tokens_out or 0
        if note.cost is not None:
            dollars = _amount(note.cost)
            self.dollars += dollars
            self.estimated += dollars if note.cost_estimated else 0
        if not note.failed:
            self.uncounted += note.tokens_out is None
            self.unpriced += note.cost is None

    def add(self, other: _Group) -> None:
        for field in attrs.fields(_Group):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


class _Groups(dict[Names, _Group]):
    """Sums by name; past `MANY` names, by no name."""

    def of(self, *names: str) -> _Group:
        kept = tuple(_cut(name, NAME) for name in names)
        group = self.get(kept)
        if group is None:
            group = self.setdefault(kept if len(self) < MANY else (), _Group())
        return group

    def top(self, weight: Callable[[_Group], Decimal | int]) -> list[tuple[Names, _Group]]:
        """The names of most weight, and at the end the sum of all others, by no name."""
        named = [(names, group) for names, group in self.items() if names]
        named.sort(key=lambda item: (-weight(item[1]), -item[1].rows, item[0]))
        rest = _Group()
        for _, group in named[SHOWN:]:
            rest.add(group)
        rest.add(self.get((), _Group()))
        return named[:SHOWN] + ([((), rest)] if rest.rows else [])


def _cut(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


class _Tally:
    """What a page needs of the notes: numbers, 32 bytes a row at most.

    Attributes:
        all: Sums over all rows.
        answers: Sums by model and provider, of what was answered.
        failures: Sums by kind and provider, of what failed.
        attempts: Sums by the number of requests that were sent.
        unknown: US dollars that requests whose bill is unknown may have cost.
        latency: Seconds that the request of each answer took.
        elapsed: Seconds that each answer took in all.
        first_token: Seconds to the first event of each answer that was streamed.
        finished: When each row ended, of those answered and of those failed; seconds since 1970.
        spans: When rows were under way, from and to; seconds since 1970.
    """

    def __init__(self) -> None:
        self.all = _Group()
        self.answers, self.failures = _Groups(), _Groups()
        self.attempts: dict[int, _Group] = {}
        self.unknown = Decimal(0)
        self.latency, self.elapsed, self.first_token = array("d"), array("d"), array("d")
        self.finished = array("d"), array("d")
        self.spans: list[tuple[float, float]] = []

    def take(self, note: Note) -> None:
        counted = note.tokens_in or 0, note.tokens_out or 0, note.attempts
        timed = note.latency, note.elapsed, note.first_token or 0.0, note.finished
        if min(counted) < 0 or min(timed) < 0 or max(counted) >= LIMIT or max(timed) >= LIMIT:
            raise ValueError("no number of a batch")
        self.all.take(note)
        self.attempts.setdefault(min(note.attempts, MOST_ATTEMPTS), _Group()).take(note)
        if note.unknown != "0":
            self.unknown = max(self.unknown, _amount(note.unknown))
        self.finished[note.failed].append(note.finished)
        self._span(max(note.finished - note.elapsed, 0.0), note.finished)
        if note.failed:
            self.failures.of(note.kind, note.provider).take(note)
            return
        self.answers.of(note.model, note.provider).take(note)
        self.latency.append(note.latency)
        self.elapsed.append(note.elapsed)
        if note.first_token is not None:
            self.first_token.append(note.first_token)

    def _span(self, begin: float, end: float) -> None:
        """Note when a row was under way. Rows come about as they ended, so the last spans are those it may touch."""
        while self.spans and begin <= self.spans[-1][1] + PAUSE and end >= self.spans[-1][0] - PAUSE:
            earlier = self.spans.pop()
            begin, end = min(begin, earlier[0]), max(end, earlier[1])
        self.spans.append((begin, end))

    @property
    def began(self) -> float:
        return min(begin for begin, _ in self.spans)

    @property
    def ended(self) -> float:
        return max(end for _, end in self.spans)

    @property
    def at_work(self) -> float:
        """Seconds with rows under way, pauses between runs left out."""
        total, until = 0.0, -math.inf
        for begin, end in sorted(self.spans):
            total += max(end, until) - max(begin, until)
            until = max(end, until)
        return max(total, SHORTEST)


def _amount(text: str) -> Decimal:
    amount = Decimal(text)
    if not 0 <= amount < LIMIT:
        raise ValueError("no amount of a batch")
    return amount


def _read(path: Path) -> _Tally:
    tally = _Tally()
    for note in read_notes(path):
        tally.take(note)
    return tally


# -- what is drawn ---------------------------------------------------------------------------------------------------


class _Spread:
    """A distribution: percentiles, by nearest rank, and a histogram.

    Attributes:
        count: How many values.
        marks: The percentiles `PARTS`, in seconds.
        longest: The largest value, in seconds.
        is_log: Whether the bars are equally wide by their ratio.
        edges: Of the bars, in seconds; one more than bars.
        counts: Values in each bar.
    """

    def __init__(self, values: Iterable[float]) -> None:
        ordered = sorted(values)
        self.count = len(ordered)
        self.marks = [ordered[math.ceil(part * self.count) - 1] for part in PARTS]
        self.longest = ordered[-1]
        low, high = max(ordered[0], SHORTEST), max(ordered[-1], SHORTEST)
        self.is_log = high > 5 * low
        bars = max(6, min(BARS, math.isqrt(self.count)))
        if self.is_log:
            self.edges = [low * (high / low) ** (bar / bars) for bar in range(bars + 1)]
        else:
            low, high = (low, high) if high > 1.01 * low else (0.5 * low, 1.5 * low)
            self.edges = [low + (high - low) * bar / bars for bar in range(bars + 1)]
        # What is at or past an end by a rounding error is in the bar there.
        cuts = [0, *(bisect_left(ordered, edge) for edge in self.edges[1:-1]), self.count]
        self.counts = [cuts[bar + 1] - cuts[bar] for bar in range(bars)]

    def place(self, value: float) -> float:
        """Where a value stands, from 0 at the first edge to 1 at the last."""
        low, value, high = self.edges[0], max(value, self.edges[0]), self.edges[-1]
        return math.log(value / low) / math.log(high / low) if self.is_log else (value - low) / (high - low)

    @property
    def ticks(self) -> list[float]:
        low, high = self.edges[0], self.edges[-1]
        if not self.is_log:
            return _ticks(low, high, 5)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        fine = [tick for power in powers for tick in _by_ten(power, 1, 2, 5) if low <= tick <= high]
        coarse = [tick for power in powers for tick in _by_ten(power, 1) if low <= tick <= high]
        return fine if len(fine) <= 6 else coarse[:: math.ceil(len(coarse) / 6)]


def _by_ten(power: int, *digits: int) -> list[float]:
    return [digit * 10.0**power for digit in digits]


def _ticks(low: float, high: float, most: int, *, is_whole: bool = False) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten between two values, of one more than `most` at most."""
    power = math.floor(math.log10((high - low) / most))
    # A rounding error more is as good as none.
    step = next(step for step in _by_ten(power, 1, 2, 5, 10) if step * most * 1.000001 >= high - low)
    step = max(step, 1.0) if is_whole else step
    return [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]


class _Flow:
    """How many rows ended when.

    Attributes:
        edges: Of the parts of the time, all equally long; seconds since 1970, one more than parts.
        counts: Rows answered and rows failed in each part.
        unit: What the rates are by, in seconds and in words.
        rates: Rows answered and rows failed by that unit, in each part.
    """

    def __init__(self, tally: _Tally) -> None:
        begin = tally.began
        parts = max(1, min(PERIODS, tally.all.rows // 4))
        self.width = max(tally.ended - begin, 1.0) / parts
        self.edges = [begin + self.width * part for part in range(parts + 1)]
        self.counts = [[0] * parts for _ in tally.finished]
        for counts, ends in zip(self.counts, tally.finished, strict=True):
            for end in ends:
                counts[min(int((end - begin) / self.width), parts - 1)] += 1
        peak = max(map(max, self.counts)) / self.width
        self.unit = next((unit for unit in UNITS if peak * unit[0] >= 1), UNITS[-1])
        self.rates = [[count / self.width * self.unit[0] for count in counts] for counts in self.counts]

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Where which time stands, from 0 at the first edge to 1 at the last."""
        low, high = self.edges[0], self.edges[-1]
        step = next((step for step in CLOCK if step * 5 >= high - low), math.ceil((high - low) / 5 / DAY) * DAY)
        times = [step * number for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
        return [((time - low) / (high - low), _clock(time, step)) for time in times]


def _clock(time: float, step: float) -> str:
    moment = datetime.fromtimestamp(time, UTC)
    if step >= DAY:
        return f"{moment:%Y-%m-%d}"
    if time % DAY == 0:
        return f"{moment:%m-%d}"
    return f"{moment:%H:%M}" if step >= 60 else f"{moment:%H:%M:%S}" + (f".{moment:%f}"[:2] if step < 1 else "")


# -- the pictures ----------------------------------------------------------------------------------------------------

WIDTH = 420.0
"""Points; a page shows it half as wide again at most, and on a phone a tenth smaller."""

SIZE = 11.0
"""Points of the letters in a picture: on a screen the size of those in a table, and 9 pixels on a phone."""

INK, MUTED, RULE, MAIN, LIGHT, BAD = (f"#{number:02x}00{number:02x}" for number in range(1, 7))
_COLOURS = dict(
    zip((INK, MUTED, RULE, MAIN, LIGHT, BAD), ("ink", "muted", "rule", "main", "light", "bad"), strict=True)
)
"""Colours that stand for those of the page's style, which knows of light and dark."""


@contextmanager
def _plotting() -> Generator[None]:
    """Plot as it is meant here, whatever the user's own settings are."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # Text stays text: it is the smallest, can be read out, and takes the page's font.
        matplotlib.rcParams.update({"svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": SIZE})
        yield


class _Picture:
    """An SVG that takes its font and its colours from the page; all measures are in points."""

    def __init__(self, height: float) -> None:
        from matplotlib.figure import Figure

        self._height = height
        self._figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        self._figure.patch.set_visible(False)
        self._names: list[str] = []

    def panel(self, bottom: float, height: float, left: float = 40.0, right: float = 14.0) -> Axes:
        """Make axes that show nothing yet."""
        box = left / WIDTH, bottom / self._height, (WIDTH - left - right) / WIDTH, height / self._height
        axes = self._figure.add_axes(box, frame_on=False)
        axes.tick_params(bottom=False, left=False, labelcolor=MUTED)
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def stand_in(self, name: str) -> str:
        """Text that is drawn in the place of a name from outside."""
        self._names.append(name)
        return f"@{len(self._names) - 1}@"

    def svg(self, label: str) -> str:
        """Return the picture as an element of a page.

        Args:
            label: What is to be seen on it, in words.
        """
        file = StringIO()
        self._figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        content = file.getvalue().partition("</defs>")[2]
        content = re.sub(r' id="[^"]*"| transform="rotate\(-0 [^"]*"|font-family: [^;"]*;? ?', "", content)
        content = re.sub(r"\s*\n\s*", "\n", content)
        for colour, name in _COLOURS.items():
            content = content.replace(colour, f"var(--{name})")
        content = re.sub(r"@(\d+)@", lambda number: escape(self._names[int(number[1])]), content)
        head = f'<svg viewBox="0 0 {WIDTH:g} {self._height:g}" role="img" aria-label="{escape(label)}">'
        return f"{head}{content}"


def _draw_spread(spread: _Spread, name: str, rows: str) -> str:
    """Draw a distribution, its percentiles marked by flags at three heights, so that none covers another."""
    picture = _Picture(232)
    axes = picture.panel(bottom=42, height=130)
    # The label of the last percentile, which is the lowest, has room at the right.
    axes.set_xlim(0, max(1.0, spread.place(spread.marks[-1]) / 0.8))
    _rule(axes, max(spread.counts), 4, is_whole=True)
    places = [spread.place(edge) for edge in spread.edges]
    axes.stairs(spread.counts, places, fill=True, color=MAIN, clip_on=False)
    axes.set_xticks([spread.place(tick) for tick in spread.ticks], [_tick_seconds(tick) for tick in spread.ticks])
    axes.set_xlabel(f"{name}{', logarithmic scale' if spread.is_log else ''}", color=MUTED)
    _name_height(axes, rows, 44)
    for level, (part, mark) in enumerate(zip(PARTS, spread.marks, strict=True)):
        _flag(axes, spread.place(mark), 1 + (34 - 15 * level) / 130, f"p{part * 100:g}  {_seconds(mark)}")
    return picture.svg(f"Histogram of the {name}: {_marks_in_words(spread)}.")


def _flag(axes: Axes, at: float, height: float, text: str) -> None:
    """Draw a line from the ground to a label at its right, where no line of a lower percentile stands."""
    place = axes.get_xaxis_transform()
    axes.plot([at, at], [0, height], transform=place, color=INK, linewidth=1, clip_on=False)
    axes.annotate(text, (at, height), (4, 0), place, "offset points", color=INK, va="top")


def _rule(axes: Axes, top: float, most: int, *, is_whole: bool) -> None:
    """Give the height a scale: its numbers, and a line for each."""
    axes.set_ylim(0, top * 1.04)
    ticks = _ticks(0, top, most, is_whole=is_whole)
    axes.set_yticks(ticks, [_tick_number(tick) for tick in ticks])
    axes.hlines(ticks, 0, 1, transform=axes.get_yaxis_transform(), colors=RULE, linewidth=0.8, zorder=0, clip_on=False)


def _name_height(axes: Axes, text: str, above: float) -> None:
    """Say what the height is; it is read more easily above the numbers than turned beside them."""
    axes.annotate(text, (0, 1), (-40, above), xycoords="axes fraction", textcoords="offset points", color=MUTED)


def _draw_flow(flow: _Flow) -> str:
    """Draw answers and failures by time, each on its own scale, as failures are few in most cases."""
    height = 232.0
    picture = _Picture(height)
    bottom = 110 if any(flow.counts[1]) else 42
    axes = picture.panel(bottom, height - 24 - bottom)
    _draw_rates(axes, flow.rates[0], 4, MAIN, f"answers {flow.unit[1]}")
    if any(flow.counts[1]):
        axes = picture.panel(bottom=42, height=38)
        _draw_rates(axes, flow.rates[1], 2, BAD, f"failures {flow.unit[1]}")
    axes.set_xticks([at for at, _ in flow.ticks], [text for _, text in flow.ticks])
    axes.set_xlabel("time, UTC", color=MUTED)
    answers, failures = (max(rates) for rates in flow.rates)
    return picture.svg(
        f"Throughput over time: at most {_rate(answers)} answers and {_rate(failures)} failures {flow.unit[1]}."
    )


def _draw_rates(axes: Axes, rates: Sequence[float], most: int, colour: str, name: str) -> None:
    axes.set_xlim(0, 1)
    _rule(axes, max(rates) or 1.0, most, is_whole=False)
    places = [part / len(rates) for part in range(len(rates) + 1)]
    axes.stairs(rates, places, fill=True, color=colour, clip_on=False)
    _name_height(axes, name, 8)


@attrs.frozen
class _Bar:
    """One bar: a name, what to write at its end, and the parts it is made of, each with its colour."""

    name: str
    text: str
    parts: Sequence[tuple[float, str]]


def _draw_bars(bars: Sequence[_Bar], unit: str, label: str, *, is_whole: bool = True) -> str:
    """Draw lying bars, each below its name: names are long, and a phone is narrow."""
    step = 31.0
    picture = _Picture(step * len(bars) + 44)
    axes = picture.panel(bottom=42, height=step * len(bars), left=0, right=0)
    longest = max(sum(amount for amount, _ in bar.parts) for bar in bars)
    longest = longest if longest > 1e-9 else 1.0  # where all is nothing there is an axis still
    axes.set_xlim(0, 1)
    axes.set_ylim(-len(bars), 0)
    ticks = _ticks(0, longest, 5, is_whole=is_whole)
    places = [tick / longest for tick in ticks]
    axes.set_xticks(places, [_tick_number(tick) for tick in ticks])
    axes.vlines(places[1:], -len(bars), 0, colors=RULE, linewidth=0.8, zorder=0, clip_on=False)
    axes.set_xlabel(unit, color=MUTED)
    for row, bar in enumerate(bars):
        begin = 0.0
        for amount, colour in bar.parts:
            width = amount / longest
            axes.barh(-row - 0.7, width, 0.32, left=begin, color=colour, linewidth=0, clip_on=False)
            begin += width
        axes.text(0, -row - 0.4, picture.stand_in(_cut(bar.name, SHORT_NAME)), color=INK, clip_on=False)
        axes.text(1, -row - 0.4, bar.text, color=INK, ha="right", clip_on=False)
    return picture.svg(f"{label}: {'; '.join(f'{bar.name} {bar.text}' for bar in bars)}.")


# -- the page --------------------------------------------------------------------------------------------------------

_STYLE = """
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

_HEAD = f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="referrer" content="no-referrer">
<style>{_STYLE}</style>
"""


def _page(name: str, tally: _Tally) -> str:
    head = f"{_HEAD}<title>Batch report: {escape(name)}</title>\n</head>\n<body>"
    source = f"<bdi>{escape(name)}</bdi>"
    if not tally.all.rows:
        header = f"<header><h1>Batch report</h1><p>{source} holds no results: there is nothing to show.</p></header>"
        return "\n".join((head, header, "</body>", "</html>", ""))
    header = f"<header><h1>Batch report</h1><p>{source} · {_time(tally.began)} to {_time(tally.ended)} UTC</p></header>"
    with _plotting():
        sections = (
            _latency_section(tally),
            _first_token_section(tally),
            _flow_section(tally),
            _attempts_section(tally),
            _cost_section(tally),
            _failures_section(tally),
        )
    return "\n".join((head, header, _headline(tally), "<main>", *sections, "</main>", "</body>", "</html>", ""))


def _time(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, UTC)
    return f'<time datetime="{moment:%Y-%m-%dT%H:%M:%SZ}">{moment:%Y-%m-%d %H:%M:%S}</time>'


def _headline(tally: _Tally) -> str:
    all_, answered = tally.all, len(tally.latency)
    places = _places(all_.dollars)
    unknown = _dollars(tally.unknown, _places(max(all_.dollars, tally.unknown)) if tally.unknown else 2)
    notes = [f"of it {_dollars(all_.estimated, places)} estimated"] if all_.estimated else []
    notes += [f"{_count(all_.unpriced, 'answer')} without a known price"] if all_.unpriced else []
    uncounted = f"not counted for {_count(all_.uncounted, 'answer')}" if all_.uncounted else ""
    pauses = tally.ended - tally.began - tally.at_work
    paused = f"and {_seconds(pauses)} of pauses" if pauses > PAUSE else "without a pause"
    cards = (
        ("Rows", f"{all_.rows:,}", ""),
        ("Answered", f"{answered:,}", escape(_share(answered, all_.rows))),
        ("Failed", f"{all_.failed:,}", escape(_share(all_.failed, all_.rows))),
        ("Tokens in", f"{all_.tokens_in:,}", uncounted),
        ("Tokens out", f"{all_.tokens_out:,}", uncounted),
        ("Cost", _dollars(all_.dollars, places), "; ".join(notes)),
        ("Unknown bills", unknown, "at most, beside the cost" if tally.unknown else ""),
        ("Time at work", _seconds(tally.at_work), paused),
        ("Tokens a second", _rate(all_.tokens_out / tally.at_work), "out, while at work"),
        ("Median latency", _seconds(_Spread(tally.latency).marks[0]) if answered else "–", "of the answers"),
    )
    return f"<dl>{''.join(_card(*card) for card in cards)}</dl>"


def _card(name: str, value: str, more: str) -> str:
    beside = f'<dd class="more">{more}</dd>' if more else ""
    return f"<div><dt>{name}</dt><dd>{escape(value)}</dd>{beside}</div>"


def _latency_section(tally: _Tally) -> str:
    if not tally.latency:
        return _section("Latency", "No row was answered, so there is no latency to show.")
    spread = _Spread(tally.latency)
    table = _table(
        "Latency of answers",
        ("Time of", *_PARTS_AND_LONGEST),
        [("the request", *_marks(spread)), ("the row, with waits and retries", *_marks(_Spread(tally.elapsed)))],
    )
    text = f"How long the request took that brought the answer, for {_count(spread.count, 'answer')}."
    return _section("Latency", text, _draw_spread(spread, "latency", "answers"), table)


def _first_token_section(tally: _Tally) -> str:
    title = "Time to first token"
    if not tally.first_token:
        return _section(title, "No answer was streamed, so none tells when its first token came.")
    spread = _Spread(tally.first_token)
    table = _table(title, ("Time to", *_PARTS_AND_LONGEST), [("the first token", *_marks(spread))])
    text = f"How soon an answer began, of what was streamed: {_count(spread.count, 'answer')}."
    return _section(title, text, _draw_spread(spread, "time to first token", "answers"), table)


_PARTS_AND_LONGEST = (*(f"p{part * 100:g}" for part in PARTS), "longest")


def _marks(spread: _Spread) -> list[str]:
    return [_seconds(value) for value in (*spread.marks, spread.longest)]


def _marks_in_words(spread: _Spread) -> str:
    marks = zip(PARTS, spread.marks, strict=True)
    return (
        f"{', '.join(f'{part:.0%} within {_seconds(mark)}' for part, mark in marks)}, all in {_seconds(spread.longest)}"
    )


def _flow_section(tally: _Tally) -> str:
    flow = _Flow(tally)
    answers, failures = flow.rates
    heads = (f"Rows {flow.unit[1]}", "Answered", "Failed")
    average = [_rate(sum(counts) / tally.at_work * flow.unit[0]) for counts in flow.counts]
    table = _table(
        "Throughput",
        heads,
        [("on average, while at work", *average), ("at most", _rate(max(answers)), _rate(max(failures)))],
    )
    rows = [
        (f"{datetime.fromtimestamp(edge, UTC):%Y-%m-%d %H:%M:%S}", *(f"{counts[part]:,}" for counts in flow.counts))
        for part, edge in enumerate(flow.edges[:-1])
    ]
    parts = _count(len(rows), "part")
    details = _table("Throughput over time", ("From, UTC", "Answered", "Failed"), rows)
    text = f"When rows ended, in {parts} of {_seconds(flow.width)}."
    folded = f"<details><summary>{parts} in numbers</summary>{details}</details>"
    return _section("Throughput", text, _draw_flow(flow), table + folded)


def _attempts_section(tally: _Tally) -> str:
    groups = [(_requests(number), group) for number, group in sorted(tally.attempts.items())]
    bars = [
        _Bar(name, f"{group.rows:,}", ((group.rows - group.failed, MAIN), (group.failed, BAD)))
        for name, group in groups
    ]
    table = _table(
        "Requests for a row",
        ("Sent", "Rows", "Answered", "Failed"),
        [(name, f"{group.rows:,}", f"{group.rows - group.failed:,}", f"{group.failed:,}") for name, group in groups],
    )
    picture = _draw_bars(bars, "rows", "Rows by how many requests were sent for them") + _key(
        ("main", "answered"), ("bad", "failed")
    )
    return _section("Attempts", "How many requests were sent until a row was answered or given up.", picture, table)


def _requests(number: int) -> str:
    names = {0: "no request", 1: "1 request", MOST_ATTEMPTS: f"{MOST_ATTEMPTS} requests or more"}
    return names.get(number, f"{number} requests")


def _cost_section(tally: _Tally) -> str:
    title = "Cost by model and provider"
    if not tally.answers:
        return _section(title, "No row was answered, so there is no cost to show.", is_wide=True)
    groups = tally.answers.top(lambda group: group.dollars)
    places = _places(tally.all.dollars)
    bars: list[_Bar] = []
    rows: list[Sequence[str]] = []
    for names, group in groups:
        is_priced = group.unpriced < group.rows
        dollars = _dollars(group.dollars, places) if is_priced else "–"
        estimated = _dollars(group.estimated, places) if is_priced else "–"
        parts = (float(group.dollars - group.estimated), MAIN), (float(group.estimated), LIGHT)
        bars.append(_Bar(_label(names), dollars if is_priced else "no known price", parts))
        counts = (f"{count:,}" for count in (group.rows, group.tokens_in, group.tokens_out))
        rows.append((*_named(names), *counts, dollars, estimated))
    heads = ("Model", "Provider", "Answers", "Tokens in", "Tokens out", "US dollars", "estimated")
    picture = _draw_bars(bars, "US dollars", title, is_whole=False)
    if tally.all.estimated:
        picture += _key(("main", "by counted tokens"), ("light", "by estimated tokens"))
    text = "What the answers cost, by the model that was asked for and the provider that answered."
    return _section(title, text, picture, _table(title, heads, rows, names=2), is_wide=True)


def _failures_section(tally: _Tally) -> str:
    title = "Failures by kind"
    if not tally.failures:
        return _section(title, "No row failed.", is_wide=True)
    bars: list[_Bar] = []
    rows: list[Sequence[str]] = []
    for names, group in tally.failures.top(lambda group: group.rows):
        bars.append(_Bar(_label(names), f"{group.rows:,}", ((group.rows, BAD),)))
        rows.append((*_named(names), f"{group.rows:,}", _share(group.rows, tally.all.rows)))
    heads = ("Kind", "Provider", "Rows", "of all rows")
    text = "Why rows have no answer, and which provider failed last."
    return _section(title, text, _draw_bars(bars, "rows", title), _table(title, heads, rows, names=2), is_wide=True)


def _label(names: Names) -> str:
    return " · ".join(filter(None, names)) or OTHERS


def _named(names: Names) -> Names:
    return tuple(name or "–" for name in names) or (OTHERS, "–")


def _section(title: str, text: str, picture: str = "", table: str = "", *, is_wide: bool = False) -> str:
    content = f"<div><figure>{picture}</figure><div>{table}</div></div>" if picture else ""
    return f"<section{' class=wide' if is_wide else ''}><h2>{title}</h2><p>{text}</p>{content}</section>"


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], *, names: int = 1) -> str:
    """Make a table whose first columns are names."""

    def cells(texts: Sequence[str], tag: str) -> str:
        first = "".join(
            f'<th scope="{"col" if tag == "th" else "row"}" class="name"><bdi>{escape(text)}</bdi></th>'
            for text in texts[:names]
        )
        return first + "".join(f"<{tag}>{escape(text)}</{tag}>" for text in texts[names:])

    head = f"<thead><tr>{cells(heads, 'th')}</tr></thead>"
    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    scroll = f'<div class="scroll" role="region" aria-label="{escape(title)}" tabindex="0">'
    return f"{scroll}<table><caption>{escape(title)}</caption>{head}<tbody>{body}</tbody></table></div>"


def _key(*entries: tuple[str, str]) -> str:
    """Say what the colours mean."""
    square = '<svg viewBox="0 0 1 1" aria-hidden="true"><path d="M0 0h1v1H0z" style="fill: var(--{})"/></svg>'
    return f'<p class="key">{"".join(f"<span>{square.format(colour)}{text}</span>" for colour, text in entries)}</p>'


def _share(part: int, whole: int) -> str:
    """Write a part in percent; neither none nor all that are not."""
    tenths = round(part / whole * 1000)
    if part and not tenths:
        return "<0.1%"
    return f"{tenths / 10:.1f}%" if tenths < 1000 or part == whole else ">99.9%"


def _count(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _seconds(value: float) -> str:
    """Write a time with the units that suit it."""
    if value < 0.9995:
        return f"{value * 1000:.3g} ms"
    if value < 59.95:
        return f"{value:.3g} s"
    minutes, seconds = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days:,} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _tick_seconds(value: float) -> str:
    return f"{value * 1000:g} ms" if value < 0.9995 else f"{value:,.10g} s"


def _tick_number(value: float) -> str:
    for power, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= (10 * power if power == 1e3 else power):
            return f"{value / power:g}{name}"
    return f"{value:,.10g}"


def _places(most: Decimal) -> int:
    """Digits behind the point for amounts that are as much at most."""
    return 2 if most >= 100 or not most else 4 if most >= Decimal("0.1") else 6


def _dollars(amount: Decimal, places: int) -> str:
    return f"${amount:,.{places}f}"
