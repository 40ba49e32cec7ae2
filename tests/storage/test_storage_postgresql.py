"""What the PostgreSQL adapter does beyond the contract (SAFETY S3 to S5, S9)."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread
from time import monotonic

import pytest
import sqlalchemy as sa
from sqlalchemy.orm import Session

from lockd.errors import LeaseLost, OutcomeUnknown, StaleToken, Unavailable
from lockd_storage import NotFenceable, fenced
from lockd_storage.sqlalchemy import SqlFence, postgresql
from tests.servers.proxy import lossy_proxy
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore, journal

pytestmark = pytest.mark.postgres

INSERT_33 = journal.insert().values(token=33)


@pytest.fixture
def store(postgres_store: SqlStore) -> SqlStore:
    postgres_store.fence.install(GivenLease(33))
    return postgres_store


@pytest.fixture
def lease() -> GivenLease:
    """The lease whose token is installed when a test begins."""
    return GivenLease(33)


def wait_until_blocked(store: SqlStore) -> None:
    """Return once some session of this database waits for a lock."""
    with store.engine.connect() as connection:
        query = sa.text(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        while connection.scalar(query) == 0:
            connection.rollback()


@contextmanager
def in_thread(work: Thread) -> Iterator[None]:
    work.start()
    yield
    work.join(20)
    assert not work.is_alive()


def test_s3_under_repeatable_read_a_moved_mark_is_stale_and_not_a_retry(
    store: SqlStore, lease: GivenLease
) -> None:
    """The check waits for an install under way, and its snapshot is older: PostgreSQL says 40001."""
    errors: list[BaseException] = []

    def old_holder() -> None:
        repeatable = store.engine.execution_options(isolation_level="REPEATABLE READ")
        try:
            with Session(repeatable) as session, fenced(session, store.fence, lease):
                session.execute(INSERT_33)
        except StaleToken as error:
            errors.append(error)

    thread = Thread(target=old_holder)
    with store.engine.connect() as installing:
        installing.exec_driver_sql(
            f"SELECT lockd_fence_install('orders', 'orders', '{GivenLease(34).fence}')"
        )
        with in_thread(thread):
            wait_until_blocked(store)
            installing.commit()
    assert isinstance(errors[0], StaleToken)
    assert errors[0].mark == 34
    assert store.lines() == []


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
def test_pitfall_03_the_mark_is_held_at_every_isolation_level(
    store: SqlStore, lease: GivenLease, level: str
) -> None:
    """Dropping FOR SHARE from lockd_fence_begin lets the install return, and this fails."""
    with Session(store.engine.execution_options(isolation_level=level)) as session:
        with fenced(session, store.fence, lease):
            session.execute(sa.select(journal))
            thread = Thread(target=store.fence.install, args=(GivenLease(34),), kwargs={"timeout": 20})
            thread.start()
            wait_until_blocked(store)
            session.execute(INSERT_33)
        thread.join(20)
    assert store.lines() == [33]


def test_s3_two_phase_commit_is_refused(store: SqlStore, lease: GivenLease) -> None:
    with (
        Session(store.engine, twophase=True) as session,
        pytest.raises(NotFenceable),
        fenced(session, store.fence, lease),
    ):
        session.execute(INSERT_33)


def test_s3_the_applications_role_has_the_verbs_and_no_way_around_them(
    store: SqlStore,
) -> None:
    role = f"app_{store.engine.url.database}"
    with store.engine.begin() as owner:
        owner.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        owner.exec_driver_sql(f"GRANT SELECT, INSERT ON journal TO {role}")
        owner.exec_driver_sql(f"GRANT USAGE ON journal_id_seq TO {role}")
        owner.exec_driver_sql(f"GRANT SELECT ON lockd_fence TO {role}")
    engine = sa.create_engine(store.engine.url.set(username=role))
    fence = SqlFence(engine)
    try:
        with pytest.raises(sa.exc.ProgrammingError, match="permission denied"):
            fence.install(GivenLease(34))
        with store.engine.begin() as owner:
            owner.exec_driver_sql(
                f"GRANT EXECUTE ON FUNCTION lockd_fence_install, lockd_fence_begin TO {role}"
            )
        fence.install(GivenLease(34))
        with fence.write(GivenLease(34)) as connection:
            connection.execute(journal.insert().values(token=34))
        for statement in ("UPDATE lockd_fence SET token = 1", "DELETE FROM lockd_fence"):
            with (
                pytest.raises(sa.exc.ProgrammingError, match="permission denied"),
                engine.begin() as connection,
            ):
                connection.exec_driver_sql(statement)
    finally:
        engine.dispose()
        with store.engine.begin() as owner:
            owner.exec_driver_sql(f"DROP OWNED BY {role}")
            owner.exec_driver_sql(f"DROP ROLE {role}")
    assert store.lines() == [34]


def test_s3_a_temporary_table_of_the_same_name_deceives_nobody(store: SqlStore, lease: GivenLease) -> None:
    """SECURITY DEFINER functions with an open search_path would look into the caller's tables."""
    store.fence.install(GivenLease(34))
    with store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TEMP TABLE lockd_fence AS SELECT * FROM lockd_fence")
        connection.exec_driver_sql("UPDATE pg_temp.lockd_fence SET token = 33")
        with pytest.raises(sa.exc.DBAPIError, match="stale token 33"):
            connection.exec_driver_sql(f"SELECT lockd_fence_begin('orders', '{lease.fence}', 1000, 1000)")
        connection.rollback()


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
def test_pitfall_06_install_refuses_a_transaction_that_would_read_the_past(
    store: SqlStore, level: str
) -> None:
    engine = store.engine.execution_options(isolation_level=level)
    with engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="READ COMMITTED"):
        connection.exec_driver_sql(
            f"SELECT lockd_fence_install('orders', 'orders', '{GivenLease(33).fence}')"
        )
    SqlFence(engine).install(GivenLease(33))


