"""The elements of a page, whatever is written in them."""

from __future__ import annotations

from piapi_async.report.markup import card, colour_key, document, fold, quote, section, table, timestamp
from tests.report.pages import HOSTILE, NOON, Page

NAMES = HOSTILE[:-1]  # html.parser has its own view of a NUL


def test_a_table_holds_text_alone() -> None:
    page = Page(table("Title", NAMES, [NAMES, ("a", "b", "c", "d", "<0.1%")], names=2))
    assert page.tables == {"Title": [[*NAMES], [*NAMES], ["a", "b", "c", "d", "<0.1%"]]}
    assert not {"script", "img"} & set(page.tags)


def test_the_head_of_a_table_says_what_its_names_are_of() -> None:
    text = table("Title", ("Model", "Rows"), [("gpt-4o", "5")])
    assert '<th scope="col" class="name"><bdi>Model</bdi></th><th>Rows</th>' in text
    assert '<th scope="row" class="name"><bdi>gpt-4o</bdi></th><td>5</td>' in text


def test_other_texts_are_escaped() -> None:
    name = HOSTILE[0]
    parts = card(name, name, name), quote(name), fold(name, ""), colour_key(("main", name))
    page = Page(document(name, parts))
    assert "script" not in page.tags
    assert page.cards == {name: (name, name)}
    assert page.text.count("&lt;script&gt;") == 3 + 3 + 1


def test_a_card_may_have_no_small_print() -> None:
    assert Page(card("Rows", "5")).cards == {"Rows": ("5", "")}
    assert 'class="more"' not in card("Rows", "5")


def test_a_section_without_a_chart_is_a_sentence() -> None:
    assert section("Title", "Nothing.") == "<section><h2>Title</h2><p>Nothing.</p></section>"
    wide = section("Title", "All.", "<svg></svg>", "<table></table>", is_wide=True)
    content = "<div><figure><svg></svg></figure><div><table></table></div></div>"
    assert wide == f"<section class=wide><h2>Title</h2><p>All.</p>{content}</section>"


def test_a_time_is_read_by_machines_too() -> None:
    assert timestamp(NOON + 5) == '<time datetime="2026-11-18T12:00:05Z">2026-11-18 12:00:05</time>'


def test_no_control_character_is_on_the_page() -> None:
    raw = "\x1b]0;title\x07\x9b31m\r"
    page = document(raw, [card(raw, raw, raw), quote(raw), section(quote(raw), quote(raw)), fold(raw, "")])
    assert "\N{REPLACEMENT CHARACTER}]0;title" in page
    assert not {"\x1b", "\x07", "\x9b", "\r"} & set(page)
