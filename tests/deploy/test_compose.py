"""The compose file, read strictly: its mounts, stops and configuration are right, its secrets elsewhere."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.deploy.shipped import DEPLOY, ROOT, check_config, document, pairs, run, seconds, stopping_s, tool

if TYPE_CHECKING:
    from pathlib import Path

FOLDER = DEPLOY / "compose"
SCRIPT = FOLDER / "new-env.sh"
SECRETS = ("SLUICE_DEMO_KEY", "SLUICE_ADMIN_TOKEN", "POSTGRES_PASSWORD", "GRAFANA_PASSWORD")
_VARIABLE = re.compile(r"\$\{([A-Z_]+)(?::([-?])([^}]*))?\}")


def interpolated(text: str, variables: dict[str, str]) -> str:
    """What Compose makes of `${NAME}`, `${NAME:-default}` and `${NAME:?message}`."""

    def value(found: re.Match[str]) -> str:
        name, sign, rest = found.groups()
        if variables.get(name):
            return variables[name]
        assert sign == "-", f"{name} is missing: {rest}"
        return rest

    return _VARIABLE.sub(value, text)


def read_env(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return dict(line.split("=", 1) for line in lines)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """What new-env.sh makes, in a copy of its folder."""
    for name in (".env.example", "new-env.sh"):
        shutil.copy(FOLDER / name, tmp_path / name)
    made = run("sh", tmp_path / "new-env.sh")
    assert made.returncode == 0, made.stderr
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    before = (tmp_path / ".env").read_bytes()
    assert run("sh", tmp_path / "new-env.sh").returncode == 0
    assert (tmp_path / ".env").read_bytes() == before, "an .env that is there is never overwritten"
    return read_env(tmp_path / ".env")


@pytest.fixture
def services(env: dict[str, str]) -> dict[str, Any]:
    text = interpolated((FOLDER / "compose.yaml").read_text(), env)
    # the strict reader knows no merge keys: Compose resolves them first, too
    compose = {name: value for name, value in yaml.safe_load(text).items() if not name.startswith("x-")}
    PyCompose.from_yaml(yaml.safe_dump(compose)).validate()
    found: dict[str, Any] = compose["services"]
    return found


def test_the_script_is_clean() -> None:
    checked = run(tool("shellcheck"), SCRIPT)
    assert checked.returncode == 0, checked.stdout
    assert SCRIPT.stat().st_mode & 0o111


def test_every_secret_is_made_and_none_is_shipped(env: dict[str, str]) -> None:
    assert all(re.fullmatch(r"[0-9a-f]{48}", env[name]) for name in SECRETS)
    assert len({env[name] for name in SECRETS}) == len(SECRETS)
    assert {name for name, value in read_env(FOLDER / ".env.example").items() if not value} == set(SECRETS)
    assert "compose/.env" in (DEPLOY / ".gitignore").read_text().splitlines()


def test_a_missing_secret_is_said(env: dict[str, str]) -> None:
    text = (FOLDER / "compose.yaml").read_text()
    for name in SECRETS:
        with pytest.raises(AssertionError, match=name):
            interpolated(text, env | {name: ""})


@pytest.mark.parametrize(
    "broken",
    ["services: {a: {image: x, no_such: 1}}", "services: {a: {image: x, depends_on: {b: {condition: well}}}}"],
)
def test_the_reader_would_notice(broken: str) -> None:
    with pytest.raises(ValueError, match=r"no_such|well"):
        PyCompose.from_yaml(broken)


def test_the_whole_picture_is_there(services: dict[str, Any]) -> None:
    assert set(services) == {"sluice", "simulator", "redis", "postgres", "prometheus", "grafana"}
    for name, service in services.items():
        assert re.search(r":[0-9v]", service["image"]) or "build" in service, f"{name}: a version, not `latest`"


def test_what_is_mounted_is_there(services: dict[str, Any]) -> None:
    for service in services.values():
        for mount in service.get("volumes", ()):
            source = mount.split(":")[0]
            if source.startswith("."):
                assert (FOLDER / source).exists(), source
        if build := service.get("build"):
            context = (FOLDER / build["context"]).resolve()
            assert context == ROOT
            assert (context / build["dockerfile"]).is_file()


def test_nothing_is_reachable_from_elsewhere(services: dict[str, Any]) -> None:
    ports = [port for service in services.values() for port in service.get("ports", ())]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert len({port.split(":")[1] for port in ports}) == len(ports)
    assert not {"redis", "postgres"} & {name for name, service in services.items() if "ports" in service}


def test_our_containers_may_do_little(services: dict[str, Any]) -> None:
    for name in ("sluice", "simulator"):
        service = services[name]
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]


def test_the_configuration_is_in_order_and_a_stop_may_take_its_time(
    services: dict[str, Any], env: dict[str, str]
) -> None:
    names = services["sluice"]["environment"]
    in_effect = check_config(FOLDER / "sluice.yaml", {name: env[name] for name in names})
    assert seconds(services["sluice"]["stop_grace_period"]) > stopping_s(in_effect)
    assert in_effect["server"]["port"] == 8080
    assert in_effect["ops"]["port"] == 9090
    for url in (in_effect["store"]["url"], in_effect["ledger"]["url"], in_effect["upstreams"]["simulator"]["base_url"]):
        assert re.search(r"(?://|@)([a-z]+)[:/]", url)[1] in services, url  # type: ignore[index]


def test_prometheus_asks_where_sluice_listens(services: dict[str, Any]) -> None:
    settings = document(FOLDER / "prometheus.yml")
    (discovery,) = (value for name, value in pairs(settings) if name == "dns_sd_configs")
    assert [(name, one["port"]) for one in discovery for name in one["names"]] == [("sluice", 9090)]
    assert "sluice" in services
    assert any(mount.endswith(":/etc/prometheus/rules:ro") for mount in services["prometheus"]["volumes"])
    assert settings["rule_files"] == ["rules/*.yaml"]
    assert list((ROOT / "grafana" / "rules").glob("*.yaml"))
    if promtool := shutil.which("promtool"):
        checked = run(promtool, "check", "config", "--syntax-only", FOLDER / "prometheus.yml")
        assert checked.returncode == 0, checked.stderr


def test_grafana_finds_prometheus_and_the_dashboards(services: dict[str, Any]) -> None:
    mounts = dict(mount.split(":")[:2] for mount in services["grafana"]["volumes"])
    targets = {target: (FOLDER / source).resolve() for source, target in mounts.items() if source.startswith(".")}
    provisioning = targets["/etc/grafana/provisioning"]
    sources = [document(file) for file in sorted((provisioning / "datasources").glob("*.yaml"))]
    assert "http://prometheus:9090" in [value for source in sources for name, value in pairs(source) if name == "url"]
    providers = [document(file) for file in sorted((provisioning / "dashboards").glob("*.yaml"))]
    for path in [value for provider in providers for name, value in pairs(provider) if name == "path"]:
        assert list(targets[path].glob("*.json")), f"no dashboards where Grafana looks: {path}"
