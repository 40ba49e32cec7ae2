"""Alembic's entry: runs revisions on the connection that `lockd_storage.schema.upgrade` opened.

That connection is inside a transaction which holds the lock against a second upgrade, so nothing
here begins or commits: a revision that fails leaves nothing behind, or, where DDL commits by itself,
nothing that keeps it from being run again.
"""

from alembic import context
from sqlalchemy import Connection

from lockd_migrations.repeatable import repeatable

VERSION_TABLE = "lockd_alembic_version"

connection: Connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table=VERSION_TABLE, render_as_batch=False)
with repeatable(connection):
    context.run_migrations()
