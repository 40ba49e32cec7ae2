"""Keeping the schedules' rows in step with the code, with a revision row for every change."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, update

from lockd_scheduler.claiming import AnyRow
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.tables import schedule, schedule_revision


def keep_schedules(
    connection: Connection, scope: str, office_token: int, specs: Mapping[str, JobSpec], *, now: datetime
) -> None:
    """Create, change, park and resume schedules so that they are those of `specs`."""
    rows = {
        row.name: row
        for row in connection.execute(
            select(schedule).where(schedule.c.scope == scope).order_by(schedule.c.id).with_for_update()
        )
    }
    keeper = _Keeper(connection, scope, office_token, now)
    for name, spec in specs.items():
        if name not in rows:
            keeper.create(spec)
        else:
            keeper.bring_up_to_date(rows[name], spec)
    for name, row in rows.items():
        if name not in specs and row.parked_at is None:
            keeper.change(row, "parked", row.definition, {"parked_at": now})


class _Keeper:
    """Writes a schedule's row and its revision together."""

    def __init__(self, connection: Connection, scope: str, office_token: int, now: datetime) -> None:
        self._connection = connection
        self._scope = scope
        self._office_token = office_token
        self._now = now

    def create(self, spec: JobSpec) -> None:
        definition = spec.to_json()
        made = self._connection.execute(
            schedule.insert()
            .values(
                scope=self._scope,
                name=spec.name,
                revision=1,
                definition=definition,
                next_fire_at=spec.first_fire(self._now),
            )
            .returning(schedule.c.id)
        )
        self._revise(made.scalar_one(), 1, "created", definition)

    def bring_up_to_date(self, row: AnyRow, spec: JobSpec) -> None:
        definition = spec.to_json()
        # A job that comes back goes on where it was parked: what it missed gets its rows now.
        resumed = {} if row.parked_at is None else {"parked_at": None}
        if row.definition == definition:
            if resumed:
                self.change(row, "resumed", definition, resumed)
            return
        moved = (
            {"next_fire_at": spec.first_fire(self._now)}
            if row.definition["trigger"] != definition["trigger"]
            else {}
        )
        self.change(row, "changed", definition, {**resumed, **moved})

    def change(
        self,
        row: AnyRow,
        change: str,
        definition: Mapping[str, Any],
        values: Mapping[str, Any],
    ) -> None:
        revision = row.revision + 1
        self._connection.execute(
            update(schedule)
            .where(schedule.c.id == row.id)
            .values(revision=revision, definition=definition, **values)
        )
        self._revise(row.id, revision, change, definition)

    def _revise(self, schedule_id: int, revision: int, change: str, definition: Mapping[str, Any]) -> None:
        self._connection.execute(
            schedule_revision.insert().values(
                schedule_id=schedule_id,
                revision=revision,
                change=change,
                definition=definition,
                office_token=self._office_token,
                changed_at=self._now,
            )
        )
