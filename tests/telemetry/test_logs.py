"""Log lines: what is in them, what must never be in them, and the standard library's records."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any, Literal

import pytest

from proxy.core import errors
from proxy.telemetry.log_writer import LogWriter
from proxy.telemetry.logs import MASK, _Libraries, configure

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from structlog.typing import FilteringBoundLogger

PROMPT = "tell me about the merger"
KEY = "sk-sluice-Zm9vYmFyYmF6cXV4"


@pytest.fixture(autouse=True)
def _restored_logging() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("sluice")
    handlers, levels = list(root.handlers), (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


class Output:
    """A log written to a file, to be read after it is closed."""

    def __init__(self, file: Path, level: Any = "info", form: Literal["json", "console"] = "json") -> None:
        self._file = file
        self._stream = file.open("wb")
        self._writer = LogWriter(self._stream)
        self.log: FilteringBoundLogger = configure(level, form, self._writer)

    def text(self) -> str:
        self._writer.close(patience_s=10)
        self._stream.close()
        assert self._writer.dropped == 0
        return self._file.read_text()

    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text().splitlines()]


@pytest.fixture
def output(tmp_path: Path) -> Output:
    return Output(tmp_path / "log")


class TestLines:
    def test_a_line_says_when_how_bad_and_what_first(self, output: Output) -> None:
        output.log.info("exchange", id="ex_1", status=200, phases_s={"relay": 0.5}, reused=None)
        (line,) = output.lines()
        assert list(line)[:3] == ["timestamp", "level", "event"]
        assert line["timestamp"].endswith("Z")
        assert line["timestamp"][10] == "T"
        assert line | {"timestamp": ""} == {
            "timestamp": "",
            "level": "info",
            "event": "exchange",
            "id": "ex_1",
            "status": 200,
            "phases_s": {"relay": 0.5},
            "reused": None,
        }

    def test_levels_filter_both_kinds_of_loggers(self, tmp_path: Path) -> None:
        output = Output(tmp_path / "log", level="warning")
        output.log.info("no")
        logging.getLogger("sluice.tasks").info("no")
        output.log.warning("yes")
        logging.getLogger("sluice.tasks").error("yes")
        assert [(line["event"], line["level"]) for line in output.lines()] == [("yes", "warning"), ("yes", "error")]

    def test_bound_fields_are_on_every_line(self, output: Output) -> None:
        bound = output.log.bind(upstream="openai")
        bound.info("one")
        bound.info("two")
        assert [line["upstream"] for line in output.lines()] == ["openai", "openai"]

    def test_values_json_has_no_word_for_do_not_raise(self, output: Output) -> None:
        circular: dict[str, object] = {}
        circular["self"] = circular
        output.log.info(
            "odd", surrogate="\ud800", large=2**80, thing=object(), circular=circular, infinite=float("inf")
        )
        (line,) = output.lines()
        assert line["large"] == 2**80
        assert line["surrogate"] == "\ud800"
        assert line["thing"] == "<object>"

    def test_long_values_are_cut(self, output: Output) -> None:
        output.log.info("long", text="x" * 100_000, many=["y" * 100_000])
        (line,) = output.lines()
        assert len(line["text"]) == 2_000
        assert len(line["many"][0]) == 2_000

    def test_console_lines_are_readable_and_cannot_be_forged(self, tmp_path: Path) -> None:
        output = Output(tmp_path / "log", form="console")
        output.log.warning("drain ended", cut=3, model="a\nfatal forged=1 \x1b[31m")
        (line,) = output.text().splitlines()
        assert "warning" in line
        assert "drain ended" in line
        assert "cut=3" in line
        assert "\x1b" not in line


class TestSecrets:
    @pytest.mark.parametrize(
        "name",
        ["key", "api_key", "Authorization", "secret", "prompt", "messages", "content", "admin_token", "x-api-key"],
    )
    def test_fields_with_telling_names_are_masked_at_any_depth(self, output: Output, name: str) -> None:
        output.log.info("slip", **{name: PROMPT}, request={"inner": [{name: [PROMPT]}]})
        text = output.text()
        assert PROMPT not in text
        assert text.count(MASK) == 2

    def test_counts_under_such_names_and_key_ids_stay(self, output: Output) -> None:
        output.log.info("exchange", key_id="team-a", tokens={"input": 12, "output": 34}, max_tokens=5)
        (line,) = output.lines()
        assert (line["key_id"], line["tokens"], line["max_tokens"]) == ("team-a", {"input": 12, "output": 34}, 5)

    @pytest.mark.parametrize(
        "value",
        [
            KEY,
            f"refused {KEY}, sorry",
            f"line\n{KEY}",
            f"\x1b{KEY}",
            f"\u00e9{KEY}",
            "Bearer " + "abc.def-123",
            "authorization: bearer abc.def-123",
            "BEARER  abc.def-123",
            "bEaReR abc.def-123",
        ],
    )
    @pytest.mark.parametrize("form", ["json", "console"])
    def test_what_looks_like_a_credential_is_masked_anywhere(
        self, tmp_path: Path, value: str, form: Literal["json", "console"]
    ) -> None:
        output = Output(tmp_path / "log", form=form)
        output.log.info(value, note=value, nested={"list": [value]})
        logging.getLogger("sluice.tasks").error("%s", value)
        text = output.text()
        assert KEY not in text
        assert "abc.def-123" not in text
        assert text.count(MASK) == 4

    def test_words_that_merely_contain_the_letters_stay(self, output: Output) -> None:
        output.log.info("task-scheduler-started", model="flask-assistant-large")
        (line,) = output.lines()
        assert (line["event"], line["model"]) == ("task-scheduler-started", "flask-assistant-large")

    def test_bytes_and_objects_leave_only_their_type(self, output: Output) -> None:
        output.log.info(
            "slip", raw=PROMPT.encode(), error=ValueError(PROMPT), deep={"a": {"b": {"c": {"d": {"e": 1}}}}}
        )
        (line,) = output.lines()
        assert (line["raw"], line["error"]) == ("<bytes>", "<ValueError>")
        assert line["deep"]["a"]["b"]["c"]["d"] == "<dict>"


class TestExceptions:
    def test_a_foreign_exception_is_its_type_its_causes_and_its_place(self, output: Output) -> None:
        try:
            try:
                raise KeyError(PROMPT)
            except KeyError as error:
                raise ValueError(PROMPT) from error
        except ValueError as error:
            output.log.error("fault", id="ex_1", exc_info=error)
        text = output.text()
        line = json.loads(text)
        assert PROMPT not in text
        assert line["exception"] == "ValueError from KeyError"
        assert line["at"][0].startswith("telemetry/test_logs.py:")
        assert line["at"][0].endswith(" test_a_foreign_exception_is_its_type_its_causes_and_its_place")

    def test_our_own_error_keeps_its_public_message(self, output: Output) -> None:
        error = errors.ProxyError(errors.UPSTREAM_UNREACHABLE, "The upstream refused the connection.")
        output.log.error("fault", exc_info=error)
        (line,) = output.lines()
        assert (line["exception"], line["outcome"]) == ("ProxyError", "upstream_unreachable")
        assert line["error"] == "The upstream refused the connection."

    def test_log_exception_finds_what_is_being_handled(self, output: Output) -> None:
        try:
            raise OSError(PROMPT)
        except OSError:
            output.log.exception("fault")
        (line,) = output.lines()
        assert (line["level"], line["exception"]) == ("error", "OSError")


class TestStandardLibrary:
    @pytest.mark.parametrize("name", ["aiohttp.server", "asyncio", "some.library"])
    def test_a_librarys_record_leaves_neither_message_nor_traceback(self, output: Output, name: str) -> None:
        try:
            raise ValueError(PROMPT)
        except ValueError:
            logging.getLogger(name).exception("Error handling request %r", PROMPT.encode())
        text = output.text()
        line = json.loads(text)
        assert PROMPT not in text
        assert (line["event"], line["level"], line["logger"], line["exception"]) == (
            "library",
            "error",
            name,
            "ValueError",
        )
        assert "Traceback" not in text

    def test_a_librarys_record_without_exception_tells_where_it_was_made(self, output: Output) -> None:
        logging.getLogger("asyncio").warning("socket.send() raised: %s", PROMPT)
        (line,) = output.lines()
        assert line["at"][0].startswith("telemetry/test_logs.py:")
        assert PROMPT not in json.dumps(line)

    def test_libraries_are_heard_from_warnings_on_and_we_from_the_configured_level(self, tmp_path: Path) -> None:
        output = Output(tmp_path / "log", level="debug")
        logging.getLogger("asyncio").info("Using selector")
        logging.getLogger("asyncio").warning("Executing took long")
        logging.getLogger("sluice.tasks").debug("ours")
        assert [(line["logger"], line["level"]) for line in output.lines()] == [
            ("asyncio", "warning"),
            ("sluice.tasks", "debug"),
        ]

    def test_our_own_records_keep_their_message_but_not_the_exceptions(self, output: Output) -> None:
        try:
            raise ValueError(PROMPT)
        except ValueError:
            logging.getLogger("sluice.tasks").exception("background task %s failed", "settle")
        (line,) = output.lines()
        assert (line["event"], line["exception"]) == ("background task settle failed", "ValueError")
        assert PROMPT not in json.dumps(line)

    def test_records_with_odd_levels_or_wrong_arguments_do_not_raise(self, output: Output) -> None:
        root = logging.getLogger()
        root.handlers[:] = [handler for handler in root.handlers if isinstance(handler, _Libraries)]  # not pytest's
        logging.getLogger("sluice.tasks").log(35, "between")
        logging.getLogger("sluice.tasks").log(99, "beyond")
        logging.getLogger("sluice.tasks").error("%d tasks", "three")
        assert [(line["level"], line["event"]) for line in output.lines()] == [
            ("warning", "between"),
            ("critical", "beyond"),
            ("error", "%d tasks"),
        ]

    def test_configuring_again_replaces_the_first_writer(self, tmp_path: Path) -> None:
        first, second = Output(tmp_path / "first"), Output(tmp_path / "second")
        logging.getLogger("sluice.tasks").error("once")
        assert [line["event"] for line in second.lines()] == ["once"]
        assert first.lines() == []
