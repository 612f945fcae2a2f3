"""What the system hands to a process: listening sockets, its own or systemd's, and the word to systemd that it runs."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import MutableMapping

# connections that arrive while nobody accepts: during a start, a stall, or the replacement of a worker
BACKLOG: Final = 4096
_FIRST_GIVEN: Final = 3  # SD_LISTEN_FDS_START of sd_listen_fds(3)


def listener(host: str, port: int, section: str) -> socket.socket:
    """A listening socket. Raises `OSError` that names the address, and the `section` of the settings it is from."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        # socket.create_server names the address a second time, in brackets
        why = (error.strerror or str(error)).partition(" (while")[0]
        raise OSError(error.errno, f"cannot listen on {host}:{port} ({section}.host, {section}.port): {why}") from error


def given(environ: MutableMapping[str, str], pid: int) -> list[socket.socket]:
    """The sockets that systemd opened for this process, by sd_listen_fds(3): the API's, then the operators'.

    The variables that tell of them are taken out of `environ`, as they are of no use to children. Raises `OSError` for
    one that is not a listening TCP socket.
    """
    told, count = environ.pop("LISTEN_PID", ""), environ.pop("LISTEN_FDS", "")
    environ.pop("LISTEN_FDNAMES", None)
    if told != str(pid) or not count.isdecimal():
        return []
    found = []
    for descriptor in range(_FIRST_GIVEN, _FIRST_GIVEN + int(count)):
        sock = socket.socket(fileno=descriptor)
        sock.set_inheritable(False)
        listens = sock.type == socket.SOCK_STREAM and sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or not listens:
            raise OSError(f"descriptor {descriptor}, given by LISTEN_FDS, is not a listening TCP socket")
        sock.setblocking(False)
        found.append(sock)
    return found


def tell_systemd(environ: MutableMapping[str, str], state: str) -> None:
    """Send `state`, such as `READY=1`, as sd_notify(3) does; without a service manager nothing happens."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # Linux' abstract names begin with a zero byte
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.connect(address)
        sock.sendall(state.encode())
