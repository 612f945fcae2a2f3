"""The SDKs that need an interpreter of their own: openai-python 1.x, still widely installed, and the one for Node.

Each runs the same core checks as a child process against a proxy before the simulator, and prints what it saw.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from proxy.config.settings import ModelConfig
from proxy.simulator.server import Simulator
from tests.fakes.running import KEY, running
from tests.fakes.waiting import until

_HERE = Path(__file__).parent
_PYTHON_1X = _HERE.parent.parent / ".venv-openai1" / "bin" / "python"
_NODE_SDK = _HERE / "node_modules" / "openai"
_MODELS = {"sim*": ModelConfig(), "text-embedding-3-small": ModelConfig()}
_TOOL_CALLS = [["weather", '{"deep":true}']]


@dataclass(frozen=True)
class Outcome:
    """What an SDK saw, and what the proxy and the upstream saw of it."""

    saw: dict[str, Any]
    exchanges: list[dict[str, Any]]
    stats: dict[str, int]


def _command(sdk: str) -> list[str]:
    if sdk == "openai-python 1.x":
        if not _PYTHON_1X.exists():
            pytest.skip("openai-python 1.x is not tested: .venv-openai1 is not there (make test installs it)")
        return [str(_PYTHON_1X), str(_HERE / "openai_1x.py")]
    node = shutil.which("node")
    if node is None:
        pytest.skip("the Node SDK is not tested: there is no node on the path")
    if not _NODE_SDK.exists():
        pytest.skip("the Node SDK is not tested: tests/clients/node_modules is not there (make test installs it)")
    return [node, str(_HERE / "openai_node.mjs")]


async def _run(command: list[str]) -> Outcome:
    simulator = Simulator()
    await simulator.start()
    async with running(simulator.url, models=_MODELS) as proxy:
        child = await asyncio.create_subprocess_exec(
            *command,
            env={"PATH": os.environ["PATH"], "BASE_URL": proxy.url, "KEY": KEY},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, errors = await child.communicate()
        assert child.returncode == 0, errors.decode()
        await until(lambda: simulator.stats.open == 0, "the upstream idle")
        await until(lambda: len(proxy.worker.app.live) == 0, "the proxy idle")
    outcome = Outcome(json.loads(out), proxy.exchanges, simulator.stats.shown())
    await simulator.close()
    return outcome


@pytest.fixture(scope="module", params=["openai-python 1.x", "openai-node"])
def outcome(request: pytest.FixtureRequest) -> Outcome:
    return asyncio.run(_run(_command(request.param)))


@pytest.fixture
def saw(outcome: Outcome) -> dict[str, Any]:
    return outcome.saw


@pytest.fixture
def failures(outcome: Outcome) -> dict[str, dict[str, Any]]:
    failures: dict[str, dict[str, Any]] = outcome.saw["failures"]
    return failures


def test_it_is_the_version_that_was_asked_for(saw: dict[str, Any]) -> None:
    newest_for_node = json.loads((_HERE / "package.json").read_text())["dependencies"]["openai"]
    assert saw["version"] == {"python": "1.109.1", "node": newest_for_node}[saw["language"]]


def test_chat_says_the_same_streamed_whole_and_through_the_helper(saw: dict[str, Any]) -> None:
    assert saw["chat"]["text"]
    assert saw["chat"]["total_tokens"] > 0
    assert saw["chat_streamed"] == saw["chat"]
    assert saw["chat_helper"] == saw["chat"]["text"]


def test_tool_calls_are_the_same_streamed_and_whole(saw: dict[str, Any]) -> None:
    assert saw["tools"] == saw["tools_streamed"] == saw["responses_tools"] == _TOOL_CALLS


def test_responses_say_the_same_streamed_and_whole(saw: dict[str, Any]) -> None:
    streamed = saw["responses_streamed"]
    assert streamed["text"] == saw["responses"] != ""
    assert streamed["last"] == "response.completed"
    assert streamed["numbers"] == list(range(len(streamed["numbers"])))


def test_the_other_endpoints_answer(saw: dict[str, Any]) -> None:
    assert saw["embeddings"] == [16, 16]
    assert saw["completions"]
    assert {"sim", "sim-fast", "text-embedding-3-small"} <= set(saw["models"])
    assert saw["models"][-1] == "sim-slow"


def test_headers_lead_to_the_log_line(outcome: Outcome) -> None:
    assert outcome.saw["headers"]["request_id"].startswith("req_")
    assert outcome.saw["headers"]["sluice_id"] in [line["id"] for line in outcome.exchanges]


@pytest.mark.parametrize(
    ("case", "caught"),
    [
        ("wrong key", ("AuthenticationError", 401, "invalid_api_key", None)),
        ("unknown model", ("NotFoundError", 404, "model_not_found", None)),
        ("unknown model of a response", ("BadRequestError", 400, "model_not_found", "model")),
        ("stream options", ("BadRequestError", 400, None, "stream_options")),
        ("stateful", ("PermissionDeniedError", 403, "endpoint_not_allowed", None)),
        ("rate limit", ("RateLimitError", 429, "rate_limit_exceeded", None)),
        ("upstream's 500", ("InternalServerError", 500, None, None)),
        ("hang-up", ("InternalServerError", 502, "upstream_protocol_error", None)),
        ("no stream", ("InternalServerError", 502, "upstream_not_a_stream", None)),
    ],
)
def test_an_error_is_of_the_class_that_applications_catch(
    failures: dict[str, dict[str, Any]], case: str, caught: tuple[str, int, str | None, str | None]
) -> None:
    failure = failures[case]
    assert (failure["class"], failure["status"], failure["code"], failure["param"]) == caught
    assert failure["seen"] == 0


@pytest.mark.parametrize("case", ["reset", "cut", "truncated", "reset response"])
def test_an_upstream_that_dies_in_a_stream_raises_our_message(failures: dict[str, dict[str, Any]], case: str) -> None:
    failure = failures[case]
    assert (failure["class"], failure["code"]) == ("APIError", "upstream_protocol_error")
    assert "upstream" in failure["message"]
    assert failure["seen"] == 5


def test_an_error_inside_the_upstreams_stream_passes_with_its_message(failures: dict[str, dict[str, Any]]) -> None:
    assert "The server had an error" in failures["error event"]["message"]


def test_every_abort_reaches_the_upstream(outcome: Outcome) -> None:
    left = [line["phase"] for line in outcome.exchanges if line["outcome"] == "client_gone"]
    assert outcome.saw["aborts"] == outcome.stats["aborted"] == 3
    assert sorted(left) == ["forward", "relay", "relay"]
