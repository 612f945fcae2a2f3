"""A resolver whose answers the test decides, and changes."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest


class Names:
    """What names stand for on the running loop, from now on.

    `addresses` are those of every name that is no address itself; none: there is no such name. While `silent`, nobody
    answers. `asked` counts the questions.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *addresses: tuple[str, int]) -> None:
        self.addresses = addresses
        self.asked = 0
        self.silent = False
        self._resolve = asyncio.get_running_loop().getaddrinfo
        monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", self._answer)

    async def _answer(self, host: str, *args: Any, **options: Any) -> list[Any]:
        if host in ("127.0.0.1", "::1"):  # uvloop asks again as it connects
            return await self._resolve(host, *args, **options)
        self.asked += 1
        if self.silent:
            await asyncio.get_running_loop().create_future()
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                socket.IPPROTO_TCP,
                "",
                (address, port),
            )
            for address, port in self.addresses
        ]
