"""How much a request may use is said in numbers that everybody reads alike, or the request is refused."""

from __future__ import annotations

import pytest

from proxy.core.body import read_metered
from proxy.core.errors import BAD_REQUEST, INVALID_TYPE, INVALID_VALUE, ErrorKind, ProxyError

AMOUNTS = ("max_tokens", "max_completion_tokens", "max_output_tokens", "n", "best_of")


def body(name: str, value: str) -> bytes:
    return f'{{"model":"m","{name}":{value}}}'.encode()


@pytest.mark.parametrize("name", AMOUNTS)
@pytest.mark.parametrize("value", ["null", "0", "1", "16384", "999999999"])
def test_amounts(name: str, value: str) -> None:
    assert read_metered(body(name, value)).model == "m"


@pytest.mark.parametrize("name", AMOUNTS)
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("-1", INVALID_VALUE),
        ("1000000000", INVALID_VALUE),
        ("-1000000000000", INVALID_VALUE),
        ("1.5", INVALID_TYPE),
        ("1e3", INVALID_TYPE),
        ('"100"', INVALID_TYPE),
        ("true", INVALID_TYPE),
        ("[1]", INVALID_TYPE),
        ("{}", INVALID_TYPE),
    ],
)
def test_what_an_upstream_might_read_as_no_limit_is_refused(name: str, value: str, kind: ErrorKind) -> None:
    with pytest.raises(ProxyError, match=name) as caught:
        read_metered(body(name, value))
    assert (caught.value.kind, caught.value.param) == (kind, name)
    assert value not in caught.value.message


@pytest.mark.parametrize("name", AMOUNTS)
def test_an_amount_said_twice_is_refused(name: str) -> None:
    for again in (name, name.upper()):
        with pytest.raises(ProxyError) as caught:
            read_metered(f'{{"model":"m","{name}":1,"{again}":100000}}'.encode())
        assert (caught.value.kind, caught.value.param) == (BAD_REQUEST, name)
