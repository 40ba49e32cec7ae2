"""An operator's verb against writers and installs that are under way: they end before, or are refused."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta

import pytest
import sqlalchemy as sa

from lockd.errors import AccessDenied, LeaseLost, StaleToken, Unavailable
from lockd_storage import NotInstalled, WrongCluster, fenced
from lockd_storage.fencing import Floor
from lockd_storage.sqlalchemy import SqlFence, step
from lockd_storage.sqlalchemy.step import in_one_step
from lockd_storage.sqlalchemy.upkeep import Upkeep
from lockd_storage.upkeep import FloorChange, UpkeepPort
from tests.storage.leases import OTHER_CLUSTER, GivenLease
from tests.storage.stores import SqlStore, journal
from tests.storage.test_storage_postgresql import wait_until_blocked

LONG_ENOUGH = 20.0

Verb = Callable[[UpkeepPort], FloorChange]


def raise_floor(upkeep: UpkeepPort) -> FloorChange:
    return upkeep.raise_floor(50, timeout=LONG_ENOUGH)


def adopt(upkeep: UpkeepPort) -> FloorChange:
    return upkeep.adopt(GivenLease(50, cluster=OTHER_CLUSTER).fence, timeout=LONG_ENOUGH)


BOTH = pytest.mark.parametrize("verb", [raise_floor, adopt])


@contextmanager
def under_way(verb: Verb, store: SqlStore) -> Iterator["Future[FloorChange]"]:
    """The verb on a thread of its own, from the moment on in which it waits for somebody."""
    with ThreadPoolExecutor(1) as thread:
        done = thread.submit(verb, Upkeep(store.engine))
        wait_until_blocked(store)
        yield done


def add(connection: sa.Connection, token: int) -> None:
    connection.execute(journal.insert().values(token=token))


@pytest.mark.postgres
class TestPostgres:
    @BOTH
    def test_s2_a_write_under_way_ends_before_the_verb_returns(
        self, postgres_store: SqlStore, verb: Verb
    ) -> None:
        store = postgres_store
        store.fence.install(GivenLease(33))
        with store.engine.connect() as connection:
            with fenced(connection, store.fence, GivenLease(33)):
                add(connection, 33)
                with under_way(verb, store) as done:
                    assert not done.done()
                    connection.commit()
                    assert done.result(LONG_ENOUGH).removed == 1
            assert store.lines() == [33]
            refused = (NotInstalled, StaleToken)
            with pytest.raises(refused), fenced(connection, store.fence, GivenLease(33)):
                add(connection, 33)
        assert store.lines() == [33]

    @BOTH
    def test_s2_a_write_that_begins_while_the_verb_waits_is_refused(
        self, postgres_store: SqlStore, verb: Verb
    ) -> None:
        """The verb has one mark and waits for another: a late writer of the first must wait, and lose."""
        store = postgres_store
        for name in ("a", "b"):
            store.fence.install(GivenLease(33), name)
        with (
            store.engine.connect() as paused,
            ThreadPoolExecutor(1) as late,
            fenced(paused, store.fence, GivenLease(33), resource="b"),
        ):
            add(paused, 1)
            with under_way(verb, store) as done:
                writing = late.submit(write_once, store, "a")
                paused.commit()
                done.result(LONG_ENOUGH)
                with pytest.raises(NotInstalled):
                    writing.result(LONG_ENOUGH)
        assert store.lines() == [1]

    @BOTH
    def test_s2_an_install_under_way_is_judged_by_the_new_floor(
        self, postgres_store: SqlStore, verb: Verb
    ) -> None:
        store = postgres_store
        with store.engine.connect() as first:
            first.execute(sa.text("SELECT token FROM lockd_fence_floor FOR SHARE"))  # as an install does
            with under_way(verb, store) as done, ThreadPoolExecutor(1) as late:
                installing = late.submit(store.fence.install, GivenLease(40))
                first.rollback()
                done.result(LONG_ENOUGH)
                try:
                    installing.result(LONG_ENOUGH)
                except (StaleToken, WrongCluster):
                    pass
                else:  # it got in before the verb, which then took its mark away again
                    assert done.result().removed == 1
        assert store.fence.mark("orders") is None

    def test_s2_an_install_that_came_first_loses_its_mark(self, postgres_store: SqlStore) -> None:
        store = postgres_store
        with store.engine.connect() as first:
            first.execute(
                sa.text("SELECT lockd_fence_install('orders', 'orders', :fence)"),
                {"fence": GivenLease(40).fence},
            )
            with under_way(raise_floor, store) as done:
                first.commit()
                assert done.result(LONG_ENOUGH).removed == 1
        assert Upkeep(store.engine).marks() == []

    def test_s5_a_paused_writer_is_ended_and_nothing_of_it_becomes_visible(
        self, postgres_store: SqlStore
    ) -> None:
        store = postgres_store
        store.fence.install(GivenLease(33))
        changes: list[FloorChange] = []

        def write_and_pause() -> None:
            with store.fence.write(GivenLease(33)) as paused:
                add(paused, 33)
                changes.append(Upkeep(store.engine).raise_floor(50, timeout=0.2))
                add(paused, 33)

        with pytest.raises((LeaseLost, NotInstalled, StaleToken)):
            write_and_pause()
        assert changes[0].removed == 1
        assert store.lines() == []

    def test_s5_who_may_not_end_a_writer_is_told_and_has_changed_nothing(
        self, postgres_store: SqlStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(step, "ENDING_SECONDS", 0.5)
        store = postgres_store
        store.fence.install(GivenLease(33))
        with keeper_of(store, "GRANT SELECT, UPDATE, DELETE ON lockd_fence, lockd_fence_floor") as keeper:
            with store.engine.connect() as writer, fenced(writer, store.fence, GivenLease(33)):
                add(writer, 33)
                with pytest.raises(Unavailable, match=r"can't be ended: .*permission denied"):
                    Upkeep(keeper).raise_floor(50, timeout=0.2)
            assert Upkeep(keeper).floor() == Floor(0)
            assert store.lines() == [33]
            assert Upkeep(keeper).raise_floor(50).removed == 1

    def test_s3_an_application_can_look_and_can_not_move_the_floor(self, postgres_store: SqlStore) -> None:
        store = postgres_store
        rights = "GRANT EXECUTE ON FUNCTION lockd_fence_install, lockd_fence_begin"
        with keeper_of(store, rights, "GRANT SELECT ON lockd_fence, lockd_fence_floor") as app:
            SqlFence(app).install(GivenLease(33))
            upkeep = Upkeep(app)
            assert [kept.mark.token for kept in upkeep.marks()] == [33]
            for verb in (raise_floor, adopt, lambda upkeep: upkeep.purge(timedelta())):
                with pytest.raises(AccessDenied, match="UPDATE and DELETE on lockd_fence"):
                    verb(upkeep)
            assert upkeep.floor() == Floor(0)

    def test_marks_are_taken_in_the_order_of_a_fenced_block(self, postgres_store: SqlStore) -> None:
        """Else the verb has "b" and waits for "a", whose writer waits for "b": a deadlock."""
        store = postgres_store
        for name in ("b", "a"):
            store.fence.install(GivenLease(33), name)
        begin = sa.text("SELECT lockd_fence_begin(:resource, :fence, 20000, 20000)")
        with store.engine.connect() as writer:
            writer.execute(begin, {"resource": "a", "fence": GivenLease(33).fence})
            with under_way(raise_floor, store) as done:
                writer.execute(begin, {"resource": "b", "fence": GivenLease(33).fence})
                writer.commit()
                assert done.result(LONG_ENOUGH).removed == 2

    def test_a_mark_in_use_is_not_purged_and_purge_waits_for_nobody(self, postgres_store: SqlStore) -> None:
        store = postgres_store
        store.fence.install(GivenLease(33), "used")
        store.fence.install(GivenLease(34), "idle")
        with store.engine.connect() as writer, fenced(writer, store.fence, GivenLease(33), resource="used"):
            add(writer, 33)
            change = Upkeep(store.engine).purge(timedelta(), timeout=0.2)
        assert (change.after, change.removed) == (Floor(34), 1)
        assert store.lines() == [33]

    def test_a_step_is_durable_whatever_the_session_says(self, postgres_store: SqlStore) -> None:
        engine = sa.create_engine(
            postgres_store.engine.url, connect_args={"options": "-c synchronous_commit=off"}
        )

        def work(connection: sa.Connection) -> object:
            return connection.scalar(sa.text("SHOW synchronous_commit"))

        assert in_one_step(engine, work, timeout=1) == "on"
        engine.dispose()


@pytest.mark.parametrize("database", ["sqlite", pytest.param("mariadb", marks=pytest.mark.mariadb)])
def test_s5_elsewhere_a_verb_gives_up_on_a_writer_and_changes_nothing(
    request: pytest.FixtureRequest, database: str
) -> None:
    store = request.getfixturevalue(f"{database}_store")
    assert isinstance(store, SqlStore)
    store.fence.install(GivenLease(33))
    upkeep = Upkeep(store.engine)
    with store.engine.connect() as writer, fenced(writer, store.fence, GivenLease(33)):
        add(writer, 33)
        with pytest.raises(Unavailable, match="nothing was changed"):
            upkeep.raise_floor(50, timeout=0.1)
        assert upkeep.floor() == Floor(0)
    assert store.lines() == [33]
    assert upkeep.raise_floor(50).removed == 1


def write_once(store: SqlStore, resource: str) -> None:
    with store.fence.write(GivenLease(33), resource) as connection:
        add(connection, 33)


@contextmanager
def keeper_of(store: SqlStore, *grants: str) -> Iterator[sa.Engine]:
    """An engine whose role has these rights and no others."""
    role = f"keeper_{store.engine.url.database}"
    with store.engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        for grant in grants:
            connection.exec_driver_sql(f"{grant} TO {role}")
    engine = sa.create_engine(store.engine.url.set(username=role))
    try:
        yield engine
    finally:
        engine.dispose()
        with store.engine.begin() as connection:
            connection.exec_driver_sql(f"DROP OWNED BY {role}")
            connection.exec_driver_sql(f"DROP ROLE {role}")
