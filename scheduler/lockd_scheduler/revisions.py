"""The record of what became of a schedule: one row for every change, with who and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, update

from lockd_scheduler.tables import AnyRow, schedule, schedule_revision


@dataclass(frozen=True)
class Revision:
    """One change of a schedule: what it is now, who changed it and why."""

    schedule_id: int
    number: int
    change: str
    definition: Mapping[str, Any]
    office_token: int = 0
    """That of the office which changed it; 0 for somebody's request."""
    by: str | None = None
    note: str | None = None


def write_revisions(connection: Connection, revisions: Sequence[Revision], now: datetime) -> None:
    """Add the revision rows."""
    if revisions:
        connection.execute(
            schedule_revision.insert(),
            [
                {
                    "schedule_id": one.schedule_id,
                    "revision": one.number,
                    "change": one.change,
                    "definition": one.definition,
                    "office_token": one.office_token,
                    "changed_at": now,
                    "changed_by": one.by,
                    "note": one.note,
                }
                for one in revisions
            ],
        )


def change_schedule(
    connection: Connection,
    row: AnyRow,
    change: str,
    values: Mapping[str, Any],
    *,
    note: str | None,
    by: str | None = None,
    now: datetime,
) -> None:
    """Change a schedule's row, which the caller holds, in a revision of its own; its definition stays."""
    number = row.revision + 1
    connection.execute(update(schedule).where(schedule.c.id == row.id).values(revision=number, **values))
    write_revisions(connection, [Revision(row.id, number, change, row.definition, by=by, note=note)], now)
