"""Promises 1 and 9 for heads: what belongs to the other side crosses, what belongs to one side does not."""

from __future__ import annotations

from typing import Any, Final

import pytest

from proxy.config.settings import KeyConfig
from proxy.config.values import Secret
from tests.fakes.line import JSON_TYPE, LAST_CHUNK, chunk, head, line
from tests.fakes.recordings import CHAT, DONE, FINISH
from tests.fakes.running import KEY, UPSTREAM_KEY

_ANSWER: Final = chunk(FINISH + DONE) + LAST_CHUNK
_OK: Final = head() + _ANSWER

_CROSS_UP: Final = (
    ("Accept", "application/json"),
    ("User-Agent", "OpenAI/Python 3.52.0"),
    ("x-stainless-retry-count", "0"),
    ("X-Stainless-Lang", "python"),
    ("OpenAI-Beta", "assistants=v2"),
    ("Idempotency-Key", "stainless-1"),
    ("X-Client-Request-Id", "c-1"),
    ("traceparent", "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
    ("X-Twice", "1"),
    ("X-Twice", "2"),
    ("X-Odd", 'a "quoted, value";  with  spaces'),
)
_STOP_UP: Final = (
    ("Connection", "keep-alive, X-Hop"),
    ("X-Hop", "1"),
    ("Keep-Alive", "timeout=5"),
    ("TE", "trailers"),
    ("Proxy-Authorization", "Basic eDp5"),
    ("Cookie", "session=1"),
    ("X-Api-Key", "sk-other"),
    ("OpenAI-Organization", "org-client"),
    ("OpenAI-Project", "proj_client"),
    ("X-Forwarded-For", "6.6.6.6"),
    ("X-Forwarded-Host", "evil.example"),
    ("Forwarded", "for=6.6.6.6"),
    ("X-Real-IP", "6.6.6.6"),
    ("CF-Connecting-IP", "6.6.6.6"),
    ("Accept-Encoding", "gzip, br"),
    ("Origin", "https://app.example"),
    ("x-sluice-id", "forged"),
)
_CROSS_DOWN: Final = (
    "x-request-id: req_abc",
    "openai-processing-ms: 274",
    "openai-version: 2020-10-01",
    "X-Content-Type-Options: nosniff",
    "retry-after-ms: 250",
    "x-should-retry: false",
    "apim-request-id: a-1",
    "X-Twice: 1",
    "X-Twice: 2",
    "Cache-Control: no-cache, must-revalidate",
)
_STOP_DOWN: Final = (
    "Set-Cookie: __cf_bm=1; HttpOnly",
    'Alt-Svc: h3=":443"',
    "Strict-Transport-Security: max-age=1",
    "Server: cloudflare",
    "CF-RAY: 1",
    "NEL: {}",
    "openai-organization: org-owner",
    "openai-project: proj_owner",
    "x-ratelimit-remaining-tokens: 9",
    "x-sluice-id: forged",
    "X-Accel-Redirect: /etc/passwd",
    "Keep-Alive: timeout=9",
    "Proxy-Authenticate: Basic",
    "access-control-allow-origin: *",
    "x-litellm-key-spend: 3",
    "Via: 1.1 somebody",
)


def _pairs(request: bytes) -> list[tuple[str, str]]:
    """The headers of a request, in order."""
    lines = request.partition(b"\r\n\r\n")[0].decode().split("\r\n")[1:]
    return [(name, value) for name, _, value in (line.partition(": ") for line in lines)]


def _values(request: bytes, name: str) -> list[str]:
    return [value for key, value in _pairs(request) if key.lower() == name]


async def test_request_headers() -> None:
    """Those for the upstream cross in order and as spelled; the client's connection, credentials and way stay here."""
    async with line() as way:
        await way.answered([_OK], CHAT, headers=(JSON_TYPE, *_CROSS_UP, *_STOP_UP))
        request = way.peer_request
        port = way.upstream.port
    pairs = _pairs(request)
    assert [pair for pair in pairs if pair in _CROSS_UP] == list(_CROSS_UP)
    mine = {"accept-encoding"}
    stopped = {name.lower() for name, _ in _STOP_UP} - mine
    assert not stopped & {name.lower() for name, _ in pairs}
    assert KEY.encode() not in request
    assert _values(request, "host") == [f"127.0.0.1:{port}"]
    assert _values(request, "authorization") == [f"Bearer {UPSTREAM_KEY}"]
    assert _values(request, "accept-encoding") == ["identity"]
    assert [value.startswith("1.1 sluice") for value in _values(request, "via")] == [True]


async def test_via_of_earlier_hops_is_kept() -> None:
    """RFC 9110 section 7.6.3: it is how loops are found."""
    async with line() as way:
        await way.answered([_OK], CHAT, headers=(JSON_TYPE, ("Via", "1.0 fred")))
        via = _values(way.peer_request, "via")
    assert via[0] == "1.0 fred"
    assert len(via) == 2


@pytest.mark.parametrize("named", ["Authorization", "authorization, content-length, host, via"])
async def test_a_connection_header_takes_nothing_of_ours(named: str) -> None:
    """What Sluice sets is set after the client's headers had their say."""
    async with line() as way:
        answer = await way.answered([_OK], CHAT, headers=(JSON_TYPE, ("Connection", named)))
        request = way.peer_request
    assert answer.body == FINISH + DONE
    assert _values(request, "authorization") == [f"Bearer {UPSTREAM_KEY}"]
    for name in ("host", "content-length", "via"):
        assert len(_values(request, name)) == 1


async def test_response_headers() -> None:
    """Those for the client cross in order and as spelled; the upstream's account, origin and connection do not."""
    named = ("Connection: X-Hop", "X-Hop: 1")
    async with line() as way:
        answer = await way.answered([head("200 OK", "text/event-stream", *_CROSS_DOWN, *_STOP_DOWN, *named) + _ANSWER])
        line_id = (await way.proxy.exchange())["id"]
    assert answer.body == FINISH + DONE
    got = [f"{name}: {value}" for name, value in answer.headers]
    assert [text for text in got if text in _CROSS_DOWN] == list(_CROSS_DOWN)
    ours = {"server", "x-sluice-id"}
    stopped = {text.partition(":")[0].lower() for text in (*_STOP_DOWN, *named)} - ours
    assert not (stopped - {"connection"}) & {name.lower() for name, _ in answer.headers}
    assert answer.all("server") == ["sluice"]
    assert answer.all("x-sluice-id") == [line_id]
    assert answer.all("x-accel-buffering") == ["no"]
    assert UPSTREAM_KEY not in str(answer.headers)


async def test_what_sluice_adds_where_the_upstream_says_nothing() -> None:
    """A request id, and the two headers that keep buffering proxies from holding a stream."""
    async with line() as way:
        answer = await way.answered([_OK])
    assert answer.all("cache-control") == ["no-cache"]
    assert answer.all("x-request-id") == answer.all("x-sluice-id")


async def test_an_echoed_credential_does_not_reach_the_client() -> None:
    """Some servers quote the key they refuse, even in a header."""
    async with line() as way:
        peer = await way.open()
        [sent] = _values(way.peer_request, "authorization")
        body = b'{"error":{"message":"Incorrect API key: %b"}}' % sent.encode()
        start = head("401 Unauthorized", "application/json", f'WWW-Authenticate: Bearer error="{sent}"')
        await peer.send(start + chunk(body[:50]) + chunk(body[50:]) + LAST_CHUNK)
        answer = await way.answer()
        await way.proxy.exchange()
        log = way.proxy.log_text
    assert answer.status == 401
    assert answer.body == body.replace(UPSTREAM_KEY.encode(), b"***")
    assert answer.all("www-authenticate") == ['Bearer error="Bearer ***"']
    assert UPSTREAM_KEY not in str(answer.headers)
    assert UPSTREAM_KEY not in log


async def test_a_credential_among_the_configured_headers_is_one_too() -> None:
    """Where an operator authenticates by `headers`, what is quoted back is masked as well; other values are not."""
    secret = "sk-in-a-header-123456"
    settings = {
        "auth": "none",
        "headers": {"Authorization": Secret(f"Bearer {secret}"), "X-Team": Secret("blue")},
        "query": {"code": "c0de-123456"},
    }
    async with line(upstream=settings) as way:
        body = f"no such key: {secret}, c0de-123456, blue".encode()
        answer = await way.answered([head("403 Forbidden", "text/plain") + chunk(body) + LAST_CHUNK])
    assert answer.body == b"no such key: ***, ***, blue"


async def test_configured_headers_and_query() -> None:
    """`headers` take the place of any of the same name; `query` members too, the client's others stay."""
    settings: dict[str, Any] = {
        "headers": {"X-Team": Secret("blue"), "User-Agent": Secret("fixed/1")},
        "query": {"api-version": "2024-10-21"},
    }
    async with line(upstream=settings) as way:
        path = CHAT + "?api-version=forged&trace=a%2Fb"
        await way.answered([_OK], path, headers=(JSON_TYPE, ("user-agent", "mine"), ("x-team", "red")))
        request = way.peer_request
    assert _values(request, "x-team") == ["blue"]
    assert _values(request, "user-agent") == ["fixed/1"]
    target = request.split(b" ")[1]
    assert target == b"/v1/chat/completions?trace=a%2Fb&api-version=2024-10-21"


async def test_a_query_crosses_as_it_came() -> None:
    """Without configured members nothing is parsed and written anew."""
    async with line() as way:
        await way.answered([_OK], CHAT + "?b=1&a=%7e+x&&b=2&flag")
        assert way.peer_request.startswith(b"POST /v1/chat/completions?b=1&a=%7e+x&&b=2&flag HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"auth": "bearer"}, {"authorization": [f"Bearer {UPSTREAM_KEY}"], "api-key": []}),
        ({"auth": "api-key"}, {"authorization": [], "api-key": [UPSTREAM_KEY]}),
        ({"auth": "none"}, {"authorization": [], "api-key": []}),
        ({"auth": "passthrough"}, {"authorization": [f"Bearer {KEY}"], "api-key": []}),
    ],
    ids=["bearer", "api-key", "none", "passthrough"],
)
async def test_how_the_upstream_is_authenticated_to(settings: dict[str, Any], expected: dict[str, list[str]]) -> None:
    """One credential, in the header that the upstream wants."""
    async with line(upstream=settings) as way:
        answer = await way.answered([_OK])
        got = {name: _values(way.peer_request, name) for name in expected}
    assert answer.body == FINISH + DONE
    assert got == expected


