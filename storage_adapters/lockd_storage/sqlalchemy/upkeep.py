"""`Upkeep`: the operator's verbs on a fence store in PostgreSQL, SQLite, MariaDB or MySQL.

They are plain SQL of the store's owner. The functions that an application's role may call give it no
way here: whoever could raise the floor could shut out everybody.

Each verb takes the floor's row for itself first. Installs hold it for sharing, so those under way end
before, and later ones are judged by what the verb leaves behind. Then it takes the marks, in the order
in which fenced transactions take them, so the two don't deadlock; a fenced transaction holds its marks
until its commit, so none is under way when they go.
"""

from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, Engine, Select, delete, func, or_, select, true, update

from lockd.ids import ClusterId, Fence, FencingToken, Incarnation
from lockd_storage.errors import NotFenceable, WrongCluster
from lockd_storage.fencing import Floor, Mark
from lockd_storage.sqlalchemy.floor import see_floor, take_floor
from lockd_storage.sqlalchemy.step import in_one_step, no_more_waits, reading
from lockd_storage.tables import fence_floor, fence_marks
from lockd_storage.upkeep import UPKEEP_SECONDS, FloorChange, KeptMark, adopted, floor_token, raised

DIALECTS = ("postgresql", "sqlite", "mysql", "mariadb")
NAMES_AT_ONCE = 500

_resource, _token, _cluster = fence_marks.c.resource, fence_marks.c.token, fence_marks.c.cluster


class Upkeep:
    """See `UpkeepPort`. Cheap to make. Raises NotFenceable for another kind of engine.

    It needs SELECT, UPDATE and DELETE on lockd_fence and SELECT and UPDATE on lockd_fence_floor (to look:
    SELECT); on PostgreSQL, to end writers that don't end by themselves, also their role or
    pg_signal_backend. Without them the verbs raise AccessDenied or Unavailable. On MariaDB, MySQL and
    SQLite such writers aren't ended: the verb gives up after `timeout`.
    """

    def __init__(self, engine: Engine) -> None:
        if not isinstance(engine, Engine) or engine.dialect.name not in DIALECTS:
            raise NotFenceable(f"Upkeep takes an Engine of {', '.join(DIALECTS)}, not {engine!r}")
        self._engine = engine

    def marks(self, prefix: str = "") -> list[KeptMark]:
        """See `UpkeepPort.marks`."""

        def work(connection: Connection) -> list[KeptMark]:
            rows = connection.execute(_sorted(select(fence_marks).where(_begins_with(prefix)), connection))
            return [_kept(row) for row in rows]

        return reading(self._engine, work)

    def floor(self) -> Floor:
        """See `UpkeepPort.floor`."""
        return reading(self._engine, see_floor)

    def raise_floor(self, token: int, *, timeout: float = UPKEEP_SECONDS) -> FloorChange:
        """See `UpkeepPort.raise_floor`."""
        token = floor_token(token)

        def work(connection: Connection) -> FloorChange:
            before = take_floor(connection)
            removed = _remove(connection, _token <= token)
            return _moved(connection, before, raised(before, token), removed)

        return in_one_step(self._engine, work, timeout=timeout)

    def purge(
        self, older_than: timedelta, *, prefix: str = "", timeout: float = UPKEEP_SECONDS
    ) -> FloorChange:
        """See `UpkeepPort.purge`. The age is by the clock of this machine: no safety hangs on it."""

        def work(connection: Connection) -> FloorChange:
            before = take_floor(connection)
            clusters = connection.scalars(select(_cluster).distinct().limit(2)).all()
            if len(clusters) > 1:
                raise WrongCluster(
                    f"the marks are of several clusters ({', '.join(sorted(clusters))}), and the floor is"
                    " one number: adopt the cluster that is to stay first",
                    resource="",
                )
            idle = connection.execute(_idle(connection, older_than, prefix)).all()
            names = [row.resource for row in idle]
            for start in range(0, len(names), NAMES_AT_ONCE):
                part = names[start : start + NAMES_AT_ONCE]
                connection.execute(delete(fence_marks).where(_resource.in_(part)))
            highest = max((row.token for row in idle), default=0)
            return _moved(connection, before, raised(before, highest), len(names))

        return in_one_step(self._engine, work, timeout=timeout)

    def adopt(self, fence: str, *, timeout: float = UPKEEP_SECONDS) -> FloorChange:
        """See `UpkeepPort.adopt`."""
        new = Fence.parse(fence)
        floor_token(new.token)

        def work(connection: Connection) -> FloorChange:
            before = take_floor(connection)
            own = select(_resource).where(_cluster == new.cluster).limit(1)
            has_own_marks = connection.scalar(own) is not None
            removed = _remove(connection, or_(_cluster != new.cluster, _token <= new.token))
            after = adopted(before, new, has_own_marks=has_own_marks)
            return _moved(connection, before, after, removed)

        return in_one_step(self._engine, work, timeout=timeout)


def _remove(connection: Connection, condition: ColumnElement[bool]) -> int:
    """Remove these marks once nobody writes under them. How many there were."""
    taken = _sorted(select(_token).where(condition), connection).with_for_update()
    count = len(connection.execute(taken).all())
    if count:
        no_more_waits(connection)
        connection.execute(delete(fence_marks).where(condition))
    return count


def _moved(connection: Connection, before: Floor, after: Floor, removed: int) -> FloorChange:
    if after != before:
        connection.execute(update(fence_floor).values(token=after.token, cluster=after.cluster))
    return FloorChange(before, after, removed)


def _idle(connection: Connection, older_than: timedelta, prefix: str) -> Select[Any]:
    """The marks that are old and that nobody uses now, taken for this transaction."""
    before = datetime.now(UTC) - older_than
    if connection.dialect.name != "postgresql":
        before = before.replace(tzinfo=None)  # kept as UTC without a zone
    old = select(_resource, _token).where(fence_marks.c.installed_at < before, _begins_with(prefix))
    return _sorted(old, connection).with_for_update(skip_locked=True)


def _sorted(query: Select[Any], connection: Connection) -> Select[Any]:
    """In the order of Python's `sorted`, which is that of a fenced block's marks."""
    by = _resource.collate("C") if connection.dialect.name == "postgresql" else _resource
    return query.order_by(by)


def _begins_with(prefix: str) -> ColumnElement[bool]:
    # Not LIKE, which takes upper and lower case for the same on SQLite.
    return func.substr(_resource, 1, len(prefix)) == prefix if prefix else true()


def _kept(row: Any) -> KeptMark:
    fence = Fence(ClusterId(row.cluster), Incarnation(row.incarnation), FencingToken(row.token))
    installed_at: datetime = row.installed_at
    if installed_at.tzinfo is None:
        installed_at = installed_at.replace(tzinfo=UTC)
    return KeptMark(Mark(row.resource, row.lock, fence), installed_at.astimezone(UTC))
