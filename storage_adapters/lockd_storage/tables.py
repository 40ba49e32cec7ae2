"""The fence store's tables, as the revisions of branch "fence" make them."""

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    MetaData,
    SmallInteger,
    String,
    Table,
    func,
)

from lockd.ids import TOKEN_MAX

metadata = MetaData()

fence_marks = Table(
    "lockd_fence",
    metadata,
    Column("resource", String(512), primary_key=True),
    Column("lock", String(512), nullable=False),
    Column("cluster", String(32), nullable=False),
    Column("incarnation", String(8), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("installed_at", DateTime(timezone=True), nullable=False, server_default=func.now()),
    CheckConstraint(f"token BETWEEN 1 AND {TOKEN_MAX}", name="lockd_fence_token_range"),
)
"""One mark for each resource (SAFETY S2). Written by install alone."""

fence_floor = Table(
    "lockd_fence_floor",
    metadata,
    Column("id", SmallInteger, primary_key=True, autoincrement=False),
    Column("token", BigInteger, nullable=False),
    Column("cluster", String(32), nullable=True),
    CheckConstraint("id = 1", name="lockd_fence_floor_one_row"),
    CheckConstraint(f"token BETWEEN 0 AND {TOKEN_MAX}", name="lockd_fence_floor_token_range"),
)
"""One row: no token at or under it may be installed any more, nor one of another cluster (SAFETY S2)."""