def test_s4_an_install_is_durable_where_the_session_is_not(store: SqlStore) -> None:
    with store.engine.connect() as connection:
        for before, after in (("off", "on"), ("local", "on"), ("remote_apply", "remote_apply")):
            connection.exec_driver_sql(f"SET LOCAL synchronous_commit = {before}")
            connection.exec_driver_sql(
                f"SELECT lockd_fence_install('orders', 'orders', '{GivenLease(33).fence}')"
            )
            assert connection.exec_driver_sql("SHOW synchronous_commit").scalar() == after
            connection.rollback()


def test_s5_a_transaction_is_bounded_by_what_the_lease_has_left(store: SqlStore, lease: GivenLease) -> None:
    def limits(connection: sa.Connection) -> tuple[str, str]:
        idle = connection.exec_driver_sql("SHOW idle_in_transaction_session_timeout").scalar_one()
        return idle, connection.exec_driver_sql("SHOW statement_timeout").scalar_one()

    lease.seconds = 7.5
    with store.engine.connect() as connection:
        with fenced(connection, store.fence, lease):
            assert limits(connection) == ("7500ms", "7500ms")
            connection.commit()
            lease.seconds = 5
            assert limits(connection) == ("5s", "5s")
        with fenced(connection, store.fence, lease, idle=60, statement_timeout=90):
            assert limits(connection) == ("1min", "90s")
        with fenced(connection, store.fence, lease, idle=float("inf"), statement_timeout=0):
            assert limits(connection)[1] == "1ms"
        assert limits(connection) == ("0", "0")
        connection.exec_driver_sql("SET idle_in_transaction_session_timeout = '2s'")
        connection.exec_driver_sql("SET statement_timeout = '1500ms'")
        connection.commit()
        with fenced(connection, store.fence, lease):
            assert limits(connection) == ("2s", "1500ms")


def test_s5_a_paused_holder_is_ended_by_the_server_and_its_successor_goes_on(
    store: SqlStore, lease: GivenLease
) -> None:
    lease.seconds = 0.2
    with Session(store.engine) as session:
        with pytest.raises(StaleToken) as refused, fenced(session, store.fence, lease):
            paused_between_statements(session, lambda: store.fence.install(GivenLease(34), timeout=20))
        assert (refused.value.presented, refused.value.mark) == (33, 34)
    assert store.lines() == []


def test_s5_a_paused_holder_without_a_successor_has_lost_its_lease(
    store: SqlStore, lease: GivenLease
) -> None:
    lease.seconds = 0.05
    with Session(store.engine) as session, pytest.raises(LeaseLost), fenced(session, store.fence, lease):
        paused_between_statements(session, lambda: wait_until_alone(store))
    assert store.lines() == []


def paused_between_statements(session: Session, meanwhile: object) -> None:
    session.execute(INSERT_33)
    assert callable(meanwhile)
    meanwhile()
    session.execute(INSERT_33)


def wait_until_alone(store: SqlStore) -> None:
    query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'")
    with store.engine.connect() as connection:
        while connection.scalar(query) > 0:
            connection.rollback()


def test_s5_a_statement_that_outlasts_the_lease_is_ended(store: SqlStore, lease: GivenLease) -> None:
    lease.seconds = 0.05

    def slow(session: Session) -> None:
        with fenced(session, store.fence, lease):
            session.execute(INSERT_33)
            lease.seconds = 0
            session.execute(sa.text("SELECT pg_sleep(20)"))

    with Session(store.engine) as session, pytest.raises(LeaseLost):
        slow(session)
    assert store.lines() == []


