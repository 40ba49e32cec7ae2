"""The floor of a SQL store: one row, which every install holds still while it is judged."""

from typing import Any

from sqlalchemy import Connection, Select, select

from lockd.ids import ClusterId
from lockd_storage.fencing import Floor
from lockd_storage.tables import fence_floor


def read_floor(connection: Connection) -> Floor:
    """The floor, share-locked until the transaction ends where the database has row locks.

    So an install that has read it ends before the floor is raised, or reads the new one. SQLite has
    no such locks: there the transaction must be the database's one writer already.
    """
    return _floor(connection, _FLOOR.with_for_update(read=True))


def take_floor(connection: Connection) -> Floor:
    """The floor, locked against installs and against others who would move it, as `read_floor` is."""
    return _floor(connection, _FLOOR.with_for_update())


def see_floor(connection: Connection) -> Floor:
    """The floor as it was a moment ago, without a lock."""
    return _floor(connection, _FLOOR)


def _floor(connection: Connection, query: Select[Any]) -> Floor:
    row = connection.execute(query).one()
    return Floor(row.token, None if row.cluster is None else ClusterId(row.cluster))


_FLOOR = select(fence_floor.c.token, fence_floor.c.cluster)
