"""PiAPI's models as data, and what a completion costs: prices, minimum charge, plans, roles, GPT ("gizmo") names.

Strategy: one frozen table, `CATALOG`, and pure functions over it. Every function that looks a model up takes
`prices`, a mapping of the caller's own `ModelInfo`, which is looked at before the table and may replace or extend it.

Money is an integer number of **picodollars** (10⁻¹² US dollars) inside and a `Decimal` of US dollars outside.
One dollar per million tokens is 10⁶ picodollars per token, so a price with up to six decimals is a whole number per
token: $0.1125 is 112,500. Nanodollars would not do, as that price is 112.5 of them. Sums over any number of calls are
therefore exact.
"""

from __future__ import annotations

import contextlib
import datetime
import re
from collections.abc import Mapping
from decimal import MAX_EMAX, MAX_PREC, MIN_EMIN, Context, Decimal, InvalidOperation, localcontext
from functools import cached_property
from types import MappingProxyType
from typing import Final
from urllib.parse import urlsplit

from attrs import Attribute, evolve, field, frozen

from piapi_async.errors import ConfigurationError, InvalidRequestError
from piapi_async.models.checks import show_fields

__all__ = [
    "CATALOG",
    "PLANS",
    "READ_ON",
    "ModelInfo",
    "allows",
    "at_vendor_price",
    "charge",
    "cost",
    "estimate_tokens",
    "find",
    "gizmo_model",
    "plain_dollars",
    "suggest",
    "to_dollars",
]

PLANS: Final = ("free", "creator", "pro")
"""The plans, each including those before it. The page says "Creator Plan or Above"; `pro` is what lies above."""

READ_ON: Final = datetime.date(2026, 11, 22)
"""When the provider's page was read for `CATALOG`. The page itself carries no date."""

_DOLLAR: Final = 10**12  # picodollars
_PICODOLLAR: Final = Decimal("1E-12")
_WHOLE: Final = Decimal(1)
_EXACT: Final = Context(prec=MAX_PREC, Emin=MIN_EMIN, Emax=MAX_EMAX)  # rounds nothing
_PER_MILLION: Final = 10**6  # picodollars a token, for one dollar per million tokens


def _scaled(amount: Decimal, scale: int) -> tuple[int, int]:
    """`amount * scale` as a whole number and a rest; by integers, so that no decimal context can round it."""
    numerator, denominator = amount.as_integer_ratio()
    return divmod(numerator * scale, denominator)


def _decimal(value: Decimal | str | int) -> Decimal:
    amount = None
    if not isinstance(value, (bool, float)):
        with contextlib.suppress(InvalidOperation, TypeError, ValueError):
            amount = Decimal(value)
    if amount is None:  # raised out here, so that the foreign error doesn't hide in __context__
        raise ConfigurationError(f"a price must be a Decimal, an int or a string such as '0.45', not {value!r}")
    return amount


def _optional_decimal(value: Decimal | str | int | None) -> Decimal | None:
    return None if value is None else _decimal(value)


def _check_amount(instance: ModelInfo, attribute: Attribute[Decimal], value: Decimal) -> None:
    name = attribute.name
    scale = _DOLLAR if name == "minimum_charge" else _PER_MILLION
    if not value.is_finite() or value < 0:
        raise ConfigurationError(f"{name} of {instance.model} must be finite and not negative, not {value}")
    if _scaled(value, scale)[1]:
        raise ConfigurationError(f"{name} of {instance.model} is finer than a picodollar: {value}")


def _check_plan(_instance: ModelInfo, _attribute: Attribute[str], value: str) -> None:
    _rank(value)


def _check_share(instance: ModelInfo, _attribute: Attribute[Decimal | None], value: Decimal | None) -> None:
    if value is not None and not (value.is_finite() and value > 0):
        raise ConfigurationError(f"share of {instance.model} must be a positive number, not {value}")


