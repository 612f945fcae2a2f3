"""Reload over the admin API: what differs by name, what is wrong by line, and nothing where there is no file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from proxy.config.changes import Changes, ReloadError
from proxy.config.problems import ConfigError
from tests.fakes.admin import operated
from tests.fakes.config_files import UPSTREAM, load_text
from tests.fakes.waiting import until

if TYPE_CHECKING:
    from pathlib import Path


async def test_without_a_file_there_is_nothing_to_reload() -> None:
    async with operated() as (_, _, operator):
        await operator.refused(409, "no_file", "POST", "/admin/reload")
        await until(lambda: operator.audit, "the line")
        assert operator.audit == [{"action": "reload", "outcome": "no_file", "target": None}]


async def test_what_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reload() -> Changes:
        return Changes(["models.gpt-4o.price"], ["server.port"])

    async with operated() as (_, proxy, operator):
        monkeypatch.setattr(proxy.worker, "reload", reload)
        told = {"in_force": ["models.gpt-4o.price"], "need_restart": ["server.port"]}
        assert await operator.does("POST", "/admin/reload") == told
        await until(lambda: operator.audit, "the line")
        assert operator.audit == [{"action": "reload", "outcome": "done", "target": None, **told}]


@pytest.fixture
def wrong(tmp_path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_text(tmp_path, UPSTREAM + "server:\n  prot: 1\nqueue: {max_wait: soon}\n")
    return caught.value


async def test_what_is_wrong_with_the_file_is_told_with_its_lines(
    monkeypatch: pytest.MonkeyPatch, wrong: ConfigError
) -> None:
    async def reload() -> Changes:
        raise ReloadError([str(problem) for problem in wrong.problems]) from wrong

    async with operated() as (_, proxy, operator):
        monkeypatch.setattr(proxy.worker, "reload", reload)
        refusal = await operator.refused(422, "invalid_configuration", "POST", "/admin/reload")
        assert refusal["message"] == "The configuration cannot be used, and nothing has changed."
        assert [(problem["path"], problem["line"]) for problem in refusal["problems"]] == [
            ("server.prot", 3),
            ("queue.max_wait", 4),
        ]
        assert "did you mean port?" in refusal["problems"][0]["message"]


async def test_what_a_worker_cannot_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def reload() -> Changes:
        raise ReloadError(["server.tls: No such file or directory"])

    async with operated() as (_, proxy, operator):
        monkeypatch.setattr(proxy.worker, "reload", reload)
        refusal = await operator.refused(422, "invalid_configuration", "POST", "/admin/reload")
        assert refusal["problems"] == [{"message": "server.tls: No such file or directory"}]
