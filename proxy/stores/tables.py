"""The tables of the ledger, for SQLite and PostgreSQL alike.

Times are UNIX time in milliseconds and money is in nano-USD, both whole numbers: what the two databases and every
client of theirs read alike, sort right and add up exactly.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

METADATA: Final = sa.MetaData()

EXCHANGES: Final = sa.Table(
    "exchanges",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),  # `x-sluice-id`
    sa.Column("worker", sa.Text, nullable=False),  # who is to complete the row
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("endpoint", sa.Text, nullable=False),
    sa.Column("model", sa.Text, nullable=False),
    sa.Column("upstream", sa.Text, nullable=False),
    sa.Column("streamed", sa.Boolean, nullable=False),
    sa.Column("started_ms", sa.BigInteger, nullable=False),
    sa.Column("reserved_tokens", sa.BigInteger, nullable=False),
    sa.Column("reserved_nano_usd", sa.BigInteger, nullable=False),
    # The rest is null until the exchange is settled. Of a dead worker's exchange, `outcome` is "interrupted", `grade`
    # "unknown", `ended_ms` when the worker was last seen, `input_tokens` 0, `output_tokens` and `cost_nano_usd` as
    # reserved, and the rest stays null: the columns that are added up always hold what is charged.
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
sa.Index("exchanges_by_time", EXCHANGES.c.started_ms)
sa.Index("exchanges_by_key", EXCHANGES.c.key_id, EXCHANGES.c.started_ms)
# On PostgreSQL, whose tables the migrations make, it is as partial; to say so here would import that dialect: 2 MiB.
sa.Index("exchanges_open", EXCHANGES.c.worker, sqlite_where=EXCHANGES.c.ended_ms.is_(None))

# Workers that may hold open rows. One that was not seen for a while is dead, and its rows are closed as interrupted.
WORKERS: Final = sa.Table(
    "workers",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("started_ms", sa.BigInteger, nullable=False),
    sa.Column("seen_ms", sa.BigInteger, nullable=False),
)

# Keys made at run time. Secrets are stored as SHA-256 in hex, never as they are.
KEYS: Final = sa.Table(
    "keys",
    METADATA,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("secret_sha256", sa.Text, nullable=False, unique=True),
    # the secret before the last rotation, while it is still taken
    sa.Column("previous_sha256", sa.Text, unique=True),
    sa.Column("previous_until_ms", sa.BigInteger),
    sa.Column("plan", sa.Text),
    sa.Column("limits", sa.Text),  # JSON in the form of the configuration's `limits`; null: the plan's
    sa.Column("expires_ms", sa.BigInteger),
    sa.Column("revoked_ms", sa.BigInteger),  # null: active
    sa.Column("created_ms", sa.BigInteger, nullable=False),
    sa.Column("last_used_ms", sa.BigInteger),
    sa.Column("changed_ms", sa.BigInteger),  # when plan, limits or expiry last were; null: never
    sa.Column("revision", sa.BigInteger, nullable=False),  # of the change that touched the row last
)
sa.Index("keys_by_revision", KEYS.c.revision)

# One row. Whoever changes a key takes the next number in the same transaction, so that they are committed in order
# and a worker that has read up to one misses none.
KEY_REVISION: Final = sa.Table(
    "key_revision",
    METADATA,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
)
