"""What the MariaDB adapter does beyond the contract (SAFETY S3 to S5, S9)."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Thread, current_thread
from time import monotonic
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from lockd.errors import LeaseLost, OutcomeUnknown, StaleToken, Unavailable
from lockd_storage import NotFenceable, WrongMode, fenced
from lockd_storage.sqlalchemy import SqlFence, mysql
from lockd_storage.sqlalchemy.marks import Check
from tests.servers.mariadb import MariadbServer
from tests.servers.proxy import lossy_proxy
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore, journal

pytestmark = pytest.mark.mariadb

INSERT_33 = journal.insert().values(token=33)
LEFT_BEHIND = "SELECT @lockd_fenced, @@idle_transaction_timeout, @@max_statement_time"
OWN_NAME = "SELECT IS_USED_LOCK(CONCAT('lockd.', CONNECTION_ID(), '.', MD5('orders')))"


@pytest.fixture
def store(mariadb_store: SqlStore) -> SqlStore:
    mariadb_store.fence.install(GivenLease(33))
    return mariadb_store


@pytest.fixture
def lease() -> GivenLease:
    """The lease whose token is installed when a test begins."""
    return GivenLease(33)


@pytest.fixture
def other(store: SqlStore) -> Iterator[sa.Connection]:
    """A second session, outside of any fence."""
    with store.engine.connect() as connection:
        yield connection


def wait_until_blocked(store: SqlStore) -> None:
    """Return once some session of this server waits for a row."""
    # Not innodb_trx: asked again within 100 ms, it answers with the same picture for ever.
    query = sa.text(
        "SELECT variable_value FROM information_schema.global_status"
        " WHERE variable_name = 'INNODB_ROW_LOCK_CURRENT_WAITS'"
    )
    with store.engine.connect() as connection:
        while int(connection.execute(query).scalar_one()) == 0:
            connection.rollback()


def left_behind(connection: sa.Connection) -> tuple[object, ...]:
    row = connection.exec_driver_sql(LEFT_BEHIND).one()
    name = connection.exec_driver_sql(OWN_NAME).scalar_one()
    connection.rollback()
    return (*row, name)


NOTHING = (None, 0, 0.0, None)


@pytest.mark.parametrize("level", ["READ UNCOMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_s3_the_mark_is_held_at_every_isolation_level(store: SqlStore, lease: GivenLease, level: str) -> None:
    with Session(store.engine.execution_options(isolation_level=level)) as session:
        with fenced(session, store.fence, lease):
            session.execute(sa.select(journal))
            thread = Thread(target=store.fence.install, args=(GivenLease(34),), kwargs={"timeout": 20})
            thread.start()
            wait_until_blocked(store)
            session.execute(INSERT_33)
        thread.join(20)
    assert not thread.is_alive()
    assert store.lines() == [33]


def test_s3_a_check_under_repeatable_read_reads_what_the_last_holder_wrote(
    store: SqlStore, lease: GivenLease
) -> None:
    with store.engine.begin() as connection:
        connection.execute(INSERT_33)
    with Session(store.engine) as session, fenced(session, store.fence, lease):
        assert session.scalars(sa.select(journal.c.token)).all() == [33]


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE extra (id int)",
        "/* a hint */ create index extra ON journal (token)",
        "-- a remark\nALTER TABLE journal ADD COLUMN extra int",
        "TRUNCATE journal",
        "DROP TABLE journal",
        "COMMIT",
        "ROLLBACK",
        "START TRANSACTION",
        "LOCK TABLES journal WRITE",
        "SET autocommit = 1",
    ],
)
def test_s3_what_commits_by_itself_is_refused(store: SqlStore, lease: GivenLease, statement: str) -> None:
    def work() -> None:
        with store.fence.write(lease) as connection:
            connection.execute(INSERT_33)
            connection.exec_driver_sql(statement)

    with pytest.raises(NotFenceable, match="commits by itself"):
        work()
    assert store.lines() == []
    assert sa.inspect(store.engine).get_columns("journal")[-1]["name"] == "token"


def test_s3_temporary_tables_and_savepoints_go_on_inside(store: SqlStore, lease: GivenLease) -> None:
    with store.fence.write(lease) as connection:
        connection.exec_driver_sql("CREATE TEMPORARY TABLE mine (id int)")
        with connection.begin_nested() as savepoint:
            connection.execute(journal.insert().values(token=1))
            savepoint.rollback()
        connection.exec_driver_sql("DROP TEMPORARY TABLE mine")
        connection.execute(INSERT_33)
    assert store.lines() == [33]


def test_s3_an_engine_whose_driver_commits_each_statement_is_refused(
    store: SqlStore, lease: GivenLease
) -> None:
    engine = sa.create_engine(store.engine.url)
    sa.event.listen(engine, "connect", lambda driver, _record: driver.autocommit(True))
    with pytest.raises(NotFenceable, match="AUTOCOMMIT"), SqlFence(engine).write(lease) as connection:
        connection.execute(INSERT_33)
    engine.dispose()
    assert store.lines() == []


def deadlocked(connection: sa.Connection, other: sa.Connection) -> None:
    """Make the server roll the connection's transaction back to end a deadlock, and swallow its error."""
    other.exec_driver_sql("UPDATE account SET balance = balance + 1 WHERE id > 1")  # the heavier one lives
    connection.exec_driver_sql("UPDATE account SET balance = 0 WHERE id = 1")
    waiting = Thread(target=other.exec_driver_sql, args=("UPDATE account SET balance = 9 WHERE id = 1",))
    waiting.start()
    with pytest.raises(sa.exc.OperationalError, match="1213"):
        connection.exec_driver_sql("UPDATE account SET balance = 0 WHERE id = 2")
    waiting.join(20)
    other.rollback()


