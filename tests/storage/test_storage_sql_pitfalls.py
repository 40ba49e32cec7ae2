"""Late checks, reads, several fences at once, and the pitfalls that they and the plain block answer."""

from collections.abc import Callable
from itertools import permutations
from threading import Thread

import pandas as pd
import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from lockd.errors import LeaseLost, StaleToken
from lockd_storage import NotFenceable, NotInstalled, WrongMode, fenced
from lockd_storage.sqlalchemy import SqlFence
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore, journal

INSERT_33 = journal.insert().values(token=33)


@pytest.fixture
def lease(sql: SqlStore) -> GivenLease:
    lease = GivenLease(33)
    sql.fence.install(lease)
    return lease


@pytest.fixture
def postgres(postgres_store: SqlStore) -> SqlStore:
    postgres_store.fence.install(GivenLease(33))
    return postgres_store


def test_pitfall_01_what_was_read_before_the_check_is_refused(sql: SqlStore, lease: GivenLease) -> None:
    with sql.engine.connect() as connection:
        connection.execute(sa.select(journal))
        with pytest.raises(NotFenceable, match="may have read before the check"):
            fenced(connection, sql.fence, lease).__enter__()


def test_pitfall_02_the_mark_moves_before_the_new_holder_writes(sql: SqlStore, lease: GivenLease) -> None:
    sql.fence.install(GivenLease(34))
    with pytest.raises(StaleToken), sql.fence.write(lease) as connection:
        sql.add(connection, lease)
    assert sql.lines() == []


def test_pitfall_07_a_holder_writes_as_often_as_it_likes(sql: SqlStore, lease: GivenLease) -> None:
    with sql.engine.connect() as connection, fenced(connection, sql.fence, lease):
        for _ in range(3):
            connection.execute(INSERT_33)
            connection.commit()
    assert sql.lines() == [33] * 3


def test_pitfall_08_a_write_never_moves_the_mark(sql: SqlStore, lease: GivenLease) -> None:
    for check in ("early", "late"):
        with sql.engine.connect() as connection, pytest.raises(NotInstalled):
            with_one_write(connection, sql.fence, GivenLease(2**53 - 1), check=check)
    assert sql.fence.mark("orders") == sql.fence.install(lease)
    assert sql.lines() == []


def with_one_write(connection: sa.Connection, fence: SqlFence, lease: GivenLease, *, check: str) -> None:
    with fenced(connection, fence, lease, check=check):  # type: ignore[call-overload]
        connection.execute(INSERT_33)


def test_pitfall_18_a_late_clock_refuses_and_a_good_one_lets_nobody_in(
    sql: SqlStore, lease: GivenLease
) -> None:
    """The deadline only ever refuses: a holder whose clock says it has an hour is stale all the same."""
    sql.fence.install(GivenLease(34))
    lease.seconds = 3600
    with pytest.raises(StaleToken), sql.fence.write(lease) as connection:
        sql.add(connection, lease)
    current = GivenLease(34, seconds=0)
    with pytest.raises(LeaseLost), sql.fence.write(current) as connection:
        sql.add(connection, current)
    assert sql.lines() == []


@pytest.mark.postgres
def test_pitfall_20_nothing_of_a_fence_stays_on_a_pooled_connection(postgres: SqlStore) -> None:
    engine = sa.create_engine(postgres.engine.url, pool_size=1, max_overflow=0)
    watched = ("lockd.fenced", "idle_in_transaction_session_timeout", "statement_timeout")
    shown = sa.text(
        "SELECT pg_backend_pid(), " + ", ".join(f"current_setting('{name}', true)" for name in watched)
    )
    fence = SqlFence(engine)
    with engine.connect() as connection:
        before = connection.execute(shown).one()
    with fence.write(GivenLease(33)) as connection:
        connection.execute(INSERT_33)
        during = connection.execute(shown).one()
    with engine.connect() as connection:
        after = connection.execute(shown).one()
        assert "lockd_fenced" not in connection.info
    engine.dispose()
    assert before[0] == during[0] == after[0]
    assert during[2:] != before[2:] == after[2:]
    assert not after[1]  # PostgreSQL leaves '' where there was nothing


