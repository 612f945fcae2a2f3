"""The log's writer: order, a pipe nobody reads, a close that neither loses nor waits for ever."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

import pytest

from proxy.telemetry.log_writer import LogWriter
from tests.fakes.waiting import LONG_S

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def pipe() -> Iterator[tuple[IO[bytes], IO[bytes]]]:
    read, write = os.pipe()
    with os.fdopen(read, "rb", buffering=0) as reader, os.fdopen(write, "wb", buffering=0) as writer:
        yield reader, writer


def numbers_in(data: bytes) -> list[int]:
    return [int(line.split()[0]) for line in data.splitlines()]


def read_all(reader: IO[bytes]) -> bytes:
    data = b""
    while piece := reader.read(65_536):
        data += piece
    return data


def test_order_is_kept_and_close_writes_everything(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file)
        for number in range(5_000):
            writer.write(b"%d" % number)
        writer.close(patience_s=10)
    assert numbers_in((tmp_path / "log").read_bytes()) == list(range(5_000))
    assert writer.dropped == 0


@pytest.mark.parametrize("blocking", [True, False])
def test_a_pipe_nobody_reads_blocks_nobody_and_every_drop_is_counted(blocking: bool) -> None:
    with pipe() as (reader, end):
        os.set_blocking(end.fileno(), blocking)
        writer = LogWriter(end, max_lines=500)
        for number in range(5_000):  # some 1 MB into 64 KiB; were it to wait, it would wait for ever
            writer.write(b"%d %s" % (number, b"x" * 200))
        assert writer.dropped > 0
        received: list[bytes] = []
        drain = threading.Thread(target=lambda: received.append(read_all(reader)))
        drain.start()
        writer.close(patience_s=10)
        end.close()
        drain.join()
    numbers = numbers_in(received[0])
    assert numbers == sorted(set(numbers))
    assert len(numbers) + writer.dropped == 5_000


def test_close_gives_up_after_its_patience_on_a_blocked_pipe() -> None:
    with pipe() as (reader, end):
        writer = LogWriter(end)
        for _ in range(1_000):
            writer.write(b"x" * 200)
        writer.close(patience_s=0.05)
        assert writer._thread.is_alive()
        reader.close()  # the write fails now, and the thread comes to its end
        writer._thread.join(LONG_S)
        assert not writer._thread.is_alive()
        assert writer.dropped > 0


def test_a_pipe_whose_reader_left_costs_lines_but_raises_nothing() -> None:
    with pipe() as (reader, end):
        reader.close()
        writer = LogWriter(end)
        for _ in range(10):
            writer.write(b"line")
        writer.close(patience_s=10)
        assert writer.dropped == 10


def test_lines_after_close_are_dropped_and_closing_twice_is_fine(tmp_path: Path) -> None:
    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file)
        writer.close()
        writer.write(b"late")
        writer.close()
    assert writer.dropped == 1
    assert (tmp_path / "log").read_bytes() == b""