@pytest.fixture
def accounts(store: SqlStore) -> None:
    with store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE account (id int PRIMARY KEY, balance int)")
        connection.exec_driver_sql("INSERT INTO account SELECT seq, 100 FROM seq_1_to_20")


@pytest.mark.usefixtures("accounts")
@pytest.mark.parametrize("then", ["a statement", "a commit"])
def test_s3_after_a_deadlock_the_mark_is_compared_again(
    store: SqlStore, lease: GivenLease, other: sa.Connection, then: str
) -> None:
    """It rolled back everything, the lock on the mark too: what follows is a new transaction."""

    def work(connection: sa.Connection) -> None:
        with fenced(connection, store.fence, lease):
            deadlocked(connection, other)
            store.fence.install(GivenLease(34), timeout=0)  # at once: nobody holds the old mark
            if then == "a statement":
                connection.execute(INSERT_33)

    with store.engine.connect() as connection:
        with pytest.raises(StaleToken):
            work(connection)
        assert left_behind(connection) == NOTHING
    assert store.lines() == []


@pytest.mark.usefixtures("accounts")
def test_s3_after_a_deadlock_a_current_holder_holds_the_mark_again(
    store: SqlStore, lease: GivenLease, other: sa.Connection
) -> None:
    with store.engine.connect() as connection, fenced(connection, store.fence, lease):
        deadlocked(connection, other)
        connection.execute(INSERT_33)
        thread = Thread(target=store.fence.install, args=(GivenLease(34),), kwargs={"timeout": 20})
        thread.start()
        wait_until_blocked(store)
        connection.commit()
        thread.join(20)
    assert store.lines() == [33]


def test_s5_a_transaction_is_bounded_by_what_the_lease_has_left(store: SqlStore, lease: GivenLease) -> None:
    def limits(connection: sa.Connection) -> list[object]:
        return list(
            connection.exec_driver_sql("SELECT @@idle_transaction_timeout, @@max_statement_time").one()
        )

    lease.seconds = 7.5
    with store.engine.connect() as connection:
        with fenced(connection, store.fence, lease):
            assert limits(connection) == [8, 7.5]
            connection.commit()
            lease.seconds = 5
            assert limits(connection) == [5, 5.0]
        with fenced(connection, store.fence, lease, idle=60, statement_timeout=90):
            assert limits(connection) == [60, 90.0]
        with fenced(connection, store.fence, lease, idle=float("inf"), statement_timeout=0):
            assert limits(connection)[1] == 0.001
        assert left_behind(connection) == NOTHING
        connection.exec_driver_sql(
            "SET SESSION idle_transaction_timeout = 2, SESSION max_statement_time = 1.5"
        )
        connection.rollback()
        with fenced(connection, store.fence, lease):
            assert limits(connection) == [2, 1.5]
        assert left_behind(connection) == (None, 2, 1.5, None)