@frozen(slots=False, repr=False)
class ModelInfo:
    """A model, or a pattern of models, as the provider sells it.

    Prices may be given as `Decimal`, string or int; a float is refused, as its decimals aren't what was meant.

    Attributes:
        model: The name in a request. A name that ends in `*` is a pattern: every longer name that starts so.
        input_price: US dollars per million prompt tokens; at most six decimals.
        output_price: US dollars per million completion tokens; at most six decimals.
        minimum_charge: US dollars that one completion call costs at least, whatever its `n`.
        plan: The lowest plan that may use it, one of `PLANS`.
        system_role: Whether messages may have the role `system`.
        stream_only: Whether it answers by stream only: then `Client.complete` asks it by stream. The provider's page
            says so of no model.
        share: This price as a part of the vendor's own (0.75 is a quarter off), `None` if unknown.
        vendor: Whose model it is, `None` if unknown.
        max_output_tokens: The most tokens one choice can have, `None` if unknown. Not on the provider's page: from
            the vendors' own model pages, there to bound what a call without `max_tokens` can cost.
        image_tokens: The most tokens that a picture in the prompt counts as, whatever its size; `None` if unknown. Not
            on the provider's page either: from the vendors' own pages on pictures.
        as_of: When the price was read, `None` if unknown.

    Raises:
        ConfigurationError: A price is not a number, negative, not finite, or finer than a picodollar a token; or
            the plan isn't one of `PLANS`.
    """

    model: str
    input_price: Decimal = field(converter=_decimal, validator=_check_amount)
    output_price: Decimal = field(converter=_decimal, validator=_check_amount)
    minimum_charge: Decimal = field(default=Decimal(0), converter=_decimal, validator=_check_amount, kw_only=True)
    plan: str = field(default="free", validator=_check_plan, kw_only=True)
    system_role: bool = field(default=True, kw_only=True)
    stream_only: bool = field(default=False, kw_only=True)
    share: Decimal | None = field(default=None, converter=_optional_decimal, validator=_check_share, kw_only=True)
    vendor: str | None = field(default=None, kw_only=True)
    max_output_tokens: int | None = field(default=None, kw_only=True)
    image_tokens: int | None = field(default=None, kw_only=True)
    as_of: datetime.date | None = field(default=None, kw_only=True)

    __repr__ = show_fields

    @cached_property
    def picodollars(self) -> tuple[int, int, int]:
        """A prompt token, a completion token, and the minimum charge, in picodollars; worked out once."""
        return (
            _scaled(self.input_price, _PER_MILLION)[0],
            _scaled(self.output_price, _PER_MILLION)[0],
            _scaled(self.minimum_charge, _DOLLAR)[0],
        )

    @property
    def is_pattern(self) -> bool:
        """Tell whether `model` stands for every name that starts so."""
        return self.model.endswith("*")


def _rank(plan: str) -> int:
    if plan not in PLANS:
        raise ConfigurationError(f"plan must be one of {', '.join(PLANS)}, not {plan!r}")
    return PLANS.index(plan)


def _table(*rows: tuple[str, str, str, str, str, str, str, bool, int, int | None]) -> Mapping[str, ModelInfo]:
    return MappingProxyType(
        {
            name: ModelInfo(
                name,
                input_price,
                output_price,
                minimum_charge=minimum,
                plan=plan,
                share=share,
                vendor=vendor,
                system_role=system_role,
                max_output_tokens=cap,
                image_tokens=picture,
                as_of=READ_ON,
            )
            for name, input_price, output_price, minimum, plan, share, vendor, system_role, cap, picture in rows
        }
    )


