"""When a key's plan, limits or expiry were last changed: readers of changes tell histories apart by it."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column."""
    op.add_column("keys", sa.Column("changed_ms", sa.BigInteger))