def leave_by_commit(connection: sa.Connection) -> None:
    connection.commit()


def leave_by_rollback(connection: sa.Connection) -> None:
    connection.rollback()


def leave_by_an_error(connection: sa.Connection) -> None:
    connection.exec_driver_sql("SELECT nonsense FROM nowhere")


@pytest.mark.parametrize("leave", [leave_by_commit, leave_by_rollback, leave_by_an_error])
@pytest.mark.parametrize("check", ["early", "late"])
def test_pitfall_20_nothing_stays_on_a_pooled_connection(
    store: SqlStore, lease: GivenLease, leave: Callable[[sa.Connection], None], check: Check
) -> None:
    engine = sa.create_engine(store.engine.url, pool_size=1, max_overflow=0)
    with (
        suppress(sa.exc.DBAPIError),
        engine.connect() as connection,
        fenced(connection, store.fence, lease, check=check),
    ):
        connection.execute(INSERT_33)
        leave(connection)
    with engine.connect() as again:
        assert left_behind(again) == NOTHING
    engine.dispose()


def test_pitfall_20_nothing_stays_after_a_refusal_of_the_second_lease(
    store: SqlStore, lease: GivenLease
) -> None:
    stock = GivenLease(40, lock="stock")
    store.fence.install(stock)
    store.fence.install(GivenLease(41, lock="stock"))
    with store.engine.connect() as connection:
        with pytest.raises(StaleToken), fenced(connection, store.fence, lease, stock):
            connection.execute(INSERT_33)
        assert left_behind(connection) == NOTHING
    with store.engine.connect() as connection:
        with pytest.raises(StaleToken), fenced(connection, store.fence, lease, stock, check="late"):
            connection.execute(INSERT_33)
        assert left_behind(connection) == NOTHING
    assert store.lines() == []


def overtaken(
    session: Session, store: SqlStore, statement: sa.Executable, *, timeout: float, token: int = 34
) -> None:
    """A holder that is paused between two statements, while the next one installs."""
    session.execute(statement)
    store.fence.install(GivenLease(token), timeout=timeout)
    session.execute(statement)


def test_s5_a_paused_holder_is_ended_by_the_server_and_its_successor_goes_on(
    store: SqlStore, lease: GivenLease
) -> None:
    lease.seconds = 0.2  # the server counts whole seconds: one
    with Session(store.engine) as session:
        with pytest.raises(StaleToken) as refused, fenced(session, store.fence, lease):
            overtaken(session, store, INSERT_33, timeout=20)
        assert (refused.value.presented, refused.value.mark) == (33, 34)
    assert store.lines() == []


def test_s5_a_statement_that_outlasts_the_lease_is_ended(store: SqlStore, lease: GivenLease) -> None:
    lease.seconds = 0.05

    def slow(session: Session) -> None:
        with fenced(session, store.fence, lease):
            session.execute(INSERT_33)
            lease.seconds = 0
            session.execute(sa.text("SELECT SLEEP(20)"))

    with Session(store.engine) as session, pytest.raises(LeaseLost):
        slow(session)
    assert store.lines() == []


@pytest.mark.parametrize("statement", [sa.select(journal), INSERT_33], ids=["has read", "has written"])
def test_s5_install_ends_those_who_block_it_and_nobody_else(
    store: SqlStore, lease: GivenLease, other: sa.Connection, statement: sa.Executable
) -> None:
    """Holders with long leases stand in transactions: one of this resource, one of another.

    A transaction that has only read has no number on MariaDB: it must be told from all others.
    """
    stock = GivenLease(30, lock="stock")
    store.fence.install(stock)
    other.exec_driver_sql("SELECT * FROM lockd_fence WHERE resource = 'other' LOCK IN SHARE MODE")
    begun = monotonic()
    with store.fence.write(stock) as bystander:
        bystander.execute(statement)
        with Session(store.engine) as session:
            with pytest.raises(StaleToken) as refused, fenced(session, store.fence, lease):
                overtaken(session, store, statement, timeout=0.1)
            assert refused.value.mark == 34
        assert bystander.scalar(sa.text("SELECT 1")) == 1
        bystander.rollback()
    assert other.exec_driver_sql("SELECT 1").scalar() == 1
    assert monotonic() - begun < 10
    assert store.lines() == []


