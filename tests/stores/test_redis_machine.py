"""The state machine of quotas over Redis: the scripts do what `core/quota_state.py` does, in every order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from hypothesis import settings

from tests.fakes.quota_machine import QuotaMachine
from tests.fakes.redis import manual_stage

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from tests.fakes.quotas import QuotaStage

T = TypeVar("T")


class _RedisMachine(QuotaMachine):
    url: str

    def open_stage(self) -> QuotaStage:
        self.runner = asyncio.Runner()
        stage, self.store = manual_stage(self.url)
        return stage

    def run(self, answer: Coroutine[object, None, T]) -> T:
        return self.runner.run(answer)

    def teardown(self) -> None:
        self.run(self.store.close())
        self.runner.close()


def test_the_scripts_agree_with_a_recount(redis_url: str) -> None:
    class Machine(_RedisMachine):
        url = redis_url

    case = Machine.TestCase
    case.settings = settings(max_examples=20, stateful_step_count=25)
    case().runTest()
