"""Which upstream serves it, and what exactly is sent there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from proxy.core import errors
from proxy.core.patterns import PatternTable
from proxy.phases.admit import Admission
from proxy.phases.route import Model, Router, Sending, find, write
from tests.fakes.arrived import CHAT, RESPONSES, SECRET, STATEFUL, UPLOAD, arrived, principal
from tests.fakes.routes import model, upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from proxy.core.headers import RawHeaders
    from proxy.phases.exchange import Exchange
    from proxy.phases.upstreams import Upstream

VIA = b"1.1 sluice-test"
BODY = b'{ "model" :"asked", "n":1.0 }'
OURS = (b"Authorization", b"Bearer " + SECRET)


def router(routes: Mapping[str, Model] | None = None, default: Upstream | None = None) -> Router:
    return Router(default or upstream(), PatternTable(routes or {}), routes or {})


def admitted(model: str | None = "asked", body: bytes = BODY, **more: Any) -> Admission:
    return Admission(principal(), model, streamed=False, body=body, **more)


def routed(exchange: Exchange | None = None, admission: Admission | None = None, by: Router | None = None) -> Sending:
    exchange, admission = exchange or arrived(), admission or admitted()
    route = find(exchange, admission, by or router()).model.routes[0]
    return write(exchange, admission, route, 0, VIA)


def sent_headers(chosen: Sending) -> dict[bytes, bytes]:
    headers = {name.lower(): value for name, value in chosen.request.headers}
    assert len(headers) == len(chosen.request.headers), "a header went up twice"
    return headers


async def body_of(chosen: Sending) -> bytes:
    body = chosen.request.body
    return body if isinstance(body, bytes) else b"".join([piece async for piece in body])


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


def test_without_models_every_model_goes_to_the_default_under_one_label() -> None:
    assert find(arrived(), admitted(), router()).label == "*"
    assert (routed().upstream.name, routed().request.body) == ("up", BODY)


def test_the_most_specific_pattern_wins_and_is_the_label() -> None:
    upstreams = {name: upstream(name) for name in ("a", "b", "c")}
    routes = {
        "gpt-*": model(upstreams["a"]),
        "gpt-4o*": model(upstreams["b"]),
        "gpt-4o": model(upstreams["c"]),
    }
    found = {name: router(routes).find(name) for name in ("gpt-3", "gpt-4o-mini", "gpt-4o", "o1")}
    assert {name: hit and (hit.label, hit.model.routes[0].upstream.name) for name, hit in found.items()} == {
        "gpt-3": ("gpt-*", "a"),
        "gpt-4o-mini": ("gpt-4o*", "b"),
        "gpt-4o": ("gpt-4o", "c"),
        "o1": None,
    }


@pytest.mark.parametrize(
    ("endpoint", "kind"), [(CHAT, errors.MODEL_NOT_FOUND), (RESPONSES, errors.MODEL_NOT_FOUND_RESPONSES)]
)
def test_an_unknown_model_is_not_found(endpoint: Any, kind: errors.ErrorKind) -> None:
    with pytest.raises(errors.ProxyError) as caught:
        routed(arrived(endpoint), by=router({"other": model(upstream())}))
    assert caught.value.kind is kind


def test_without_a_model_the_default_upstream_is_asked() -> None:
    by = router({"other": model(upstream("b"))}, default=upstream("a"))
    target = find(arrived(STATEFUL, path="/files", method="GET"), admitted(None, b"", rest=pieces()), by)
    assert (target.model.routes[0].upstream.name, target.label) == ("a", "")


@pytest.mark.parametrize(
    ("base_path", "query", "path", "asked", "target"),
    [
        ("/v1", {}, "/files", "", b"/v1/files"),
        ("", {}, "/files", "after=x%20y", b"/files?after=x%20y"),
        ("/api/v1", {}, "/files/a%20b", "a=1&a=2&b", b"/api/v1/files/a%20b?a=1&a=2&b"),
        ("/v1", {"api-version": "2"}, "/files", "", b"/v1/files?api-version=2"),
        ("/v1", {"api-version": "2"}, "/files", "api-version=1&x=y%26z", b"/v1/files?x=y%26z&api-version=2"),
        ("/v1", {"code": "a b&c"}, "/files", "", b"/v1/files?code=a+b%26c"),
        ("/v1", {}, "/files/\u00e9", "", b"/v1/files/%C3%A9"),
        ("/v1", {}, "/files", 'a="\r\n', b"/v1/files?a=%22%0D%0A"),
    ],
)
def test_targets_keep_their_bytes_and_take_the_configured_query(
    base_path: str, query: dict[str, str], path: str, asked: str, target: bytes
) -> None:
    assert upstream(base_path=base_path, query=query).target(path, asked) == target


def test_metered_requests_go_to_their_endpoint_however_the_url_was_spelled() -> None:
    exchange = arrived(path="/chat/completions/", query="api-version=1")
    assert routed(exchange).request.target == b"/v1/chat/completions?api-version=1"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, (b"authorization", b"Bearer k1")),
        ({"auth": "api-key"}, (b"api-key", b"k1")),
        ({"auth": "none"}, None),
        ({"auth": "bearer", "api_keys": []}, None),
        ({"auth": "passthrough"}, (b"authorization", b"Bearer " + SECRET)),
    ],
)
def test_the_upstream_gets_its_credential_and_not_ours(
    settings: dict[str, Any], expected: tuple[bytes, bytes] | None
) -> None:
    headers = sent_headers(routed(arrived(headers=[OURS]), by=router(default=upstream(**settings))))
    found = [(name, headers[name]) for name in (b"authorization", b"api-key") if name in headers]
    assert found == ([expected] if expected else [])


def test_of_several_keys_the_one_at_the_place_is_used() -> None:
    exchange, admission = arrived(), admitted()
    route = router().default.routes[0]
    used = [sent_headers(write(exchange, admission, route, place, VIA))[b"authorization"] for place in (0, 1)]
    assert used == [b"Bearer k1", b"Bearer k2"]


@pytest.mark.parametrize("ours", [b"authorization", b"api-key"])
def test_of_two_credentials_passthrough_forwards_the_one_that_is_not_ours(ours: bytes) -> None:
    values = {b"authorization": b"Bearer theirs", b"api-key": b"theirs"}
    values[ours] = b"Bearer " + SECRET if ours == b"authorization" else SECRET
    by = router(default=upstream(auth="passthrough", api_keys=[]))
    headers = sent_headers(routed(arrived(headers=list(values.items())), by=by))
    other = b"api-key" if ours == b"authorization" else b"authorization"
    assert ours not in headers
    assert headers[other] == values[other]


def test_headers_are_ours_theirs_and_configured_ones_on_top() -> None:
    received: RawHeaders = [
        (b"Host", b"sluice.test"),
        (b"Accept-Encoding", b"gzip"),
        (b"Cookie", b"a=b"),
        (b"X-Custom", b"kept"),
        (b"X-Team", b"the client's"),
        OURS,
    ]
    extra = [(b"x-team", b"the operator's"), (b"authorization", b"Custom x")]
    chosen = routed(arrived(headers=received), by=router(default=upstream(extra_headers=extra)))
    assert sent_headers(chosen) == {
        b"host": b"upstream.test",
        b"x-custom": b"kept",
        b"accept-encoding": b"identity",
        b"via": VIA,
        b"x-team": b"the operator's",
        b"authorization": b"Custom x",
    }


def test_an_inflated_body_goes_up_without_its_encoding() -> None:
    exchange = arrived(headers=[(b"Content-Encoding", b"gzip")])
    assert b"content-encoding" not in sent_headers(routed(exchange, admitted(inflated=True)))
    assert sent_headers(routed(exchange))[b"content-encoding"] == b"gzip"


async def test_a_renamed_model_changes_its_value_and_nothing_else() -> None:
    asked = admitted(model_span=(11, 18))
    by = router({"as*": model(upstream(), "org/r\u00e9al")})
    assert await body_of(routed(admission=asked, by=by)) == '{ "model" :"org/r\u00e9al", "n":1.0 }'.encode()
    same = router({"as*": model(upstream(), "asked")})
    assert await body_of(routed(admission=asked, by=same)) == BODY


async def test_a_renamed_model_in_an_upload_changes_its_length_too() -> None:
    start = b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\n'
    span = (len(start), len(start) + 5)
    admission = admitted("asked", start + b"asked\r\n", rest=pieces(b"--b", b"--\r\n"), model_span=span)
    exchange = arrived(UPLOAD, pieces=[b"read elsewhere"], announced=len(start) + 14)
    chosen = routed(exchange, admission, router({"asked": model(upstream(), "longer-name")}))
    assert await body_of(chosen) == start + b"longer-name\r\n--b--\r\n"
    assert chosen.request.content_length == len(start) + 14 + 6


async def test_a_streamed_body_keeps_its_length_or_its_chunks() -> None:
    for announced in (100, None):
        exchange = arrived(UPLOAD, pieces=[b"x"], announced=announced)
        chosen = routed(exchange, admitted(None, b"", rest=pieces(b"a", b"b")))
        assert chosen.request.content_length == announced
        assert not chosen.is_spent
        assert await body_of(chosen) == b"ab"
        assert chosen.is_spent


@pytest.mark.parametrize("method", ["GET", "DELETE", "POST"])
def test_a_request_without_a_body_is_not_given_one(method: str) -> None:
    """Nothing streams; whether an empty body has a Content-Length is the attempt's to know, by the method."""
    exchange = arrived(STATEFUL, method=method, path="/files", announced=0)
    request = routed(exchange, admitted(None, b"", rest=pieces())).request
    assert (request.body, request.content_length) == (b"", None)
