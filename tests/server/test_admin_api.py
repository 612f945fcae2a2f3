"""The admin API's door: who may pass, what is read of a request, and how everything else is refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fakes.admin import TOKEN, Operator, operated
from tests.fakes.client import RecordingClient
from tests.fakes.stage import stage
from tests.fakes.waiting import until

PATHS = ["/admin", "/admin/", "/admin/keys", "/admin/openapi.json", "/admin/nothing"]


@pytest.mark.parametrize("path", PATHS)
async def test_without_a_token_there_is_no_admin_api(path: str) -> None:
    async with stage() as (_, proxy, _):
        for token in (None, TOKEN, ""):
            answer = await Operator(proxy).ask("GET", path, token=token)
            assert (answer.status, answer.error["message"]) == (404, "the admin API is off: set ops.admin_token")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN[:-1], TOKEN + "x", TOKEN.lower()])
async def test_who_has_not_the_token_learns_nothing(path: str, token: str | None) -> None:
    async with operated() as (_, proxy, operator):
        for method in ("GET", "POST", "DELETE", "OPTIONS", "PROPFIND"):
            answer = await operator.ask(method, path, token=token)
            assert (answer.status, answer.error["code"]) == (401, "unauthorized")
            assert answer.header("www-authenticate") == "Bearer"
        assert await operator.get("/admin/keys")
        await until(lambda: len(operator.audit) == 5, "a line for each")
        assert operator.audit == [{"action": "authenticate", "outcome": "unauthorized"}] * 5
        assert TOKEN not in proxy.log_text
        assert f'"{token}"' not in proxy.log_text


@pytest.mark.parametrize(
    "header", [("api-key", TOKEN), ("Authorization", f"Basic {TOKEN}"), ("Authorization", TOKEN), ("Cookie", TOKEN)]
)
async def test_the_token_comes_as_a_bearer_token_alone(header: tuple[str, str]) -> None:
    async with operated() as (_, _, operator):
        assert (await operator.ask("GET", "/admin/keys", token=None, headers=(header,))).status == 401
        assert (await operator.ask("GET", f"/admin/keys?token={TOKEN}", token=None)).status == 401
        good = ("Authorization", f"bearer  {TOKEN} ")
        assert (await operator.ask("GET", "/admin/keys", token=None, headers=(good,))).status == 200


async def test_who_guesses_is_told_to_wait_and_the_token_still_works() -> None:
    async with operated(server={"auth_failures": "3/hour"}) as (_, _, operator):
        statuses = [(await operator.ask("GET", "/admin/keys", token="guess")).status for _ in range(3)]
        assert statuses == [401, 401, 401]
        refused = await operator.ask("GET", "/admin/keys", token="guess")
        assert (refused.status, refused.error["code"]) == (429, "too_many_failures")
        assert 1 <= int(refused.header("retry-after") or "0") <= 7200
        assert await operator.get("/admin/keys")
        await until(lambda: len(operator.audit) == 3, "a line for each that was not throttled")


async def test_a_page_that_is_not_there() -> None:
    async with operated() as (_, proxy, operator):
        for path in ("/admin", "/admin/", "/admin/keys/", "/admin/keys/a/b/c", "/admin//keys", "/admin%2Fkeys"):
            await operator.refused(404, "not_found", "GET", path)
        async with await RecordingClient.connect(proxy.ops_port) as client:
            other = await client.ask("GET", "/administrator", key=None)
            assert (other.status, other.json) == (404, {"error": "no such page: /healthz, /readyz, /metrics"})


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/admin/keys", "GET, HEAD, OPTIONS, POST"),
        ("/admin/keys/a", "DELETE, GET, HEAD, OPTIONS, PATCH"),
        ("/admin/keys/a/rotate", "OPTIONS, POST"),
        ("/admin/usage", "GET, HEAD, OPTIONS"),
        ("/admin/exchanges/a", "DELETE, OPTIONS"),
        ("/admin/reload", "OPTIONS, POST"),
    ],
)
async def test_methods_that_a_page_has_not(path: str, allowed: str) -> None:
    async with operated() as (_, _, operator):
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "PROPFIND"} - set(allowed.split(", ")):
            answer = await operator.ask(method, path)
            assert (answer.status, answer.error["code"]) == (405, "method_not_allowed")
            assert answer.header("allow") == allowed
        options = await operator.ask("OPTIONS", path, headers=(("Origin", "https://example.com"),))
        assert (options.status, options.header("allow"), options.body) == (204, allowed, b"")


async def test_head_is_get_without_the_body() -> None:
    async with operated() as (_, proxy, operator):
        got = await operator.ask("GET", "/admin/keys")
        head = await operator.ask("HEAD", "/admin/keys")
        assert head.status == 200
        assert head.header("content-length") == str(len(got.body))
        async with await RecordingClient.connect(proxy.ops_port) as client:
            for _ in range(2):  # nothing of a body stands before the next answer
                assert (await client.ask("HEAD", "/admin/keys", key=TOKEN)).status == 200


async def test_a_target_in_absolute_form() -> None:
    async with operated() as (_, _, operator):
        assert await operator.get("http://localhost/admin/keys?limit=1")


@pytest.mark.parametrize(
    ("body", "path"),
    [
        (b"", "$"),
        (b"{", None),
        (b"nonsense", None),
        (b'{"id":"a"}{', None),
        (b'{"id":"\xff"}', None),
        (b"[" * 60_000, "$"),
        (b'{"id":' + b"[" * 60_000, "$.id"),
        (b"[]", "$"),
        (b'"a"', "$"),
        (b"{}", "$"),
        (b'{"id":1}', "$.id"),
        (b'{"id":"a","secret":"x"}', "$"),
        (b'{"id":"a","limits":{"request":[]}}', "$.limits"),
        (b'{"id":"a","limits":{"requests":"1/day"}}', "$.limits.requests"),
        (b'{"id":"a","limits":{"requests":["1/day",2]}}', "$.limits.requests[1]"),
        (b'{"id":"a","limits":{"requests":["1/day","1/eon"]}}', "$.limits.requests[1]"),
        (b'{"id":"a","limits":{"concurrency":0}}', "$.limits.concurrency"),
        (b'{"id":"a","plan":"none"}', "$.plan"),
        (b'{"id":"a","expires":"tomorrow"}', "$.expires"),
        (b'{"id":"a","expires":"2199-01-01T00:00:00"}', "$.expires"),
        (b'{"id":"a","expires":"2001-01-01T00:00:00Z"}', "$.expires"),
        (b'{"id":"a","expires":"9999-12-31T23:59:59-12:00"}', "$.expires"),
        (b'{"id":"a","expires":"0001-01-01T00:00:00+14:00"}', "$.expires"),
        (b'{"id":""}', "$.id"),
        (b'{"id":"-a"}', "$.id"),
        (b'{"id":"a\\u0000"}', "$.id"),
        (b'{"id":"a\\ud800"}', None),
    ],
)
async def test_bodies_that_are_not_understood_say_where(body: bytes, path: str | None) -> None:
    async with operated() as (_, proxy, operator):
        refusal = await operator.refused(400, "invalid_request", "POST", "/admin/keys", body)
        assert refusal.get("path") == path
        assert (await operator.get("/admin/keys"))["keys"][1:] == []
        await until(lambda: operator.audit, "the line")
        assert operator.audit == [{"action": "keys.create", "outcome": "invalid_request", "target": None}]
        assert "exc" not in proxy.log_text


async def test_a_body_is_bounded() -> None:
    big = b'{"id":"' + b"a" * 65_536 + b'"}'
    async with operated() as (_, proxy, operator):
        await operator.refused(413, "too_large", "POST", "/admin/keys", big)
        async with await RecordingClient.connect(proxy.ops_port) as client:
            client.send("POST", "/admin/keys", key=TOKEN, headers=(("Transfer-Encoding", "chunked"),))
            for _ in range(9):
                client.writer.write(b"2000\r\n" + b" " * 0x2000 + b"\r\n")
            answer = await client.answer()
            assert (answer.status, answer.error["code"]) == (413, "too_large")
        fits = b" " * 65_500 + b'{"id":"a"}'
        assert (await operator.ask("POST", "/admin/keys", fits)).status == 201


async def test_a_body_whose_framing_breaks_is_refused() -> None:
    async with operated() as (_, proxy, operator):
        async with await RecordingClient.connect(proxy.ops_port) as client:
            client.send("POST", "/admin/keys", key=TOKEN, headers=(("Transfer-Encoding", "chunked"),))
            client.writer.write(b'5\r\n{"id"\r\nzzz\r\n')
            assert (await client.answer()).status == 400
        assert (await operator.get("/admin/keys"))["keys"][1:] == []


async def test_a_body_that_waits_for_leave_is_asked_for() -> None:
    async with operated() as (_, proxy, _), await RecordingClient.connect(proxy.ops_port) as client:
        body = b'{"id":"a"}'
        head = (("Expect", "100-continue"), ("Content-Length", str(len(body))))
        client.send("POST", "/admin/keys", key=TOKEN, headers=head)
        assert (await client.reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
        client.writer.write(body)
        assert (await client.answer()).status == 201


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/admin/reload"), ("DELETE", "/admin/keys/a"), ("DELETE", "/admin/exchanges/a"), ("GET", "/admin/keys")],
)
async def test_a_body_where_none_is_taken(method: str, path: str) -> None:
    async with operated() as (_, _, operator):
        refusal = await operator.refused(400, "invalid_request", method, path, b'{"force":true}')
        assert refusal["path"] == "$"


@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("limit=0", "query.limit"),
        ("limit=many", "query.limit"),
        ("limit=1&limit=2", "query.limit"),
        ("page=2", "query"),
        ("after=%00", "query.after"),
        ("revoked=perhaps", "query.revoked"),
        ("&".join(f"a{number}=" for number in range(40)), "query"),
    ],
)
async def test_queries_that_are_not_understood_say_where(query: str, path: str) -> None:
    async with operated() as (_, _, operator):
        refusal = await operator.refused(400, "invalid_request", "GET", f"/admin/keys?{query}")
        assert refusal["path"] == path
        await operator.refused(400, "invalid_request", "GET", f"/admin/upstreams?{query}")


async def test_no_threshold_silences_the_audit() -> None:
    async with operated(log_level="error") as (_, _, operator):
        await operator.does("POST", "/admin/keys", {"id": "b"}, status=201)
        await operator.ask("GET", "/admin/keys", token="wrong")
        await until(lambda: len(operator.audit) == 2, "both lines")
        assert [line["outcome"] for line in operator.audit] == ["done", "unauthorized"]


async def test_a_fault_is_an_answer_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    async with operated() as (_, proxy, operator):

        def broken(*_: Any, **__: Any) -> None:
            raise RuntimeError(f"with {TOKEN} in it")

        assert proxy.worker._admin is not None
        assert proxy.worker._admin._database is not None
        monkeypatch.setattr(proxy.worker._admin._database.keys, "revoke", broken)
        async with await RecordingClient.connect(proxy.ops_port) as client:
            answer = await client.ask("DELETE", "/admin/keys/a", key=TOKEN)
        assert (answer.status, answer.error["code"]) == (500, "internal_error")
        await until(lambda: operator.audit, "the line")
        assert operator.audit == [{"action": "keys.revoke", "outcome": "fault", "target": None}]
        assert TOKEN not in proxy.log_text
