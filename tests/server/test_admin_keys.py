"""Keys over the admin API: made, shown, changed, rotated and revoked, and what each may do at once."""

from __future__ import annotations

import asyncio
import threading
import time
from datetime import datetime
from typing import TYPE_CHECKING, Any

import pytest

from proxy.config.settings import KeyConfig, LimitsConfig, PlanConfig
from proxy.config.values import Secret
from tests.fakes.admin import TOKEN, operated
from tests.fakes.client import RecordingClient
from tests.fakes.running import KEY
from tests.fakes.waiting import LONG_S, until, until_asked

if TYPE_CHECKING:
    from tests.fakes.running import Running

NEVER = dict.fromkeys(("expires", "created", "last_used", "revoked", "old_secret_until"))
PLANS = {"small": PlanConfig(models=("gpt-4o-mini",)), "large": PlanConfig()}
PATIENT: dict[str, Any] = {"auth_failures": None}


async def status(proxy: Running, secret: str, model: str = "gpt-4o-mini") -> int:
    async with await RecordingClient.connect(proxy.port) as client:
        return (await client.ask("POST", "/v1/chat/completions", {"model": model, "messages": []}, key=secret)).status


async def becomes(expected: int, proxy: Running, secret: str, model: str = "gpt-4o-mini") -> None:
    async def is_so() -> bool:
        return await status(proxy, secret, model) == expected

    await until_asked(is_so, f"{expected} for that key")


def execute(proxy: Running, statement: str) -> None:
    with proxy.worker.app.engine.begin() as connection:
        connection.exec_driver_sql(statement)


async def test_the_life_of_a_key() -> None:
    async with operated(plans=PLANS, server=PATIENT) as (_, proxy, operator):
        wanted = {"id": "team/b", "plan": "small", "limits": {"requests": ["100/day"]}}
        answer = await operator.ask("POST", "/admin/keys", wanted)
        made = answer.json
        assert (answer.status, answer.header("location")) == (201, "/admin/keys/team%2Fb")
        first = made.pop("secret")
        known = {**NEVER, **wanted, "source": "ledger", "state": "active", "created": made["created"]}
        assert made == known
        assert abs(datetime.fromisoformat(made["created"]).timestamp() - time.time()) < 60
        await becomes(200, proxy, first)
        assert await status(proxy, first, "gpt-4o") == 404
        assert await operator.get("/admin/keys/team%2Fb") == known

        changed = await operator.does("PATCH", "/admin/keys/team%2Fb", {"plan": "large", "limits": None})
        assert changed == {**known, "plan": "large", "limits": None}
        await becomes(200, proxy, first, "gpt-4o")

        rotated = await operator.does("POST", "/admin/keys/team%2Fb/rotate", {"grace": "1h"})
        second = rotated["secret"]
        assert second != first
        assert rotated["old_secret_until"]
        await becomes(200, proxy, second)
        assert await status(proxy, first) == 200
        third = (await operator.does("POST", "/admin/keys/team%2Fb/rotate", {"grace": "0"}))["secret"]
        await becomes(200, proxy, third)
        assert [await status(proxy, secret) for secret in (first, second)] == [401, 401]

        assert await operator.does("DELETE", "/admin/keys/team%2Fb") == {"id": "team/b", "state": "revoked"}
        await becomes(401, proxy, third)
        assert (await operator.get("/admin/keys/team%2Fb"))["state"] == "revoked"
        for method, path in (("DELETE", ""), ("PATCH", ""), ("POST", "/rotate")):
            body = {"plan": None} if method == "PATCH" else None
            await operator.refused(409, "conflict", method, f"/admin/keys/team%2Fb{path}", body)
        await operator.refused(409, "conflict", "POST", "/admin/keys", {"id": "team/b"})

        await until(lambda: len(operator.audit) == 9, "a line for each change")
        told = [(line.pop("action"), line.pop("target"), line.pop("outcome"), line) for line in operator.audit]
        assert told == [
            ("keys.create", "team/b", "done", {}),
            ("keys.change", "team/b", "done", {"changed": ["limits", "plan"]}),
            ("keys.rotate", "team/b", "done", {}),
            ("keys.rotate", "team/b", "done", {}),
            ("keys.revoke", "team/b", "done", {}),
            ("keys.revoke", "team/b", "conflict", {}),
            ("keys.change", "team/b", "conflict", {}),
            ("keys.rotate", "team/b", "conflict", {}),
            ("keys.create", "team/b", "conflict", {}),
        ]
        shown = (await operator.ask("GET", "/admin/keys?revoked=true")).body.decode()
        for secret in (first, second, third):
            assert secret not in proxy.log_text
            assert secret not in shown


