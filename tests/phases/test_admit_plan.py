"""May it go on: what the plan says of endpoint and model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from proxy.core import errors
from proxy.phases.admit import admit
from tests.fakes.arrived import CHAT, RESPONSES, STATEFUL, UPLOAD, arrived, principal

if TYPE_CHECKING:
    from proxy.phases.exchange import Endpoint

LIMIT_BYTES = 10_000
BODY = b'{"model":"m","stream":true}'


@pytest.mark.parametrize(
    ("endpoints", "endpoint", "path", "allowed"),
    [
        (("inference",), CHAT, None, True),
        (("inference",), UPLOAD, None, True),
        (("inference",), STATEFUL, "/files", False),
        (("stateful",), STATEFUL, "/files", True),
        (("stateful",), CHAT, None, False),
        (("/files*",), STATEFUL, "/files/f-1", True),
        (("/files*",), STATEFUL, "/batches", False),
        (("/chat/*",), CHAT, None, True),
        (("/chat/*",), RESPONSES, None, False),
        (("/audio/*",), UPLOAD, None, True),
        (("inference",), STATEFUL, "/inference", False),
        (("inference",), STATEFUL, "/stateful", False),
        (("stateful",), CHAT, "/stateful", False),
        (("/inference",), CHAT, None, False),
        (("/*",), CHAT, None, True),
    ],
)
async def test_endpoints_are_what_the_plan_names(
    endpoints: tuple[str, ...], endpoint: Endpoint, path: str | None, allowed: bool
) -> None:
    exchange = arrived(endpoint, pieces=[BODY], path=path)
    holder = principal(endpoints=endpoints)
    if allowed:
        assert (await admit(exchange, holder, LIMIT_BYTES)).principal is holder
    else:
        with pytest.raises(errors.ProxyError) as caught:
            await admit(exchange, holder, LIMIT_BYTES)
        assert caught.value.kind is errors.ENDPOINT_NOT_ALLOWED
        assert exchange.body.received_bytes == 0
        assert path is None or path not in caught.value.message


@pytest.mark.parametrize(
    ("endpoint", "kind", "param"),
    [(CHAT, errors.MODEL_NOT_FOUND, None), (RESPONSES, errors.MODEL_NOT_FOUND_RESPONSES, "model")],
)
async def test_a_model_outside_the_plan_does_not_exist(
    endpoint: Endpoint, kind: errors.ErrorKind, param: str | None
) -> None:
    with pytest.raises(errors.ProxyError) as caught:
        await admit(arrived(endpoint, pieces=[BODY]), principal(models=("other", "n*")), LIMIT_BYTES)
    assert (caught.value.kind, caught.value.param) == (kind, param)


async def test_a_long_model_name_is_not_repeated_whole() -> None:
    body = json.dumps({"model": "x" * 5000}).encode()
    with pytest.raises(errors.ProxyError) as caught:
        await admit(arrived(pieces=[body]), principal(models=("other",)), LIMIT_BYTES)
    assert len(caught.value.message) < 300
