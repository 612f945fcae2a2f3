"""The relay without sockets: what each read makes it write, and how it ends the answer."""

from __future__ import annotations

import itertools
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import errors
from proxy.core.sse import KEEPALIVE_COMMENT, MAX_EVENT_BYTES
from proxy.phases.forward import MAX_ERROR_BODY_BYTES, Answer, AnswerKind
from proxy.phases.relay import Accompaniment, Relayed, relay
from tests.fakes.accounts import accompaniment
from tests.fakes.peers import FakeDownstream, FakeStream, exchange
from tests.fakes.recordings import DONE, FINISH, RECORDINGS, ROLE, delta, response_event

if TYPE_CHECKING:
    from collections.abc import Callable

    from proxy.core.ending import StreamShape
    from proxy.phases.upstreams import Upstream
    from proxy.upstream.stream import UpstreamStream

_UPSTREAM = cast("Upstream", SimpleNamespace(secrets=(b"sk-up-1", b"sk-up-2")))
_BROKEN = errors.ProxyError(errors.UPSTREAM_PROTOCOL_ERROR, "broken")


async def _relay(
    stream: FakeStream,
    kind: AnswerKind = "events",
    *,
    shape: StreamShape = "chat",
    method: str = "POST",
    first: bytes = b"",
    keepalive_s: float | None = None,
    downstream: FakeDownstream | None = None,
    along: Accompaniment | None = None,
) -> tuple[FakeDownstream, Relayed]:
    downstream = downstream or FakeDownstream()
    answer = Answer(cast("UpstreamStream", stream), stream.watchdog, kind, first)
    alone = exchange(downstream, shape, method=method)
    observed = await relay(alone, answer, _UPSTREAM, along or accompaniment(), keepalive_s)
    return downstream, observed


_BODY = RECORDINGS["openrouter"].body + RECORDINGS["crlf"].body


@given(cuts=st.lists(st.integers(1, len(_BODY) - 1), max_size=40, unique=True).map(sorted))
async def test_cut_anywhere_the_body_is_the_same_and_each_write_ends_an_event(cuts: list[int]) -> None:
    """So that an error event or a comment may stand behind any write."""
    edges = [0, *cuts, len(_BODY)]
    reads = [_BODY[start:end] for start, end in itertools.pairwise(edges)]
    downstream, observed = await _relay(FakeStream(reads))
    assert downstream.body == _BODY
    assert downstream.ended == "finish"
    assert observed.failure is None
    assert len(downstream.writes) <= len(reads)
    out = b""
    for write in downstream.writes:
        out += write
        # behind a blank line, or between the two halves of its CRLF
        assert out.endswith((b"\n\n", b"\r\n\r\n", b"\r\n\r"))


async def test_one_read_is_one_write_before_the_next_read() -> None:
    """Nothing is collected, and nothing is split."""
    reads = [ROLE, delta("a") + delta("b") + delta("c"), FINISH + DONE]
    stream, downstream = FakeStream(reads), FakeDownstream()
    seen: list[tuple[int, bytes]] = []

    async def write(data: bytes) -> None:
        seen.append((stream.reads_done, data))

    downstream.write = write  # type: ignore[method-assign]  # this once it also asks how far the upstream was read
    await _relay(stream, downstream=downstream)
    assert seen == [(1, reads[0]), (2, reads[1]), (3, reads[2])]


async def test_what_was_read_to_judge_the_answer_is_relayed_first() -> None:
    downstream, observed = await _relay(FakeStream([ROLE[9:], FINISH + DONE]), first=ROLE[:9])
    assert downstream.body == ROLE + FINISH + DONE
    assert observed.events == 3


@pytest.mark.parametrize(
    ("reads", "sent"),
    [
        ([], b""),
        ([ROLE], ROLE),
        ([ROLE, delta("a")[:30]], ROLE),
        ([ROLE + delta("a")[:-1]], ROLE),
        ([ROLE + FINISH], ROLE + FINISH),
    ],
)
async def test_a_break_at_a_boundary_is_told(reads: list[bytes], sent: bytes) -> None:
    """The half of an event that was held back is not sent."""
    downstream, observed = await _relay(FakeStream(reads, error=_BROKEN))
    assert downstream.body == sent + errors.chat_error_event(_BROKEN)
    assert downstream.ended == "finish"
    assert observed.failure is _BROKEN


async def test_a_break_within_what_is_out_is_a_cut() -> None:
    half = b"data: " + b"x" * MAX_EVENT_BYTES
    downstream, observed = await _relay(FakeStream([ROLE, half], error=_BROKEN))
    assert downstream.body == ROLE + half
    assert downstream.ended == "cut"
    assert observed.failure is _BROKEN


async def test_a_break_after_done_is_none() -> None:
    stream = FakeStream([ROLE + FINISH, DONE], error=_BROKEN)
    downstream, observed = await _relay(stream)
    assert downstream.body == ROLE + FINISH + DONE
    assert downstream.ended == "finish"
    assert observed.failure is None
    assert stream.hurried_s is not None


