"""The image, as far as it can be tried without a builder: its recipe, and its wheel run as in the last stage.

The wheel is built of what the Dockerfile copies through .dockerignore, and run from a folder nobody may write to, by
another user, without the right to make memory executable (`MemoryDenyWriteExecute` of the systemd unit).
"""

from __future__ import annotations

import asyncio
import ctypes
import fnmatch
import functools
import json
import os
import re
import shutil
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from proxy import __version__
from tests.deploy.shipped import DEPLOY, ROOT, run, tool
from tests.fakes.redis import free_port
from tests.fakes.running import running
from tests.fakes.waiting import LONG_S

DOCKERFILE = DEPLOY / "Dockerfile"
UID = 10001
_PR_SET_NO_NEW_PRIVS, _PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN = 38, 65, 1


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile's instructions, continuation lines joined."""
    text = re.sub(r"^#.*\n", "", DOCKERFILE.read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for word, rest in instructions():
        if word == "FROM":
            found.append([])
        if found:
            found[-1].append((word, rest))
    return found


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path out: the last pattern that fits it, or a folder above it, decides."""
    out = False
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.removeprefix("!").removeprefix("**/")
        if not line or line.startswith("#"):
            continue
        parts = path.split("/")
        prefixes = parts if "**/" in line else ["/".join(parts[: n + 1]) for n in range(len(parts))]
        if any(fnmatch.fnmatchcase(part, pattern) for part in prefixes):
            out = not line.startswith("!")
    return out


def test_the_recipe_is_clean() -> None:
    checked = run(tool("hadolint"), DOCKERFILE)
    assert checked.returncode == 0, checked.stdout


def test_the_linter_would_notice(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM python\nRUN cd /tmp && pip install x\n")
    assert run(tool("hadolint"), tmp_path / "Dockerfile").returncode != 0


def test_the_image_runs_as_nobody_in_particular_and_stops_in_order() -> None:
    build, final = stages()
    last = dict(final)
    assert last["USER"] == f"{UID}:{UID}"
    assert last["STOPSIGNAL"] == "SIGTERM"
    assert json.loads(last["ENTRYPOINT"]) == ["sluice"]
    assert json.loads(last["CMD"]) == ["serve"]
    assert "org.opencontainers.image.version" in last["LABEL"]
    assert build[0][1] == f"{final[0][1]} AS build", "one Python in both stages"
    assert [rest for word, rest in final if word == "COPY"] == ["--from=build /opt/sluice /opt/sluice"]
    installs = re.compile(r"apt-get|pip install|pip wheel|gcc|curl|wget")
    assert not [rest for word, rest in final if word == "RUN" and installs.search(rest)]
    (removes,) = [rest for word, rest in final if word == "RUN"]
    assert "pip uninstall --yes --no-cache-dir pip setuptools wheel" in removes


def test_secrets_and_ledgers_stay_out_of_the_build() -> None:
    for path in (
        "deploy/compose/.env",
        "sluice.db",
        "sluice.yaml",
        ".git/config",
        ".venv/bin/python",
        "tests/conftest.py",
    ):
        assert ignored(path), path
    assert ignored("proxy/__pycache__/cli.cpython-311.pyc")
    for path in ("proxy/cli.py", "proxy/stores/lua/reserve.lua", "pyproject.toml", "README.md"):
        assert not ignored(path), path


async def test_the_health_check_asks_for_health(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as the container runs it, but for the port; a proxy in the environment must not answer for us."""
    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{free_port()}")
    (check,) = [rest for word, rest in stages()[1] if word == "HEALTHCHECK"]
    python, *words = json.loads(check.partition("CMD ")[2])
    assert python == "python"
    async with running("http://127.0.0.1:1/v1") as proxy:
        ask = [word.replace("9090", str(proxy.ops_port)) for word in words]
        assert ask != words
        assert await _exit_code(ask) == 0
    assert await _exit_code(ask) != 0


async def _exit_code(words: list[str]) -> int:
    process = await asyncio.create_subprocess_exec(sys.executable, *words, stderr=asyncio.subprocess.DEVNULL)
    return await asyncio.wait_for(process.wait(), LONG_S)


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the first stage copies, of what .dockerignore lets through."""
    folder = tmp_path_factory.mktemp("context")
    sources = [rest.split()[:-1] for word, rest in stages()[0] if word == "COPY"]
    for name in (name for names in sources for name in names):
        assert not ignored(name), name
        if (ROOT / name).is_file():
            shutil.copy(ROOT / name, folder / name)
            continue
        for file in (ROOT / name).rglob("*"):
            path = file.relative_to(ROOT)
            if file.is_file() and not ignored(path.as_posix()):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, folder / path)
    return folder


@pytest.fixture(scope="module")
def installed(context: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of it, unpacked where everybody may read and nobody write. No network: setuptools is installed."""
    folder = tmp_path_factory.mktemp("image")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, context)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    assert __version__ in wheel.name
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_the_wheel_has_all_that_the_sources_have(context: Path, installed: Path) -> None:
    for file in (context / "proxy").rglob("*"):
        if file.is_file():
            assert (installed / file.relative_to(context)).is_file(), f"not in the wheel: {file.relative_to(context)}"


def _confine(uid: int | None) -> None:
    """What the container and the unit take away, before the program is executed."""
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)  # Linux 6.3; older ones refuse, and it changes nothing
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def _everybodys_python() -> str | None:
    """A Python of this version that another user may execute: ours may be in somebody's home."""
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    for candidate in (sys.executable, f"/usr/bin/{name}", f"/usr/local/bin/{name}"):
        path = Path(candidate).resolve()
        if path.exists() and all(parent.stat().st_mode & 0o001 for parent in (path, *path.parents)):
            return candidate
    return None


def test_it_runs_read_only_as_another_user(installed: Path, tmp_path: Path) -> None:
    """`--version`, a configuration checked, and a whole answer streamed by the SDK through the proxy."""
    uid = UID if os.geteuid() == 0 else None
    python = _everybodys_python() if uid is not None else sys.executable
    if python is None:
        pytest.skip("no Python here that another user may execute: the image's user was NOT tried")
    state = tmp_path / "state"
    state.mkdir(mode=0o777)
    state.chmod(0o777)
    configuration = tmp_path / "sluice.yaml"
    shutil.copy(DEPLOY / "kubernetes" / "base" / "sluice.yaml", configuration)
    configuration.chmod(0o644)
    _let_in(installed, tmp_path)
    paths = f"{installed}:{sysconfig.get_path('purelib')}"
    env = {"PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1", "HOME": "/nonexistent", "TMPDIR": str(state)}
    env |= {"XDG_STATE_HOME": str(state), "OPENAI_API_KEY": "sk-0123456789abcdef"}
    env |= {"SLUICE_STORE_URL": "redis://redis", "SLUICE_LEDGER_URL": "postgresql://u:p@h/d"}
    for words, expected in (
        (["--version"], __version__),
        (["check-config", str(configuration)], "postgresql://"),
        (["demo", "--once", "--port", "0"], "outcome=ok"),
    ):
        command = [python, "-c", "import sys; from proxy.cli import main; sys.exit(main())", *words]
        done = run(*command, env=env, cwd="/", preexec_fn=functools.partial(_confine, uid))
        assert done.returncode == 0, done.stderr
        assert expected in done.stdout
    assert [file.name for file in installed.rglob("*.pyc")] == []


def _let_in(*folders: Path) -> None:
    """pytest's folders are their owner's alone; on the way to these everybody may pass."""
    for folder in folders:
        for parent in folder.parents:
            if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
                parent.chmod(0o711)
        folder.chmod(0o755)