def test_pitfall_21_a_stale_holder_is_told_so_every_time_and_never_waits(
    sql: SqlStore, lease: GivenLease
) -> None:
    sql.fence.install(GivenLease(34))
    for _ in range(3):
        with pytest.raises(StaleToken), sql.fence.write(lease) as connection:
            sql.add(connection, lease)
    with pytest.raises(StaleToken):
        sql.fence.install(lease)


def test_pitfall_22_a_block_within_a_block_keeps_the_token_of_the_outer_one(
    sql: SqlStore, lease: GivenLease
) -> None:
    """Re-entry gives the same lease, so the same token: installing it again fences nobody out."""
    with sql.engine.connect() as connection, fenced(connection, sql.fence, lease):
        connection.execute(INSERT_33)
        connection.commit()
        assert sql.fence.install(lease).token == 33
        connection.execute(INSERT_33)
        connection.commit()
        with pytest.raises(NotFenceable, match="block already"):
            fenced(connection, sql.fence, lease).__enter__()
    assert sql.lines() == [33, 33]


def test_pitfall_26_a_renewal_changes_no_token_and_a_new_grant_does(sql: SqlStore, lease: GivenLease) -> None:
    lease.seconds = 5
    with sql.fence.write(lease) as connection:
        sql.add(connection, lease)
        lease.seconds = 30  # renewed
    sql.fence.install(GivenLease(34))  # acquired again
    with pytest.raises(StaleToken), sql.fence.write(lease) as connection:
        sql.add(connection, lease)
    assert sql.lines() == [33]


@pytest.mark.postgres
def test_pitfall_25_a_database_that_only_reads_is_refused_in_words(postgres: SqlStore) -> None:
    replica = sa.create_engine(
        postgres.engine.url, connect_args={"options": "-c default_transaction_read_only=on"}
    )
    fence = SqlFence(replica)
    for access in ("write", "read"):
        with replica.connect() as connection, pytest.raises(NotFenceable, match="replica"):
            with_one_read(connection, fence, GivenLease(33), access=access)
    with pytest.raises(NotFenceable, match="replica"):
        fence.install(GivenLease(34))
    replica.dispose()


def with_one_read(connection: sa.Connection, fence: SqlFence, lease: GivenLease, *, access: str) -> list[int]:
    with fenced(connection, fence, lease, access=access):  # type: ignore[call-overload]
        return list(connection.scalars(sa.select(journal.c.token)))


def test_s3_a_late_check_refuses_the_commit_of_a_stale_holder(sql: SqlStore, lease: GivenLease) -> None:
    sql.fence.install(GivenLease(34))
    with sql.engine.connect() as connection:
        with pytest.raises(StaleToken):
            with_one_write(connection, sql.fence, lease, check="late")
        with pytest.raises(StaleToken):
            commit_inside(connection, sql.fence, lease)
        with_one_write(connection, sql.fence, GivenLease(34), check="late")
        assert not connection.in_transaction()
    assert sql.lines() == [33]


def commit_inside(connection: sa.Connection, fence: SqlFence, lease: GivenLease) -> None:
    with fenced(connection, fence, lease, check="late"):
        connection.execute(INSERT_33)
        with pytest.raises(StaleToken):
            connection.commit()
        connection.rollback()
        connection.execute(INSERT_33)


@pytest.mark.postgres
def test_s5_a_late_check_keeps_no_install_waiting(postgres: SqlStore) -> None:
    with Session(postgres.engine) as session:
        with pytest.raises(StaleToken) as refused:
            install_in_the_middle(session, postgres)
        assert refused.value.mark == 34
    assert postgres.lines() == []


