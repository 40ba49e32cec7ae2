"""The scheduler's ledger: office, schedules with their revisions, runs, attempts.

`lockd_run_fire` is the promise of one row for each (schedule, kind, fire time, key) (SAFETY P5).
Moments are UTC; SQLite keeps them without a zone.
"""

import sqlalchemy as sa
from alembic import op

revision = "scheduler_0001"
down_revision = None
branch_labels = ("scheduler",)
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOMENT = sa.DateTime(timezone=True)


def upgrade() -> None:
    _create_office()
    _create_schedules()
    _create_runs()
    _create_attempts()


def downgrade() -> None:
    for table in ("attempt", "run", "schedule_revision", "schedule", "office"):
        op.drop_table(f"lockd_{table}")


def _create_office() -> None:
    op.create_table(
        "lockd_office",
        sa.Column("scope", sa.String(255), primary_key=True),
        sa.Column("source", sa.String(64), nullable=False),
        sa.Column("token", sa.BigInteger, nullable=False),
        sa.Column("holder", sa.String(255), nullable=False),
        sa.Column("taken_at", MOMENT),
    )


def _create_schedules() -> None:
    op.create_table(
        "lockd_schedule",
        sa.Column("id", BIG_ID, primary_key=True),
        sa.Column("scope", sa.String(255), nullable=False),
        sa.Column("name", sa.String(255), nullable=False),
        sa.Column("revision", sa.Integer, nullable=False),
        sa.Column("definition", sa.JSON, nullable=False),
        sa.Column("next_fire_at", MOMENT),
        sa.Column("last_fire_at", MOMENT),
        sa.Column("parked_at", MOMENT),
        sa.UniqueConstraint("scope", "name", name="lockd_schedule_name"),
    )
    op.create_index("lockd_schedule_due", "lockd_schedule", ["scope", "next_fire_at"])
    op.create_table(
        "lockd_schedule_revision",
        sa.Column("schedule_id", BIG_ID, sa.ForeignKey("lockd_schedule.id"), primary_key=True),
        sa.Column("revision", sa.Integer, primary_key=True),
        sa.Column("change", sa.String(32), nullable=False),
        sa.Column("definition", sa.JSON, nullable=False),
        sa.Column("office_token", sa.BigInteger, nullable=False),
        sa.Column("changed_at", MOMENT, nullable=False),
    )


def _create_runs() -> None:
    op.create_table(
        "lockd_run",
        sa.Column("id", BIG_ID, primary_key=True),
        sa.Column("schedule_id", BIG_ID, sa.ForeignKey("lockd_schedule.id"), nullable=False),
        sa.Column("kind", sa.String(16), nullable=False),
        sa.Column("fire_time", MOMENT, nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("reason", sa.String(32)),
        sa.Column("skipped_until", MOMENT),
        sa.Column("args", sa.JSON, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("next_attempt_at", MOMENT),
        sa.Column("claimed_at", MOMENT, nullable=False),
        sa.Column("started_at", MOMENT),
        sa.Column("finished_at", MOMENT),
        sa.Column("error", sa.Text),
        sa.UniqueConstraint("schedule_id", "kind", "fire_time", "key", name="lockd_run_fire"),
    )
    op.create_index("lockd_run_state", "lockd_run", ["state", "schedule_id"])
    op.create_index("lockd_run_next_attempt", "lockd_run", ["next_attempt_at"])


def _create_attempts() -> None:
    op.create_table(
        "lockd_attempt",
        sa.Column("id", BIG_ID, primary_key=True),
        sa.Column("run_id", BIG_ID, sa.ForeignKey("lockd_run.id"), nullable=False),
        sa.Column("number", sa.Integer, nullable=False),
        sa.Column("office_token", sa.BigInteger, nullable=False),
        sa.Column("ordinal", sa.BigInteger, nullable=False),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("nonce", sa.String(32)),
        sa.Column("worker", sa.String(255)),
        sa.Column("claimed_at", MOMENT, nullable=False),
        sa.Column("started_at", MOMENT),
        sa.Column("heartbeat_at", MOMENT),
        sa.Column("finished_at", MOMENT),
        sa.Column("error", sa.Text),
        sa.Column("late_state", sa.String(16)),
        sa.Column("late_error", sa.Text),
        sa.Column("late_at", MOMENT),
        sa.UniqueConstraint("run_id", "number", name="lockd_attempt_number"),
    )
    op.create_index("lockd_attempt_state", "lockd_attempt", ["state", "heartbeat_at"])
