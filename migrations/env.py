"""Alembic's entry: migrations always run on a connection, and in a transaction, that `registry.migrate` opened."""

from alembic import context

from lorareg.registry.schema import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_as_batch=True,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
