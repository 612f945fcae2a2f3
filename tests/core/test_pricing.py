"""Money is added up exactly, rounded once, and no claim of an upstream makes it negative, wrong or too large."""

from __future__ import annotations

import time
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import astuple, replace

from proxy.core.pricing import MAX_COST_NANO_USD, Price, PriceList, _cost_of_any, cost_nano_usd, plain_cost_nano_usd
from proxy.core.usage import Usage

EVERY_KIND = Price.of(
    input=1, cached_input=0.1, cache_write=1.25, audio_input=40, image_input=8, output=5, audio_output=80
)
MINUTES = Price.of(input=0, output=0, audio_minute=0.006)

wild_counts = st.integers(-(2**70), 2**70)
counts = st.integers(0, 10**9)
figures = st.decimals(0, 1000, places=6).map(str)
maybe_figures = st.none() | figures
prices = st.builds(
    Price.of,
    input=figures,
    output=figures,
    cached_input=maybe_figures,
    cache_write=maybe_figures,
    audio_input=maybe_figures,
    image_input=maybe_figures,
    audio_output=maybe_figures,
    audio_minute=figures,
)
wild_usages = st.builds(Usage, *[wild_counts] * 10, st.floats())
plain_usages = st.builds(Usage, *[st.integers(-3, 300) | wild_counts] * 2, st.integers(-3, 300))
shares = st.lists(st.integers(0, 10**6), min_size=5, max_size=5)


@st.composite
def consistent_usages(draw: st.DrawFn) -> Usage:
    """Details that fit into the totals, as an honest upstream reports them."""
    plain, cached, written, audio, image = draw(shares)
    text, spoken, reasoning = draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6)), draw(st.integers(0, 10**6))
    return Usage(
        input_tokens=plain + cached + written + audio + image,
        output_tokens=text + spoken + reasoning,
        cached_tokens=cached,
        cache_write_tokens=written,
        audio_input_tokens=audio,
        image_input_tokens=image,
        reasoning_tokens=reasoning,
        audio_output_tokens=spoken,
        audio_s=draw(st.integers(0, 10**5)) / 8,
    )


def plain_sum(usage: Usage, price: Price) -> Fraction:
    """The same by the book, in fractions of nano-USD, for usage whose details fit into the totals."""
    details = (
        (usage.cached_tokens, price.cached_input),
        (usage.cache_write_tokens, price.cache_write),
        (usage.audio_input_tokens, price.audio_input),
        (usage.image_input_tokens, price.image_input),
    )
    plain_input = usage.input_tokens - sum(tokens for tokens, _ in details)
    million_usd = plain_input * Fraction(price.input)
    million_usd += sum(tokens * Fraction(price.input if rate is None else rate) for tokens, rate in details)
    million_usd += (usage.output_tokens - usage.audio_output_tokens) * Fraction(price.output)
    spoken = price.output if price.audio_output is None else price.audio_output
    million_usd += usage.audio_output_tokens * Fraction(spoken)
    return million_usd * 1000 + Fraction(usage.audio_s) / 60 * Fraction(price.audio_minute) * 10**9


@given(plain_usages | wild_usages, prices | st.builds(Price.of, input=st.integers(0, 99), output=st.integers(0, 99)))
def test_the_straight_line_leads_where_the_long_way_does(usage: Usage, price: Price) -> None:
    assert cost_nano_usd(usage, price) == _cost_of_any(usage, price)
    plain = Usage(abs(usage.input_tokens), abs(usage.output_tokens))
    assert plain_cost_nano_usd(plain.input_tokens, plain.output_tokens, price) == _cost_of_any(plain, price)


@pytest.mark.parametrize(
    ("usage", "price", "nano_usd"),
    [
        (Usage(), EVERY_KIND, 0),
        (Usage(1_000_000, 0), EVERY_KIND, 1_000_000_000),
        (Usage(0, 1_000_000), EVERY_KIND, 5_000_000_000),
        (Usage(12, 12), Price.of(input=2.5, output=10), 12 * 2_500 + 12 * 10_000),
        (Usage(12, 12), Price.of(input=0.075, output=0.3), 12 * 75 + 12 * 300),
        # 1000 of input: 100 cached, 200 written, 30 audio, 70 image, 600 plain; 50 of output, 20 of it audio
        (
            Usage(1000, 50, 100, 200, 30, 70, 10, 20, 5, 5),
            EVERY_KIND,
            600 * 1_000 + 100 * 100 + 200 * 1_250 + 30 * 40_000 + 70 * 8_000 + 30 * 5_000 + 20 * 80_000,
        ),
        (Usage(1000, 50, 100, 200, 30, 70, 10, 20), Price.of(input=1, output=5), 1000 * 1_000 + 50 * 5_000),
        (Usage(audio_s=60.0), MINUTES, 6_000_000),
        (Usage(audio_s=8.47), MINUTES, 847_000),
        (Usage(audio_s=0.1), MINUTES, 10_000),
        (
            Usage(audio_s=0.1),
            Price.of(input=0, output=0, audio_minute="0.0000003"),
            0,
        ),  # half a nano-USD, not a bit more
        (Usage(10, 0, audio_s=60.0), Price.of(input=1, output=0, audio_minute=1), 1_000_010_000),
        (Usage(10, 10, audio_s=60.0), Price.of(input=0, output=0), 0),
    ],
)
def test_worked_out_by_hand(usage: Usage, price: Price, nano_usd: int) -> None:
    assert cost_nano_usd(usage, price) == nano_usd


