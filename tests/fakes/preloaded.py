"""What `sluice serve` imports and loads, for a process that commands are forked from (`tests/fakes/forking.py`)."""

from __future__ import annotations

import gc
import importlib

from proxy import tokenizers
from proxy.core.tokens import CL100K, O200K

for module in (
    *("proxy.config.file", "proxy.process", "proxy.serving", "proxy.stores.postgres", "proxy.stores.redis"),
    *("proxy.supervisor", "sqlalchemy.dialects.postgresql.psycopg", "sqlalchemy.dialects.sqlite.pysqlite", "uvloop"),
):
    importlib.import_module(module)
tokenizers.load([CL100K, O200K])
gc.freeze()
