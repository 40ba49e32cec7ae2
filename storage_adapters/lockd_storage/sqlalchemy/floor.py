"""The floor of a SQL store: one row, which every install holds still while it is judged."""

from sqlalchemy import Connection, select

from lockd.ids import ClusterId
from lockd_storage.fencing import Floor
from lockd_storage.tables import fence_floor


def read_floor(connection: Connection) -> Floor:
    """The floor, share-locked until the transaction ends where the database has row locks.

    So an install that has read it ends before the floor is raised, or reads the new one. SQLite has
    no such locks: there the transaction must be the database's one writer already.
    """
    row = connection.execute(_READ_FLOOR).one()
    return Floor(row.token, None if row.cluster is None else ClusterId(row.cluster))


_READ_FLOOR = select(fence_floor.c.token, fence_floor.c.cluster).with_for_update(read=True)
