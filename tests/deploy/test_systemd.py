"""The systemd units: verified by systemd itself where it is installed, with time to drain, and little they may do."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from proxy.config.settings import Config, ServerConfig
from tests.deploy.shipped import DEPLOY, run, seconds, tool

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = DEPLOY / "systemd"
INSTALLED = "/opt/sluice/bin/sluice"
MOST_EXPOSED = "15"  # of 100, as `systemd-analyze security` weighs; 12 when this was written


class _Unit(dict[str, list[str]]):
    """A section: each setting with its values in order, as settings may stand there more than once."""

    def one(self, name: str) -> str:
        (value,) = self[name]
        return value


def section(file: str, name: str) -> _Unit:
    found = _Unit()
    current = ""
    for line in (FOLDER / file).read_text().splitlines():
        if line.startswith("["):
            current = line.strip("[]")
        elif "=" in line and not line.startswith("#") and current == name:
            setting, _, value = line.partition("=")
            found.setdefault(setting, []).append(value)
    assert found, f"no section {name}"
    return found


@pytest.fixture
def units(tmp_path: Path) -> list[Path]:
    """The units with a program that is there: systemd looks for it."""
    for name in ("sluice.service", "sluice.socket"):
        text = (FOLDER / name).read_text()
        (tmp_path / name).write_text(text.replace(INSTALLED, tool("sluice")))
    return [tmp_path / "sluice.service", tmp_path / "sluice.socket"]


def analyze(*words: str | Path) -> str | None:
    """What systemd-analyze complains of; None if nothing."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed: the units were NOT verified")
    done = run(program, *words)
    return done.stderr or None if done.returncode == 0 else f"{done.stdout}{done.stderr}"


def test_systemd_finds_nothing_wrong(units: list[Path]) -> None:
    assert analyze("verify", "--man=no", *units) is None


def test_systemd_would_notice(units: list[Path]) -> None:
    units[0].write_text(units[0].read_text().replace("KillMode=", "KilMode="))
    assert "KilMode" in (analyze("verify", "--man=no", *units) or "")


def test_the_service_is_little_exposed(units: list[Path]) -> None:
    assert analyze("security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager", units[0]) is None


def test_a_stop_has_time_to_drain_and_is_told_to_the_supervisor_alone() -> None:
    service = section("sluice.service", "Service")
    shutdown = Config().shutdown
    assert seconds(service.one("TimeoutStopSec")) > shutdown.notice + shutdown.drain + 2
    assert (service.one("KillMode"), service.one("KillSignal")) == ("mixed", "SIGTERM")
    assert (service.one("Type"), service.one("NotifyAccess")) == ("notify", "main")


def test_descriptors_suffice_for_the_connections_that_are_allowed() -> None:
    limit = int(section("sluice.service", "Service").one("LimitNOFILE"))
    assert limit >= 2 * ServerConfig().max_connections + 200


def test_a_reload_checks_first() -> None:
    check, signal = section("sluice.service", "Service")["ExecReload"]
    assert check == f"{INSTALLED} check-config /etc/sluice/sluice.yaml"
    assert signal == "/bin/kill -HUP $MAINPID"


def test_the_socket_is_the_services() -> None:
    assert section("sluice.socket", "Socket").one("ListenStream") == "127.0.0.1:8080"
    assert "Accept" not in section("sluice.socket", "Socket"), "one process accepts, not one a connection"
    assert "Service" not in section("sluice.socket", "Socket"), "by its name it belongs to sluice.service"
