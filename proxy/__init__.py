"""Sluice: an OpenAI-compatible streaming proxy.

The words used throughout, in code, logs and metrics:

    downstream   the client side               upstream     the model server side
    exchange     one request and its response  key          the credential a client presents
    principal    who holds a key               plan         a named set of limits
    model route  which upstreams serve a model attempt      one try at one upstream
    admission    the right to go on            relay        moving body bytes
    observation  what the answer turned out to be
    stall        a peer that stopped reading or writing
    drain        finishing in-flight exchanges before a stop

The floors; arrows point one way only, and a contract in CI keeps it so:

    cli -> supervisor -> worker -> app -> server -> phases -> {stores | upstream | telemetry} -> core

`core` is pure: no I/O, no clock, no asyncio. `phases` never import aiohttp. `app` and what it is built from name
concrete classes, nobody else.
Read `phases/pipeline.py` first: it is the life of a request.
"""

__version__ = "0.1.0"