def test_s5_install_ends_a_paused_reader_too(store: SqlStore) -> None:
    reader = GivenLease(34, mode="shared")
    store.fence.install(reader)
    with (
        Session(store.engine) as session,
        pytest.raises(StaleToken),
        fenced(session, store.fence, reader, access="read"),
    ):
        overtaken(session, store, sa.select(journal), timeout=0.1, token=35)


def test_g10_a_reader_reads_and_writes_nothing(store: SqlStore) -> None:
    reader = GivenLease(34, mode="shared")
    store.fence.install(reader)
    with store.engine.connect() as connection:
        with fenced(connection, store.fence, reader, access="read"):
            assert connection.execute(sa.select(journal)).all() == []
        with pytest.raises(WrongMode), fenced(connection, store.fence, reader, access="read"):
            connection.execute(INSERT_33)
        connection.execute(INSERT_33)  # outside, the connection writes as before
        connection.commit()
        assert left_behind(connection) == NOTHING


def test_s5_install_gets_through_a_dozen_overlapping_sharers(store: SqlStore, lease: GivenLease) -> None:
    stop = monotonic() + 20

    def sharer() -> None:
        with suppress(StaleToken, OutcomeUnknown, sa.exc.DBAPIError):
            while monotonic() < stop:
                with engine.connect() as connection, fenced(connection, store.fence, lease):
                    connection.exec_driver_sql("SELECT SLEEP(0.02)")

    engine = sa.create_engine(store.engine.url, pool_size=12)
    sharers = [Thread(target=sharer) for _ in range(12)]
    for thread in sharers:
        thread.start()
    try:
        store.fence.install(GivenLease(34), timeout=0.5)
        assert monotonic() < stop
    finally:
        for thread in sharers:
            thread.join(30)
        engine.dispose()


def test_s5_a_stale_install_ends_nobody(store: SqlStore, lease: GivenLease) -> None:
    new = GivenLease(34)
    store.fence.install(new)
    with Session(store.engine) as session, fenced(session, store.fence, new):
        session.execute(journal.insert().values(token=34))
        with pytest.raises(StaleToken):
            store.fence.install(lease, timeout=0)
        session.execute(journal.insert().values(token=34))
    assert store.lines() == [34, 34]


@pytest.fixture
def app_user(store: SqlStore, mariadb_server: MariadbServer) -> Iterator[sa.Engine]:
    """An engine of a role that has what the documentation says it needs, and no more."""
    database = store.engine.url.database
    name = f"app_{database}"
    mariadb_server.execute(f"CREATE USER {name}@'127.0.0.1'")
    mariadb_server.execute(f"GRANT SELECT, INSERT, UPDATE ON {database}.lockd_fence TO {name}@'127.0.0.1'")
    mariadb_server.execute(f"GRANT SELECT ON {database}.lockd_fence_floor TO {name}@'127.0.0.1'")
    mariadb_server.execute(f"GRANT SELECT, INSERT ON {database}.journal TO {name}@'127.0.0.1'")
    engine = sa.create_engine(store.engine.url.set(username=name))
    yield engine
    engine.dispose()
    mariadb_server.execute(f"DROP USER {name}@'127.0.0.1'")


def test_an_application_needs_no_more_rights_than_documented(store: SqlStore, app_user: sa.Engine) -> None:
    fence = SqlFence(app_user)
    fence.install(GivenLease(34))
    with fence.write(GivenLease(34)) as connection:
        connection.execute(journal.insert().values(token=34))
    fence.install(GivenLease(35), "orders:35")
    assert store.lines() == [34]


def test_s5_blockers_that_may_not_be_ended_make_install_unavailable(
    store: SqlStore, lease: GivenLease, app_user: sa.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mysql, "ENDING_SECONDS", 0.3)
    with Session(store.engine) as session, fenced(session, store.fence, lease):
        session.execute(INSERT_33)
        with pytest.raises(Unavailable, match=r"is blocked: .*PROCESS"):
            SqlFence(app_user).install(GivenLease(34), timeout=0.05)
    assert store.lines() == [33]


