"""What a client is told of its quota: the headers of OpenAI, and errors that say what to do."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import errors
from proxy.core.quota import Calendar, Demand, Kind, Limit, Limits, Refused
from proxy.core.quota_stands import Stands, laid_out
from proxy.core.quota_windows import Counter, advanced
from proxy.core.ratelimit import duration, headers, refusal, window_name
from tests.fakes.quota_stands import stood
from tests.fakes.quotas import START_MS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from proxy.core.headers import RawHeaders
    from proxy.core.quota import Standing

MINUTE = Limit(Kind.REQUESTS, 60, 60)
DAY = Limit(Kind.REQUESTS, 1000, Calendar.DAY)
TOKENS = Limit(Kind.TOKENS, 10_000, 60)
MONEY = Limit(Kind.SPEND, 2_500_000, Calendar.MONTH)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0, "0s"),
        (-1, "0s"),
        (0.0004, "0s"),
        (0.02, "20ms"),
        (0.9996, "1s"),
        (1, "1s"),
        (6.5, "6.5s"),
        (59.9999, "1m0s"),
        (66.5, "1m6.5s"),
        (3600, "1h0m0s"),
        (7265.25, "2h1m5.25s"),
        (86_400, "24h0m0s"),
    ],
)
def test_durations_as_openai_writes_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


def by_definition(standings: Sequence[Standing]) -> RawHeaders:
    """The headers, window by window."""
    told: RawHeaders = []
    for kind in (Kind.REQUESTS, Kind.TOKENS):
        of_kind = [standing for standing in standings if standing.limit.kind is kind]
        if of_kind:
            tightest = max(of_kind, key=lambda standing: Fraction(standing.used, standing.limit.amount))
            shown = str(tightest.limit.amount), str(tightest.remaining), duration(tightest.reset_s)
            for name, value in zip(("limit", "remaining", "reset"), shown, strict=True):
                told.append((f"x-ratelimit-{name}-{kind.value}".encode(), value.encode()))
    return told


def test_the_headers_are_of_the_tightest_window() -> None:
    """By the share that is left, not by the number; money has no header."""
    stands = stood(START_MS, (MINUTE, 30), (DAY, 900), (TOKENS, 1), (MONEY, 1))
    assert dict(headers(stands)) == {
        b"x-ratelimit-limit-requests": b"1000",
        b"x-ratelimit-remaining-requests": b"100",
        b"x-ratelimit-reset-requests": b"29.877s",
        b"x-ratelimit-limit-tokens": b"10000",
        b"x-ratelimit-remaining-tokens": b"9999",
        b"x-ratelimit-reset-tokens": b"1m29.877s",
    }
    assert headers(Stands()) == []


_COUNTS = st.integers(0, 3) | st.integers(0, 12_000)
_WINDOWS = st.lists(
    st.tuples(st.sampled_from([MINUTE, DAY, TOKENS, TOKENS._replace(amount=7, window=3600), MONEY]), _COUNTS, _COUNTS)
)


@given(_WINDOWS, st.tuples(_COUNTS, _COUNTS, _COUNTS), st.integers(0, 90_000))
def test_the_headers_say_what_the_standings_do(
    windows: list[tuple[Limit, int, int]], charged: tuple[int, int, int], passed_ms: int
) -> None:
    counters = []
    for limit, current, previous in windows:
        now = advanced(None, limit.window, START_MS + passed_ms)
        counters.append(Counter(limit.window, now.bucket, current, previous if isinstance(limit.window, int) else 0))
    laid = laid_out(Limits(tuple(limit for limit, *_ in windows)), counters)
    stands = Stands(laid, charged, START_MS + passed_ms)
    assert headers(stands) == by_definition(stands.standings())


@pytest.mark.parametrize(
    ("refused", "kind", "wait_s", "message"),
    [
        (
            Refused(MINUTE, 1.5, stood(START_MS, (MINUTE, 60))),
            errors.RATE_LIMIT_REQUESTS,
            1.5,
            "limit 60 requests per minute, used 60 requests, may use 1 request more. Please try again in 1.5s.",
        ),
        (
            Refused(TOKENS, 0.25, stood(START_MS, (TOKENS, 9_950))),
            errors.RATE_LIMIT_TOKENS,
            0.25,
            "limit 10000 tokens per minute, used 9950 tokens, may use 100 tokens more. Please try again in 250ms.",
        ),
        (
            Refused(TOKENS, None, stood(START_MS, (TOKENS, 0))),
            errors.LARGER_THAN_LIMIT,
            None,
            "it may use 100 tokens, and the limit is 10000 tokens per minute. Set max_tokens, or less of it.",
        ),
        (
            Refused(MONEY, 86_000, stood(START_MS, (MONEY, 2_500_000))),
            errors.INSUFFICIENT_QUOTA,
            None,
            "limit 2.5 USD per month, used 2.5 USD, may use 0.000007 USD more. It is renewed in 23h53m20s.",
        ),
        (
            Refused(None, None, Stands()),
            errors.TOO_MANY_AT_ONCE,
            None,
            "as many requests in flight as it may have at once.",
        ),
    ],
)
def test_the_error_says_which_limit_and_what_to_do(
    refused: Refused, kind: errors.ErrorKind, wait_s: float | None, message: str
) -> None:
    error = refusal(refused, Demand(1, 100, 7))
    assert (error.kind, error.retry_after_s) == (kind, wait_s)
    assert error.message.endswith(message)
    assert list(error.headers) == headers(refused.stands)


def test_waiting_for_next_month_is_not_suggested() -> None:
    """SDKs would obey a retry-after and freeze for days."""
    told = dict(errors.error_headers(refusal(Refused(MONEY, 86_000, stood(START_MS, (MONEY, 1))), Demand())))
    assert told[b"x-should-retry"] == b"false"
    assert b"retry-after" not in told
    short = dict(errors.error_headers(refusal(Refused(MINUTE, 1.2, stood(START_MS, (MINUTE, 60))), Demand(1))))
    assert (short[b"retry-after"], short[b"retry-after-ms"]) == (b"2", b"1200")
    assert b"x-should-retry" not in short


def test_names_of_windows() -> None:
    windows = [MINUTE, DAY, Limit(Kind.TOKENS, 1, 300), Limit(Kind.TOKENS, 1, 3600, "gpt-4*")]
    assert [window_name(limit) for limit in windows] == ["minute", "day", "5m0s", "hour for gpt-4*"]
