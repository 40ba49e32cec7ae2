"""Random interleavings of holders of three grants, against one rule (SAFETY S1):

    once install(n) has returned, nothing with a token below n becomes visible.

Each holder is a thread that acquires (in its turn), installs, reads and writes in several
transactions, with savepoints, rollbacks and commits in between. A conductor lets one step of one
holder go at a time, drawn from the seed; a step that has to wait for a lock stays under way while
others go on. Replay one seed with:  pytest "tests/storage/test_storage_race_hunt.py" -k "seed7-"
"""

import queue
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from random import Random
from threading import Thread
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from lockd.errors import LeaseLost, StaleToken, Unavailable
from lockd_storage import NotInstalled, fenced
from lockd_storage.sqlalchemy import SqlFence, fence
from lockd_storage.sqlalchemy.marks import Bounds, Grant, read_mark
from lockd_storage.sqlalchemy.postgresql import PostgresMarks
from lockd_storage.sqlalchemy.sqlite import SqliteMarks
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore, journal

SEEDS = range(25)
TOKENS = (33, 34, 35)
STEP_SECONDS = 0.01  # a step that takes longer is taken to wait for somebody
PATIENCE_SECONDS = 30.0
INSTALL_SECONDS = 0.1


@dataclass
class Holder:
    """One grant's holder, as a thread that goes one step for each permission it gets."""

    token: int
    store: SqlStore
    draw: Random
    go: "queue.Queue[bool]" = field(default_factory=queue.Queue)
    stopped: "queue.Queue[str]" = field(default_factory=queue.Queue)
    seen_at_install: list[int] | None = None

    def run(self) -> None:
        try:
            for _ in self._steps():
                self.stopped.put("step")
                self.go.get(timeout=PATIENCE_SECONDS)
        except BaseException as error:
            self.stopped.put(repr(error))
            raise
        self.stopped.put("done")

    def _steps(self) -> Iterator[None]:
        lease = GivenLease(self.token)
        for _ in range(1 + self.draw.randint(0, 4) * (self.token - TOKENS[0])):
            yield  # a later grant begins later, mostly
        try:
            yield from self._install(lease)
            for _ in range(self.draw.randint(1, 3)):
                with Session(self.store.engine) as session, fenced(session, self.store.fence, lease):
                    yield from self._work(session)
        except (StaleToken, LeaseLost, NotInstalled):
            pass  # refused, as somebody newer is there

    def _install(self, lease: GivenLease) -> Iterator[None]:
        while self.seen_at_install is None:
            with suppress(Unavailable):
                self.store.fence.install(lease, timeout=INSTALL_SECONDS)
                self.seen_at_install = self.store.lines()
            yield

    def _work(self, session: Session) -> Iterator[None]:
        for _ in range(self.draw.randint(1, 4)):
            yield
            match self.draw.randint(0, 4):
                case 0:
                    session.execute(sa.select(journal)).all()
                case 1:
                    session.commit()
                case 2:
                    savepoint = session.begin_nested()
                    session.execute(journal.insert().values(token=self.token))
                    yield
                    savepoint.rollback()
                case _:
                    session.execute(journal.insert().values(token=self.token))
        yield


def hunt(store: SqlStore, seed: int) -> list[str]:
    """Play one seed. The violations found: none, if the rule holds."""
    draw = Random(seed)
    holders = [Holder(token, store, Random(draw.random())) for token in TOKENS]
    threads = [Thread(target=holder.run) for holder in holders]
    for thread in threads:
        thread.start()
    resting: list[Holder] = []
    busy = list(holders)
    while resting or busy:
        for holder in list(busy):
            patience = PATIENCE_SECONDS if not resting and len(busy) == 1 else STEP_SECONDS
            with suppress(queue.Empty):
                told = holder.stopped.get(timeout=patience)
                busy.remove(holder)
                if told == "step":
                    resting.append(holder)
                else:
                    assert told == "done", f"seed {seed}: token {holder.token}: {told}"
        if resting:
            chosen = resting.pop(draw.randrange(len(resting)))
            busy.append(chosen)
            chosen.go.put(True)
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    return violations(holders, store.lines())


def violations(holders: list[Holder], at_the_end: list[int]) -> list[str]:
    found = []
    for holder in holders:
        if holder.seen_at_install is not None:
            then = sorted(token for token in holder.seen_at_install if token < holder.token)
            now = sorted(token for token in at_the_end if token < holder.token)
            if then != now:
                found.append(f"install({holder.token}) returned with {then} visible, and later {now}")
    return found


@pytest.fixture
def quick(sql: SqlStore) -> Iterator[SqlStore]:
    """The store with a busy timeout that fits the hunt, where writers wait in the driver."""
    if sql.engine.dialect.name != "sqlite":
        yield sql
        return
    engine = sa.create_engine(sql.engine.url, connect_args={"timeout": PATIENCE_SECONDS})
    yield SqlStore(engine, SqlFence(engine))
    engine.dispose()


@pytest.mark.parametrize("seed", SEEDS, ids="seed{}".format)
def test_s1_nothing_older_becomes_visible_after_an_install(quick: SqlStore, seed: int) -> None:
    assert hunt(quick, seed) == []


class UnlockedCheck(PostgresMarks):
    """Compares, and does not hold the mark until the commit."""

    def begin(self, connection: sa.Connection, grant: Grant, bounds: Bounds) -> None:  # noqa: ARG002
        mark = read_mark(connection, grant.resource)
        if mark is None or mark.fence != grant.fence:
            raise StaleToken("", resource=grant.resource, presented=grant.fence.token, mark=0)


class NoWriteLock(SqliteMarks):
    """The same on SQLite: compares before the transaction has become the one writer."""

    begin = UnlockedCheck.begin


def test_the_hunt_finds_a_check_that_holds_nothing(quick: SqlStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known to be wrong must be found, or the hunt proves nothing."""
    wrong: dict[str, Any] = {"postgresql": UnlockedCheck, "sqlite": NoWriteLock}
    name = quick.engine.dialect.name
    monkeypatch.setitem(fence.STORES, name, wrong[name])
    store = SqlStore(quick.engine, SqlFence(quick.engine))
    for seed in range(200):
        if hunt(store, seed):
            return
        with store.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM journal")
            connection.exec_driver_sql("DELETE FROM lockd_fence")
    pytest.fail("200 seeds found nothing")
