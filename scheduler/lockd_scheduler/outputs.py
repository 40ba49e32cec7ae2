"""What attempts have said, in the ledger: written by their workers, read by `logs -f` and the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, select, update

from lockd_scheduler.dialects import insert_if_new
from lockd_scheduler.engines import reading
from lockd_scheduler.tables import attempt, output

ROWS_AT_ONCE_MAX = 1_000


@dataclass(frozen=True)
class OutputRow:
    """A piece of what an attempt said. Pieces may end within a line; numbers count from 1."""

    number: int
    stream: str
    """"stdout", "stderr", "log" (`run.log`), "http" (a response), "lockd" (what was cut, or left behind)."""
    written_at: datetime
    text: str


def read_output(
    engine: Engine, attempt_id: int, *, after: int = 0, limit: int = ROWS_AT_ONCE_MAX
) -> list[OutputRow]:
    """The pieces after number `after`, in order, at most `limit`; to follow, ask again from the last one.

    All of an attempt's output is there once its row says that it has ended.
    """
    query = (
        select(output.c.number, output.c.stream, output.c.written_at, output.c.text)
        .where(output.c.attempt_id == attempt_id, output.c.number > after)
        .order_by(output.c.number)
        .limit(limit)
    )
    with reading(engine) as connection:
        return [OutputRow(*row) for row in connection.execute(query)]


def write_output(engine: Engine, rows: Sequence[Mapping[str, Any]], totals: Mapping[int, int]) -> None:
    """Add rows; those that are there already, by an unknown commit of before, are left alone.

    `totals`: how many characters attempts have said in all, of those that say no more.
    """
    with engine.begin() as connection:
        if rows:
            connection.execute(insert_if_new(connection, output), rows)
        for attempt_id, characters in totals.items():
            connection.execute(
                update(attempt).where(attempt.c.id == attempt_id).values(output_characters=characters)
            )
