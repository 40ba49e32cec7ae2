"""On MariaDB and MySQL, names are compared byte by byte, and rows can be locked.

The tables took the database's own collation, under which `Orders`, `orders` and `orders ` may be one
resource, and some names can't be stored at all. They took its engine too, and only InnoDB holds a mark
until a commit. Elsewhere this changes nothing.
"""

from alembic import op

revision = "fence_0004"
down_revision = "fence_0003"
branch_labels = None
depends_on = None

TABLES = ("lockd_fence", "lockd_fence_floor")


def upgrade() -> None:
    dialect = op.get_context().dialect
    if dialect.name not in ("mysql", "mariadb"):
        return
    # Neither pads: under utf8mb4_bin 'a' equals 'a '.
    collation = "utf8mb4_nopad_bin" if dialect.is_mariadb else "utf8mb4_0900_bin"  # type: ignore[attr-defined]
    for table in TABLES:
        op.execute(f"ALTER TABLE {table} ENGINE=InnoDB, CONVERT TO CHARACTER SET utf8mb4 COLLATE {collation}")


def downgrade() -> None:
    """Nothing: the older revision works with these as well, and converting back could lose names."""
