"""Tokens to money: what an exchange costs, in whole nano-USD, and where a model's price comes from."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from math import inf
from typing import TYPE_CHECKING, Final, NamedTuple

from proxy.core.patterns import PatternTable
from proxy.core.price_table import VENDORS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from proxy.core.usage import Usage

# An upstream may claim any number of tokens. Costs stop here, at a million USD an exchange, so that thousands of such
# claims still add up within the 64 bits of a ledger's sum.
MAX_COST_NANO_USD: Final = 10**15

_NANO: Final = 10**9
_NANO_USD_PER_TOKEN: Final = 1000  # of a price of one USD per million tokens
_DECIMALS_OF_THAT: Final = 3

# The price of `claude-x` is that of `claude-x-20250929`, that of `gpt-x` that of `gpt-x-2025-08-07` and `gpt-x-latest`,
# unless the whole name has a row of its own. What comes behind the base of a fine-tuned model is its owner's.
_SNAPSHOT: Final = re.compile(
    r"-(?:latest|20\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])|20\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01]))\Z"
)
_LONGEST_NAME: Final = 128  # names come from clients: longer ones are nobody's, and not worth a search
_REMEMBERED_NAMES: Final = 1024

_VERSION: Final = re.compile(r"(?<=\d)-(?=\d)")


class _Rates(NamedTuple):
    """What a token costs by kind, in nano-USD times `scale`, so that every figure is a whole number."""

    scale: int
    input: int
    cached_input: int
    cache_write: int
    audio_input: int
    image_input: int
    output: int
    audio_output: int


@dataclass(frozen=True, slots=True)
class Price:
    """What a model costs, in USD per million tokens by kind, and `audio_minute` in USD per minute.

    None stands for the price of the base kind: `input` for the kinds of input, `output` for audio output.
    """

    input: Decimal
    output: Decimal
    cached_input: Decimal | None = None
    cache_write: Decimal | None = None
    audio_input: Decimal | None = None
    image_input: Decimal | None = None
    audio_output: Decimal | None = None
    audio_minute: Decimal = Decimal(0)
    rates: _Rates = field(init=False, repr=False, compare=False)  # worked out once: a price is asked for every exchange
    plain_rates: tuple[int, int, int, int] = field(
        init=False, repr=False, compare=False
    )  # scale, input, cached, output
    nano_usd_per_audio_s: Fraction = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rates = _rates(self)
        object.__setattr__(self, "rates", rates)
        object.__setattr__(self, "plain_rates", (rates.scale, rates.input, rates.cached_input, rates.output))
        object.__setattr__(self, "nano_usd_per_audio_s", Fraction(self.audio_minute) * _NANO / 60)

    @classmethod
    def of(
        cls,
        *,
        input: float | str,  # noqa: A002 - the name of the setting that it comes from
        output: float | str,
        cached_input: float | str | None = None,
        cache_write: float | str | None = None,
        audio_input: float | str | None = None,
        image_input: float | str | None = None,
        audio_output: float | str | None = None,
        audio_minute: float | str = 0,
    ) -> Price:
        """A price of the figures as they are written: the float 0.075 means 0.075, not its binary neighbour.

        Raises `ValueError` for one that is negative or not a finite number.
        """
        return cls(
            input=_amount(input),
            output=_amount(output),
            cached_input=None if cached_input is None else _amount(cached_input),
            cache_write=None if cache_write is None else _amount(cache_write),
            audio_input=None if audio_input is None else _amount(audio_input),
            image_input=None if image_input is None else _amount(image_input),
            audio_output=None if audio_output is None else _amount(audio_output),
            audio_minute=_amount(audio_minute),
        )


def plain_cost_nano_usd(input_tokens: int, output_tokens: int, price: Price) -> int:
    """`cost_nano_usd` of a usage without details, and of no negative count."""
    scale, input_rate, _, output_rate = price.plain_rates
    cost = input_tokens * input_rate + output_tokens * output_rate
    if scale != 1:
        cost = _divided(cost, scale)
    return cost if cost <= MAX_COST_NANO_USD else MAX_COST_NANO_USD  # noqa: FURB136 - a third faster than `min`


def cost_nano_usd(usage: Usage, price: Price) -> int:
    """What `usage` costs, in nano-USD, rounded half to even once, at the end; at most `MAX_COST_NANO_USD`.

    Details lie inside the totals (core/usage.py). Where they exceed them, they are cut in this order: cached, cache
    write, audio, image; what is left is plain input. Reasoning and predictions cost what output costs. Negative counts
    and durations, and durations that are no number, count as none.
    """
    scale, input_rate, cached_rate, output_rate = price.plain_rates
    tokens, output, cached = usage.input_tokens, usage.output_tokens, usage.cached_tokens
    if (
        scale != 1
        or usage.cache_write_tokens
        or usage.audio_input_tokens
        or usage.image_input_tokens
        or usage.audio_output_tokens
        or usage.audio_s
        or not 0 <= cached <= tokens
        or output < 0
    ):
        return _cost_of_any(usage, price)
    cost = (tokens - cached) * input_rate + cached * cached_rate + output * output_rate
    return cost if cost <= MAX_COST_NANO_USD else MAX_COST_NANO_USD  # noqa: FURB136 - a third faster than `min`


def _cost_of_any(usage: Usage, price: Price) -> int:
    """`cost_nano_usd` of what no straight line leads to."""
    rates = price.rates
    left = max(usage.input_tokens, 0)
    total = 0
    for detail, rate in (
        (usage.cached_tokens, rates.cached_input),
        (usage.cache_write_tokens, rates.cache_write),
        (usage.audio_input_tokens, rates.audio_input),
        (usage.image_input_tokens, rates.image_input),
    ):
        if detail > 0:
            taken = min(detail, left)
            left -= taken
            total += taken * rate
    output = max(usage.output_tokens, 0)
    audio = min(max(usage.audio_output_tokens, 0), output)
    total += left * rates.input + (output - audio) * rates.output + audio * rates.audio_output
    if 0 < usage.audio_s < inf and price.audio_minute:
        exact = Fraction(total, rates.scale) + Fraction(str(usage.audio_s)) * price.nano_usd_per_audio_s
        return min(round(exact), MAX_COST_NANO_USD)
    return min(_divided(total, rates.scale), MAX_COST_NANO_USD)


class PriceList:
    """The prices of all models: those of the configuration before the bundled ones.

    `configured` holds every model of the configuration, by name or pattern, the most specific of which decides; None
    for one without a price, which is then looked for in the bundled table (core/price_table.py), in lower case. There
    `ft:BASE:…` costs what the table has for `ft:BASE`; of other bases fine-tuned models have no price.
    """

    def __init__(self, configured: Mapping[str, Price | None]) -> None:
        self._configured = dict(configured)
        self._patterns = PatternTable(configured)
        self._bundled = _bundled()
        self._remembered = functools.lru_cache(_REMEMBERED_NAMES)(self._find)

    def __repr__(self) -> str:
        return f"PriceList({self._configured})"

    def find(self, asked: str, served: str | None) -> Price | None:
        """The price of the model that a client asked for as `asked`; None if it is not known.

        `served` is the upstream's own name for it, where a route renames it. The configuration knows the former, the
        bundled table the latter: `gpt-4o` may be the name that is given to a local model.
        """
        if len(asked) > _LONGEST_NAME:
            return self._find(asked, served)
        return self._remembered(asked, served)

    def _find(self, asked: str, served: str | None) -> Price | None:
        pattern = self._patterns.match(asked)
        configured = None if pattern is None else self._configured[pattern]
        return configured or self._find_bundled(asked if served is None else served)

    def _find_bundled(self, name: str) -> Price | None:
        if len(name) > _LONGEST_NAME:
            return None
        before, marker, behind = name.lower().partition("ft:")
        name = before + marker + behind.partition(":")[0] if marker else before
        return self._bundled.get(name) or self._bundled.get(_SNAPSHOT.sub("", name))


@functools.cache
def _bundled() -> dict[str, Price]:
    """The bundled table by every spelling of its names: bare, and with the prefixes under which it costs the same."""
    prices = {}
    for vendor in VENDORS:
        for name, row in vendor.rows.items():
            price = Price.of(**row._asdict())
            for prefix in ("", *vendor.prefixes):
                prices[prefix + name] = price
            if vendor.dotted_prefix is not None:
                prices[vendor.dotted_prefix + _VERSION.sub(".", name)] = price
    return prices


def _amount(figure: float | str) -> Decimal:
    amount = Decimal(str(figure))
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{figure} is not a price")
    return amount


def _rates(price: Price) -> _Rates:
    kinds = (
        price.input,
        price.input if price.cached_input is None else price.cached_input,
        price.input if price.cache_write is None else price.cache_write,
        price.input if price.audio_input is None else price.audio_input,
        price.input if price.image_input is None else price.image_input,
        price.output,
        price.output if price.audio_output is None else price.audio_output,
    )
    scale = 10 ** max(0, *(_decimals(kind) - _DECIMALS_OF_THAT for kind in kinds))
    return _Rates(scale, *(int(Fraction(kind) * _NANO_USD_PER_TOKEN * scale) for kind in kinds))


def _decimals(amount: Decimal) -> int:
    exponent = amount.as_tuple().exponent
    return -exponent if isinstance(exponent, int) else 0


def _divided(total: int, scale: int) -> int:
    """`total / scale`, rounded half to even."""
    if scale == 1:
        return total
    quotient, rest = divmod(total, scale)
    return quotient + (2 * rest > scale or (2 * rest == scale and quotient % 2 == 1))
