"""An install gets through a dozen sharers of the old mark who never leave it alone (SAFETY S3, S5)."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Barrier, Event, Thread
from time import monotonic

import pytest
from sqlalchemy.exc import DBAPIError

from lockd.errors import LeaseLost, OutcomeUnknown, StaleToken
from lockd_storage.sqlalchemy import SqlFence
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore, journal, sql_store

SHARERS = 12
STATEMENTS = 5
TIMEOUT_SECONDS = 0.5
BOUND_SECONDS = 10.0
"""Beyond the time-out: what ending the blockers may take on a busy machine."""


@contextmanager
def overlapping_sharers(store: SqlStore, ended: Event) -> Iterator[list[str]]:
    """Twelve threads, one in a fenced transaction as the other leaves, until each is refused.

    They are what a late renewal makes of a pool of workers: their own clock still trusts the lease.
    Yields how each ended.
    """
    outcomes: list[str] = []
    inside = Barrier(SHARERS + 1)

    def work(number: int) -> None:
        first = True
        while not ended.is_set():
            try:
                with store.fence.write(GivenLease(33)) as connection:
                    for _ in range(STATEMENTS + number % 3):
                        connection.execute(journal.insert().values(token=33))
                    if first:
                        first = False
                        inside.wait(30)
            except (StaleToken, LeaseLost):
                outcomes.append("refused")
                return
            except (DBAPIError, OutcomeUnknown):
                continue  # ended by the server for standing in the way: it tries again

    threads = [Thread(target=work, args=(number,)) for number in range(SHARERS)]
    for thread in threads:
        thread.start()
    inside.wait(30)
    yield outcomes
    for thread in threads:
        thread.join(30)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("postgres_url", marks=pytest.mark.postgres),
        pytest.param("mariadb_url", marks=pytest.mark.mariadb),
    ],
)
def test_s5_an_install_under_a_dozen_overlapping_sharers_ends_within_its_bound(
    request: pytest.FixtureRequest, url: str
) -> None:
    ended = Event()
    with sql_store(request.getfixturevalue(url), pool_size=SHARERS + 3) as store:
        SqlFence(store.engine).install(GivenLease(33))
        with overlapping_sharers(store, ended) as outcomes:
            start = monotonic()
            try:
                store.fence.install(GivenLease(34), timeout=TIMEOUT_SECONDS)
                took = monotonic() - start
                written = store.lines()
            except BaseException:
                ended.set()  # or the sharers would go on for ever
                raise
        assert took < TIMEOUT_SECONDS + BOUND_SECONDS
        assert outcomes == ["refused"] * SHARERS
        assert store.lines() == written  # none of theirs became visible afterwards
