"""The ledger's tables, typed. The revisions in `lockd_migrations` make them; nothing here does.

`office` has the fence row of each scheduler name. `run` has one row for each (schedule, kind,
fire_time, key), `attempt` one for each try of a run. Moments are UTC.

A run that waits for its turn has `queued_at`; one that may start, or be tried again, has
`next_attempt_at`; one that somebody wants to end has `cancel_asked_at`. `kept_by` says who declares a
schedule; empty means the code. `outbox` keeps the notices
that leave the database until they have left (SAFETY R7).
"""

from datetime import UTC, datetime
from typing import Any, TypeAlias

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Row,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects import mysql
from sqlalchemy.types import TypeDecorator, TypeEngine

AnyRow: TypeAlias = Row[*tuple[Any, ...]]
"""A row of whatever was selected."""

metadata = MetaData()

BigId = BigInteger().with_variant(Integer, "sqlite")


class UtcMoment(TypeDecorator[datetime]):
    """An aware datetime in UTC, also on databases whose columns know no zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name in ("mariadb", "mysql"):
            return mysql.DATETIME(fsp=6)
        return DateTime(timezone=True)

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        utc = value.astimezone(UTC)
        return utc if dialect.name == "postgresql" else utc.replace(tzinfo=None)

    def process_result_value(self, value: Any, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        assert isinstance(value, datetime)
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _index_of_few(name: str, column: str) -> Index:
    """Of a column that is set in few rows: where the database can, the others are left out."""
    is_set = text(f"{column} IS NOT NULL")
    return Index(name, column, postgresql_where=is_set, sqlite_where=is_set)


office = Table(
    "lockd_office",
    metadata,
    Column("scope", String(255), primary_key=True),
    Column("source", String(64), nullable=False),
    Column("token", BigInteger, nullable=False),
    Column("holder", String(255), nullable=False),
    Column("taken_at", UtcMoment),
    Column("renewed_at", UtcMoment),
)

schedule = Table(
    "lockd_schedule",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("scope", String(255), nullable=False),
    Column("name", String(255), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("definition", JSON, nullable=False),
    Column("next_fire_at", UtcMoment),
    Column("last_fire_at", UtcMoment),
    Column("parked_at", UtcMoment),
    Column("paused_at", UtcMoment),
    Column("paused_until", UtcMoment),
    Column("pause_note", Text),
    Column("resumed_at", UtcMoment),
    Column("after_job", String(255)),
    Column("after_end", String(16)),
    Column("kept_by", String(16)),
    Column("pruned_until", UtcMoment),
    UniqueConstraint("scope", "name", name="lockd_schedule_name"),
    Index("lockd_schedule_due", "scope", "next_fire_at"),
    Index("lockd_schedule_after", "scope", "after_job"),
)

schedule_revision = Table(
    "lockd_schedule_revision",
    metadata,
    Column("schedule_id", BigId, ForeignKey("lockd_schedule.id"), primary_key=True),
    Column("revision", Integer, primary_key=True),
    Column("change", String(32), nullable=False),
    Column("definition", JSON, nullable=False),
    Column("office_token", BigInteger, nullable=False),
    Column("changed_at", UtcMoment, nullable=False),
    Column("changed_by", String(255)),
    Column("note", Text),
)

run = Table(
    "lockd_run",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("schedule_id", BigId, ForeignKey("lockd_schedule.id"), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("fire_time", UtcMoment, nullable=False),
    Column("key", String(255), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(32)),
    Column("skipped_until", UtcMoment),
    Column("args", JSON, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("next_attempt_at", UtcMoment),
    Column("claimed_at", UtcMoment, nullable=False),
    Column("started_at", UtcMoment),
    Column("finished_at", UtcMoment),
    Column("error", Text),
    Column("queued_at", UtcMoment),
    Column("cancel_asked_at", UtcMoment),
    Column("cancel_reason", String(255)),
    Column("asked_by", String(255)),
    Column("parent_run_id", BigId),
    Column("backfill_id", BigId),
    UniqueConstraint("schedule_id", "kind", "fire_time", "key", name="lockd_run_fire"),
    Index("lockd_run_state", "state", "schedule_id"),
    _index_of_few("lockd_run_next_attempt", "next_attempt_at"),
    _index_of_few("lockd_run_queued", "queued_at"),
    _index_of_few("lockd_run_cancel", "cancel_asked_at"),
    _index_of_few("lockd_run_backfill", "backfill_id"),
)

attempt = Table(
    "lockd_attempt",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("run_id", BigId, ForeignKey("lockd_run.id"), nullable=False),
    Column("number", Integer, nullable=False),
    Column("office_token", BigInteger, nullable=False),
    Column("ordinal", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("nonce", String(32)),
    Column("worker", String(255)),
    Column("claimed_at", UtcMoment, nullable=False),
    Column("started_at", UtcMoment),
    Column("heartbeat_at", UtcMoment),
    Column("finished_at", UtcMoment),
    Column("error", Text),
    Column("late_state", String(16)),
    Column("late_error", Text),
    Column("late_at", UtcMoment),
    Column("timeout_at", UtcMoment),
    Column("exit_status", Integer),
    Column("output_characters", BigInteger),
    UniqueConstraint("run_id", "number", name="lockd_attempt_number"),
    Index("lockd_attempt_state", "state", "heartbeat_at"),
)

output = Table(
    "lockd_output",
    metadata,
    Column("attempt_id", BigId, ForeignKey("lockd_attempt.id"), primary_key=True),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("stream", String(8), nullable=False),
    Column("written_at", UtcMoment, nullable=False),
    Column("text", Text, nullable=False),
)

backfill = Table(
    "lockd_backfill",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("schedule_id", BigId, ForeignKey("lockd_schedule.id"), nullable=False),
    Column("start_at", UtcMoment, nullable=False),
    Column("end_at", UtcMoment, nullable=False),
    Column("next_fire_at", UtcMoment),
    Column("parallel", Integer, nullable=False),
    Column("asked_by", String(255)),
    Column("asked_at", UtcMoment, nullable=False),
    Column("ended_at", UtcMoment),
    Column("cancelled_at", UtcMoment),
    Index("lockd_backfill_ended", "ended_at"),
)

outbox = Table(
    "lockd_outbox",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("scope", String(255), nullable=False),
    Column("event", String(32), nullable=False),
    Column("run_id", BigId),
    Column("payload", JSON, nullable=False),
    Column("made_at", UtcMoment, nullable=False),
    Column("next_try_at", UtcMoment),
    Column("tries", Integer, nullable=False),
    Column("error", Text),
    Column("sent_at", UtcMoment),
    Index("lockd_outbox_due", "scope", "next_try_at"),
)