def test_s5_a_connection_that_dies_before_it_ends_blockers_is_replaced(
    store: SqlStore, lease: GivenLease
) -> None:
    """SQLAlchemy hands on the driver's own error, when it ends just as it is told its isolation level."""
    died: list[Any] = []

    def die_once(connection: sa.Connection) -> None:
        if current_thread().name == "lockd-beside" and not died:
            died.append(connection.connection.driver_connection)
            died[0]._force_close()

    with Session(store.engine) as session, suppress(StaleToken), fenced(session, store.fence, lease):
        session.execute(INSERT_33)
        sa.event.listen(store.engine, "engine_connect", die_once)
        try:
            store.fence.install(GivenLease(34), timeout=0.05)
        finally:
            sa.event.remove(store.engine, "engine_connect", die_once)
    assert died
    assert store.lines() == []


def test_s5_a_session_that_gives_up_waiting_for_rows_sooner_waits_again(
    store: SqlStore, lease: GivenLease
) -> None:
    engine = sa.create_engine(
        store.engine.url, connect_args={"init_command": "SET SESSION innodb_lock_wait_timeout = 0"}
    )
    installed: list[int] = []
    thread = Thread(
        target=lambda: installed.append(SqlFence(engine).install(GivenLease(34), timeout=20).token)
    )
    with store.fence.write(lease) as connection:
        connection.execute(INSERT_33)
        thread.start()
        thread.join(0.3)
        assert thread.is_alive()
    thread.join(20)
    engine.dispose()
    assert installed == [34]


def test_s9_a_lost_reply_to_commit_is_an_unknown_outcome(store: SqlStore, lease: GivenLease) -> None:
    assert store.engine.url.port is not None
    with lossy_proxy(store.engine.url.port) as proxy:
        engine = sa.create_engine(store.engine.url.set(port=proxy.port))

        def lose_the_reply(session: Session) -> None:
            with fenced(session, store.fence, lease):
                session.execute(INSERT_33)
                proxy.lose = b"\x03COMMIT"

        with Session(engine) as session, pytest.raises(OutcomeUnknown):
            lose_the_reply(session)
        engine.dispose()
    assert store.lines() == [33]  # it was applied, and the writer can't know


def test_s9_a_lost_reply_to_install_is_unknown_and_a_second_install_settles_it(store: SqlStore) -> None:
    assert store.engine.url.port is not None
    with lossy_proxy(store.engine.url.port) as proxy:
        engine = sa.create_engine(store.engine.url.set(port=proxy.port))
        fence = SqlFence(engine)

        def lose_the_reply(_connection: sa.Connection) -> None:
            proxy.lose = b"\x03COMMIT"

        sa.event.listen(engine, "commit", lose_the_reply)
        with pytest.raises(OutcomeUnknown):
            fence.install(GivenLease(34))
        sa.event.remove(engine, "commit", lose_the_reply)
        proxy.lose = None
        fence.install(GivenLease(34))
        proxy.lose = b"lockd_fence_floor"
        with pytest.raises(Unavailable):
            fence.install(GivenLease(35))
        engine.dispose()


def test_install_into_a_server_that_is_gone_is_unavailable(store: SqlStore) -> None:
    with pytest.raises(Unavailable):
        SqlFence(sa.create_engine(store.engine.url.set(port=1))).install(GivenLease(33))


def test_names_that_only_bytes_tell_apart_are_resources_of_their_own(store: SqlStore) -> None:
    names = ("orders", "Orders", "orders ", "órders", "ord\u200bers", "順番", "\U0001f980")
    for token, name in enumerate(names, 40):
        store.fence.install(GivenLease(token, lock=name))
    for token, name in enumerate(names, 40):
        mark = store.fence.mark(name)
        assert mark is not None
        assert (mark.token, mark.lock) == (token, name)


def test_a_hundred_and_twenty_racing_first_installs_leave_the_highest(store: SqlStore) -> None:
    """Each learns its fate; deadlocks, if there are any, are tried again and seen by nobody."""
    engine = sa.create_engine(store.engine.url, pool_size=24, max_overflow=24)
    fence = SqlFence(engine)

    def install(token: int) -> int:
        try:
            return fence.install(GivenLease(token, lock="new"), timeout=20).token
        except StaleToken:
            return 0

    with ThreadPoolExecutor(24) as pool:
        installed = list(pool.map(install, range(100, 220)))
    engine.dispose()
    mark = store.fence.mark("new")
    assert mark is not None
    assert mark.token == 219
    assert installed[-1] == 219
