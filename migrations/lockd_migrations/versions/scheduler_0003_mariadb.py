"""On MariaDB and MySQL, names are compared byte by byte, rows can be locked, moments keep their fractions.

The tables took the database's own collation, under which `Ops` and `ops` may be one scheduler, its engine,
and DATETIME in whole seconds, so that two fires of one second could meet. Elsewhere this changes nothing.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

revision = "scheduler_0003"
down_revision = "scheduler_0002"
branch_labels = None
depends_on = None


TABLES = (
    "lockd_attempt",
    "lockd_backfill",
    "lockd_office",
    "lockd_outbox",
    "lockd_output",
    "lockd_run",
    "lockd_schedule",
    "lockd_schedule_revision",
)


def upgrade() -> None:
    dialect = op.get_context().dialect
    if dialect.name not in ("mysql", "mariadb"):
        return
    # Neither pads: under utf8mb4_bin 'a' equals 'a '.
    collation = "utf8mb4_nopad_bin" if dialect.is_mariadb else "utf8mb4_0900_bin"  # type: ignore[attr-defined]
    inspector = sa.inspect(op.get_bind())
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENGINE=InnoDB, CONVERT TO CHARACTER SET utf8mb4 COLLATE {collation}")
        for column in inspector.get_columns(table):
            if isinstance(column["type"], sa.DateTime):
                op.alter_column(
                    table,
                    column["name"],
                    type_=mysql.DATETIME(fsp=6),
                    existing_nullable=column["nullable"],
                )


def downgrade() -> None:
    """Nothing: the older revision works with these as well, and converting back could lose names."""
