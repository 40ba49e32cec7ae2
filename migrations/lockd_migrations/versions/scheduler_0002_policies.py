"""Runs that wait, are asked for, cancelled and bounded; pauses, backfills, output, and notices that leave.

Every column that is added to a table of before is empty or has a default, so that a scheduler of the
version before can go on with the ledger while replicas are replaced one by one.
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "scheduler_0002"
down_revision = "scheduler_0001"
branch_labels = None
depends_on = None

BIG_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
MOMENT = sa.DateTime(timezone=True)

NAME = sa.String(255)

ADDED: dict[str, dict[str, sa.types.TypeEngine[Any]]] = {
    "lockd_office": {
        "renewed_at": MOMENT,
    },
    "lockd_schedule": {
        "paused_at": MOMENT,
        "paused_until": MOMENT,
        "pause_note": sa.Text(),
        "resumed_at": MOMENT,
        "after_job": NAME,
        "after_end": sa.String(16),
        "kept_by": sa.String(16),
        "pruned_until": MOMENT,
    },
    "lockd_schedule_revision": {
        "changed_by": NAME,
        "note": sa.Text(),
    },
    "lockd_run": {
        "queued_at": MOMENT,
        "cancel_asked_at": MOMENT,
        "cancel_reason": NAME,
        "asked_by": NAME,
        "parent_run_id": BIG_ID,
        "backfill_id": BIG_ID,
    },
    "lockd_attempt": {
        "timeout_at": MOMENT,
        "exit_status": sa.Integer(),
        "output_characters": sa.BigInteger(),
    },
}
# Of few runs the column is set: where the database can, the others cost these indexes nothing.
INDEXES = {
    "lockd_run_next_attempt": "next_attempt_at",
    "lockd_run_queued": "queued_at",
    "lockd_run_cancel": "cancel_asked_at",
    "lockd_run_backfill": "backfill_id",
}


def upgrade() -> None:
    for table, columns in ADDED.items():
        for name, kind in columns.items():
            op.add_column(table, sa.Column(name, kind))
    op.create_index("lockd_schedule_after", "lockd_schedule", ["scope", "after_job"])
    op.drop_index("lockd_run_next_attempt", "lockd_run")
    for name, column in INDEXES.items():
        is_set = sa.text(f"{column} IS NOT NULL")
        op.create_index(name, "lockd_run", [column], postgresql_where=is_set, sqlite_where=is_set)
    op.create_table(
        "lockd_output",
        sa.Column("attempt_id", BIG_ID, sa.ForeignKey("lockd_attempt.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("stream", sa.String(8), nullable=False),
        sa.Column("written_at", MOMENT, nullable=False),
        sa.Column("text", sa.Text, nullable=False),
    )
    op.create_table(
        "lockd_backfill",
        sa.Column("id", BIG_ID, primary_key=True),
        sa.Column("schedule_id", BIG_ID, sa.ForeignKey("lockd_schedule.id"), nullable=False),
        sa.Column("start_at", MOMENT, nullable=False),
        sa.Column("end_at", MOMENT, nullable=False),
        sa.Column("next_fire_at", MOMENT),
        sa.Column("parallel", sa.Integer, nullable=False),
        sa.Column("asked_by", sa.String(255)),
        sa.Column("asked_at", MOMENT, nullable=False),
        sa.Column("ended_at", MOMENT),
        sa.Column("cancelled_at", MOMENT),
    )
    op.create_index("lockd_backfill_ended", "lockd_backfill", ["ended_at"])
    op.create_table(
        "lockd_outbox",
        sa.Column("id", BIG_ID, primary_key=True),
        sa.Column("scope", sa.String(255), nullable=False),
        sa.Column("event", sa.String(32), nullable=False),
        sa.Column("run_id", BIG_ID),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("made_at", MOMENT, nullable=False),
        sa.Column("next_try_at", MOMENT),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("error", sa.Text),
        sa.Column("sent_at", MOMENT),
    )
    op.create_index("lockd_outbox_due", "lockd_outbox", ["scope", "next_try_at"])


def downgrade() -> None:
    for table in ("lockd_outbox", "lockd_backfill", "lockd_output"):
        op.drop_table(table)
    op.drop_index("lockd_schedule_after", "lockd_schedule")
    for name in INDEXES:
        op.drop_index(name, "lockd_run")
    op.create_index("lockd_run_next_attempt", "lockd_run", ["next_attempt_at"])
    for table, columns in ADDED.items():
        with op.batch_alter_table(table) as batch:
            for name in columns:
                batch.drop_column(name)
