from __future__ import annotations

import copy
import decimal
import pickle
from decimal import Decimal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from piapi_async import catalog
from piapi_async.catalog import CATALOG, ModelInfo
from piapi_async.errors import ConfigurationError, InvalidRequestError

# Retyped from the provider's page: name, input, output, minimum, plan, share, system role.
PAGE = [
    ("gpt-4o-mini", "0.1125", "0.45", "0", "free", "0.75", True),
    ("gpt-4o", "1.875", "7.5", "0", "creator", "0.75", True),
    ("o1-mini", "2.25", "9", "0", "creator", "0.75", False),
    ("o1-preview", "11.25", "45", "0", "creator", "0.75", False),
    ("claude-3-5-haiku-20241022", "0.75", "3.75", "0", "creator", "0.75", True),
    ("claude-3-5-sonnet-20240620", "2.25", "11.25", "0", "creator", "0.75", True),
    ("claude-3-5-sonnet-20241022", "2.25", "11.25", "0", "creator", "0.75", True),
    ("gpt-4-gizmo-*", "2.5", "10", "0.005", "creator", "1", True),
]
MINE = ModelInfo("mine", "0.5", 2)


def known(model: str) -> ModelInfo:
    info = catalog.find(model)
    assert info is not None
    return info


@pytest.mark.parametrize("row", PAGE, ids=lambda row: row[0])
def test_the_page_is_the_table(row: tuple[str, str, str, str, str, str, bool]) -> None:
    name, input_price, output_price, minimum, plan, share, system_role = row
    info = CATALOG[name]
    assert (info.input_price, info.output_price) == (Decimal(input_price), Decimal(output_price))
    assert (info.minimum_charge, info.plan, info.share) == (Decimal(minimum), plan, Decimal(share))
    assert (info.model, info.system_role, info.as_of) == (name, system_role, catalog.READ_ON)
    assert info.vendor == ("Anthropic" if name.startswith("claude") else "OpenAI")
    assert info.max_output_tokens


def test_the_table_has_nothing_else_and_is_read_only() -> None:
    assert list(CATALOG) == [row[0] for row in PAGE]
    with pytest.raises(TypeError):
        CATALOG["mine"] = MINE  # type: ignore[index]
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        known("gpt-4o").plan = "free"  # type: ignore[misc]


def test_entries_copy_and_pickle_whole() -> None:
    info = known("gpt-4o-mini")
    assert pickle.loads(pickle.dumps(info)) == copy.deepcopy(info) == info


# --- find, suggest ---


def test_find_takes_the_exact_name_then_the_pattern() -> None:
    assert known("gpt-4o").model == "gpt-4o"
    assert known("gpt-4-gizmo-g-gFt1ghYJl").model == "gpt-4-gizmo-*"
    assert known("gpt-4-gizmo-*").model == "gpt-4-gizmo-*"


@pytest.mark.parametrize("model", ["gpt-3.5-turbo", "gpt-4-gizmo-", "gpt-4-gizmo", "GPT-4o", "gpt-4o ", "", "*"])
def test_find_knows_no_other_names(model: str) -> None:
    assert catalog.find(model) is None


def test_prices_of_the_caller_come_first() -> None:
    cheap = ModelInfo("gpt-4o", "1", "2")
    one_gpt = ModelInfo("gpt-4-gizmo-g-abcdef", "1", "2")
    all_gpts = ModelInfo("gpt-4-*", "1", "2")
    prices = {info.model: info for info in (MINE, cheap, one_gpt, all_gpts)}
    assert catalog.find("mine", prices) is MINE
    assert catalog.find("gpt-4o", prices) is cheap
    assert catalog.find("gpt-4-gizmo-g-abcdef", prices) is one_gpt
    assert catalog.find("gpt-4-gizmo-g-another", prices) is all_gpts
    assert catalog.find("gpt-4o-mini", prices) is known("gpt-4o-mini")
    assert catalog.find("nothing", prices) is None
    assert catalog.find("house-7", {"house-*": MINE}) is MINE  # the key counts, not the entry's own name


