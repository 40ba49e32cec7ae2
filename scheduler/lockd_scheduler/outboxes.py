"""The notices that leave the database: claimed by whoever sends, and what became of each (SAFETY R7).

A notice was written in the transaction that it tells of. It has `next_try_at` as long as it is tried;
claiming moves that on, so that a sender that dies in the middle has only put the notice off. So
each is sent at least once, and by several replicas seldom twice.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Engine, delete, func, or_, select, update

from lockd_scheduler.dialects import now_of
from lockd_scheduler.tables import outbox

GIVE_UP_AFTER = timedelta(days=1)
FORGET_AFTER = timedelta(days=7)
CLAIM = timedelta(minutes=1)
"""How long a claimed notice is left alone: longer than any try takes."""
PAUSE_FIRST = timedelta(seconds=5)
PAUSE_MOST = timedelta(minutes=15)
ERROR_CHARACTERS_MAX = 500
UNSENT = "given up: for a day no process had a webhook to send it to"
_ROWS_AT_ONCE_MAX = 500


@dataclass(frozen=True)
class Notice:
    """One row, claimed for a try."""

    id: int
    scope: str
    event: str
    payload: Mapping[str, Any]
    made_at: datetime
    tries: int
    """This one included."""

    @property
    def key(self) -> str:
        """The same for every try of this notice, and no other's."""
        made = int(self.made_at.timestamp() * 1000)
        return f"{self.scope}/notice/{self.id}/{made}"


class Outbox:
    """The notices of one scheduler name. All methods are one transaction, and raise SQLAlchemy's errors."""

    def __init__(self, engine: Engine, scope: str) -> None:
        self._engine = engine
        self._scope = scope

    def claim(self, limit: int) -> list[Notice]:
        """Take due notices for a try, the oldest first; nobody else is given them for a minute."""
        with self._engine.begin() as connection:
            now = connection.execute(select(now_of(connection))).scalar_one()
            rows = connection.execute(
                select(outbox)
                .where(outbox.c.scope == self._scope, outbox.c.next_try_at <= now)
                .order_by(outbox.c.next_try_at, outbox.c.id)
                .limit(limit)
                .with_for_update(skip_locked=True)
            ).all()
            connection.execute(
                update(outbox)
                .where(outbox.c.id.in_([row.id for row in rows]))
                .values(tries=outbox.c.tries + 1, next_try_at=now + CLAIM)
            )
        return [Notice(row.id, row.scope, row.event, row.payload, row.made_at, row.tries + 1) for row in rows]

    def settle(self, outcomes: Sequence[tuple[Notice, str | None]]) -> None:
        """Note what the tries came to: sent (None), or an error, after which another follows.

        A notice that is a day old is given up. A try that was overtaken by another changes nothing.
        """
        with self._engine.begin() as connection:
            now = connection.execute(select(now_of(connection))).scalar_one()
            for notice, error in outcomes:
                mine = update(outbox).where(outbox.c.id == notice.id, outbox.c.sent_at.is_(None))
                if error is None:
                    # Sent is sent, whoever else has tried meanwhile.
                    values: dict[str, Any] = {"sent_at": now, "next_try_at": None, "error": None}
                else:
                    next_try = now + pause_after(notice.tries)
                    is_over = next_try - notice.made_at >= GIVE_UP_AFTER
                    told = error[:ERROR_CHARACTERS_MAX]
                    mine = mine.where(outbox.c.tries == notice.tries)
                    values = {
                        "next_try_at": None if is_over else next_try,
                        "error": f"given up: {told}" if is_over else told,
                    }
                connection.execute(mine.values(**values))

    def tidy(self) -> None:
        """Give up what nobody has sent within a day, and forget what has been settled for a week."""
        with self._engine.begin() as connection:
            now = connection.execute(select(now_of(connection))).scalar_one()
            own = outbox.c.scope == self._scope
            is_untried = (outbox.c.tries == 0) & (outbox.c.made_at <= now - GIVE_UP_AFTER)
            # One that is tried is given up by its sender, unless that is gone for good.
            is_left = outbox.c.made_at <= now - GIVE_UP_AFTER - PAUSE_MOST - CLAIM
            connection.execute(
                update(outbox)
                .where(own, outbox.c.next_try_at.is_not(None), or_(is_untried, is_left))
                .values(next_try_at=None, error=func.coalesce(outbox.c.error, UNSENT))
            )
            settled = (
                select(outbox.c.id)
                .where(own, outbox.c.next_try_at.is_(None), outbox.c.made_at <= now - FORGET_AFTER)
                .limit(_ROWS_AT_ONCE_MAX)
            )
            ids = connection.scalars(settled).all()
            connection.execute(delete(outbox).where(outbox.c.id.in_(ids)))


def pause_after(tries: int) -> timedelta:
    """The pause after a try has failed: it doubles, up to a quarter of an hour."""
    doublings = min(tries - 1, 20)
    return min(PAUSE_FIRST * (1 << doublings), PAUSE_MOST)
