"""What fails before a byte went downstream is asked again, row by row of the table in `core/retry.py`."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pytest

from proxy.config.settings import KeyConfig, PlanConfig, RetriesConfig
from proxy.config.upstreams import TimeoutsConfig
from proxy.config.values import Secret
from tests.fakes.answering import CHAT_EVENTS, CHAT_JSON, chat, response
from tests.fakes.raw_upstream import FullListener, RawUpstream
from tests.fakes.routing_stage import BODY, CHAT, JSON, STREAMED, HoldingUpstream, body_of, routed, samples, script
from tests.fakes.running import KEY
from tests.fakes.settled import nothing_held, settled_row
from tests.fakes.waiting import TIMER_S, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.fakes.routing_stage import Routed

ERROR: Final = b'{"error":{"message":"no, and %d","type":"server_error","param":null,"code":"theirs"}}'
FORM: Final = (("Content-Type", "multipart/form-data; boundary=b"),)
UPLOAD: Final = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF'
    + bytes(100_000)
    + b"\r\n--b--\r\n"
)
PLAN: Final = PlanConfig(requests=("10/hour",), concurrency=1)
PLANNED: Final[dict[str, Any]] = {
    "plans": {"p": PLAN},
    "keys": (KeyConfig(id="team-a", secret=Secret(KEY), plan="p"),),
}


def error(status: int, *headers: str) -> bytes:
    return response(ERROR % status, status=status, extra="".join(header + "\r\n" for header in headers))


@contextlib.contextmanager
def refusing() -> Iterator[str]:
    """The URL of a port that nobody listens on, and nobody else gets."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{sock.getsockname()[1]}/v1"


@contextlib.contextmanager
def unreachable() -> Iterator[str]:
    """The URL of a port where connecting takes for ever."""
    with FullListener() as listener:
        yield f"http://127.0.0.1:{listener.port}/v1"


class Row(NamedTuple):
    """What the first upstream does; what the log says of that try, and `sluice_retries_total` of the reason."""

    first: Callable[[bytes], bytes] | type[HoldingUpstream] | Callable[[], contextlib.AbstractContextManager[str]]
    result: str
    reason: str
    body: bytes = BODY


ROWS: Final = {
    "refuses": Row(refusing, "upstream_unreachable", "nothing_sent"),
    "cannot be reached": Row(unreachable, "upstream_timeout", "nothing_sent"),
    "closes": Row(script(b""), "upstream_protocol_error", "upstream_protocol_error"),
    "hangs": Row(HoldingUpstream, "upstream_timeout", "upstream_timeout"),
    "garbage": Row(
        script(b"SSH-2.0-OpenSSH_9.6\r\nConnection: close\r\n\r\n"),
        "upstream_protocol_error",
        "upstream_protocol_error",
    ),
    "redirect": Row(script(error(302, "Location: /")), "upstream_protocol_error", "upstream_protocol_error"),
    "not a stream": Row(script(response(CHAT_JSON)), "upstream_not_a_stream", "upstream_not_a_stream", STREAMED),
    "asks for it": Row(script(error(409, "x-should-retry: true")), "4xx", "should_retry"),
    **{
        str(status): Row(script(error(status)), f"{status // 100}xx", f"status_{status}")
        for status in (408, 429, 500, 502, 503, 504, 529)
    },
    "stream, 503": Row(script(error(503)), "5xx", "status_503", STREAMED),
}


@pytest.mark.parametrize("name", ROWS)
async def test_each_row_is_saved_by_another_route(name: str) -> None:
    row = ROWS[name]
    timeouts = TimeoutsConfig(connect=0.2, first_byte=0.2 if name == "hangs" else 10.0)
    with contextlib.ExitStack() as stack:
        first: Any = row.first
        if first in (refusing, unreachable):
            first = stack.enter_context(first())
        elif first is HoldingUpstream:
            first = HoldingUpstream()
        async with routed(first, chat, upstream={"timeouts": timeouts}, **PLANNED) as at:
            answer = await at.ask(row.body)
            assert (answer.status, answer.body) == (200, CHAT_JSON if row.body is BODY else CHAT_EVENTS)
            assert answer.whole
            line = await at.proxy.exchange()
            assert (line["upstream"], line["status"], line["attempts"], line["outcome"]) == ("b", 200, 2, "ok")
            tries = [(one["upstream"], one["result"]) for one in line["tries"]]
            assert tries == [("a", row.result), ("b", "2xx")]
            assert samples(at.proxy, "sluice_retries_total") == {f"a {row.reason}": 1}
            assert samples(at.proxy, "sluice_upstream_attempts_total") == {f"a {row.result}": 1, "b 2xx": 1}
            assert [body_of(request) for up in at.upstreams for request in up.requests] == [row.body] * sum(at.asked)
            stored = await settled_row(at.proxy)
            assert (stored["upstream"], stored["attempts"], stored["status"]) == ("b", 2, 200)
            assert answer.header("x-ratelimit-remaining-requests") == "9", "reserved once"
            assert at.in_flight() == {"a": 0, "b": 0}
            assert (await at.ask()).header("x-ratelimit-remaining-requests") == "8", "the slot is back"


