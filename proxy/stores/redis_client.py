"""Redis by URL: one server, one behind Sentinel, or a cluster. What redis-py's clients have in common is all we use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import ConnectionPool, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_PORT: Final = 6379
DEFAULT_SENTINEL_PORT: Final = 26379

Client = Redis | RedisCluster


def open_client(url: str, *, connections: int) -> tuple[Client, list[Sentinel]]:
    """A client for `url`, and the sentinels that must be closed with it. Nothing is connected yet.

    `redis://`, `rediss://` (TLS), `unix://` or `redis+unix://` name a server as redis-py does;
    `redis+sentinel://user:password@host:port,host:port/service/database?sentinel_password=` a service, where user and
    password are the server's; `redis+cluster://user:password@host:port,host:port` some nodes of a cluster. The last
    two with `rediss` for TLS. Queries are redis-py's (`ssl_ca_certs` ...). Raises `ValueError` without quoting the URL.
    """
    common: dict[str, Any] = {
        # whoever calls has a limit of his own for all of it
        "socket_timeout": None,
        "socket_connect_timeout": None,
        "max_connections": connections,
        "protocol": 2,  # nothing of RESP3 is wanted, and this saves a round trip of each connection
        # whether a call may be repeated is known to the caller alone
        "retry": Retry(NoBackoff(), 0),
        "driver_info": None,  # else each new connection reads the package's metadata from the disk
    }
    scheme = url.partition("://")[0]
    try:
        if scheme.endswith("+sentinel"):
            return _behind_sentinel(url, common)
        if scheme.endswith("+cluster"):
            return _cluster(url, common), []
        pool: ConnectionPool = ConnectionPool.from_url(url.removeprefix("redis+"), **common)
        # a query that no connection understands is found here and not by the first request
        pool.make_connection()  # type: ignore[no-untyped-call]
        return Redis.from_pool(pool), []
    except (TypeError, ValueError, AttributeError) as error:
        # messages of urllib and redis-py may quote a password
        raise ValueError("is not a URL of Redis, or has a query that redis-py does not know") from error


def _cluster(url: str, common: Mapping[str, Any]) -> RedisCluster:
    nodes, _, options = _several(url, DEFAULT_PORT)
    options.pop("db", None)
    startup = [ClusterNode(host, port) for host, port in nodes]
    # keys of a lost node are refused, the others go on
    return RedisCluster(startup_nodes=startup, require_full_coverage=False, **{**common, **options})


def _behind_sentinel(url: str, common: Mapping[str, Any]) -> tuple[Redis, list[Sentinel]]:
    nodes, path, options = _several(url, DEFAULT_SENTINEL_PORT)
    service, _, database = path.partition("/")
    if not service:
        raise ValueError("names no service")
    own = {name: options.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    of_tls = {name: value for name, value in options.items() if name.startswith("ssl")}
    to_sentinels = {**common, **of_tls, **{name: value for name, value in own.items() if value is not None}}
    sentinel = Sentinel(nodes, sentinel_kwargs=to_sentinels)  # type: ignore[no-untyped-call]
    return sentinel.master_for(service, **{**common, **options, "db": int(database or 0)}), [sentinel]


def _several(url: str, default_port: int) -> tuple[list[tuple[str, int]], str, dict[str, Any]]:
    """The hosts of a URL, its path, and what redis-py reads from the rest."""
    parts = urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    nodes = []
    for one in hosts.split(","):
        host = urlsplit(f"//{one}")
        if not host.hostname:
            raise ValueError("names no host")
        nodes.append((host.hostname, host.port or default_port))
    scheme = parts.scheme.partition("+")[0]
    options: dict[str, Any] = {**parse_url(f"{scheme}://{credentials}{at}localhost?{parts.query}")}
    del options["host"]
    if options.pop("connection_class", None) is not None:
        options["ssl"] = True
    return nodes, parts.path.strip("/"), options
