"""The floor of a SQL store: one row, which every install holds still while it is judged."""

from typing import Any

from sqlalchemy import Connection, Select, select

from lockd.ids import ClusterId
from lockd_storage.fencing import Floor
from lockd_storage.tables import fence_floor


def read_floor(connection: Connection) -> Floor:
    """The floor, share-locked until the transaction ends where the database has row locks.

    So an install that has read it ends before the floor is raised, or reads the new one.
    """
    return _floor(connection, _FLOOR.with_for_update(read=True))


def take_floor(connection: Connection) -> Floor:
    """The floor, locked against installs and against others who would move it.

    SQLite has no such locks: there the transaction must be the database's one writer already.
    """
    return _floor(connection, _FLOOR.with_for_update())


def see_floor(connection: Connection) -> Floor:
    """The floor as it was a moment ago, without a lock."""
    return _floor(connection, _FLOOR)


def _floor(connection: Connection, query: Select[Any]) -> Floor:
    return floor_of(connection.execute(query).one())


def floor_of(row: Any) -> Floor:
    """The floor in its row's token and cluster."""
    token, cluster = row
    return Floor(token, None if cluster is None else ClusterId(cluster))


_FLOOR = select(fence_floor.c.token, fence_floor.c.cluster)
