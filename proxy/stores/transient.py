"""A ledger that nobody keeps, `sqlite:///:memory:`: for trials and measurements.

SQLite's own databases in memory belong to one connection each. So it is a file as any other, on a file system in memory
where there is one, and it is gone with the process.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from pathlib import Path
from typing import Final

_MEMORY: Final = Path("/dev/shm")  # noqa: S108 - the folder made in it is this user's alone


def transient_ledger() -> str:
    """The URL of a new ledger, which is removed when the interpreter ends."""
    folder = tempfile.mkdtemp(prefix="sluice-", dir=_MEMORY if _MEMORY.is_dir() else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return f"sqlite:///{folder}/ledger.db"
