"""What a stream may still use: with `cut_when_exhausted`, one that outgrows its reservation asks for more.

A reservation is the longest answer that the request allows, or an assumed one where it allows any. A longer one is
charged in full either way. With the setting it goes on only for as long as its key's budgets have room for more.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from proxy.core.errors import STORE_UNAVAILABLE, ProxyError
from proxy.core.pricing import plain_cost_nano_usd
from proxy.core.quota import Kind, Limits, Refused
from proxy.core.ratelimit import refusal
from proxy.phases.quotas import demand_of

if TYPE_CHECKING:
    from proxy.core.pricing import Price
    from proxy.core.quota import Granted, Reservation
    from proxy.phases.quotas import Quotas

# so much more is asked for at a time: some seconds of a fast model, and a round trip to the store for each
_STEP_TOKENS: Final = 512


class Allowance:
    """The output tokens that one exchange may use by now, and what it was given beyond its first reservation.

    `has_ended_it` once it refused more.
    """

    def __init__(
        self, quotas: Quotas, reservation: Reservation, limits: Limits, price: Price | None, output_tokens: int
    ) -> None:
        budgets = tuple(limit for limit in limits.windows if limit.kind is not Kind.REQUESTS)
        self.tokens = output_tokens
        self.has_ended_it = False
        self._quotas = quotas
        self._reservation = reservation
        self._limits = Limits(budgets, None)
        self._price = price
        self._more: list[Granted] = []

    async def ask_for_more(self, output_tokens: int) -> None:
        """Reserve what was used beyond the allowance, if it was outgrown, and a step more.

        Raises `ProxyError` 429 where there is no room. A store that cannot be asked ends no stream: it is asked again a
        step later.
        """
        if output_tokens <= self.tokens:
            return
        tokens = output_tokens - self.tokens + _STEP_TOKENS
        cost = 0 if self._price is None else plain_cost_nano_usd(0, tokens, self._price)
        demand = replace(demand_of(tokens, cost), requests=0)
        self.tokens = output_tokens + _STEP_TOKENS
        id_ = f"{self._reservation.id}+{len(self._more) + 1}"
        try:
            answer = await self._quotas.more(id_, self._reservation.key_id, self._limits, demand)
        except ProxyError as error:
            if error.kind is not STORE_UNAVAILABLE:
                raise
            return
        if isinstance(answer, Refused):
            self.has_ended_it = True
            raise refusal(answer, demand)
        self._more.append(answer)

    def close(self) -> None:
        """Give back what was given: the exchange is charged by its first reservation."""
        for granted in self._more:
            self._quotas.give_back(granted)
        self._more.clear()
