"""Keeping the schedules' rows in step with what declares them, with a revision row for every change."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select, update

from lockd_scheduler.claiming import settle_fires
from lockd_scheduler.dialects import insert_rows
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.mandates import Mandate
from lockd_scheduler.revisions import Revision, write_revisions
from lockd_scheduler.tables import AnyRow, schedule
from lockd_scheduler.triggers import AfterTrigger

CODE = "code"
"""Who keeps a schedule: the code, unless `kept_by` names another."""


def keep_schedules(
    connection: Connection,
    mandate: Mandate,
    specs: Mapping[str, JobSpec],
    *,
    now: datetime,
    kept_by: str = CODE,
    by: str | None = None,
) -> None:
    """Create, change, park and resume schedules so that those kept by `kept_by` are those of `specs`.

    `by`: who asks for it, where that is not the office. What an old trigger had due gets its rows before
    the trigger changes. Raises BadSchedule for a name that somebody else keeps.
    """
    rows = {
        row.name: row
        for row in connection.execute(
            select(schedule)
            .where(schedule.c.scope == mandate.scope)
            .order_by(schedule.c.id)
            .with_for_update()
        )
    }
    for name in specs:
        if name in rows and (rows[name].kept_by or CODE) != kept_by:
            raise BadSchedule(
                f"job {name!r} is kept by {rows[name].kept_by or CODE}, and now by {kept_by} too"
            )
    keeper = _Keeper(connection, mandate, now, by)
    keeper.create([spec for name, spec in specs.items() if name not in rows], kept_by)
    for name, row in rows.items():
        if name in specs:
            keeper.bring_up_to_date(row, specs[name])
        elif row.parked_at is None and (row.kept_by or CODE) == kept_by:
            keeper.change(row, "parked", row.definition, {"parked_at": now})
    write_revisions(connection, keeper.revisions, now)


class _Keeper:
    """Writes the schedules' rows, and gathers their revisions."""

    def __init__(self, connection: Connection, mandate: Mandate, now: datetime, by: str | None) -> None:
        self.revisions: list[Revision] = []
        self._connection = connection
        self._mandate = mandate
        self._now = now
        self._by = by

    def create(self, specs: Sequence[JobSpec], kept_by: str) -> None:
        if not specs:
            return
        made = insert_rows(
            self._connection,
            schedule,
            [
                {
                    "scope": self._mandate.scope,
                    "name": spec.name,
                    "revision": 1,
                    "definition": spec.to_json(),
                    "next_fire_at": spec.first_fire(self._now),
                    "kept_by": None if kept_by == CODE else kept_by,
                    **_after(spec),
                }
                for spec in specs
            ],
            returning=(schedule.c.id, schedule.c.name),
        )
        ids = {row.name: row.id for row in made}
        self.revisions += [
            Revision(ids[spec.name], 1, "created", spec.to_json(), self._mandate.token, self._by)
            for spec in specs
        ]

    def bring_up_to_date(self, row: AnyRow, spec: JobSpec) -> None:
        definition = spec.to_json()
        # A job that comes back goes on where it was parked: what it missed gets its rows now.
        resumed = {} if row.parked_at is None else {"parked_at": None}
        if row.definition == definition:
            if resumed:
                self.change(row, "resumed", definition, resumed)
            return
        moved: dict[str, Any] = {}
        if row.definition["trigger"] != definition["trigger"]:
            if row.parked_at is None:
                settle_fires(self._connection, self._mandate, row.id, now=self._now)
                # That may have ended a pause, which is a revision of its own.
                again = select(schedule).where(schedule.c.id == row.id)
                row = self._connection.execute(again).one()
            moved = {"next_fire_at": spec.first_fire(self._now), **_after(spec)}
        self.change(row, "changed", definition, {**resumed, **moved})

    def change(
        self, row: AnyRow, change: str, definition: Mapping[str, Any], values: Mapping[str, Any]
    ) -> None:
        revision = row.revision + 1
        self._connection.execute(
            update(schedule)
            .where(schedule.c.id == row.id)
            .values(revision=revision, definition=definition, **values)
        )
        self.revisions.append(Revision(row.id, revision, change, definition, self._mandate.token, self._by))


def _after(spec: JobSpec) -> dict[str, str | None]:
    trigger = spec.trigger
    if isinstance(trigger, AfterTrigger):
        return {"after_job": trigger.job, "after_end": trigger.on.value}
    return {"after_job": None, "after_end": None}
