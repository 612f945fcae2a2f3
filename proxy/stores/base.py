"""The protocols of shared state, and what passes through them. The phases know these, never a database."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from proxy.core.usage import Grade, Usage


@dataclass(frozen=True, slots=True)
class Opened:
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


@dataclass(frozen=True, slots=True)
class Settled:
    """How the exchange ended and what it used. `first_byte_ms` counts from the start; None if none went downstream."""

    ended_ms: int
    status: int
    outcome: str
    grade: Grade
    usage: Usage
    cost_nano_usd: int
    attempts: int
    first_byte_ms: int | None


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