@pytest.mark.parametrize(
    ("usage", "nano_usd"),
    [
        (Usage(100, 0, cached_tokens=300), 100 * 100),
        (Usage(100, 0, cached_tokens=60, cache_write_tokens=60), 60 * 100 + 40 * 1_250),
        (Usage(100, 0, cached_tokens=60, cache_write_tokens=60, audio_input_tokens=60), 60 * 100 + 40 * 1_250),
        (Usage(100, 0, audio_input_tokens=90, image_input_tokens=90), 90 * 40_000 + 10 * 8_000),
        (Usage(100, 0, cached_tokens=-50), 100 * 1_000),
        (Usage(-100, 0, cached_tokens=50), 0),
        (Usage(0, 10, audio_output_tokens=30), 10 * 80_000),
        (Usage(0, 10, audio_output_tokens=-30), 10 * 5_000),
        (Usage(0, -10, audio_output_tokens=5), 0),
        (Usage(0, 10, reasoning_tokens=500), 10 * 5_000),
    ],
)
def test_details_beyond_the_totals_are_cut_in_order(usage: Usage, nano_usd: int) -> None:
    assert cost_nano_usd(usage, EVERY_KIND) == nano_usd


@pytest.mark.parametrize(
    ("tokens", "price_usd", "nano_usd"),
    [
        (1, "0.0004", 0),
        (1, "0.0005", 0),
        (1, "0.00050001", 1),
        (1, "0.0006", 1),
        (3, "0.0005", 2),
        (5, "0.0005", 2),
        (7, "0.0005", 4),
        (1, "0.0375", 38),
        (3, "0.0375", 112),
        (2, "0.0375", 75),
        (1000, "0.0000001", 0),
        (10_000_000_000, "0.0000001", 1_000_000),
    ],
)
def test_rounded_half_to_even_at_the_end(tokens: int, price_usd: str, nano_usd: int) -> None:
    assert cost_nano_usd(Usage(tokens), Price.of(input=price_usd, output=0)) == nano_usd


def test_halves_of_both_kinds_are_rounded_once() -> None:
    assert cost_nano_usd(Usage(1, 1), Price.of(input="0.0005", output="0.0005")) == 1


@pytest.mark.parametrize(
    ("figure", "exact"), [(0.075, "0.075"), (0.1, "0.1"), (2.5, "2.5"), (0.0375, "0.0375"), (1e-7, "1E-7"), (15, "15")]
)
def test_a_float_of_the_configuration_means_what_is_written(figure: float, exact: str) -> None:
    price = Price.of(input=figure, output=figure, cached_input=figure, audio_minute=figure)
    assert price == Price.of(input=exact, output=exact, cached_input=exact, audio_minute=exact)
    assert price.input == Decimal(exact)


@pytest.mark.parametrize("figure", [-1, -1e-9, float("nan"), float("inf"), "-0.1", "NaN", "Infinity"])
def test_what_is_no_price_is_refused(figure: float | str) -> None:
    with pytest.raises(ValueError, match="is not a price"):
        Price.of(input=0, output=figure)


@given(usage=consistent_usages(), price=prices)
def test_equals_the_sum_by_the_book(usage: Usage, price: Price) -> None:
    assert cost_nano_usd(usage, price) == min(round(plain_sum(usage, price)), MAX_COST_NANO_USD)


@given(one=consistent_usages(), other=consistent_usages(), price=prices)
def test_additive_within_a_nano_usd(one: Usage, other: Usage, price: Price) -> None:
    both = Usage(*(a + b for a, b in zip(astuple(one), astuple(other), strict=True)))
    together = cost_nano_usd(both, price)
    if together < MAX_COST_NANO_USD:
        assert abs(together - cost_nano_usd(one, price) - cost_nano_usd(other, price)) <= 1


@pytest.mark.parametrize("audio_s", [float("inf"), float("-inf"), float("nan"), -60.0, -0.0])
def test_a_duration_that_is_none_costs_nothing(audio_s: float) -> None:
    assert cost_nano_usd(Usage(1, 0, audio_s=audio_s), Price.of(input=1, output=0, audio_minute=1)) == 1_000


