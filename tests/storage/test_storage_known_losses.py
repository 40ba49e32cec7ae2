"""Designs that people publish, each losing a write or reading the past on a real PostgreSQL.

They are why the adapter does what it does. If a future PostgreSQL makes one of them safe, its test
fails and the rule may be thought over. In each, 33 is the old holder and 34 the new one, the mark
is at 33, and there is an account with a balance of 100.
"""

from threading import Thread

import pytest
import sqlalchemy as sa

from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore
from tests.storage.test_storage_postgresql import in_thread, wait_until_blocked

pytestmark = pytest.mark.postgres

ADVANCE = "UPDATE lockd_fence SET token = 34"


@pytest.fixture
def store(postgres_store: SqlStore) -> SqlStore:
    postgres_store.fence.install(GivenLease(33))
    with postgres_store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE account (balance int)")
        connection.exec_driver_sql("INSERT INTO account VALUES (100)")
    return postgres_store


def balance(store: SqlStore) -> int:
    with store.engine.connect() as connection:
        return int(connection.exec_driver_sql("SELECT balance FROM account").scalar_one())


def stale_statement_after_a_newer_write(store: SqlStore, statement: str) -> int:
    """34 advances the mark and writes 500 in one transaction; 33's one statement waits for the row."""
    changed: list[int] = []

    def old_holder() -> None:
        with store.engine.begin() as connection:
            changed.append(connection.exec_driver_sql(statement).rowcount)

    with store.engine.connect() as new:
        new.exec_driver_sql(ADVANCE)
        new.exec_driver_sql("UPDATE account SET balance = 500")
        with in_thread(Thread(target=old_holder)):
            wait_until_blocked(store)
            new.commit()
    return changed[0]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE account SET balance = 0 WHERE EXISTS (SELECT FROM lockd_fence WHERE token = 33)",
        "UPDATE account SET balance = 0 FROM lockd_fence WHERE token = 33",
    ],
    ids=["exists", "join"],
)
def test_s3_an_unlocked_check_in_the_statement_loses_a_write(store: SqlStore, statement: str) -> None:
    """PostgreSQL reads the row again after the wait, and not the fence row."""
    assert stale_statement_after_a_newer_write(store, statement) == 1
    assert balance(store) == 0  # 500 is gone


def test_s3_the_same_check_with_for_share_does_not(store: SqlStore) -> None:
    statement = (
        "WITH fence AS (SELECT FROM lockd_fence WHERE token = 33 FOR SHARE)"
        " UPDATE account SET balance = 0 WHERE EXISTS (SELECT FROM fence)"
    )
    assert stale_statement_after_a_newer_write(store, statement) == 0
    assert balance(store) == 500


def test_s3_a_key_share_lock_lets_the_mark_move_under_a_write(store: SqlStore) -> None:
    with store.engine.connect() as old:
        assert old.exec_driver_sql("SELECT token FROM lockd_fence FOR KEY SHARE").scalar() == 33
        with store.engine.begin() as new:
            new.exec_driver_sql("SET LOCAL lock_timeout = '10s'")
            new.exec_driver_sql(ADVANCE)  # does not wait
        read_by_34 = balance(store)
        old.exec_driver_sql("UPDATE account SET balance = 0")
        old.commit()
    assert read_by_34 == 100
    assert balance(store) == 0  # visible after 34 had installed and read


def test_s3_a_share_lock_makes_the_mark_wait(store: SqlStore) -> None:
    with store.engine.connect() as old, store.engine.connect() as new:
        assert old.exec_driver_sql("SELECT token FROM lockd_fence FOR SHARE").scalar() == 33
        new.exec_driver_sql("SET LOCAL lock_timeout = '50ms'")
        with pytest.raises(sa.exc.OperationalError, match="lock timeout"):
            new.exec_driver_sql(ADVANCE)


def test_s4_install_and_read_in_one_repeatable_read_transaction_reads_the_past(store: SqlStore) -> None:
    seen: list[int] = []

    def new_holder() -> None:
        with store.engine.execution_options(isolation_level="REPEATABLE READ").connect() as new:
            new.exec_driver_sql(ADVANCE)  # waits for 33's transaction
            seen.append(new.exec_driver_sql("SELECT balance FROM account").scalar_one())
            new.commit()

    with store.engine.connect() as old:
        old.exec_driver_sql("SELECT FROM lockd_fence WHERE token = 33 FOR SHARE")
        old.exec_driver_sql("UPDATE account SET balance = 70")
        with in_thread(Thread(target=new_holder)):
            wait_until_blocked(store)
            old.commit()
    assert seen == [100]
    assert balance(store) == 70


def test_s4_installing_first_in_a_transaction_of_its_own_reads_the_truth(store: SqlStore) -> None:
    seen: list[int] = []
    new_lease = GivenLease(34)

    def new_holder() -> None:
        store.fence.install(new_lease, timeout=20)
        with store.fence.write(new_lease) as connection:
            seen.append(connection.exec_driver_sql("SELECT balance FROM account").scalar_one())

    with store.fence.write(GivenLease(33)) as old:
        old.exec_driver_sql("UPDATE account SET balance = 70")
        thread = Thread(target=new_holder)
        thread.start()
        wait_until_blocked(store)
    thread.join(20)
    assert seen == [70]


def test_s5_without_a_bound_a_paused_holder_blocks_its_successor(store: SqlStore) -> None:
    with store.engine.connect() as old, store.engine.connect() as new:
        old.exec_driver_sql("SELECT FROM lockd_fence WHERE token = 33 FOR SHARE")
        new.exec_driver_sql("SET LOCAL statement_timeout = '200ms'")
        with pytest.raises(sa.exc.OperationalError, match="statement timeout"):
            new.exec_driver_sql(ADVANCE)
        assert old.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar() == "0"


def test_s5_sharers_that_overlap_outlast_a_lock_timeout(store: SqlStore) -> None:
    """A lock timeout counts anew for each sharer waited for; a statement timeout does not."""
    sharer = "SELECT FROM lockd_fence WHERE token = 33 FOR SHARE"
    ended: list[str] = []

    def new_holder() -> None:
        with store.engine.connect() as new:
            new.exec_driver_sql("SET LOCAL lock_timeout = '400ms'")
            new.exec_driver_sql("SET LOCAL statement_timeout = '1500ms'")
            try:
                new.exec_driver_sql(ADVANCE)
            except sa.exc.OperationalError as error:
                ended.append(str(error.orig))

    thread = Thread(target=new_holder)
    with store.engine.connect() as one, store.engine.connect() as two:
        one.exec_driver_sql(sharer)
        thread.start()
        wait_until_blocked(store)
        holding = [one, two]
        while thread.is_alive():
            holding[1].exec_driver_sql(sharer)
            holding[0].exec_driver_sql("SELECT pg_sleep(0.1)")
            holding[0].commit()
            holding.reverse()
    thread.join()
    assert "statement timeout" in ended[0]