def install_in_the_middle(session: Session, store: SqlStore) -> None:
    with fenced(session, store.fence, GivenLease(33), check="late"):
        session.execute(INSERT_33)
        store.fence.install(GivenLease(34), timeout=20)  # would wait 20 s for an early check
        assert session.scalar(sa.text("SHOW idle_in_transaction_session_timeout")) == "1min"


@pytest.mark.postgres
def test_s3_a_late_check_holds_the_mark_until_the_commit(postgres: SqlStore) -> None:
    """Between the late check and its COMMIT the mark is locked: seen from a listener that comes after it."""
    seen: list[str] = []

    def try_to_install(_connection: sa.Connection) -> None:
        with postgres.engine.connect() as other:
            other.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
            with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
                other.exec_driver_sql("UPDATE lockd_fence SET token = 34")
        seen.append("locked")

    with (
        postgres.engine.connect() as connection,
        fenced(connection, postgres.fence, GivenLease(33), check="late"),
    ):
        connection.execute(INSERT_33)
        sa.event.listen(connection, "commit", try_to_install)
    assert seen == ["locked"]
    assert postgres.lines() == [33]


@pytest.mark.parametrize("mode", ["shared", "exclusive"])
def test_g10_a_read_is_checked_and_writes_nothing(sql: SqlStore, mode: str) -> None:
    reader = GivenLease(33, mode=mode)
    sql.fence.install(reader)
    with sql.engine.connect() as connection:
        assert with_one_read(connection, sql.fence, reader, access="read") == []
        with pytest.raises(WrongMode, match='access="read"'):
            write_in_a_read(connection, sql.fence, reader)
        connection.execute(journal.insert().values(token=0))  # nothing of it stays on the connection
        connection.commit()
        sql.fence.install(GivenLease(34))
        with pytest.raises(StaleToken):
            with_one_read(connection, sql.fence, reader, access="read")
    assert sql.lines() == [0]


def write_in_a_read(connection: sa.Connection, fence: SqlFence, lease: GivenLease) -> None:
    with fenced(connection, fence, lease, access="read"):
        connection.execute(INSERT_33)


def test_g10_readers_share_the_mark(sql: SqlStore) -> None:
    reader = GivenLease(33, mode="shared")
    sql.fence.install(reader)
    with (
        sql.engine.connect() as one,
        sql.engine.connect() as two,
        fenced(one, sql.fence, reader, access="read"),
        fenced(two, sql.fence, reader, access="read"),
    ):
        assert [one.scalar(sa.text("SELECT 1")), two.scalar(sa.text("SELECT 2"))] == [1, 2]


def test_g10_a_semaphores_lease_reads_nothing_and_a_late_read_is_refused(
    sql: SqlStore, lease: GivenLease
) -> None:
    with sql.engine.connect() as connection:
        with pytest.raises(WrongMode, match="no order"):
            fenced(connection, sql.fence, GivenLease(33, mode="semaphore"), access="read")
        with pytest.raises(ValueError, match="checked early"):
            fenced(connection, sql.fence, lease, access="read", check="late")
        with pytest.raises(ValueError, match="check is"):
            fenced(connection, sql.fence, lease, check="never")  # type: ignore[call-overload]


def test_a_scoped_session_is_refused_in_words(sql: SqlStore, lease: GivenLease) -> None:
    with pytest.raises(TypeError, match="scoped session"):
        fenced(scoped_session(sessionmaker(sql.engine)), sql.fence, lease)  # type: ignore[call-overload]


