"""The demo's schedule: one job, every second, whose effect and success commit together."""

import os

from sqlalchemy import BigInteger, Column, Integer, MetaData, String, Table

from lockd_scheduler import Cron, Run

metadata = MetaData()

effects = Table(
    "demo_effect",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("fire", String(255), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("office_token", BigInteger, nullable=False),
    Column("process", Integer, nullable=False),
)
"""No unique constraint: a fire that ran twice would show."""

accounts = Table(
    "demo_account",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("writer", String(64), nullable=False),
    Column("token", BigInteger, nullable=False),
)
"""What the worker writes to, under the fence of its lock."""

cron = Cron("demo")


@cron.every("1s", name="tick", overlap="allow", catch_up="all", within="5m", delivery="at_least_once")
def tick(run: Run) -> None:
    """Write one row for this fire."""
    with run.fenced_session() as session:
        session.execute(
            effects.insert().values(
                fire=run.key, attempt=run.attempt, office_token=run.token[0], process=os.getpid()
            )
        )
