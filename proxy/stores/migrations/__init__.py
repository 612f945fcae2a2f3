"""The history of the ledger's tables, for Alembic. What is in a released version is never edited: a step is added.

Each step is a module in `versions/`. `REVISIONS` lists them in order, so that a start finds the tables up to date
without importing Alembic.
"""

from typing import Final

REVISIONS: Final = ("0001", "0002")
