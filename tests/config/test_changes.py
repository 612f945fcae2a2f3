"""What differs between two configurations is named by its settings, and no value shows."""

from __future__ import annotations

import msgspec

from proxy.config.changes import changes, in_force
from proxy.config.settings import Config, KeyConfig, OpsConfig, PlanConfig, ServerConfig, ServerTlsConfig
from proxy.config.upstreams import UpstreamConfig
from proxy.config.values import Secret

PLANS = {"a": PlanConfig(requests=("1/minute",)), "b.c": PlanConfig()}
KEYS = (KeyConfig(id="one", secret=Secret("first-secret")), KeyConfig(id="two", secret=Secret("second-secret")))
BEFORE = Config(upstreams={"up": UpstreamConfig(base_url="http://h", auth="none")}, plans=PLANS, keys=KEYS)


def test_nothing_differs_from_itself() -> None:
    again = msgspec.structs.replace(BEFORE, keys=tuple(KEYS))
    assert changes(BEFORE, again) == ([], [])


def test_members_settings_and_keys_are_named_and_no_value_is() -> None:
    after = msgspec.structs.replace(
        BEFORE,
        plans={"a": PlanConfig(requests=("2/minute",), weight=3), "new": PlanConfig()},
        keys=(KEYS[1], KeyConfig(id="one", secret=Secret("another-secret")), KeyConfig(id="3", secret=Secret("x"))),
    )
    found = changes(BEFORE, after)
    assert found.in_force == [
        "plans.a.requests",
        "plans.a.weight",
        'plans."b.c"',
        "plans.new",
        "keys.one.secret",
        "keys.3",
    ]
    assert found.need_restart == []


def test_what_was_made_at_the_start_needs_a_restart() -> None:
    server = ServerConfig(port=1, workers=3, write_stall=5.0, tls=ServerTlsConfig("c", "k"))
    found = changes(BEFORE, msgspec.structs.replace(BEFORE, server=server))
    assert found.need_restart == [
        "server.port",
        "server.workers",
        "server.tls.certificate",
        "server.tls.private_key",
    ]
    assert found.in_force == ["server.write_stall"]
    renewed = msgspec.structs.replace(server, tls=ServerTlsConfig("new", "k"))
    both = (msgspec.structs.replace(BEFORE, server=one) for one in (server, renewed))
    assert changes(*both) == (["server.tls.certificate"], [])


def test_what_needs_a_restart_stays_as_it_runs_and_is_named_again() -> None:
    after = msgspec.structs.replace(
        BEFORE, server=ServerConfig(port=1, workers=3, write_stall=5.0), ops=OpsConfig(port=7), plans={}
    )
    served = in_force(BEFORE, after)
    assert (served.server.port, served.server.workers, served.ops) == (8080, 1, BEFORE.ops)
    assert (served.server.write_stall, served.plans) == (5.0, {})
    assert changes(served, after) == ([], ["server.port", "server.workers", "ops.port"])
    assert changes(served, BEFORE).need_restart == []