@pytest.mark.parametrize(
    "answer",
    [
        *(error(status) for status in (400, 401, 403, 404, 409, 413, 422, 501)),
        error(500, "x-should-retry: false"),
        error(429, "x-should-retry: false", "retry-after: 1"),
    ],
    ids=lambda answer: answer[9:12].decode(),
)
async def test_what_is_not_worth_another_try_is_the_clients(answer: bytes) -> None:
    async with routed(script(answer), chat) as at:
        told = await at.ask()
        assert (told.status, told.body) == (int(answer[9:12]), body_of(answer))
        assert at.asked == [1, 0]
        line = await at.proxy.exchange()
        assert (line["upstream"], line["attempts"], line["outcome"]) == ("a", 1, "upstream_error")
        assert "tries" not in line
        assert not samples(at.proxy, "sluice_retries_total")


async def test_what_fails_last_is_what_the_client_sees() -> None:
    async with routed(script(error(500)), script(error(503, "retry-after: 7", "x-theirs: 1"))) as at:
        told = await at.ask()
        assert (told.status, told.error["code"]) == (503, "theirs")
        assert (told.header("retry-after"), told.header("x-theirs")) == ("7", "1"), "too long to wait for"
        assert at.asked == [1, 1]
        stored = await settled_row(at.proxy)
        assert (stored["upstream"], stored["attempts"], stored["status"]) == ("b", 2, 503)
        assert (stored["input_tokens"], stored["cost_nano_usd"], stored["grade"]) == (0, 0, "exact")


async def test_when_every_route_was_tried_the_last_one_is_asked_again() -> None:
    async with routed(script(error(500)), script(error(500), chat)) as at:
        assert (await at.ask()).status == 200
        line = await at.proxy.exchange()
        assert [one["upstream"] for one in line["tries"]] == ["a", "b", "b"]
        assert samples(at.proxy, "sluice_retries_total") == {"a status_500": 1, "b status_500": 1}


async def test_attempts_are_all_there_is() -> None:
    async with routed(script(error(500)), script(error(502)), script(error(504)), retries=_attempts(2)) as at:
        assert (await at.ask()).status == 502
        assert at.asked == [1, 1, 0]


def _attempts(count: int) -> RetriesConfig:
    return RetriesConfig(attempts=count, backoff=0.0)


async def test_each_route_gets_its_own_name_of_the_model_and_its_own_way_to_tell_usage() -> None:
    routes: tuple[dict[str, str], ...] = ({"model": "first/m"}, {})
    injects = re.compile(rb'"stream_options": ?\{"include_usage": ?true\}')
    async with routed(script(error(500)), chat, routes=routes, upstream={"usage": "inject"}) as at:
        assert (await at.ask(STREAMED)).body == CHAT_EVENTS
        first, second = (body_of(up.requests[0]) for up in at.upstreams)
        assert injects.search(first)
        assert first.replace(b"first/m", b"m") == second
    for name in "ab":
        async with routed(script(error(500)), chat, routes=routes, each={name: {"usage": "inject"}}) as at:
            assert (await at.ask(STREAMED)).body == CHAT_EVENTS
            asked = [bool(injects.search(body_of(up.requests[0]))) for up in at.upstreams]
            assert asked == [name == "a", name == "b"]


@pytest.mark.parametrize("status", [500, 408])
async def test_an_upstream_that_fails_gets_a_fifth_more_and_no_more(status: int) -> None:
    """One upstream, one route: its retries are bounded by its requests of late, and three more."""
    count = 100
    async with routed(script(error(status))) as at:
        for _ in range(count):
            assert (await at.ask()).status == status
        extra = at.asked[0] - count
        print(f"\n{extra} retries of {count} requests that all fail with {status}")
        assert 0 < extra <= count / 5 + 3
        assert samples(at.proxy, "sluice_retries_total") == {f"a status_{status}": extra}


