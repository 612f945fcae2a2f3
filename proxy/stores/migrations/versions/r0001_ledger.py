"""The first tables: exchanges, the workers that write them, and keys made at run time."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create them."""
    _create_exchanges()
    op.create_table(
        "workers",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("seen_ms", sa.BigInteger, nullable=False),
    )
    op.create_table(
        "keys",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("secret_sha256", sa.Text, nullable=False, unique=True),
        sa.Column("previous_sha256", sa.Text, unique=True),
        sa.Column("previous_until_ms", sa.BigInteger),
        sa.Column("plan", sa.Text),
        sa.Column("limits", sa.Text),
        sa.Column("expires_ms", sa.BigInteger),
        sa.Column("revoked_ms", sa.BigInteger),
        sa.Column("created_ms", sa.BigInteger, nullable=False),
        sa.Column("last_used_ms", sa.BigInteger),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )
    op.create_index("keys_by_revision", "keys", ["revision"])
    op.create_table(
        "key_revision",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("revision", sa.BigInteger, nullable=False),
    )


def _create_exchanges() -> None:
    op.create_table(
        "exchanges",
        sa.Column("id", sa.Text, primary_key=True),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("key_id", sa.Text, nullable=False),
        sa.Column("endpoint", sa.Text, nullable=False),
        sa.Column("model", sa.Text, nullable=False),
        sa.Column("upstream", sa.Text, nullable=False),
        sa.Column("streamed", sa.Boolean, nullable=False),
        sa.Column("started_ms", sa.BigInteger, nullable=False),
        sa.Column("reserved_tokens", sa.BigInteger, nullable=False),
        sa.Column("reserved_nano_usd", sa.BigInteger, nullable=False),
        sa.Column("ended_ms", sa.BigInteger),
        sa.Column("status", sa.Integer),
        sa.Column("outcome", sa.Text),
        sa.Column("grade", sa.Text),
        sa.Column("input_tokens", sa.BigInteger),
        sa.Column("output_tokens", sa.BigInteger),
        sa.Column("cached_tokens", sa.BigInteger),
        sa.Column("cache_write_tokens", sa.BigInteger),
        sa.Column("audio_input_tokens", sa.BigInteger),
        sa.Column("image_input_tokens", sa.BigInteger),
        sa.Column("reasoning_tokens", sa.BigInteger),
        sa.Column("audio_output_tokens", sa.BigInteger),
        sa.Column("accepted_prediction_tokens", sa.BigInteger),
        sa.Column("rejected_prediction_tokens", sa.BigInteger),
        sa.Column("audio_s", sa.Double),
        sa.Column("cost_nano_usd", sa.BigInteger),
        sa.Column("attempts", sa.Integer),
        sa.Column("first_byte_ms", sa.BigInteger),
    )
    still_open = sa.text("ended_ms IS NULL")
    op.create_index("exchanges_by_time", "exchanges", ["started_ms"])
    op.create_index("exchanges_by_key", "exchanges", ["key_id", "started_ms"])
    op.create_index("exchanges_open", "exchanges", ["worker"], sqlite_where=still_open, postgresql_where=still_open)
