"""The revisions that make lockd's own tables, shipped with the package.

Two Alembic branches live in `versions/`: `fence` (the marks that storage adapters compare
with) and `scheduler` (the ledger). A revision's id is its branch and
a number, `fence_0001`; its file is called after it.

What is promised: every table, index and function is prefixed `lockd_`, and the versions are kept
in `lockd_alembic_version`, so a user's own Alembic history in the same database is not touched.

Nothing imports this package. `lockd_storage.schema.upgrade` names it as text, so that the
libraries below it work without it being imported. Start reading at `env.py`.
"""
