"""Begin the account of an exchange: what it may use is estimated, and its row in the ledger is opened.

This stands between the route, which says whose prices apply, and the upstream, which begins to cost money. The row is
committed while the upstream thinks; the relay waits for that before the first byte goes downstream, so that whatever
becomes of this process, nothing a client received is missing from the ledger.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final
from weakref import WeakValueDictionary

import msgspec

from proxy.core import ratelimit
from proxy.core.patterns import Remembered
from proxy.core.pricing import plain_cost_nano_usd
from proxy.core.prompts import Estimate, estimate
from proxy.core.quota import Demand
from proxy.core.tokens import MAX_TOKENS, encoding_of
from proxy.core.usage import Usage
from proxy.phases.allowance import Allowance
from proxy.phases.quotas import demand_of
from proxy.stores.base import Opened

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from proxy.core.headers import RawHeaders
    from proxy.core.pricing import Price, PriceList
    from proxy.core.quota import Granted
    from proxy.phases.admit import Admission
    from proxy.phases.attempts import Try
    from proxy.phases.exchange import Exchange
    from proxy.phases.observe import Counting
    from proxy.phases.quotas import Quotas
    from proxy.phases.route import Sending, Target
    from proxy.phases.settle import Settlement
    from proxy.stores.base import Entry, Ledger

# The prompt of a longer request is counted beside the event loop: so much takes 0.1 ms as a rule, and 7 ms of a body
# that is made to take long.
_LONG_BYTES: Final = 16_384
_LONGEST_MODEL: Final = 128
_NOTHING: Final = Estimate(0, 0)


class Account(msgspec.Struct, eq=False):
    """What one exchange may use and what is known of it in money.

    `prompt_tokens` are an estimate, `most_tokens` the most that may be answered, and `price` is what is paid for the
    model that an upstream calls `served`. `upstream` was asked last, or answered. `is_sent`: an upstream has the
    request, and may be working on it. `lost` are hedged tries that another outran, by the names that their upstreams
    know the model by.
    """

    entry: Entry
    prompt_tokens: int
    most_tokens: int
    price: Price | None
    served: str | None
    encoding: str
    hold: Granted | None = None
    allowance: Allowance | None = None
    upstream: str | None = None
    attempts: int = 0
    tries: list[Try] = msgspec.field(default_factory=list)
    lost: list[str | None] = msgspec.field(default_factory=list)
    lost_nano_usd: int = 0
    is_sent: bool = False

    @property
    def reserved(self) -> Usage:
        """What is charged where nobody can say what was used."""
        return Usage(self.prompt_tokens, self.most_tokens)

    @property
    def headers(self) -> RawHeaders:
        """What the answer tells the client of its quota."""
        return ratelimit.headers(self.hold.stands) if self.hold is not None else []


class Accounting:
    """Opens accounts. Holds what they have in common."""

    def __init__(
        self,
        *,
        quotas: Quotas,
        ledger: Ledger,
        prices: PriceList,
        counting: Counting,
        estimating: Executor,
        clock: Callable[[], float],
    ) -> None:
        self.counting = counting
        self._quotas = quotas
        self._estimating = estimating
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # who waits holds its key's
        self._ledger = ledger
        self._prices = prices
        self._clock = clock
        self._encoding_of = Remembered(encoding_of).__getitem__

    def now_ms(self) -> int:
        """UNIX time in milliseconds."""
        return int(self._clock() * 1000)

    async def open(self, exchange: Exchange, admission: Admission, target: Target) -> Account:
        """Estimate, price, reserve and enter the exchange, as if its first route served it.

        Raises `ProxyError` 429 where the key's quota does not allow it, STORE_UNAVAILABLE when it cannot be recorded.
        """
        model, asked, principal = target.model, admission.model, admission.principal
        first = model.routes[0]
        served = first.rename or asked
        encoding = model.encoding or self._encoding_of(served or "")
        if exchange.endpoint.treatment != "metered":
            expected = _NOTHING  # nobody says how many tokens speech or a picture will be
        elif len(admission.body) <= _LONG_BYTES:
            expected = estimate(admission.body, exchange.endpoint.name, encoding, self.counting.now)
        else:
            expected = await self._estimate_beside(exchange, admission, encoding)
        most_tokens = expected.max_output_tokens
        if most_tokens is None:
            most_tokens = min(model.max_output_tokens * expected.answers, MAX_TOKENS)
        prompt_tokens = expected.prompt_tokens
        price = self._prices.find(asked, served) if asked is not None else None
        cost_nano_usd = 0 if price is None else plain_cost_nano_usd(prompt_tokens, most_tokens, price)
        limits = principal.limits.for_model(asked or "")
        demand = demand_of(prompt_tokens + most_tokens, cost_nano_usd)
        hold = self._quotas.reserve_now(exchange.id, principal.key_id, limits, demand)
        if hold is None:
            hold = await self._quotas.reserve(exchange.id, principal.key_id, limits, demand)
        try:
            entry = self._ledger.open(self._opened(exchange, admission, first.upstream.name, demand, cost_nano_usd))
        except BaseException:
            if hold is not None:
                self._quotas.settle(hold, Demand())
            raise
        allowance = None
        if hold is not None and admission.streamed and principal.plan.cuts_when_exhausted:
            allowance = Allowance(self._quotas, hold.reservation, limits, price, most_tokens)
        return Account(
            entry,
            prompt_tokens=prompt_tokens,
            most_tokens=most_tokens,
            price=price,
            served=served,
            encoding=encoding,
            hold=hold,
            allowance=allowance,
        )

    def answered_by(self, account: Account, admission: Admission, sending: Sending) -> None:
        """Take the prices of the routes that were asked: their upstreams may know the model by other names."""
        account.upstream = sending.upstream.name
        if admission.model is None:
            return
        if sending.served != account.served:
            account.price = self._prices.find(admission.model, sending.served)
        for served in account.lost:
            price = self._prices.find(admission.model, served)
            account.lost_nano_usd += 0 if price is None else plain_cost_nano_usd(account.prompt_tokens, 0, price)

    def leave(self, account: Account) -> None:
        """Free the slot of an exchange whose client's side has ended; `close` follows when it is known what it used."""
        if account.hold is not None:
            self._quotas.release(account.hold)

    def close(self, account: Account, settlement: Settlement) -> None:
        """Charge the key's quota what was used, and give back the rest."""
        if account.hold is not None:
            usage = settlement.usage
            used = demand_of(usage.input_tokens + usage.output_tokens, settlement.cost_nano_usd)
            # charged first: what is given back then is not what was used
            self._quotas.settle(account.hold, used, account.allowance.close if account.allowance is not None else None)

    def _opened(
        self, exchange: Exchange, admission: Admission, upstream: str, demand: Demand, cost_nano_usd: int
    ) -> Opened:
        waited_s = time.perf_counter() - exchange.timeline.arrived_s
        return Opened(
            id=exchange.id,
            key_id=admission.principal.key_id,
            endpoint=exchange.endpoint.name,
            model=(admission.model or "")[:_LONGEST_MODEL],
            upstream=upstream,
            streamed=admission.streamed,
            started_ms=int((self._clock() - waited_s) * 1000),
            reserved_tokens=demand.tokens,
            reserved_nano_usd=cost_nano_usd,
        )

    async def _estimate_beside(self, exchange: Exchange, admission: Admission, encoding: str) -> Estimate:
        parameters = admission.body, exchange.endpoint.name, encoding, self.counting.now
        # one at a time of each key: there are few threads, and no key may keep all of them busy
        turn = self._turns.setdefault(admission.principal.key_id, asyncio.Lock())
        async with turn:
            return await asyncio.get_running_loop().run_in_executor(self._estimating, estimate, *parameters)
