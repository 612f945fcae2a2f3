"""Log lines: rendered in the calling thread, for a `LogWriter` to write.

All logging ends here: our own structlog logger, our `logging.getLogger("sluice.…")`, and the libraries' loggers. Nobody
should log a key, a prompt or an answer; in case somebody does, fields with telling names and strings that look like
credentials are masked. Of foreign exceptions only type and place are logged: their messages quote request bytes.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from datetime import UTC, datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, cast

import msgspec
import structlog

from proxy.core.errors import ProxyError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from structlog.typing import EventDict, FilteringBoundLogger, Processor

    from proxy.telemetry.log_writer import LogWriter

MASK: Final = "[masked]"

MAX_VALUE_CHARS: Final = 2_000
"""No string in a line is longer."""
_MAX_DEPTH: Final = 4
_MAX_FRAMES: Final = 8


# names under which somebody might log what must not be logged; numbers under them (a count of tokens) may pass
_SECRET_NAMES: Final = frozenset(
    {"key", "secret", "token", "password", "authorization", "cookie", "credentials", "api_keys", "headers"}
    | {"prompt", "messages", "message", "content", "input", "output", "instructions", "completion", "body", "chunk"}
)
_SECRET_SUFFIXES: Final = ("_key", "_secret", "_token", "_password", "apikey", "_authorization", "_cookie", "_content")
# in a rendered line: a key is at the start of a word, where escapes such as \n and \x1b do not count as letters
_CREDENTIALS: Final = re.compile(
    rb"""(?:(?<![A-Za-z0-9])|(?<=\\[bfnrt])|(?<=\\u[0-9a-f]{4})|(?<=\\x[0-9a-f]{2}))(?:sk-[\w-]{4,}|(?i:bearer)\s+[^\s"'\\]+)"""
)
_KEY: Final = re.compile(rb"sk-").search  # half the time of `in`, which looks at three bytes at once
_PLAIN_TYPES: Final = frozenset({int, float, bool, type(None)})


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    plain = name.lower().replace("-", "_")
    return plain in _SECRET_NAMES or plain.endswith(_SECRET_SUFFIXES)


def _clean(value: object, depth: int = 0) -> object:
    """The value as plain JSON types, cut to size; of an object that is none of them only the type's name is left."""
    if type(value) in _PLAIN_TYPES:
        return value
    if isinstance(value, str):
        return value[:MAX_VALUE_CHARS]
    if isinstance(value, dict) and depth < _MAX_DEPTH:
        return _clean_fields(value, depth + 1)
    if isinstance(value, list | tuple) and depth < _MAX_DEPTH:
        return [_clean(item, depth + 1) for item in value]
    return f"<{type(value).__name__}>"


def _clean_fields(fields: Mapping[Any, Any], depth: int = 0) -> dict[str, Any]:
    return {
        str(name): value if type(value) in _PLAIN_TYPES else (MASK if _is_secret(str(name)) else _clean(value, depth))
        for name, value in fields.items()
    }


def _cover(line: bytes) -> bytes:
    """Mask what looks like a credential, wherever in the line; the searches are far cheaper than the pattern.

    Most lines have no space at all, and to find that out is the cheapest of them.
    """
    if _KEY(line) or (b" " in line and b"bearer " in line.lower()):
        return _CREDENTIALS.sub(MASK.encode(), line)
    return line


def _place(frame_file: str, line: int | None, function: str) -> str:
    """A place in the code, without the folders of this machine."""
    return f"{'/'.join(frame_file.rsplit('/', 2)[-2:])}:{line} {function}"


def _describe(error: BaseException) -> dict[str, object]:
    """Type, causes and places of an exception, the innermost place first; the message only where we wrote it."""
    names: list[str] = []
    cause: BaseException | None = error
    while cause is not None and len(names) < _MAX_FRAMES:
        names.append(type(cause).__name__)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    described: dict[str, object] = {"exception": " from ".join(names), "at": _places(error.__traceback__)}
    if isinstance(error, ProxyError):
        described |= {"outcome": error.kind.outcome, "error": error.message}
    return described


def _places(trace: TracebackType | None) -> list[str]:
    frames = [_place(frame.f_code.co_filename, line, frame.f_code.co_name) for frame, line in traceback.walk_tb(trace)]
    return frames[: -_MAX_FRAMES - 1 : -1]


def _exception_of(exc_info: object) -> BaseException | None:
    """What `exc_info` of a logging call means: an exception, a triple, or whatever is being handled."""
    if isinstance(exc_info, tuple):
        exc_info = exc_info[1]
    elif exc_info is True:
        exc_info = sys.exception()
    return exc_info if isinstance(exc_info, BaseException) else None


def _prepare(_logger: object, level: str, fields: EventDict) -> EventDict:
    """The fields in reading order, clean, the exception described."""
    line: dict[str, Any] = {
        "timestamp": fields.pop("timestamp"),
        "level": level,
        "event": _clean(fields.pop("event", "")),
    }
    error = _exception_of(fields.pop("exc_info", None))
    line |= _clean_fields(fields)
    if error is not None:
        line |= _describe(error)
    return line


def _render_json(_logger: object, _level: str, fields: EventDict) -> bytes:
    try:
        return _cover(_ENCODER.encode(fields))
    except (ValueError, OverflowError):
        # lone surrogates and integers past 64 bits; the standard library writes both
        return _cover(json.dumps(fields).encode())


_ENCODER: Final = msgspec.json.Encoder()


class _ConsoleRenderer:
    """Lines for people."""

    def __init__(self, *, colors: bool) -> None:
        self._render = structlog.dev.ConsoleRenderer(colors=colors, pad_event_to=0, sort_keys=False)

    def __call__(self, logger: object, level: str, fields: EventDict) -> bytes:
        # control characters would let a value forge lines or drive the terminal
        safe = {
            name: ascii(value) if isinstance(value, str) and not value.isprintable() else value
            for name, value in fields.items()
        }
        return _cover(self._render(logger, level, safe).encode(errors="backslashreplace"))


class _Output:
    """The end of the chain, in structlog's terms a logger: each method takes a rendered line.

    `clean_context` are the fields of the bound logger that wrote here last, whose own they were made of.
    """

    def __init__(self, writer: LogWriter, *, is_json: bool) -> None:
        self.context: Mapping[str, Any] = {}
        self.clean_context: dict[str, Any] = {}
        self.write = writer.write
        self.debug = self.info = self.warning = self.error = self.critical = writer.write
        self.is_json = is_json


class _Libraries(logging.Handler):
    """Passes records of the standard library's logging on.

    Our own loggers (`sluice.…`) are trusted with their message. Of everybody else's records (aiohttp quotes requests,
    asyncio prints transports and futures) only the logger, the level, the place and the exception's type are kept.
    """

    def __init__(self, log: FilteringBoundLogger) -> None:
        super().__init__()
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        """Log the record as one line; never raises."""
        error = _exception_of(record.exc_info)
        if record.name.startswith("sluice."):
            event, place = _message_of(record), {}
        else:
            event = "library"
            place = {"at": [_place(record.pathname, record.lineno, record.funcName)]}
        level = max(logging.DEBUG, min(record.levelno // 10 * 10, logging.CRITICAL))
        self._log.log(level, event, logger=record.name, exc_info=error, **place)


def _message_of(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except (TypeError, ValueError, KeyError):
        return str(record.msg)  # its arguments do not fit


def configure(
    level: Literal["debug", "info", "warning", "error"],
    form: Literal["json", "console"],
    writer: LogWriter,
    **fields: object,
) -> FilteringBoundLogger:
    """The logger whose lines go to `writer`, as JSON or for people; standard-library logging goes the same way.

    Every line has `fields`. Calling it again replaces what the call before set up.
    """
    render: Processor = _render_json if form == "json" else _ConsoleRenderer(colors=writer.is_terminal())
    processors: list[Processor] = [structlog.processors.TimeStamper(fmt="iso", utc=True), _prepare, render]
    output = _Output(writer, is_json=form == "json")
    wrapper = structlog.make_filtering_bound_logger(level)
    # bind() unwraps the lazy proxy, which would look the configuration up again at every line
    log: FilteringBoundLogger = structlog.wrap_logger(output, processors, wrapper).bind(**fields)
    root = logging.getLogger()
    for handler in [handler for handler in root.handlers if isinstance(handler, _Libraries)]:
        root.removeHandler(handler)
    root.addHandler(_Libraries(log))
    # what libraries say below a warning is of no use without their messages
    root.setLevel(logging.WARNING)
    logging.getLogger("sluice").setLevel(level.upper())
    return log


def log_always(log: FilteringBoundLogger, level: Literal["info", "warning"], event: str, **fields: object) -> None:
    """Log a line that must not be missing, whatever the threshold `log.level` is."""
    cast("structlog.BoundLoggerBase", log)._proxy_to_logger(level, event, **fields)  # noqa: SLF001 - meant for it


def log_clean(
    log: FilteringBoundLogger, level: Literal["info", "warning"], event: str, fields: dict[str, object]
) -> None:
    """Log as `log_always` does, in a tenth of the time, fields that need no cleaning: every exchange has such a line.

    Clean are plain JSON types, in strings of at most `MAX_VALUE_CHARS`, under names that tell of no secret and are no
    bound one's; there is at least one.
    """
    bound: Any = log  # what it holds has no public names
    output: _Output = bound._logger  # noqa: SLF001 - as above
    if not output.is_json:
        log_always(log, level, event, **fields)
        return
    if bound._context is not output.context:  # noqa: SLF001 - as above
        output.context = bound._context  # noqa: SLF001 - as above
        output.clean_context = _clean_fields(output.context)
    now = datetime.now(UTC)  # noqa: TID251 - all logging has this clock
    head = {"timestamp": now, "level": level, "event": event, **output.clean_context}
    try:
        # two objects made one: to copy the fields behind the others would take longer
        line = _ENCODER.encode(head)[:-1] + b"," + _ENCODER.encode(fields)[1:]
    except (ValueError, OverflowError):  # as in `_render_json`
        log_always(log, level, event, **fields)
    else:
        output.write(_cover(line))