@pytest.mark.parametrize("usage", [Usage(2**70), Usage(0, 2**70), Usage(audio_s=1e308)])
def test_no_claim_costs_more_than_the_ledger_can_add_up(usage: Usage) -> None:
    for price in (
        Price.of(input=1, output=1, audio_minute=1),
        Price.of(input="0.0375", output="0.0375", audio_minute=1),
    ):
        assert cost_nano_usd(usage, price) == MAX_COST_NANO_USD


@given(usage=wild_usages, price=prices)
def test_no_claim_raises_or_costs_less_than_nothing(usage: Usage, price: Price) -> None:
    cost = cost_nano_usd(usage, price)
    assert type(cost) is int
    assert 0 <= cost <= MAX_COST_NANO_USD


@given(usage=wild_usages, price=prices, more=counts)
def test_more_tokens_or_seconds_never_cost_less(usage: Usage, price: Price, more: int) -> None:
    cost = cost_nano_usd(usage, price)
    assert cost_nano_usd(replace(usage, input_tokens=usage.input_tokens + more), price) >= cost
    assert cost_nano_usd(replace(usage, output_tokens=usage.output_tokens + more), price) >= cost
    if 0 <= usage.audio_s < 1e300:
        assert cost_nano_usd(replace(usage, audio_s=usage.audio_s + more), price) >= cost


@given(usage=consistent_usages(), price=prices, data=st.data())
def test_a_token_that_turns_out_to_be_of_a_kind_costs_what_that_kind_costs(
    usage: Usage, price: Price, data: st.DataObject
) -> None:
    kind, rate, base, room = data.draw(
        st.sampled_from(
            [
                ("cached_tokens", price.cached_input, price.input, usage.input_tokens),
                ("cache_write_tokens", price.cache_write, price.input, usage.input_tokens),
                ("audio_input_tokens", price.audio_input, price.input, usage.input_tokens),
                ("image_input_tokens", price.image_input, price.input, usage.input_tokens),
                ("audio_output_tokens", price.audio_output, price.output, usage.output_tokens),
            ]
        )
    )
    bare = Usage(input_tokens=usage.input_tokens, output_tokens=usage.output_tokens)
    fewer, more = sorted(data.draw(st.tuples(st.integers(0, room), st.integers(0, room))))
    first = cost_nano_usd(replace(bare, **{kind: fewer}), price)
    second = cost_nano_usd(replace(bare, **{kind: more}), price)
    if rate is None or rate == base:
        assert first == second
    elif rate > base:
        assert first <= second
    else:
        assert first >= second


def test_the_configuration_comes_before_the_table() -> None:
    own = Price.of(input=1, output=2)
    prices = PriceList({"gpt-4o": own})
    assert prices.find("gpt-4o", None) is own
    assert prices.find("gpt-4o", "o3") is own
    assert prices.find("gpt-4o-mini", None) == PriceList({}).find("gpt-4o-mini", None)


def test_the_most_specific_pattern_of_the_configuration_decides() -> None:
    wide, narrow = Price.of(input=1, output=1), Price.of(input=2, output=2)
    prices = PriceList({"*": wide, "gpt-4o*": narrow, "gpt-4o-mini": None})
    assert prices.find("gpt-4o-audio-preview", None) is narrow
    assert prices.find("llama3", None) is wide
    assert prices.find("gpt-4o-mini", None) == PriceList({}).find("gpt-4o-mini", None)


def test_a_model_that_is_configured_free_is_free() -> None:
    free = PriceList({"gpt-4o": Price.of(input=0, output=0)}).find("gpt-4o", None)
    assert free is not None
    assert cost_nano_usd(Usage(10**6, 10**6), free) == 0


def test_the_bundled_price_is_that_of_the_model_that_serves() -> None:
    prices = PriceList({"smart": None})
    assert prices.find("smart", "gpt-4o") == prices.find("gpt-4o", None)
    assert prices.find("smart", None) is None
    assert prices.find("gpt-4o", "llama3.3") is None


def test_shows_what_is_configured() -> None:
    assert repr(PriceList({"my-model": None})) == "PriceList({'my-model': None})"


def test_no_name_of_a_client_makes_the_search_slow() -> None:
    prices = PriceList({"my-*": None})
    name = "-2024-08-0" * 1_000_000
    began_s = time.thread_time()
    for _ in range(50):
        assert prices.find("gpt-4o", name) is None
    assert time.thread_time() - began_s < 0.5


def test_names_of_clients_are_not_kept() -> None:
    prices = PriceList({"my-*": None})
    known = len(prices._bundled)
    for number in range(5000):
        assert prices.find(f"gpt-4o-{number}", f"gpt-4o-mini-{number}") is None
        assert prices.find(f"{'x' * 128}-{number}", None) is None
    assert len(prices._bundled) == known
    remembered = prices._remembered.cache_info()
    assert (remembered.currsize, remembered.misses) == (1024, 5000), "no more than so many, and no long ones"
