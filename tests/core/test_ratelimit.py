"""What a client is told of its quota: the headers of OpenAI, and errors that say what to do."""

from __future__ import annotations

import pytest

from proxy.core import errors
from proxy.core.quota import Calendar, Demand, Kind, Limit, Refused, Standing
from proxy.core.ratelimit import duration, headers, refusal, window_name

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


def test_the_headers_are_of_the_tightest_window() -> None:
    """By the share that is left, not by the number; money has no header."""
    standings = [
        Standing(MINUTE, 30, 30, 30.0),
        Standing(DAY, 900, 100, 66.5),
        Standing(TOKENS, 1, 9_999, 0.02),
        Standing(MONEY, 1, 2_499_999, 9.0),
    ]
    assert dict(headers(standings)) == {
        b"x-ratelimit-limit-requests": b"1000",
        b"x-ratelimit-remaining-requests": b"100",
        b"x-ratelimit-reset-requests": b"1m6.5s",
        b"x-ratelimit-limit-tokens": b"10000",
        b"x-ratelimit-remaining-tokens": b"9999",
        b"x-ratelimit-reset-tokens": b"20ms",
    }
    assert headers([]) == []


@pytest.mark.parametrize(
    ("refused", "kind", "wait_s", "message"),
    [
        (
            Refused(MINUTE, 1.5, (Standing(MINUTE, 60, 0, 60),)),
            errors.RATE_LIMIT_REQUESTS,
            1.5,
            "limit 60 requests per minute, used 60 requests, may use 1 request more. Please try again in 1.5s.",
        ),
        (
            Refused(TOKENS, 0.25, (Standing(TOKENS, 9_950, 50, 1),)),
            errors.RATE_LIMIT_TOKENS,
            0.25,
            "limit 10000 tokens per minute, used 9950 tokens, may use 100 tokens more. Please try again in 250ms.",
        ),
        (
            Refused(TOKENS, None, (Standing(TOKENS, 0, 10_000, 0),)),
            errors.LARGER_THAN_LIMIT,
            None,
            "it may use 100 tokens, and the limit is 10000 tokens per minute. Set max_tokens, or less of it.",
        ),
        (
            Refused(MONEY, 86_000, (Standing(MONEY, 2_500_000, 0, 86_000),)),
            errors.INSUFFICIENT_QUOTA,
            None,
            "limit 2.5 USD per month, used 2.5 USD, may use 0.000007 USD more. It is renewed in 23h53m20s.",
        ),
        (
            Refused(None, None, ()),
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
    assert list(error.headers) == headers(refused.standings)


def test_waiting_for_next_month_is_not_suggested() -> None:
    """SDKs would obey a retry-after and freeze for days."""
    told = dict(errors.error_headers(refusal(Refused(MONEY, 86_000, (Standing(MONEY, 1, 0, 1),)), Demand())))
    assert told[b"x-should-retry"] == b"false"
    assert b"retry-after" not in told
    short = dict(errors.error_headers(refusal(Refused(MINUTE, 1.2, (Standing(MINUTE, 60, 0, 1),)), Demand(1))))
    assert (short[b"retry-after"], short[b"retry-after-ms"]) == (b"2", b"1200")
    assert b"x-should-retry" not in short


def test_names_of_windows() -> None:
    windows = [MINUTE, DAY, Limit(Kind.TOKENS, 1, 300), Limit(Kind.TOKENS, 1, 3600, "gpt-4*")]
    assert [window_name(limit) for limit in windows] == ["minute", "day", "5m0s", "hour for gpt-4*"]
