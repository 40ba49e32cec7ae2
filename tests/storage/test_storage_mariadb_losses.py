"""Designs that people publish, each losing a write or misreading the store on a real MariaDB.

They are why the adapter does what it does. 33 is the old holder and 34 the new one, the mark is at 33,
and there is an account with a balance of 100.
"""

from threading import Thread

import pymysql
import pytest
import sqlalchemy as sa

from lockd.errors import StaleToken
from lockd_storage.schema import upgrade
from lockd_storage.sqlalchemy import SqlFence
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore
from tests.storage.test_storage_mariadb import wait_until_blocked

pytestmark = pytest.mark.mariadb

ADVANCE = "UPDATE lockd_fence SET token = 34"
EXISTS = "UPDATE account SET balance = 0 WHERE EXISTS (SELECT 1 FROM lockd_fence WHERE token = 33)"


@pytest.fixture
def store(mariadb_store: SqlStore) -> SqlStore:
    mariadb_store.fence.install(GivenLease(33))
    with mariadb_store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE account (balance int)")
        connection.exec_driver_sql("INSERT INTO account VALUES (100)")
    return mariadb_store


def balance(store: SqlStore) -> int:
    with store.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT balance FROM account").scalar_one())


def test_pitfall_04_an_unlocked_exists_loses_a_write_under_read_committed(store: SqlStore) -> None:
    """The statement reads the mark, waits for the row, and writes: the mark has moved meanwhile."""

    def old_holder() -> None:
        with store.engine.execution_options(isolation_level="READ COMMITTED").begin() as connection:
            connection.exec_driver_sql(EXISTS)

    with store.engine.connect() as new:
        new.exec_driver_sql("UPDATE account SET balance = 500")
        thread = Thread(target=old_holder)
        thread.start()
        wait_until_blocked(store)
        new.exec_driver_sql(ADVANCE)
        new.commit()
        thread.join(20)
    assert balance(store) == 0  # 500 is gone


def test_pitfall_06_a_snapshot_from_before_the_check_reads_the_past(store: SqlStore) -> None:
    """START TRANSACTION WITH CONSISTENT SNAPSHOT, or any plain read that comes before the locking one."""
    with store.engine.connect() as new:
        new.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        with store.engine.begin() as old:
            old.exec_driver_sql("UPDATE account SET balance = 70")
        new.exec_driver_sql("SELECT token FROM lockd_fence WHERE resource = 'orders' LOCK IN SHARE MODE")
        assert new.exec_driver_sql("SELECT balance FROM account").scalar() == 100
    with store.fence.write(GivenLease(33)) as connection:
        assert connection.exec_driver_sql("SELECT balance FROM account").scalar() == 70


@pytest.mark.parametrize(
    ("flag", "newer", "same", "stale"),
    [(0, 2, 0, 0), (pymysql.constants.CLIENT.FOUND_ROWS, 2, 1, 1)],
    ids=["changed rows", "found rows"],
)
def test_pitfall_19_a_count_of_rows_does_not_tell_stale_from_installed(
    store: SqlStore, flag: int, newer: int, same: int, stale: int
) -> None:
    """INSERT ... ON DUPLICATE KEY UPDATE, by the driver's flag: a repeat and a refusal look alike."""
    url = store.engine.url
    assert url.port is not None
    raw = pymysql.connect(
        host=url.host, port=url.port, user=url.username, database=url.database, client_flag=flag
    )

    def install(token: int) -> int:
        return raw.cursor().execute(
            "INSERT INTO lockd_fence (resource, `lock`, cluster, incarnation, token)"
            f" VALUES ('orders', 'orders', 'c', 'i', {token})"
            " ON DUPLICATE KEY UPDATE token = GREATEST(token, VALUES(token))"
        )

    assert (install(34), install(34), install(33)) == (newer, same, stale)
    raw.close()


@pytest.mark.parametrize("found_rows", [False, True])
def test_pitfall_19_the_adapter_reads_its_verdict_whatever_rows_are_counted(
    store: SqlStore, found_rows: bool
) -> None:

    flag = pymysql.constants.CLIENT.FOUND_ROWS if found_rows else 0
    engine = sa.create_engine(store.engine.url, connect_args={"client_flag": flag})
    fence = SqlFence(engine)
    fence.install(GivenLease(34))
    fence.install(GivenLease(34))
    with pytest.raises(StaleToken):
        fence.install(GivenLease(33))
    engine.dispose()


def test_pitfall_20_a_user_variable_is_there_for_the_connections_next_borrower(store: SqlStore) -> None:
    """A guard that believed `@lockd_token` alone would let that one write."""
    engine = sa.create_engine(store.engine.url, pool_size=1, max_overflow=0)
    with engine.begin() as connection:
        connection.exec_driver_sql("SET @lockd_token = 33")
    with engine.begin() as connection:
        assert connection.exec_driver_sql("SELECT @lockd_token").scalar() == 33
    engine.dispose()


def test_a_binary_collation_still_takes_two_names_for_one(store: SqlStore) -> None:
    """utf8mb4_bin pads with spaces: `a` and `a ` would have one mark."""
    with store.engine.connect() as connection:
        equal = "SELECT 'a' = 'a ' COLLATE utf8mb4_bin, 'a' = 'a ' COLLATE utf8mb4_nopad_bin"
        assert tuple(connection.exec_driver_sql(equal).one()) == (1, 0)


def test_s5_without_a_bound_a_paused_holder_blocks_its_successor(store: SqlStore) -> None:
    with store.engine.connect() as old, store.engine.connect() as new:
        old.exec_driver_sql("SELECT token FROM lockd_fence WHERE resource = 'orders' LOCK IN SHARE MODE")
        assert old.exec_driver_sql("SELECT @@idle_transaction_timeout").scalar() == 0
        new.exec_driver_sql("SET SESSION innodb_lock_wait_timeout = 0")
        with pytest.raises(sa.exc.OperationalError, match="1205"):
            new.exec_driver_sql(ADVANCE)
        new.invalidate()


def test_an_interrupted_upgrade_is_ended_by_the_next_one(store: SqlStore) -> None:
    """DDL commits by itself: the tables may be there, and the version that says so not."""

    with store.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM lockd_alembic_version")
    upgrade(store.engine)
    mark = store.fence.mark("orders")
    assert mark is not None
    assert mark.token == 33
    with store.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM lockd_fence_floor").scalar() == 1
