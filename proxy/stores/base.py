"""The protocols of shared state, and what passes through them. The phases know these, never a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from proxy.core.quota import Demand, Granted, Limit, Limits, Refused, Reservation
    from proxy.core.usage import Grade, Usage


class Opened(msgspec.Struct, frozen=True, gc=False):
    """An exchange as it is admitted: what a row of the ledger holds from the beginning.

    `model` is the name the client asked for, cut to 128 characters. `started_ms` is UNIX time in milliseconds.
    `reserved_*` is what is charged if nobody ever says what was used.
    """

    id: str
    key_id: str
    endpoint: str
    model: str
    upstream: str
    streamed: bool
    started_ms: int
    reserved_tokens: int
    reserved_nano_usd: int


class Settled(msgspec.Struct, frozen=True, gc=False):
    """How the exchange ended and what it used. `first_byte_ms` counts from the start; None if none went downstream.

    `upstream` is the one that was asked last, where it is another than the one that was expected at the opening.
    """

    ended_ms: int
    status: int
    outcome: str
    grade: Grade
    usage: Usage
    cost_nano_usd: int
    attempts: int
    first_byte_ms: int | None
    upstream: str | None = None


class LedgerProblem(Exception):  # noqa: N818 - it is the operator's to solve, and is shown as it is
    """Why the ledger cannot be used, in words for the operator and without secrets."""


class Entry(Protocol):
    """One exchange's row."""

    async def durable(self) -> None:
        """Wait until the opened row would survive the death of this process: before the first byte goes downstream.

        Raises `ProxyError` STORE_UNAVAILABLE when the row could not be written in time.
        """

    def settle(self, settled: Settled) -> None:
        """Complete the row, soon. Never raises or waits; a second call changes nothing."""


class Ledger(Protocol):
    """The record of every exchange."""

    def open(self, opened: Opened) -> Entry:
        """Begin an exchange's row. Raises `ProxyError` STORE_UNAVAILABLE while the ledger cannot be written."""

    @property
    def problem(self) -> str | None:
        """What keeps the ledger from being written, for `/readyz`; None if nothing does."""

    @property
    def waiting(self) -> int:
        """Rows opened or settled that are not committed yet."""


class QuotaStore(Protocol):
    """What keys have used, and what their exchanges in flight have reserved; shared by all who ask the same store."""

    async def reserve(self, reservation_id: str, key_id: str, limits: Limits, demand: Demand) -> Granted | Refused:
        """Admit an exchange: charge `demand` to every window and take a slot, or change nothing at all.

        A demand fits a window when what is used and the demand together are at most its amount. `reservation_id` is
        unique. Slots are counted for each key, whether or not the exchange that takes one has a limit to them. Raises
        `ProxyError` STORE_UNAVAILABLE when the store cannot be asked.
        """

    def reserve_now(self, reservation_id: str, key_id: str, limits: Limits, demand: Demand) -> Granted | Refused | None:
        """`reserve` where there is nothing to wait for; None, and nothing has changed, where there is."""

    def settle_now(self, reservation: Reservation, used: Demand) -> bool:
        """`settle` where there is nothing to wait for; False, and nothing has changed, where there is."""

    def release_now(self, reservation: Reservation) -> bool:
        """`release` where there is nothing to wait for; False, and nothing has changed, where there is."""

    async def settle(self, reservation: Reservation, used: Demand) -> None:
        """Replace what was reserved by what was used, in the buckets of the reservation, and free the slot.

        Happens once, however often it is called, also after the slot was released or its lease has run out. More than
        was reserved is charged in full. A bucket that no longer counts is left alone. Never raises: what an unreachable
        store could not be told is kept, within bounds, and repeated in the background.
        """

    async def release(self, reservation: Reservation) -> None:
        """Free the slot now, while what was reserved stays charged until `settle` replaces it.

        For an exchange that nobody waits for any more, but whose use is still being found out. Changes nothing the
        second time, nor once it is settled. Never raises: what the store could not be told, settling does.
        """

    async def renew(self, reservations: Sequence[Reservation]) -> None:
        """Keep the slots of these exchanges for another `LEASE_MS`, where slots have leases. Never raises.

        A slot whose lease has run out, or that the store has lost, is taken again; one that was released is not, nor
        that of a settled exchange.
        """


class Recall(Protocol):
    """How a store of quotas asks the ledger for what was used in calendar windows that it does not know."""

    async def __call__(self, key_id: str, starts_s: Mapping[Limit, int], /) -> Mapping[Limit, Demand]:
        """What the key has used of each limit since its window's start, which is in seconds of UNIX time.

        Raises SQLAlchemy's errors.
        """
