"""The office as a row of the database, on a real PostgreSQL: no lock service, several replicas."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from sqlalchemy import Engine, text

from lockd_scheduler import Cron, Run
from lockd_scheduler.errors import OfficeLost
from lockd_scheduler.ledger import Ledger
from lockd_scheduler.mandates import Mandate
from lockd_scheduler.offices import RowOffice
from lockd_scheduler.service import Service
from tests.scheduler.conftest import emptied
from tests.scheduler.harness import NOON

pytestmark = pytest.mark.postgres

PATIENCE = 20.0
LEASE = timedelta(seconds=2)


@pytest.fixture
def db_url(postgres_ledger_url: str) -> str:
    """PostgreSQL alone: the office of SQLite is a lock file."""
    return emptied(postgres_ledger_url)


def campaign(engine: Engine, holder: str, lease: timedelta = LEASE) -> Any:
    return RowOffice(engine, "ops", lease_ttl=lease, holder=holder).campaign(0.0)


def take(engine: Engine, token: int, holder: str) -> None:
    Ledger(engine, "ops").take_office(Mandate("ops", "local", token, holder), now=NOON)


def until(condition: Callable[[], object]) -> None:
    give_up = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < give_up, "waited in vain"
        time.sleep(0.02)


def renewed_at(engine: Engine) -> Any:
    with engine.connect() as connection:
        return connection.scalar(text("SELECT renewed_at FROM lockd_office"))


def test_r1_of_two_that_find_the_office_free_the_row_takes_one(engine: Engine) -> None:
    first, second = campaign(engine, "a"), campaign(engine, "b")
    assert first.token == second.token == 1
    take(engine, 1, "a")
    with pytest.raises(OfficeLost):
        take(engine, 1, "b")
    second.resign()
    assert campaign(engine, "c") is None, "the loser's resignation freed nothing"
    first.resign()


def test_a_seat_is_renewed_while_it_is_held_and_free_at_once_when_it_is_resigned(engine: Engine) -> None:
    seat = campaign(engine, "a")
    take(engine, 1, "a")
    before = renewed_at(engine)
    until(lambda: renewed_at(engine) > before)
    assert campaign(engine, "b") is None
    assert not seat.lost
    seat.resign()
    following = campaign(engine, "b")
    assert following.token == 2
    following.resign()


def test_a_seat_whose_holder_has_stopped_is_taken_after_its_lease_and_its_holder_is_told(
    engine: Engine,
) -> None:
    seat = campaign(engine, "a", lease=LEASE * 4)  # renewed every two seconds
    take(engine, 1, "a")
    lost = threading.Event()
    seat.on_lost(lost.set)
    with engine.begin() as connection:  # as a pause past the lease would leave it
        connection.execute(text("UPDATE lockd_office SET renewed_at = now() - interval '1 hour'"))
    following = campaign(engine, "b")
    take(engine, following.token, "b")
    assert lost.wait(PATIENCE)
    assert seat.lost
    seat.resign()
    assert campaign(engine, "c") is None, "what the old one says frees nothing"
    following.resign()


def test_three_replicas_of_a_web_service_run_each_fire_once(db_url: str, engine: Engine) -> None:
    """P5: `async with cron.running()` three times; two leave one after the other, and nothing is missed."""
    fires: Counter[str] = Counter()

    async def serve() -> None:
        cron = Cron("ops")

        @cron.every("1s", name="tick", overlap="allow", catch_up="all")
        async def tick(run: Run) -> None:
            fires[run.key] += 1

        async with asyncio.timeout(3 * PATIENCE):
            replicas = [cron.running(db=db_url, lease_ttl="2s", drain="10s") for _ in range(3)]
            services: list[Service] = [await replica.__aenter__() for replica in replicas]
            for replica in replicas:
                seen = len(fires)
                while len(fires) < seen + 2:  # noqa: ASYNC110 - what is awaited is a job's own count
                    await asyncio.sleep(0.02)
                await replica.__aexit__(None, None, None)
            assert all(service.failure is None for service in services)

    asyncio.run(serve())
    assert set(fires.values()) == {1}
    with engine.connect() as connection:
        moments = connection.scalars(text("SELECT fire_time FROM lockd_run ORDER BY fire_time")).all()
        states = set(connection.scalars(text("SELECT state FROM lockd_run")))
    assert states <= {"succeeded", "claimed"}
    gaps = {later - earlier for earlier, later in pairwise(moments)}
    assert gaps == {timedelta(seconds=1)}