@pytest.mark.parametrize("ours", ["authorization", "api-key"])
async def test_passthrough_with_two_credentials(ours: str) -> None:
    """The one that is Sluice's own stays here, the other goes upstream with the organization it belongs to."""
    theirs = {"authorization": ("api-key", "az-1"), "api-key": ("Authorization", "Bearer sk-user")}[ours]
    mine = {"authorization": ("Authorization", f"Bearer {KEY}"), "api-key": ("api-key", KEY)}[ours]
    async with line(upstream={"auth": "passthrough"}) as way:
        sent = (JSON_TYPE, mine, theirs, ("OpenAI-Organization", "org-user"))
        await way.answered([_OK], CHAT, key=None, headers=sent)
        request = way.peer_request
    assert KEY.encode() not in request
    assert _values(request, theirs[0].lower()) == [theirs[1]]
    assert _values(request, "openai-organization") == ["org-user"]


async def test_several_keys_are_used_in_turn() -> None:
    """And none of them twice in a row."""
    keys = ["sk-one-0123456789", "sk-two-0123456789", "sk-three-0123456789"]
    async with line(upstream={"api_keys": tuple(map(Secret, keys))}) as way:
        used = []
        for _ in range(6):
            await way.answered([_OK])
            used += _values(way.peer_request, "authorization")
    assert used == [f"Bearer {key}" for key in keys * 2]


@pytest.mark.parametrize("spelling", ["Bearer {}", "bearer {}", "Bearer  {} "])
async def test_a_key_never_goes_upstream_however_it_is_spelled(spelling: str) -> None:
    """Nor does it show in the log."""
    async with line(keys=(KeyConfig(id="team-a", secret=Secret(KEY)),)) as way:
        await way.answered([_OK], CHAT, key=None, headers=(JSON_TYPE, ("AUTHORIZATION", spelling.format(KEY))))
        await way.proxy.exchange()
        assert KEY.encode() not in way.peer_request
        assert KEY not in way.proxy.log_text
