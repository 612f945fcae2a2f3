"""A test that is over its time ends, whatever it and the loop are at, and so does what it has set up."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.fakes.waiting import LONG_S

ROOT = Path(__file__).parents[1]
HANGING = """
import asyncio
import pytest

pytestmark = [pytest.mark.timeout(0.5), pytest.mark.asyncio(loop_factories=["uvloop", "asyncio"])]

async def spin():
    while True:
        sum(range(2000))
        await asyncio.sleep(0)

async def test_a_wait():
    await asyncio.Event().wait()

async def test_others_at_work():
    asyncio.create_task(spin())
    await asyncio.Event().wait()

async def test_callbacks():
    asyncio.get_running_loop().call_soon(calls)
    await asyncio.Event().wait()

def calls():
    sum(range(2000))
    asyncio.get_running_loop().call_soon(calls)

@pytest.fixture
async def stuck():
    yield
    await asyncio.Event().wait()

async def test_an_end_behind_a_failure(stuck):
    raise ValueError
"""


def test_all_that_hangs_is_ended(tmp_path: Path) -> None:
    file = tmp_path / "test_hanging.py"
    file.write_text(HANGING)
    options = ("-q", "-p", "no:cacheprovider", "-p", "tests.conftest", "-c", str(ROOT / "pyproject.toml"))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, f"--rootdir={tmp_path}", str(file)],
        cwd=ROOT,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * LONG_S,
    )
    assert ran.returncode == 1, ran.stdout + ran.stderr
    told = ran.stdout.splitlines()
    assert sum(line.startswith("FAILED") for line in told) == 8, ran.stdout
    assert sum(line.startswith("ERROR") for line in told) == 2, ran.stdout
    assert ran.stdout.count("the test's time limit of 0.5 s") >= 8, ran.stdout
