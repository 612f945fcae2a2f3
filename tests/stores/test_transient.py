"""A ledger in memory is one like any other, until the process ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.fakes.answering import AnsweringUpstream
from tests.fakes.client import RecordingClient
from tests.fakes.running import running

_PROGRAM: Final = """
from proxy.stores.database import migrate, open_database
from proxy.stores.transient import transient_ledger
url = transient_ledger()
engine = open_database(url)
migrate(engine)
print(url, end="")
"""


def test_it_is_there_for_all_connections_and_gone_with_the_process() -> None:
    url = subprocess.run([sys.executable, "-c", _PROGRAM], check=True, capture_output=True, text=True).stdout
    file = Path(url.removeprefix("sqlite:///"))
    assert file.name == "ledger.db"
    assert not file.parent.exists()


async def test_a_proxy_serves_with_it() -> None:
    async with AnsweringUpstream() as upstream, running(upstream.url, ledger="sqlite:///:memory:") as proxy:
        async with await RecordingClient.connect(proxy.port) as client:
            body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
            assert (await client.ask("POST", "/v1/chat/completions", body)).status == 200
        assert proxy.worker.app.problems() == []
