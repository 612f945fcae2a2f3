"""Writing a simulated answer to its socket: the pace, the single writes, and the ways it goes wrong."""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from proxy.simulator.models import Fault

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from proxy.simulator.models import Script

_LINGER_0 = struct.pack("ii", 1, 0)  # closing then sends RST instead of FIN (socket(7), SO_LINGER)


class Frame(NamedTuple):
    """Bytes that are written together. `paced` ones wait for the model's pace first."""

    data: bytes
    paced: bool = False


async def play(
    request: web.Request,
    content_type: str,
    frames: Iterable[Frame],
    script: Script,
    error_after: Callable[[int], bytes],
) -> tuple[web.StreamResponse, bool]:
    """Send an answer frame by frame as the script says; also whether it went out whole, without its fault.

    `error_after` gives the bytes that tell an error after a number of frames. The body is chunked. Ends early, by
    cancellation or `ConnectionError`, when the client leaves.
    """
    response = web.StreamResponse(headers={"Content-Type": content_type})
    await response.prepare(request)
    for sent, frame in enumerate(frames):
        if script.fault is not None and sent == script.fault_after_events:
            await _go_wrong(request, response, script.fault, error_after(sent))
            return response, False
        if frame.paced:
            # also with no pause to make: one fast answer must not hold up the others
            await asyncio.sleep(script.interval_s)
        await _write(response, frame.data, script.split_bytes)
    await response.write_eof()
    return response, True


def hang_up(request: web.Request) -> None:
    """Reset the client's connection: it sees ECONNRESET, and what was not yet sent is lost."""
    transport = _transport(request)
    connection = transport.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_0)
    transport.abort()


async def _write(response: web.StreamResponse, data: bytes, split_bytes: int | None) -> None:
    if split_bytes is None:
        await response.write(data)
        return
    for start in range(0, len(data), split_bytes):
        await response.write(data[start : start + split_bytes])
        await asyncio.sleep(0)


async def _go_wrong(request: web.Request, response: web.StreamResponse, fault: Fault, error: bytes) -> None:
    match fault:
        case Fault.RESET:
            hang_up(request)
        case Fault.CUT:
            _transport(request).close()
        case Fault.STOP:
            await response.write_eof()
        case Fault.ERROR_EVENT:
            await response.write(error)
            await response.write_eof()
        case Fault.STALL:
            await _until_the_client_leaves()
        case Fault.GARBAGE:
            _transport(request).write(b"this is not a chunk size\r\n")
            await _until_the_client_leaves()


async def _until_the_client_leaves() -> None:
    await asyncio.Event().wait()  # the server cancels the handler then


def _transport(request: web.Request) -> asyncio.Transport:
    if request.transport is None:
        raise ConnectionResetError("the client left")
    return request.transport
