"""What Alembic runs: every step that is missing, in the transaction it was handed."""

from alembic import context

from proxy.stores.tables import METADATA

context.configure(connection=context.config.attributes["connection"], target_metadata=METADATA)
with context.begin_transaction():
    context.run_migrations()