async def test_limits_and_expiry_are_held_as_soon_as_they_are_changed() -> None:
    async with operated(server=PATIENT) as (_, proxy, operator):
        secret = (await operator.does("POST", "/admin/keys", {"id": "b"}, status=201))["secret"]
        await becomes(200, proxy, secret)
        await operator.does("PATCH", "/admin/keys/b", {"limits": {"requests": ["1/day"]}})
        await becomes(429, proxy, secret)
        told = await operator.does("PATCH", "/admin/keys/b", {"limits": {}, "expires": "2199-01-01T00:00:00+01:00"})
        assert (told["limits"], told["expires"]) == (None, "2198-12-31T23:00:00Z")
        await becomes(200, proxy, secret)
        assert (await operator.does("PATCH", "/admin/keys/b", {"expires": None}))["expires"] is None


async def test_a_change_of_nothing_or_to_what_cannot_be() -> None:
    async with operated(plans=PLANS) as (_, _, operator):
        await operator.does("POST", "/admin/keys", {"id": "b"}, status=201)
        before = await operator.get("/admin/keys/b")
        for body in (b"", b"{}", b'{"plan":"smal"}', b'{"id":"c"}', b'{"expires":"2001-01-01T00:00:00Z"}'):
            await operator.refused(400, "invalid_request", "PATCH", "/admin/keys/b", body)
        refusal = await operator.refused(400, "invalid_request", "PATCH", "/admin/keys/b", {"plan": "smal"})
        assert refusal == {
            "message": "there is no plan 'smal'; did you mean small?",
            "code": "invalid_request",
            "path": "$.plan",
        }
        both = {"limits": {"requests": ["x"], "tokens": ["1/day", "0/day"]}}
        refusal = await operator.refused(400, "invalid_request", "PATCH", "/admin/keys/b", both)
        assert [problem["path"] for problem in refusal["problems"]] == ["$.limits.requests[0]", "$.limits.tokens[1]"]
        for grace in ("soon", "367d", "-1s", ""):
            await operator.refused(400, "invalid_request", "POST", "/admin/keys/b/rotate", {"grace": grace})
        assert await operator.get("/admin/keys/b") == before


async def test_keys_of_the_file_are_shown_and_never_changed() -> None:
    keys = (
        KeyConfig(id="team-a", secret=Secret(KEY), plan="small", limits=LimitsConfig(requests=("5/minute",))),
        KeyConfig(id="old", secret=Secret(KEY + "x"), expires=datetime.fromisoformat("2020-01-01T00:00:00Z")),
    )
    async with operated(plans=PLANS, keys=keys) as (_, proxy, operator):
        listed = await operator.get("/admin/keys")
        team_a = {**NEVER, "id": "team-a", "source": "file", "plan": "small", "limits": {"requests": ["5/minute"]}}
        team_a["state"] = "active"
        old = {**NEVER, "id": "old", "source": "file", "plan": None, "limits": None, "state": "expired"}
        assert listed == {"keys": [team_a, {**old, "expires": "2020-01-01T00:00:00Z"}], "more": False}
        assert await operator.get("/admin/keys/team-a") == team_a
        refusal = await operator.refused(409, "key_of_file", "DELETE", "/admin/keys/team-a")
        assert refusal["message"] == "Key team-a stands in the configuration, and is changed there."
        await operator.refused(409, "key_of_file", "PATCH", "/admin/keys/team-a", {"plan": None})
        await operator.refused(409, "key_of_file", "POST", "/admin/keys/team-a/rotate")
        await operator.refused(409, "conflict", "POST", "/admin/keys", {"id": "team-a"})
        assert await status(proxy, KEY) == 200
        assert KEY not in (await operator.ask("GET", "/admin/keys")).body.decode()


