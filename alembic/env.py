"""Runs migrations on a connection that the caller opened and locked (`app.store.migrations`).

Each in a transaction of its own: what one of them has locked is free before the next begins.
"""

from alembic import context

from app.store.tables import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    compare_server_default=False,
    transaction_per_migration=True,
    on_version_apply=context.config.attributes["applied"],
)
with context.begin_transaction():
    context.run_migrations()