async def test_an_unfinished_answer_with_half_an_event_at_a_clean_end() -> None:
    """The half is dropped, and counted nowhere; behind a finished answer it is the client's."""
    downstream, observed = await _relay(FakeStream([ROLE, b"data: {"]))
    assert observed.failure is not None
    assert observed.events == 1
    assert downstream.body == ROLE + errors.chat_error_event(observed.failure)
    downstream, observed = await _relay(FakeStream([FINISH, b"data: {"]))
    assert observed.failure is None
    assert downstream.body == FINISH + b"data: {"


async def test_the_sequence_goes_on_from_the_last_event_that_is_out() -> None:
    """Not from one that was held back."""
    reads = [response_event("response.created", 6), response_event("response.in_progress", 7)[:-1]]
    downstream, _ = await _relay(FakeStream(reads, error=_BROKEN), shape="responses")
    assert downstream.body == reads[0] + errors.responses_error_event(_BROKEN, 7)


async def test_shapes_without_an_ending_are_not_judged() -> None:
    """Transcripts and images have no finish to miss."""
    downstream, observed = await _relay(FakeStream([b'data: {"type":"x"}\n\n']), shape="other")
    assert observed.failure is None
    assert downstream.ended == "finish"


@pytest.mark.parametrize("kind", ["opaque", "events"])
async def test_the_length_of_the_body(kind: AnswerKind) -> None:
    """Announced where it is known to hold; a stream of events may end with an event of ours."""
    stream = FakeStream([FINISH + DONE], headers=[(b"content-length", b"%d" % len(FINISH + DONE))])
    downstream, _ = await _relay(stream, kind)
    assert downstream.content_length == (len(FINISH + DONE) if kind == "opaque" else None)


async def test_an_opaque_body_that_breaks_is_cut() -> None:
    downstream, observed = await _relay(FakeStream([b"\0\1"], error=_BROKEN), "opaque")
    assert (downstream.body, downstream.ended) == (b"\0\1", "cut")
    assert observed.failure is _BROKEN


async def test_an_error_answer_loses_only_credentials() -> None:
    """However its bytes were split, in headers too."""
    body = b'{"error":{"message":"sk-up-1 and sk-up-2 are not sk-up-3"}}'
    stream = FakeStream([body[:25], body[25:]], status=401, headers=[(b"WWW-Authenticate", b"Bearer sk-up-2")])
    downstream, _ = await _relay(stream, "error")
    assert json.loads(downstream.body)["error"]["message"] == "*** and *** are not sk-up-3"
    assert downstream.content_length == len(downstream.body)
    assert (b"WWW-Authenticate", b"Bearer ***") in downstream.headers


async def test_an_error_answer_of_head_keeps_its_length() -> None:
    stream = FakeStream([], status=404, headers=[(b"Content-Length", b"120")])
    downstream, _ = await _relay(stream, "error", method="HEAD")
    assert (downstream.status, downstream.content_length, downstream.writes) == (404, 120, [])


@pytest.mark.parametrize(("size", "fits"), [(MAX_ERROR_BODY_BYTES, True), (MAX_ERROR_BODY_BYTES + 1, False)])
async def test_an_error_answer_is_bounded(size: int, *, fits: bool) -> None:
    """It is held whole, so it must be short; nothing is out yet when it is not."""
    stream, downstream = FakeStream([b"x" * size], status=500), FakeDownstream()
    if fits:
        await _relay(stream, "error", downstream=downstream)
        assert len(downstream.body) == size
    else:
        with pytest.raises(errors.ProxyError) as caught:
            await _relay(stream, "error", downstream=downstream)
        assert caught.value.kind is errors.UPSTREAM_PROTOCOL_ERROR
        assert not downstream.started


@pytest.mark.parametrize(
    ("read", "comment"),
    [
        (b"", True),
        (ROLE, True),
        (ROLE + delta("a")[:9], True),
        (b": ping\n\n", True),
        (b"id: 1\n" + ROLE, False),
        (ROLE + DONE, False),
        (b"data: " + b"x" * MAX_EVENT_BYTES, False),
        (ROLE.replace(b"\n", b"\r\n")[:-1], False),
    ],
    ids=["first", "boundary", "held-half", "comment", "id", "done", "oversize", "half-a-crlf"],
)
@pytest.mark.parametrize("is_waiting", [False, True])
async def test_where_a_comment_may_stand(read: bytes, *, comment: bool, is_waiting: bool) -> None:
    """And never while the client is behind: what waits would only grow."""
    downstream = FakeDownstream()

    class Silent(FakeStream):
        async def read(self) -> bytes:
            if self.reads_done == (1 if read else 0):
                downstream.is_waiting = is_waiting
                before = len(downstream.writes)
                cast("Callable[[], None]", self.comment)()
                added = downstream.writes[before:]
                assert added == ([KEEPALIVE_COMMENT] if comment and not is_waiting else [])
                downstream.is_waiting = False
            return await super().read()

    stream = Silent([read] if read else [], error=_BROKEN)
    await _relay(stream, keepalive_s=1.0, downstream=downstream)
    assert stream.reads_done > bool(read)