async def test_a_healthy_route_takes_over_whatever_the_budget_of_the_failing_one() -> None:
    async with routed(script(error(500)), chat) as at:
        for _ in range(50):
            assert (await at.ask()).status == 200
        assert at.asked == [50, 50]
        await nothing_held(at.proxy)


@pytest.mark.parametrize("header", ["x-sluice-timeout", "x-stainless-timeout"])
async def test_a_wait_that_the_upstream_asks_for_is_kept_within_the_clients_patience(header: str) -> None:
    busy = error(503, "retry-after-ms: 200")
    async with routed(script(busy, chat, busy)) as at:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        assert (await at.ask(headers=((header, "30"),))).status == 200
        assert loop.time() - began_s >= 0.2 - TIMER_S
        told = await at.ask(headers=((header, "0.1"),))
        assert (told.status, told.header("retry-after-ms")) == (503, "200")
        assert at.asked == [3]


async def test_patience_counts_from_the_requests_arrival() -> None:
    """A client that took its time to send the body has waited as long for the answer."""
    patience_s = 0.2
    async with routed(script(error(500)), chat) as at:
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        at.client.send("POST", CHAT, headers=(*JSON, ("x-sluice-timeout", "0.2"), ("Content-Length", str(len(BODY)))))
        await until(lambda: at.proxy.sample("sluice_exchanges_in_flight", phase="admit") == 1, "the head arrived")
        await until(lambda: loop.time() - began_s > 2 * patience_s, "it is over before the body comes")
        at.client.writer.write(BODY)
        assert (await at.client.answer()).status == 500
        assert at.asked == [1, 0]


async def test_nothing_is_repeated_once_a_byte_went_downstream() -> None:
    for content_type, sent in (("text/event-stream", CHAT_EVENTS[:90]), ("application/json", CHAT_JSON[:9])):
        broken = response(sent, content_type=content_type, extra="Connection: close\r\n")
        broken = broken.replace(b"Content-Length: ", b"Content-Length: 1")
        async with routed(script(broken), chat) as at:
            answer = await at.ask(STREAMED if content_type == "text/event-stream" else BODY)
            assert answer.status == 200
            assert b'"code":"upstream_protocol_error"' in answer.body or not answer.whole
            line = await at.proxy.exchange()
            assert (line["attempts"], line["outcome"]) == (1, "upstream_protocol_error")
            assert at.asked == [1, 0]
            assert not samples(at.proxy, "sluice_retries_total")


async def uploading(at: Routed, *, late: bool) -> int:
    """Send an upload, the last byte once the first upstream has some of it; the status."""
    at.client.send("POST", "/v1/audio/transcriptions", headers=(*FORM, ("Content-Length", str(len(UPLOAD)))))
    at.client.writer.write(UPLOAD[: -1 if late else None])
    await at.client.writer.drain()
    return (await at.client.answer()).status


async def test_an_upload_whose_body_began_to_stream_is_sent_once() -> None:
    with RawUpstream() as raw:
        async with routed(f"http://127.0.0.1:{raw.port}/v1", chat) as at:
            sending = asyncio.get_running_loop().create_task(uploading(at, late=True))
            peer = await raw.accept()
            await peer.recv()
            peer.reset()
            assert await sending == 502
            assert at.asked == [0]
            assert (await at.proxy.exchange())["attempts"] == 1


async def test_an_upload_that_never_began_goes_elsewhere_whole() -> None:
    with refusing() as url:
        async with routed(url, chat) as at:
            assert await uploading(at, late=False) == 200
            assert body_of(at.upstreams[0].requests[0]) == UPLOAD


async def test_a_stale_connection_is_replaced_once_and_then_the_table_decides() -> None:
    with RawUpstream() as raw:
        async with routed(f"http://127.0.0.1:{raw.port}/v1", chat, routes=({}, {})) as at:
            asking = asyncio.get_running_loop().create_task(at.ask())
            peer = await raw.accept()
            await peer.answer(response(CHAT_JSON))
            assert (await asking).status == 200
            for fresh, upstream in ((response(CHAT_JSON), "a"), (b"", "b")):
                asking = asyncio.get_running_loop().create_task(at.ask())
                first = await peer.request()
                peer.close()
                peer = await raw.accept()
                assert await peer.answer(fresh) == first
                if not fresh:
                    peer.close()
                assert (await asking).status == 200
                line = await at.proxy.exchange(2 if fresh else 3)
                assert (line["upstream"], line["attempts"]) == (upstream, 1 if fresh else 2)
