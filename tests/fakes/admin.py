"""An operator at a proxy's admin API: asks, checks what every answer has in common, and finds the audit lines."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import RecordingClient
from tests.fakes.line import line
from tests.fakes.running import running, upstream_config

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.fakes.client import Answer
    from tests.fakes.line import Line
    from tests.fakes.running import Running

TOKEN: Final = "adm-0123456789abcdefXYZ"


class _Operated(Protocol):
    @property
    def ops_port(self) -> int: ...

    @property
    def lines(self) -> list[dict[str, Any]]: ...


@dataclass
class Operator:
    """Who holds the token of a proxy."""

    proxy: _Operated

    async def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | bytes | None = None,
        *,
        token: str | None = TOKEN,
        headers: tuple[tuple[str, str], ...] = (),
    ) -> Answer:
        """Ask on a connection of its own."""
        async with await RecordingClient.connect(self.proxy.ops_port) as client:
            answer = await client.ask(method, path, body, key=token, headers=headers)
        assert answer.whole
        assert answer.header("cache-control") == "no-store"
        assert [name for name, _ in answer.headers if name.lower().startswith("access-control")] == []
        return answer

    async def get(self, path: str) -> Any:
        """What there is to read."""
        answer = await self.ask("GET", path)
        assert answer.status == 200, answer.body
        return answer.json

    async def does(self, method: str, path: str, body: dict[str, Any] | None = None, *, status: int = 200) -> Any:
        """Change something."""
        answer = await self.ask(method, path, body)
        assert answer.status == status, answer.body
        return answer.json

    async def refused(
        self, status: int, code: str, method: str, path: str, body: dict[str, Any] | bytes | None = None
    ) -> dict[str, Any]:
        """Ask for what cannot be done; what is said of it."""
        answer = await self.ask(method, path, body)
        assert (answer.status, answer.error["code"]) == (status, code), answer.body
        assert list(answer.json) == ["error"]
        assert answer.error["message"]
        return answer.error

    @property
    def audit(self) -> list[dict[str, Any]]:
        """The audit lines so far, without what every line has."""
        usual = ("timestamp", "level", "event", "client")
        lines = [line for line in self.proxy.lines if line["event"] == "audit"]
        assert {line["client"] for line in lines} <= {"127.0.0.1"}
        return [{name: value for name, value in line.items() if name not in usual} for line in lines]


class Operated(NamedTuple):
    """Who is there."""

    upstream: AnsweringUpstream
    proxy: Running
    operator: Operator


@contextlib.asynccontextmanager
async def operated(**how: Any) -> AsyncIterator[Operated]:
    """A proxy whose admin API is on, before an upstream that answers; `how` is what `running` takes."""
    async with AnsweringUpstream() as upstream:
        upstreams = how.pop("upstreams", None) or {"up": upstream_config(upstream.url)}
        async with running(upstreams, admin_token=TOKEN, **how) as proxy:
            yield Operated(upstream, proxy, Operator(proxy))


@contextlib.asynccontextmanager
async def watched(**how: Any) -> AsyncIterator[tuple[Line, Operator]]:
    """A line whose proxy has its admin API on; `how` is what `line` takes."""
    async with line(admin_token=TOKEN, **how) as there:
        yield there, Operator(there.proxy)
