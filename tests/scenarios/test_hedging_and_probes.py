"""A late first byte starts a try elsewhere, and upstreams that are down are asked by probes and not by clients."""

from __future__ import annotations

from typing import TYPE_CHECKING

from proxy.config.settings import BreakerConfig, ModelConfig, RetriesConfig
from proxy.config.upstreams import ProbeConfig, RouteConfig
from tests.fakes.answering import AnsweringUpstream, response
from tests.fakes.client import RecordingClient
from tests.fakes.raw_upstream import RawUpstream
from tests.fakes.running import running, upstream_config
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from tests.fakes.running import Running

USAGE = b'{"id":"c","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":3,"total_tokens":12}}'
MODELS = {"m": ModelConfig(routes=(RouteConfig(upstream="slow"), RouteConfig(upstream="quick", priority=1)))}
CHAT = "/v1/chat/completions"
BODY = {"model": "m", "messages": [{"role": "user", "content": "Hello"}]}


def samples(proxy: Running, name: str) -> dict[str, float]:
    """The samples of a metric, by the values of their labels."""
    return {" ".join(sample.labels.values()): sample.value for sample in proxy.samples(name)}


async def test_a_late_first_byte_starts_a_try_elsewhere_and_the_loser_is_aborted_and_charged() -> None:
    with RawUpstream() as slow:
        async with AnsweringUpstream(lambda _: response(USAGE)) as quick:
            upstreams = {
                "slow": upstream_config(f"http://127.0.0.1:{slow.port}/v1"),
                "quick": upstream_config(quick.url),
            }
            settings = {"retries": RetriesConfig(attempts=1, hedge_after=0.05)}
            async with (
                running(upstreams, models=MODELS, settings=settings) as proxy,
                await RecordingClient.connect(proxy.port) as client,
            ):
                client.send("POST", CHAT, BODY)
                peer = await slow.accept()
                await peer.request()
                answer = await client.answer()
                assert (answer.status, answer.body) == (200, USAGE)
                await peer.ended()
                line = await proxy.exchange()
                assert (line["upstream"], line["attempts"], line["grade"]) == ("quick", 2, "counted")
                prompt_tokens = line["input_tokens"] - 9
                assert 0 < prompt_tokens < 20
                assert line["output_tokens"] == 3
                assert samples(proxy, "sluice_retries_total") == {"slow hedged": 1}
                await until(
                    lambda: samples(proxy, "sluice_upstream_in_flight") == {"slow": 0, "quick": 0}, "both places"
                )


async def test_a_first_byte_in_time_starts_nothing() -> None:
    async with AnsweringUpstream() as first, AnsweringUpstream() as second:
        upstreams = {"slow": upstream_config(first.url), "quick": upstream_config(second.url)}
        settings = {"retries": RetriesConfig(attempts=1, hedge_after=30.0)}
        async with (
            running(upstreams, models=MODELS, settings=settings) as proxy,
            await RecordingClient.connect(proxy.port) as client,
        ):
            assert (await client.ask("POST", CHAT, BODY)).status == 200
        assert (len(first.requests), len(second.requests)) == (1, 0)


async def test_a_client_that_leaves_aborts_both_tries() -> None:
    with RawUpstream() as slow, RawUpstream() as quick:
        upstreams = {
            "slow": upstream_config(f"http://127.0.0.1:{slow.port}/v1"),
            "quick": upstream_config(f"http://127.0.0.1:{quick.port}/v1"),
        }
        settings = {"retries": RetriesConfig(attempts=1, hedge_after=0.05)}
        async with running(upstreams, models=MODELS, settings=settings) as proxy:
            client = await RecordingClient.connect(proxy.port)
            client.send("POST", CHAT, BODY)
            peers = [await slow.accept(), await quick.accept()]
            for peer in peers:
                await peer.request()
            await client.reset()
            for peer in peers:
                await peer.ended()
            await until(lambda: samples(proxy, "sluice_upstream_in_flight") == {"slow": 0, "quick": 0}, "both places")


async def test_probes_close_a_circuit_and_no_client_is_sent_there_before() -> None:
    is_down = [True]

    def answer(request: bytes) -> bytes:
        if is_down[0]:
            return response(b'{"error":{"message":"down"}}', status=500)
        return response(USAGE)

    async with AnsweringUpstream(answer) as upstream:
        probe = ProbeConfig(path="/health", interval=0.02)
        settings = {"breaker": BreakerConfig(failures=1, cooldown=0.05, max_cooldown=0.1)}
        async with (
            running({"up": upstream_config(upstream.url, probe=probe)}, settings=settings) as proxy,
            await RecordingClient.connect(proxy.port) as client,
        ):
            assert (await client.ask("POST", CHAT, BODY)).status == 500
            refused = await client.ask("POST", CHAT, BODY)
            assert (refused.status, refused.error["code"]) == (503, "no_upstream")
            assert samples(proxy, "sluice_upstream_circuit")["up"] > 0
            await until(lambda: len(upstream.requests) >= 3, "probes")
            assert (await client.ask("POST", CHAT, BODY)).status == 503
            is_down[0] = False
            await until(lambda: samples(proxy, "sluice_upstream_circuit") == {"up": 0}, "a closed circuit")
            probes = [request.split(b"\r\n", 1)[0] for request in upstream.requests[1:]]
            assert set(probes) == {b"GET /v1/health HTTP/1.1"}
            assert (await client.ask("POST", CHAT, BODY)).status == 200