@pytest.mark.parametrize(
    ("model", "near"),
    [
        ("gpt4o", "gpt-4o"),
        ("GPT-4o-Mini", "gpt-4o-mini"),
        ("claude-3-5-sonnet-latest", "claude-3-5-sonnet-20241022"),
        ("gpt-4-gizmo", "gpt-4-gizmo-*"),
        ("https://chatgpt.com/g/g-gFt1ghYJl-logo-creator", "gpt-4-gizmo-g-gFt1ghYJl"),
        ("https://example.com/gpt-4o", None),
        ("llama", None),
        ("", None),
    ],
)
def test_suggest(model: str, near: str | None) -> None:
    assert catalog.suggest(model) == near


def test_suggest_knows_the_prices_of_the_caller() -> None:
    assert catalog.suggest("mime", {"mine": MINE}) == "mine"


def test_a_name_that_ends_in_a_star_is_a_pattern() -> None:
    assert [name for name, info in CATALOG.items() if info.is_pattern] == ["gpt-4-gizmo-*"]
    assert not MINE.is_pattern


def test_the_page_says_of_no_model_that_it_answers_by_stream_only() -> None:
    assert [name for name, info in CATALOG.items() if info.stream_only] == []


# --- cost ---


@pytest.mark.parametrize(
    ("model", "prompt", "completion", "dollars"),
    [
        ("gpt-4o-mini", 19, 9, "0.0000061875"),
        ("gpt-4o-mini", 1, 0, "0.0000001125"),  # 112.5 nanodollars: why the unit is a picodollar
        ("gpt-4o", 1_000_000, 1_000_000, "9.375"),
        ("o1-preview", 1000, 1000, "0.05625"),
        ("gpt-4o", 0, 0, "0"),
        ("gpt-4-gizmo-g-gFt1ghYJl", 1, 1, "0.005"),
        ("gpt-4-gizmo-g-gFt1ghYJl", 0, 0, "0.005"),
        ("gpt-4-gizmo-g-gFt1ghYJl", 2000, 0, "0.005"),
        ("gpt-4-gizmo-g-gFt1ghYJl", 2001, 0, "0.0050025"),
    ],
)
def test_cost_is_exact(model: str, prompt: int, completion: int, dollars: str) -> None:
    assert catalog.to_dollars(catalog.cost(known(model), prompt, completion)) == Decimal(dollars)


@given(st.sampled_from([*CATALOG]), st.integers(0, 10**12), st.integers(0, 10**12))
def test_cost_is_what_decimals_say(model: str, prompt: int, completion: int) -> None:
    info = CATALOG[model]
    with decimal.localcontext(prec=60):
        used = (info.input_price * prompt + info.output_price * completion) / 10**6
        expected = max(used, info.minimum_charge)
    with decimal.localcontext(prec=3):  # a caller's own context must not round
        assert catalog.to_dollars(catalog.cost(info, prompt, completion)) == expected


@pytest.mark.parametrize(
    ("dollars", "picodollars"), [("0", 0), ("5", 5 * 10**12), ("0.0000001125", 112_500), ("1e-12", 1), ("1.9e-12", 1)]
)
def test_dollars_become_whole_picodollars(dollars: str, picodollars: int) -> None:
    assert catalog.from_dollars(Decimal(dollars)) == picodollars


@given(st.integers(0, 10**30))
def test_property_dollars_and_back(picodollars: int) -> None:
    with decimal.localcontext(prec=3):  # a caller's own context must not round
        assert catalog.from_dollars(catalog.to_dollars(picodollars)) == picodollars


@pytest.mark.parametrize(("prompt", "completion"), [(-1, 0), (0, -1), (-5, 10)])
def test_cost_refuses_negative_tokens(prompt: int, completion: int) -> None:
    with pytest.raises(ValueError, match="negative"):
        catalog.cost(MINE, prompt, completion)