def test_s5_install_ends_those_who_block_it(store: SqlStore, lease: GivenLease) -> None:
    """A holder with a long lease stands in a transaction and would stay for 30 s."""
    begun = monotonic()
    with Session(store.engine) as session:
        with pytest.raises(StaleToken) as refused, fenced(session, store.fence, lease):
            paused_between_statements(session, lambda: store.fence.install(GivenLease(34), timeout=0.1))
        assert refused.value.mark == 34
    assert monotonic() - begun < 10
    assert store.lines() == []


def test_s5_install_gets_through_a_dozen_overlapping_sharers(store: SqlStore, lease: GivenLease) -> None:
    stop = monotonic() + 20

    def sharer() -> None:
        try:
            while monotonic() < stop:
                with store.engine.connect() as connection, fenced(connection, fence, lease):
                    connection.exec_driver_sql("SELECT pg_sleep(0.02)")
        except (StaleToken, OutcomeUnknown, sa.exc.DBAPIError):
            pass

    engine = sa.create_engine(store.engine.url, pool_size=12)
    fence = SqlFence(engine)
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
    """An old holder that wakes and installs again must not end the new one's transactions."""
    new = GivenLease(34)
    store.fence.install(new)
    with Session(store.engine) as session, fenced(session, store.fence, new):
        session.execute(journal.insert().values(token=34))
        with pytest.raises(StaleToken):
            store.fence.install(lease, timeout=0.05)
        session.execute(journal.insert().values(token=34))
    assert store.lines() == [34, 34]


def test_s5_blockers_that_may_not_be_ended_make_install_unavailable(
    store: SqlStore, lease: GivenLease, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgresql, "ENDING_SECONDS", 0.3)
    role = f"weak_{store.engine.url.database}"
    with store.engine.begin() as owner:
        owner.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        owner.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION lockd_fence_install TO {role}")
    engine = sa.create_engine(store.engine.url.set(username=role))
    try:
        with Session(store.engine) as session, fenced(session, store.fence, lease):
            session.execute(INSERT_33)
            with pytest.raises(Unavailable, match=r"is blocked: (permission denied|must be a superuser)"):
                SqlFence(engine).install(GivenLease(34), timeout=0.05)
    finally:
        engine.dispose()
        with store.engine.begin() as owner:
            owner.exec_driver_sql(f"DROP OWNED BY {role}")
            owner.exec_driver_sql(f"DROP ROLE {role}")
    assert store.lines() == [33]


def test_pitfall_23_a_lost_reply_to_commit_is_an_unknown_outcome(store: SqlStore, lease: GivenLease) -> None:
    assert store.engine.url.port is not None
    with lossy_proxy(store.engine.url.port) as proxy:
        engine = sa.create_engine(store.engine.url.set(port=proxy.port))

        def lose_the_reply(session: Session) -> None:
            with fenced(session, store.fence, lease):
                session.execute(INSERT_33)
                proxy.lose = b"COMMIT\0"

        with Session(engine) as session, pytest.raises(OutcomeUnknown):
            lose_the_reply(session)
        engine.dispose()
    assert store.lines() == [33]  # it was applied, and the writer can't know


def test_s9_a_lost_reply_to_install_is_unknown_and_a_second_install_settles_it(store: SqlStore) -> None:
    assert store.engine.url.port is not None
    with lossy_proxy(store.engine.url.port) as proxy:
        engine = sa.create_engine(store.engine.url.set(port=proxy.port))
        fence = SqlFence(engine)
        fence.mark("orders")
        proxy.lose = b"COMMIT\0"
        with pytest.raises(OutcomeUnknown):
            fence.install(GivenLease(34))
        proxy.lose = None
        fence.install(GivenLease(34))
        proxy.lose = b"lockd_fence_install"
        with pytest.raises(Unavailable):
            fence.install(GivenLease(35))
        engine.dispose()


def test_install_into_a_server_that_is_gone_is_unavailable(store: SqlStore) -> None:
    engine = sa.create_engine(store.engine.url.set(port=1))
    with pytest.raises(Unavailable):
        SqlFence(engine).install(GivenLease(33))


@pytest.mark.parametrize("fence", ["", "c/i/33", f"{GivenLease(33).fence}0000000000000000", None])
def test_the_functions_refuse_what_is_not_a_fence(store: SqlStore, fence: str | None) -> None:
    for call in (
        "SELECT lockd_fence_install('orders', 'orders', :fence)",
        "SELECT lockd_fence_begin('orders', :fence, 1, 1)",
    ):
        with store.engine.connect() as connection, pytest.raises(sa.exc.DBAPIError, match="not a fence"):
            connection.execute(sa.text(call), {"fence": fence})