# The last two columns are the vendors'. OpenAI publishes no cap for GPTs, which run on gpt-4o and have its figures.
# Pictures: OpenAI fits one into 768 by 2,048 pixels, so 8 tiles at most, of 170 tokens, and 85 for the whole; for
# gpt-4o-mini of 5,667, and 2,833. Anthropic scales one down to 1,600 tokens. The o1 of this table take none.
CATALOG: Final[Mapping[str, ModelInfo]] = _table(
    ("gpt-4o-mini", "0.1125", "0.45", "0", "free", "0.75", "OpenAI", True, 16_384, 48_169),
    ("gpt-4o", "1.875", "7.5", "0", "creator", "0.75", "OpenAI", True, 16_384, 1_445),
    ("o1-mini", "2.25", "9", "0", "creator", "0.75", "OpenAI", False, 65_536, None),
    ("o1-preview", "11.25", "45", "0", "creator", "0.75", "OpenAI", False, 32_768, None),
    ("claude-3-5-haiku-20241022", "0.75", "3.75", "0", "creator", "0.75", "Anthropic", True, 8_192, 1_600),
    ("claude-3-5-sonnet-20240620", "2.25", "11.25", "0", "creator", "0.75", "Anthropic", True, 8_192, 1_600),
    ("claude-3-5-sonnet-20241022", "2.25", "11.25", "0", "creator", "0.75", "Anthropic", True, 8_192, 1_600),
    ("gpt-4-gizmo-*", "2.5", "10", "0.005", "creator", "1", "OpenAI", True, 16_384, 1_445),
)
"""The table of the provider's page, by model name or pattern."""

_NO_PRICES: Final[Mapping[str, ModelInfo]] = MappingProxyType({})


def find(
    model: str, prices: Mapping[str, ModelInfo] = _NO_PRICES, table: Mapping[str, ModelInfo] = CATALOG
) -> ModelInfo | None:
    """Find the entry about a model: an exact name first, then the patterns; in each step `prices` before the table.

    Args:
        model: A model name as in a request.
        prices: The caller's own entries, by model name or pattern.
        table: Of the provider that is asked.

    Returns:
        The entry, or `None` for an unknown model (the page's own example, gpt-3.5-turbo, is one).
    """
    exact = prices.get(model) or table.get(model)
    if exact is not None:
        return exact
    for entries in (prices, table):
        for name, info in entries.items():
            # The star stands for one character or more.
            if name.endswith("*") and len(model) >= len(name) and model.startswith(name[:-1]):
                return info
    return None


def suggest(model: str, prices: Mapping[str, ModelInfo] = _NO_PRICES) -> str | None:
    """Return the known name nearest to a mistyped one, to say "did you mean".

    Args:
        model: A name that `find` doesn't know. The address of a GPT's page gets that GPT's model name.
        prices: The caller's own entries, by model name or pattern.

    Returns:
        A name of `prices` or `CATALOG`, or `None` if nothing is near.
    """
    if "/" in model:
        with contextlib.suppress(InvalidRequestError):
            return gizmo_model(model)
    import difflib  # deferred: few programs get a name wrong

    near = difflib.get_close_matches(model.lower(), {**CATALOG, **prices}, n=1)
    return near[0] if near else None


def allows(plan: str | None, needed: str) -> bool:
    """Tell whether a plan includes what needs at least another one.

    Args:
        plan: The caller's plan, one of `PLANS`, or `None` when unknown: then nothing is refused.
        needed: The plan that is needed, one of `PLANS`.

    Raises:
        ConfigurationError: There is no such plan.
    """
    return plan is None or _rank(plan) >= _rank(needed)


def cost(info: ModelInfo, prompt_tokens: int, completion_tokens: int) -> int:
    """Compute what one completion call costs, exactly.

    Args:
        info: The model's entry.
        prompt_tokens: Tokens of the prompt, 0 or more.
        completion_tokens: Tokens of the answer, all choices together, 0 or more.

    Returns:
        Picodollars (10⁻¹² US dollars), never less than the minimum charge; see `to_dollars`.

    Raises:
        ValueError: A negative number of tokens.
    """
    if prompt_tokens < 0 or completion_tokens < 0:
        raise ValueError(f"tokens can't be negative: {prompt_tokens} + {completion_tokens}")
    return charge(info.picodollars, prompt_tokens, completion_tokens)