def test_cost_at_the_vendors_price() -> None:
    vendor = catalog.at_vendor_price(known("gpt-4o-mini"))
    assert vendor is not None
    assert (vendor.input_price, vendor.output_price, vendor.share) == (Decimal("0.15"), Decimal("0.6"), Decimal(1))
    gizmo = catalog.at_vendor_price(known("gpt-4-gizmo-g-gFt1ghYJl"))
    assert gizmo is not None
    assert (gizmo.input_price, gizmo.minimum_charge) == (Decimal("2.5"), Decimal(0))
    assert catalog.at_vendor_price(MINE) is None
    odd = catalog.at_vendor_price(ModelInfo("odd", 1, 1, share="0.7"))
    assert odd is not None
    assert odd.input_price == Decimal("1.428571")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"input_price": "-1"}, "input_price of m must be finite and not negative"),
        ({"input_price": "NaN"}, "finite"),
        ({"output_price": "Infinity"}, "finite"),
        ({"output_price": "0.0000001"}, "finer than a picodollar"),
        ({"minimum_charge": "1e-13"}, "finer than a picodollar"),
        ({"input_price": "cheap"}, "a string such as '0.45', not 'cheap'"),
        ({"input_price": 0.1}, "not 0.1"),
        ({"input_price": True}, "not True"),
        ({"input_price": None}, "not None"),
        ({"input_price": (0, (1,), 3.5)}, "not"),
        ({"share": "0"}, "share of m must be a positive number"),
        ({"share": "NaN"}, "share"),
        ({"plan": "gold"}, "one of free, creator, pro, not 'gold'"),
    ],
)
def test_an_entry_refuses_what_it_cannot_count_with(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message) as caught:
        ModelInfo(**{"model": "m", "input_price": 1, "output_price": 1, **options})  # type: ignore[arg-type]
    assert caught.value.__context__ is None


# --- plans ---


@pytest.mark.parametrize(
    ("plan", "needed", "allowed"),
    [
        ("free", "free", True),
        ("free", "creator", False),
        ("creator", "creator", True),
        ("creator", "free", True),
        ("creator", "pro", False),
        ("pro", "creator", True),
        (None, "pro", True),
    ],
)
def test_a_plan_includes_those_below(plan: str | None, needed: str, allowed: bool) -> None:
    assert catalog.allows(plan, needed) is allowed


@pytest.mark.parametrize(("plan", "needed"), [("gold", "free"), ("free", "gold"), ("Free", "free")])
def test_an_unknown_plan_is_an_error(plan: str, needed: str) -> None:
    with pytest.raises(ConfigurationError, match="plan must be one of free, creator, pro"):
        catalog.allows(plan, needed)


# --- tokens ---


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("", 0), (" \n", 0), ("one", 2), ("one two three", 4), ("word " * 750, 1000), ("你好世界", 6), ("你好 world", 4)],
)
def test_estimate_is_the_pages_rule(text: str, tokens: int) -> None:
    assert catalog.estimate_tokens(text) == tokens


# --- gizmo ---


@pytest.mark.parametrize(
    "url",
    [
        "https://chatgpt.com/g/g-gFt1ghYJl-logo-creator",
        "https://chatgpt.com/g/g-gFt1ghYJl",
        "https://chatgpt.com/g/g-gFt1ghYJl/",
        " https://www.chatgpt.com/g/g-gFt1ghYJl-logo-creator?model=gpt-4o#top\n",
        "https://chatgpt.com/g/g-gFt1ghYJl-logo-creator/c/0123-4567",
        "http://chat.openai.com/g/g-gFt1ghYJl-logo",
        "https://CHATGPT.com/g/g-gFt1ghYJl-логотип",
    ],
)
def test_gizmo_model(url: str) -> None:
    assert catalog.gizmo_model(url) == "gpt-4-gizmo-g-gFt1ghYJl"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "gpt-4-gizmo-g-gFt1ghYJl",
        "chatgpt.com/g/g-gFt1ghYJl",
        "ftp://chatgpt.com/g/g-gFt1ghYJl",
        "https://chatgpt.com/",
        "https://chatgpt.com/c/g-gFt1ghYJl",
        "https://chatgpt.com/g/gFt1ghYJl",
        "https://chatgpt.com/g/g-",
        "https://chatgpt.com/g/g-p-0123456789-a-project/project",
        "https://example.com/g/g-gFt1ghYJl",
        "https://chatgpt.com.example.com/g/g-gFt1ghYJl",
        "https://[chatgpt.com/g/g-gFt1ghYJl",
    ],
)
def test_gizmo_model_refuses_other_addresses(url: str) -> None:
    with pytest.raises(InvalidRequestError, match="not the address of a GPT") as caught:
        catalog.gizmo_model(url)
    assert caught.value.__context__ is None
