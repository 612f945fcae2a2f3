"""`/admin/keys`: keys made at run time are made and changed here; those of the configuration's file are shown alone."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, NoReturn
from urllib.parse import quote

import msgspec
from msgspec import UNSET, Meta, UnsetType

from proxy.admin.shown import Key, judge, of_file, of_ledger
from proxy.admin.wishes import grace_ms, wrong_with_expiry, wrong_with_id, wrong_with_limits, wrong_with_plan
from proxy.config.settings import LimitsConfig
from proxy.server.admin_routes import Asked, Problem, Refusal, Route, Told

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.admin.database import Database
    from proxy.config.settings import Config
    from proxy.stores.keys import StoredKey

_PATH = "/admin/keys"
_Plan = Annotated[str | None, Meta(description="the plan whose limits apply; null: none")]
_Limits = Annotated[LimitsConfig | None, Meta(description="in place of the plan's; null: the plan's")]
_Expires = Annotated[Annotated[datetime, Meta(tz=True)] | None, Meta(description="refused from then on; null: never")]


class KeyWanted(msgspec.Struct, forbid_unknown_fields=True):
    """A key to be made."""

    id: Annotated[str, Meta(description="its name in logs, metrics and the ledger, for good")]
    plan: _Plan = None
    limits: _Limits = None
    expires: _Expires = None


class KeyChange(msgspec.Struct, forbid_unknown_fields=True):
    """What changes of a key: each member takes the place of what there was; what is not given stays."""

    plan: _Plan | UnsetType = UNSET
    limits: _Limits | UnsetType = UNSET
    expires: _Expires | UnsetType = UNSET


class Rotation(msgspec.Struct, forbid_unknown_fields=True):
    """How to take leave of the secret there is."""

    grace: Annotated[str, Meta(description="how long it stays good: 24h if not given; 0: it ends now")] = "24h"


class KeysWanted(msgspec.Struct, forbid_unknown_fields=True):
    """Which keys to list."""

    after: Annotated[str, Meta(description="go on behind this id of the ledger's, without those of the file")] = ""
    limit: Annotated[int, Meta(ge=1, le=1000, description="how many of the ledger's; 1000 if not given")] = 1000
    revoked: Annotated[bool, Meta(description="revoked ones, too")] = False


class KeyList(msgspec.Struct, frozen=True):
    """Keys: those of the file, then those of the ledger by id."""

    keys: list[Key]
    more: Annotated[bool, Meta(description="others follow: ask with `after` and the last id")]


class KeyWithSecret(Key, frozen=True, kw_only=True):
    """A key and its new secret, which is told this once."""

    secret: Annotated[str, Meta(description="kept nowhere: store it now")]


class KeyRevoked(msgspec.Struct, frozen=True):
    """A key that is refused by every worker within a second."""

    id: str
    state: str = "revoked"


class KeyRoutes:
    """The routes about keys. `clock_ms` is UNIX time in milliseconds."""

    def __init__(self, database: Database, config: Callable[[], Config], clock_ms: Callable[[], int]) -> None:
        self._database = database
        self._config = config
        self._now_ms = clock_ms

    def routes(self) -> tuple[Route, ...]:
        """The rows of the table."""
        one, rotate = _PATH + "/{id}", _PATH + "/{id}/rotate"
        changing = (404, 409, 503)
        return (
            Route("GET", _PATH, "Keys, without their secrets.", self._list, KeyList, query=KeysWanted, refusals=(503,)),
            Route(
                *("POST", _PATH, "Make a key; its secret is told this once.", self._create, KeyWithSecret, 201),
                body=KeyWanted,
                action="keys.create",
                refusals=(409, 503),
            ),
            Route("GET", one, "One key.", self._show, Key, refusals=changing),
            Route(
                *("PATCH", one, "Change a key's plan, limits or expiry.", self._change, Key),
                body=KeyChange,
                action="keys.change",
                refusals=changing,
            ),
            Route(
                *("DELETE", one, "Revoke a key, for good.", self._revoke, KeyRevoked),
                action="keys.revoke",
                refusals=changing,
            ),
            Route(
                *("POST", rotate, "Give a key a new secret, told this once.", self._rotate, KeyWithSecret),
                body=Rotation,
                action="keys.rotate",
                refusals=changing,
            ),
        )

    async def _list(self, asked: Asked) -> Told:
        wanted: KeysWanted = asked.query
        if wanted.after:
            _expect(wrong_with_id(wanted.after), "query.after")
        return Told(await self._database.ask(lambda: self._listed(wanted)))

    def _listed(self, wanted: KeysWanted) -> KeyList:
        """Ask for a page and write it; a file may hold thousands of keys, which would delay the event loop."""
        config, now_ms = self._config(), self._now_ms()
        state = judge(config, now_ms)
        found = self._database.keys.page(wanted.after, wanted.limit, with_revoked=wanted.revoked)
        shown = [] if wanted.after else [of_file(key, now_ms) for key in config.keys]
        shown += [of_ledger(key, state(key)) for key in found.keys]
        spoilt = [Key(id=key_id, source="ledger", state="unreadable") for key_id in found.unreadable]
        return KeyList([*shown, *spoilt], found.more)

    async def _create(self, asked: Asked) -> Told:
        wanted: KeyWanted = asked.body
        _expect(wrong_with_id(wanted.id), "$.id")
        checked = self._checked(wanted.plan, wanted.limits, wanted.expires)
        if any(key.id == wanted.id for key in self._config().keys):
            raise Refusal(409, "conflict", f"The configuration has a key {wanted.id} already.", target=wanted.id)
        store, now_ms = self._database.keys, self._now_ms()
        key, secret = await self._database.ask(lambda: store.create(wanted.id, **checked, now_ms=now_ms), wanted.id)
        return Told(self._with_secret(key, secret), key.id, f"{_PATH}/{quote(key.id, safe='')}")

    async def _show(self, asked: Asked) -> Told:
        key_id = _known(asked.names["id"])
        for key in self._config().keys:
            if key.id == key_id:
                return Told(of_file(key, self._now_ms()))
        return Told(self._shown(await self._database.ask(lambda: self._database.keys.find(key_id))))

    async def _change(self, asked: Asked) -> Told:
        key_id, wanted = self._changeable(asked), asked.body
        given = {name: value for name, value in msgspec.structs.asdict(wanted).items() if value is not UNSET}
        if not given:
            raise Refusal(400, "invalid_request", "Nothing is to change: plan, limits or expires.", path="$")
        checked = self._checked(given.get("plan"), given.get("limits"), given.get("expires"))
        columns = {"plan": "plan", "limits": "limits", "expires": "expires_ms"}
        changes: dict[str, Any] = {columns[name]: checked[columns[name]] for name in given}
        store, now_ms = self._database.keys, self._now_ms()
        key = await self._database.ask(lambda: store.change(key_id, now_ms, **changes), key_id)
        return Told(self._shown(key), key_id, details={"changed": sorted(given)})

    async def _revoke(self, asked: Asked) -> Told:
        key_id = self._changeable(asked)
        store, now_ms = self._database.keys, self._now_ms()
        await self._database.ask(lambda: store.revoke(key_id, now_ms), key_id)
        return Told(KeyRevoked(key_id), key_id)

    async def _rotate(self, asked: Asked) -> Told:
        key_id = self._changeable(asked)
        try:
            grace = grace_ms(asked.body.grace)
        except ValueError as error:
            _refuse(str(error), "$.grace")
        store, now_ms = self._database.keys, self._now_ms()
        key, secret = await self._database.ask(lambda: store.rotate(key_id, grace_ms=grace, now_ms=now_ms), key_id)
        return Told(self._with_secret(key, secret), key_id)

    def _changeable(self, asked: Asked) -> str:
        """The id of a key that is not the file's."""
        key_id = _known(asked.names["id"])
        if any(key.id == key_id for key in self._config().keys):
            message = f"Key {key_id} stands in the configuration, and is changed there."
            raise Refusal(409, "key_of_file", message, target=key_id)
        return key_id

    def _checked(self, plan: str | None, limits: LimitsConfig | None, expires: datetime | None) -> dict[str, Any]:
        """The same as they are stored. Raises `Refusal` for what cannot be meant."""
        _expect(wrong_with_plan(plan, self._config()), "$.plan")
        stored = None
        if limits is not None:
            told: dict[str, Any] = msgspec.to_builtins(limits)
            stored = {name: value for name, value in told.items() if value is not None}
            wrong = [Problem(message, f"$.limits.{kind}[{at}]") for kind, at, message in wrong_with_limits(stored)]
            if wrong:
                raise Refusal(400, "invalid_request", wrong[0].message, path=wrong[0].path, problems=wrong)
        expires_ms = None if expires is None else round(expires.timestamp() * 1000)
        if expires_ms is not None:
            _expect(wrong_with_expiry(expires_ms, self._now_ms()), "$.expires")
        return {"plan": plan, "limits": stored or None, "expires_ms": expires_ms}

    def _shown(self, key: StoredKey) -> Key:
        return of_ledger(key, judge(self._config(), self._now_ms())(key))

    def _with_secret(self, key: StoredKey, secret: str) -> KeyWithSecret:
        return KeyWithSecret(**msgspec.structs.asdict(self._shown(key)), secret=secret)


def _known(key_id: str) -> str:
    """An id that a key may have: others are not asked for."""
    if wrong_with_id(key_id) is not None:
        raise Refusal(404, "not_found", "There is no key of that id.")
    return key_id


def _expect(wrong: str | None, path: str) -> None:
    if wrong is not None:
        _refuse(wrong, path)


def _refuse(message: str, path: str) -> NoReturn:
    raise Refusal(400, "invalid_request", message, path=path)
