"""Ask upstreams whose circuits are open whether they work again, so that no client's request has to find out."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Final

from proxy.core import errors
from proxy.phases.places import FAILED_STATUSES
from proxy.upstream.attempt import UpstreamRequest, attempt

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.phases.balancer import Balancer
    from proxy.phases.upstreams import Probe, Upstream
    from proxy.tasks import BackgroundTasks

_PATIENCE_S: Final = 5.0  # connecting and head together: a list of models takes an upstream no thinking


class Prober:
    """Probes upstreams. `clock` is monotonic, in seconds."""

    def __init__(self, balancer: Balancer, via: bytes, tasks: BackgroundTasks, clock: Callable[[], float]) -> None:
        self._balancer = balancer
        self._via = via
        self._tasks = tasks
        self._clock = clock

    async def keep_probing(self, upstream: Upstream, probe: Probe) -> None:
        """Ask whenever its circuit is open and the cool-down is over, once an interval, until cancelled."""
        while True:
            await asyncio.sleep(probe.interval_s)
            await self._try(upstream, probe)

    async def _try(self, upstream: Upstream, probe: Probe) -> None:
        circuit = upstream.health.circuit
        ticket = circuit.enter(self._clock()) if circuit.is_open else None
        if ticket is None:
            return
        try:
            is_well = await self._is_well(upstream, probe)
        except BaseException:
            circuit.abandoned(ticket)
            raise
        if is_well:
            circuit.succeeded(ticket, self._clock())
            upstream.health.is_failing = False
        else:
            circuit.failed(ticket, self._clock())
        self._balancer.changed(upstream)

    async def _is_well(self, upstream: Upstream, probe: Probe) -> bool:
        api_key = upstream.health.credentials.next(self._clock())
        headers = upstream.request_headers([(b"Accept", b"application/json")], self._via, api_key)
        request = UpstreamRequest(b"GET", upstream.target(probe.path, ""), headers)
        with contextlib.suppress(errors.ProxyError, TimeoutError):
            asking = attempt(upstream.pool, request, first_byte_s=None, tasks=self._tasks)
            stream = await asyncio.wait_for(asking, _PATIENCE_S)
            stream.abort()
            return stream.head.status not in FAILED_STATUSES
        return False