def charge(rates: tuple[int, int, int], prompt_tokens: int, completion_tokens: int) -> int:
    """Do as `cost`, with the model's `picodollars` and counts that were checked."""
    per_prompt_token, per_completion_token, minimum = rates
    amount = per_prompt_token * prompt_tokens + per_completion_token * completion_tokens
    return amount if amount > minimum else minimum


def to_dollars(picodollars: int) -> Decimal:
    """Return the US dollars of an amount in picodollars, exactly, whatever the decimal context.

    It prints as people write it: zeros that say nothing are left out, and nothing is 0.
    """
    amount = _EXACT.multiply(picodollars, _PICODOLLAR).normalize(_EXACT)
    return amount if amount.as_tuple().exponent < 0 else _EXACT.quantize(amount, _WHOLE)  # type: ignore[operator]


def plain_dollars(amount: Decimal) -> Decimal:
    """Return a sum of US dollars in the form that `to_dollars` gives."""
    return to_dollars(from_dollars(amount))


def from_dollars(amount: Decimal) -> int:
    """Return the picodollars of an amount in US dollars; what is smaller than one is cut off."""
    numerator, denominator = amount.as_integer_ratio()
    return numerator * _DOLLAR // denominator


def at_vendor_price(info: ModelInfo) -> ModelInfo | None:
    """Return the same model at its vendor's own price, to tell what was saved; the vendors have no minimum charge.

    Returns:
        An entry with the vendor's prices (rounded to a picodollar a token where the share doesn't divide them),
        or `None` if the share is unknown.
    """
    share = info.share
    if share is None:
        return None
    with localcontext(prec=50):
        prices = [(price / share).quantize(Decimal("1e-6")) for price in (info.input_price, info.output_price)]
    return evolve(info, input_price=prices[0], output_price=prices[1], minimum_charge=Decimal(0), share=Decimal(1))


# Scripts written without spaces between words (Thai, Lao, Burmese, Khmer, kana, Han): each character is a word.
_UNSPACED: Final = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORDS: Final = f"[{_UNSPACED}]|[^\\s{_UNSPACED}]+"


def estimate_tokens(text: str) -> int:
    """Estimate the tokens of a text by the page's rule of thumb, 1 token ≈ 0.75 word, rounded up.

    A word is what stands between spaces, or one character of a script that has none (Chinese, Japanese, Thai, …).
    It is an estimate, not a bound: code, tables and long unbroken strings have more tokens than it says.

    Returns:
        Tokens; 0 for a text without words.
    """
    words = len(text.split() if text.isascii() else re.findall(_WORDS, text))
    return -(-words * 4 // 3)


_GIZMO_HOSTS: Final = ("chatgpt.com", "www.chatgpt.com", "chat.openai.com")  # the last one is where GPTs lived first
# At least six characters: the addresses of ChatGPT's projects look alike, but start with "g-p-".
_GIZMO_PATH: Final = r"/g/(g-[A-Za-z0-9]{6,})(?:-[^/]*)?(?:/.*)?"


def gizmo_model(url: str) -> str:
    """Return the model name of a GPT, from the address of its page.

    Args:
        url: Such as `https://chatgpt.com/g/g-gFt1ghYJl-logo-creator`, which gives `gpt-4-gizmo-g-gFt1ghYJl`.

    Raises:
        InvalidRequestError: The address isn't that of a GPT.
    """
    found, known = None, False
    with contextlib.suppress(ValueError):  # urlsplit refuses some broken addresses
        parts = urlsplit(url.strip())
        found = re.fullmatch(_GIZMO_PATH, parts.path)
        known = parts.scheme in ("http", "https") and parts.hostname in _GIZMO_HOSTS
    if found is None or not known:
        raise InvalidRequestError(
            f"not the address of a GPT: {url[:100]!r}; it looks like https://chatgpt.com/g/g-gFt1ghYJl-logo-creator"
        )
    return f"gpt-4-gizmo-{found[1]}"
