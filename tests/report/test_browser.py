"""How a page looks in a real browser."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections import Counter
from html import escape
from pathlib import Path

import pytest
from PIL import Image

from tests.report.pages import CHARTS, NOON, Page, make_note, many_notes, report

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
"""A page that shows another one in a frame, some pixels wide, and then replaces itself by what it measured there.

The boxes of texts are taller than their letters, so they may touch a little.
"""


@in_a_browser
def test_a_browser_shows_every_chart_and_complains_of_nothing(tmp_path: Path, many: Page) -> None:
    page = tmp_path / "report.html"
    page.write_text(many.text)
    run = browse(tmp_path, page, "--dump-dom")
    assert "CONSOLE" not in run.stderr
    assert len(re.findall(r'<svg viewBox="[\d. ]+" role="img"', run.stdout)) == CHARTS
    assert not re.search("<(script|img)", run.stdout)


@in_a_browser
def test_a_browser_would_complain_of_what_is_loaded(tmp_path: Path, many: Page) -> None:
    """The test above can fail: the page's own policy refuses a picture from elsewhere, and the browser says so."""
    page = tmp_path / "report.html"
    page.write_text(many.text.replace("<main>", '<img src="other.png"><main>'))
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
def test_a_screenshot_has_the_colours(
    tmp_path: Path, many: Page, options: tuple[str, ...], colours: tuple[str, ...]
) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "page.png"
    page.write_text(many.text)
    browse(tmp_path, page, f"--screenshot={picture}", "--window-size=1200,2600", *options)
    with Image.open(picture) as image:
        assert image.size == (1200, 2600)
        found = image.convert("RGB").tobytes()
    counts = Counter(zip(found[::3], found[1::3], found[2::3], strict=True))
    assert all(counts[colour] > 500 for colour in map(rgb, colours))


@pytest.fixture(scope="module", params=["many", "narrow", "long", "one"])
def crowded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Page:
    """A page whose charts have little room for their texts."""
    notes = {
        "many": many_notes(),
        "narrow": (make_note(n, latency=2 + n / 1e6, first_token=0.1 if n < 90 else 10.0) for n in range(99)),
        "long": (make_note(n, latency=1e-3 * 1.2**n, cost=str(1e9 * n), finished=NOON + 86400 * n) for n in range(99)),
        "one": [make_note(model="model-" * 80, first_token=0.0)],
    }[request.param]
    return report(tmp_path_factory.mktemp("crowded"), notes)


@in_a_browser
@pytest.mark.parametrize("width", [390, 1200])
def test_nothing_overlaps_or_overflows(tmp_path: Path, crowded: Page, width: int) -> None:
    page = tmp_path / "measure.html"
    page.write_text(MEASURE.format(escape(crowded.text), width))
    dom = browse(tmp_path, page, "--dump-dom", "--window-size=1400,1000").stdout
    found = json.loads(re.sub("&lt;|&gt;|&amp;", "", dom.partition("<pre>")[2].partition("</pre>")[0]))
    assert found["width"] <= found["visible"] <= width
    assert len(found["sizes"]) > 20
    assert min(found["sizes"]) > 8
    assert found["overlaps"] == []
    assert found["outside"] == []
