"""An SVG drawing by matplotlib, cleaned so that it fits into the page. No other module imports matplotlib.

It is imported when something is drawn, not before: it is an extra, and takes long to load.

Names from outside are never shown to matplotlib, which takes `$` for the beginning of a formula. It draws placeholders,
and when the drawing is done each is replaced by its name, escaped.
"""

# matplotlib's stubs leave the types of most keyword arguments open.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from io import StringIO
from typing import TYPE_CHECKING

from piapi_async.report.formatting import escape

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["BAD", "FONT_SIZE", "INK", "LIGHT", "MAIN", "MUTED", "RULE", "WIDTH", "Drawing", "matplotlib_settings"]

WIDTH = 420.0
"""Points. A page shows a drawing up to half as wide again, and a phone a tenth narrower."""

FONT_SIZE = 11.0
"""Points. On a screen this is the size of the text in a table, and on a phone 9 pixels."""

INK, MUTED, RULE, MAIN, LIGHT, BAD = (f"#{number:02x}00{number:02x}" for number in range(1, 7))
"""Stand-ins for the colours of the style sheet, which has two sets of them, for light and for dark screens."""

STYLE_NAMES = {INK: "ink", MUTED: "muted", RULE: "rule", MAIN: "main", LIGHT: "light", BAD: "bad"}
"""What the style sheet calls each colour."""


@contextmanager
def matplotlib_settings() -> Generator[None]:
    """Draw with our settings, whatever the user's are, and leave the user's as they were."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        # Text stays text, not outlines: it is small, can be read out, and takes the page's font.
        matplotlib.rcParams.update({"svg.fonttype": "none", "font.family": "DejaVu Sans", "font.size": FONT_SIZE})
        yield


class Drawing:
    """A drawing that takes its font and colours from the page. To be used inside `matplotlib_settings`.

    Args:
        height: Points; so are all other lengths here.
    """

    def __init__(self, height: float) -> None:
        from matplotlib.figure import Figure

        self._height = height
        self._figure = Figure(figsize=(WIDTH / 72, height / 72), dpi=72)
        self._figure.patch.set_visible(False)
        self._names: list[str] = []

    def panel(self, bottom: float, height: float, left: float = 40.0, right: float = 14.0) -> Axes:
        """Add axes without ticks and frame.

        Args:
            bottom: Distance from the lower edge of the drawing.
            height: Height of the panel.
            left: Distance from the left edge of the drawing.
            right: Distance from the right edge of the drawing.
        """
        box = left / WIDTH, bottom / self._height, (WIDTH - left - right) / WIDTH, height / self._height
        axes = self._figure.add_axes(box, frame_on=False)
        axes.tick_params(bottom=False, left=False, labelcolor=MUTED)
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def placeholder(self, name: str) -> str:
        """Keep a name from outside, and return the text to draw in its place."""
        self._names.append(name)
        return f"@{len(self._names) - 1}@"

    def to_svg(self, description: str) -> str:
        """Finish the drawing.

        Args:
            description: What it shows, in words, for those who can't see it.

        Returns:
            An `<svg>` element.
        """
        file = StringIO()
        self._figure.savefig(file, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
        content = _use_style_of_page(file.getvalue().partition("</defs>")[2])
        content = re.sub(r"@(\d+)@", lambda number: escape(self._names[int(number[1])]), content)
        head = f'<svg viewBox="0 0 {WIDTH:g} {self._height:g}" role="img" aria-label="{escape(description)}">'
        return f"{head}{content}"


def _use_style_of_page(content: str) -> str:
    """Remove ids, fonts and needless space from matplotlib's output, and give it the colours of the style sheet."""
    content = re.sub(r' id="[^"]*"| transform="rotate\(-0 [^"]*"|font-family: [^;"]*;? ?', "", content)
    content = re.sub(r"\s*\n\s*", "\n", content)
    for colour, name in STYLE_NAMES.items():
        content = content.replace(colour, f"var(--{name})")
    return content
