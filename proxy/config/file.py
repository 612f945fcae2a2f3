"""Where a configuration comes from: a YAML file, or nothing at all."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from proxy.config.checks import check
from proxy.config.problems import Findings, Problem, TooManyProblemsError
from proxy.config.read import Reader
from proxy.config.settings import Config, KeyConfig, LedgerConfig, config_type
from proxy.config.upstreams import RouteConfig, UpstreamConfig
from proxy.config.values import Secret, SecretUrl
from proxy.config.yaml_tree import MAX_FILE_BYTES, MapNode, YamlError, compose

if TYPE_CHECKING:
    from collections.abc import Mapping


def load(file: Path, environ: Mapping[str, str]) -> Config:
    """Read and check `file`, with `${NAME}` filled in from `environ`.

    Raises `ConfigError` with every problem there is, ordered by line.
    """
    findings = Findings(str(file))
    config = Config()
    try:
        config = _parse(_text_of(file), environ, findings)
        check(config, findings)
    except YamlError as error:
        findings.conclude(Problem(path="", line=error.line, message=error.message, file=str(file)))
    except TooManyProblemsError:
        findings.conclude(Problem(path="", line=None, message="has more problems than these", file=str(file)))
    findings.conclude()
    return msgspec.structs.replace(config, models=_routed(config))


def _text_of(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise YamlError(f"cannot be read: {error.strerror}", None) from error
    if len(raw) > MAX_FILE_BYTES:
        raise YamlError(f"is larger than {MAX_FILE_BYTES} bytes; keep keys in the ledger instead", None)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise YamlError("is not UTF-8", raw[: error.start].count(b"\n") + 1) from error


def _parse(text: str, environ: Mapping[str, str], findings: Findings) -> Config:
    root = compose(text) or MapNode(1)
    config: Config = Reader(environ, findings).read(root, config_type(), ())
    return config


def _routed(config: Config) -> dict[str, object]:
    """The models with their routes written out: none, or one without an upstream, means the first upstream."""
    first = next(iter(config.upstreams))
    models: dict[str, object] = {}
    for pattern, model in config.models.items():
        routes = model.routes or (RouteConfig(),)
        named = tuple(msgspec.structs.replace(route, upstream=route.upstream or first) for route in routes)
        models[pattern] = msgspec.structs.replace(model, routes=named)
    return models


def wants_simulator(environ: Mapping[str, str]) -> bool:
    """Whether `without_file` needs the simulator's URL, because there is no key of OpenAI's in `environ`."""
    return not environ.get("OPENAI_API_KEY", "").strip()


def state_directory(environ: Mapping[str, str]) -> Path:
    """Where a user's state belongs: `sluice` under `XDG_STATE_HOME`, else `~/.local/state` (XDG Base Directory)."""
    home = environ.get("XDG_STATE_HOME", "")
    base = Path(home) if home.startswith("/") else Path.home() / ".local" / "state"  # relative ones are to be ignored
    return base / "sluice"


def without_file(
    environ: Mapping[str, str], state_directory: Path, simulator_url: str | None = None
) -> tuple[Config, str]:
    """The configuration without a file, on loopback only, and the secret of its one key, to be printed once.

    The upstream is OpenAI where `OPENAI_API_KEY` is set, else the simulator at `simulator_url`: without that,
    `ValueError`.
    """
    secret = "sk-sluice-" + secrets.token_urlsafe(32)
    if not wants_simulator(environ):
        api_key = Secret(environ["OPENAI_API_KEY"].strip())
        upstreams = {"openai": UpstreamConfig(base_url="https://api.openai.com/v1", api_keys=(api_key,))}
    elif simulator_url is not None:
        upstreams = {"simulator": UpstreamConfig(base_url=simulator_url, auth="none")}
    else:
        raise ValueError("OPENAI_API_KEY is not set and there is no simulator to use instead")
    ledger = LedgerConfig(url=SecretUrl(f"sqlite:///{state_directory / 'sluice.db'}"))
    return Config(upstreams=upstreams, ledger=ledger, keys=(KeyConfig(id="default", secret=Secret(secret)),)), secret
