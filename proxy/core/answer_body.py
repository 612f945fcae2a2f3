"""Follow an answer that is no stream: what the upstream says it used, and the output text in case it never says."""

from __future__ import annotations

from typing import Any, Final

import msgspec

from proxy.core.answer_events import Said, read_json
from proxy.core.answer_usage import read_usage
from proxy.core.answers import Reader
from proxy.core.json_walk import JsonWalk

# A body up to this size is read whole; of a larger one only the usage is looked for.
MAX_BODY_BYTES: Final = 65536
_BOM: Final = b"\xef\xbb\xbf"
# A response in the background that is not made yet: what it will use is said where nobody here listens.
_UNMADE: Final = ("queued", "in_progress")


class _Bill(msgspec.Struct, gc=False):
    """What of a body decides what it costs, if the upstream says what was used."""

    usage: Any = None
    error: Any = None
    status: Any = None


_BILL: Final = msgspec.json.Decoder(_Bill)


class BodyAnswer(Reader):
    """Follows a JSON body that is no stream; holds at most `MAX_BODY_BYTES`, of a larger body only its usage.

    `input_only`: the endpoint has no output, as embeddings.
    """

    input_only: bool = False
    _walk: JsonWalk | None = None  # over a body too large to hold

    def saw(self, data: bytes) -> int:
        """Take the next bytes of the body. Never raises."""
        self._held += data
        if len(self._held) > MAX_BODY_BYTES or self._walk is not None:
            self._attempt(self._walk_on)
        return self._texts.chars

    def catch_up(self) -> None:
        """A body is read at its end."""

    def finish(self) -> None:
        """The body ended, or broke off. One of nothing, or nothing but white space, is lost."""
        if self._walk is not None or not self._is_settled_by_bill():
            self._attempt(self._finish)

    def _walk_on(self) -> None:
        if self._walk is None:
            self._walk = JsonWalk(("usage",))
            self.lost = True
        self._walk.feed(bytes(self._held))
        self._held.clear()

    def _finish(self) -> None:
        body = bytes(self._held).removeprefix(_BOM).strip()
        said = read_json(body) if body and self._walk is None else None
        if body and said is None:
            self._walk_on()  # it may have broken off behind the usage
            self.faults += not body.startswith((b"{", b"["))
        if self._walk is not None:
            said = Said(usage=self._walk.loaded(("usage",)))
        if said is None:
            self.lost = True
            return
        self._held.clear()
        is_unmade = said.status in _UNMADE
        self.usage = read_usage(said.usage, input_only=self.input_only)
        self.final = self.usage is not None and not is_unmade
        self.lost = self.lost or is_unmade
        self.is_error = bool(said.error)
        if not self.is_error:
            self._texts.add_body(said)
            self._texts.join()
            self.lost = self.lost or self._texts.not_text

    def _is_settled_by_bill(self) -> bool:
        """The usual end: the upstream says what was used, so that nobody needs the texts."""
        try:
            bill = _BILL.decode(self._held)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return False
        if bill.usage is None or bill.error or bill.status in _UNMADE:
            return False
        usage = read_usage(bill.usage, input_only=self.input_only)
        if usage is None:
            return False
        self.usage = usage
        self.final = True
        self._held = bytearray()
        return True