@pytest.mark.parametrize("server", [pytest.param("postgres", marks=pytest.mark.postgres), "mariadb"])
def test_s3_several_fences_never_deadlock_whatever_their_order(
    request: pytest.FixtureRequest, server: str
) -> None:
    """Repeated installs queue for marks between sharers, who could lock up in the callers' orders."""
    store: SqlStore = request.getfixturevalue(f"{server}_store")
    engine = sa.create_engine(store.engine.url, pool_size=12)
    fence = SqlFence(engine)
    leases = [GivenLease(40 + number, lock=f"lock{number}") for number in range(3)]
    for lease in leases:
        fence.install(lease)
    errors: list[BaseException] = []

    def write(order: tuple[GivenLease, ...]) -> None:
        for _ in range(5):
            with Session(engine) as session, fenced(session, fence, *order):
                session.execute(INSERT_33)

    def run(work: Callable[..., object], *arguments: object) -> None:
        try:
            work(*arguments)
        except BaseException as error:
            errors.append(error)
            raise

    writers = [Thread(target=run, args=(write, order)) for order in permutations(leases)]
    installs = [Thread(target=run, args=(fence.install, lease)) for lease in leases]
    for thread in (*writers, *installs):
        thread.start()
    for thread in (*writers, *installs):
        thread.join(60)
    engine.dispose()
    assert errors == []
    assert store.lines() == [33] * 5 * len(writers)


def test_a_transaction_tells_which_resources_it_may_write(sql: SqlStore, lease: GivenLease) -> None:
    stock = GivenLease(40, lock="stock")
    sql.fence.install(stock)
    with sql.engine.connect() as connection:
        with fenced(connection, sql.fence, lease, stock):
            assert "lockd_fenced" not in connection.info
            connection.execute(INSERT_33)
            told = connection.info["lockd_fenced"]
            assert told == (connection.get_transaction(), frozenset({"orders", "stock"}))
            connection.commit()
            connection.execute(INSERT_33)
            assert connection.info["lockd_fenced"][0] is connection.get_transaction()
        assert "lockd_fenced" not in connection.info


def test_pandas_writes_inside_a_fenced_connection(sql: SqlStore, lease: GivenLease) -> None:
    frame = pd.DataFrame({"token": [33, 33]})
    with sql.engine.connect() as connection:
        with fenced(connection, sql.fence, lease):
            frame.to_sql("journal", connection, if_exists="append", index=False)
            if connection.dialect.name != "mysql":  # which commits by itself to make a table
                frame.to_sql("made", connection, index=False)
        sql.fence.install(GivenLease(34))
        with pytest.raises(StaleToken):
            append(frame, connection, sql.fence, lease)
    assert sql.lines() == [33, 33]
    assert sa.inspect(sql.engine).has_table("made") == (sql.engine.dialect.name != "mysql")


def append(frame: pd.DataFrame, connection: sa.Connection, fence: SqlFence, lease: GivenLease) -> None:
    with fenced(connection, fence, lease):
        frame.to_sql("journal", connection, if_exists="append", index=False)


def test_refusals_are_counted_once_each(sql: SqlStore, lease: GivenLease) -> None:
    adapter = {"mysql": "mariadb"}.get(sql.engine.dialect.name, sql.engine.dialect.name)

    def rejects(reason: str) -> float:
        labels = {"adapter": adapter, "resource": "orders", "reason": reason}
        return REGISTRY.get_sample_value("lockd_fence_rejects_total", labels) or 0.0

    stale, mode = rejects("stale"), rejects("wrong_mode")
    sql.fence.install(GivenLease(34))
    with pytest.raises(StaleToken), sql.fence.write(lease) as connection:
        sql.add(connection, lease)
    with pytest.raises(StaleToken):
        sql.fence.install(lease)
    with pytest.raises(WrongMode), sql.fence.write(GivenLease(34, mode="shared")) as connection:
        pytest.fail("entered")
    assert (rejects("stale") - stale, rejects("wrong_mode") - mode) == (2, 1)


def test_the_check_is_seen_where_statements_are_shown(
    sql: SqlStore, lease: GivenLease, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="sqlalchemy.engine"), sql.fence.write(lease) as connection:
        sql.add(connection, lease)
    assert any("lockd_fence" in message for message in caplog.messages)
