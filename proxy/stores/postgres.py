"""PostgreSQL as the ledger uses it: imported only where a ledger's URL asks for it, because psycopg is an extra."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import psycopg
from psycopg import errors

from proxy.stores.base import LedgerProblem

if TYPE_CHECKING:
    from psycopg.abc import PQGen

_Result = TypeVar("_Result")

CONNECT_TIMEOUT_S: Final = 3

# The kernel's part: a network that swallows packets is noticed. A server that hangs still acknowledges them, hence
# `Bounded.patience_s`.
_LINK: Final[dict[str, Any]] = {
    "connect_timeout": CONNECT_TIMEOUT_S,
    "keepalives": 1,
    "keepalives_idle": 2,
    "keepalives_interval": 1,
    "keepalives_count": 3,
    "tcp_user_timeout": 5_000,
    "application_name": "sluice",
}


class Bounded(psycopg.Connection[Any]):
    """A connection that gives up, and is closed, when the server has not answered for `patience_s` seconds."""

    patience_s: float | None = None

    def wait(self, gen: PQGen[_Result], interval: float = 0.1, timeout: float | None = None) -> _Result:
        """Wait for an answer. Raises `psycopg.OperationalError` when it does not come in time."""
        limit_s = self.patience_s if timeout is None else timeout
        try:
            return super().wait(gen, interval, limit_s)
        except errors._WaitTimeout:  # noqa: SLF001 - what psycopg raises; its public errors do not tell this case
            # half an answer may be on its way: nothing else can be asked on this connection
            self.close()
            raise psycopg.OperationalError("the server does not answer") from None


def connect(parameters: dict[str, Any], patience_s: float | None) -> Bounded:
    """Connect with libpq's `parameters`, which win over our defaults.

    Raises `psycopg.OperationalError`, and `LedgerProblem` for a database that cannot hold every text.
    """
    known = _LINK | parameters | {"client_encoding": "utf8"}
    if patience_s is not None:
        # the server's own limit comes first: its answer says why
        limit = f"-c statement_timeout={int(patience_s * 800)}"
        known["options"] = f"{limit} {parameters.get('options', '')}".strip()
    connection = Bounded.connect(**known)
    encoding = connection.info.parameter_status("server_encoding")
    if encoding != "UTF8":
        connection.close()
        raise LedgerProblem(f"the ledger's database has the encoding {encoding}: it must be created with UTF8")
    connection.patience_s = patience_s
    return connection