@pytest.mark.parametrize("key_id", ["nobody", "%00", "%ff", "a%20b", "a" * 129, "..", "%2e%2e"])
async def test_a_key_that_is_not_there(key_id: str) -> None:
    async with operated() as (_, proxy, operator):
        for method, path, body in (
            ("GET", "", None),
            ("DELETE", "", None),
            ("PATCH", "", {"plan": None}),
            ("POST", "/rotate", {}),
        ):
            await operator.refused(404, "not_found", method, f"/admin/keys/{key_id}{path}", body)
        await until(lambda: len(operator.audit) == 3, "a line for each change")
        assert {line["target"] for line in operator.audit} == {None}
        assert "exc" not in proxy.log_text


async def test_long_lists_come_in_pages() -> None:
    async with operated(keys=()) as (_, _, operator):
        ids = [f"k{number:02}" for number in range(7)]
        for key_id in reversed(ids):
            await operator.does("POST", "/admin/keys", {"id": key_id}, status=201)
        await operator.does("DELETE", "/admin/keys/k03")
        pages, after = [], ""
        while True:
            page = await operator.get(f"/admin/keys?limit=2&after={after}")
            pages.append([key["id"] for key in page["keys"]])
            if not page["more"]:
                break
            after = pages[-1][-1]
        assert pages == [["k00", "k01"], ["k02", "k04"], ["k05", "k06"]]
        everything = await operator.get("/admin/keys?revoked=true")
        assert [key["id"] for key in everything["keys"]] == ids


async def test_a_row_that_somebody_has_spoilt_is_named_and_can_be_revoked() -> None:
    async with operated() as (_, proxy, operator):
        await operator.does("POST", "/admin/keys", {"id": "b"}, status=201)
        await asyncio.to_thread(execute, proxy, "UPDATE keys SET limits = '{' WHERE id = 'b'")
        listed = (await operator.get("/admin/keys"))["keys"]
        assert [(key["id"], key["state"]) for key in listed] == [("team-a", "active"), ("b", "unreadable")]
        await operator.refused(409, "conflict", "GET", "/admin/keys/b")
        await operator.refused(409, "conflict", "PATCH", "/admin/keys/b", {"plan": None})
        await operator.does("DELETE", "/admin/keys/b")


async def test_a_change_is_made_and_told_of_though_who_asked_for_it_has_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async with operated() as (_, proxy, operator):
        assert proxy.worker._admin is not None
        assert proxy.worker._admin._database is not None
        store = proxy.worker._admin._database.keys
        begun, may_go_on = threading.Event(), threading.Event()
        create = store.create

        def slow(*args: Any, **named: Any) -> Any:
            begun.set()
            may_go_on.wait(LONG_S)
            return create(*args, **named)

        monkeypatch.setattr(store, "create", slow)
        client = await RecordingClient.connect(proxy.ops_port)
        client.send("POST", "/admin/keys", {"id": "b"}, key=TOKEN)
        await until(begun.is_set, "it is being made")
        await client.reset()
        may_go_on.set()
        await until(lambda: operator.audit, "the line")
        assert operator.audit == [{"action": "keys.create", "outcome": "done", "target": "b"}]
        assert (await operator.get("/admin/keys/b"))["state"] == "active"


async def test_a_ledger_that_fails_is_said() -> None:
    async with operated() as (_, proxy, operator):
        await asyncio.to_thread(execute, proxy, "ALTER TABLE keys RENAME TO elsewhere")
        for method, path, body in (
            ("GET", "/admin/keys", None),
            ("POST", "/admin/keys", {"id": "b"}),
            ("DELETE", "/admin/keys/b", None),
        ):
            refusal = await operator.refused(503, "ledger_unavailable", method, path, body)
            assert "no such table: keys" in refusal["message"]
        await asyncio.to_thread(execute, proxy, "ALTER TABLE elsewhere RENAME TO keys")
