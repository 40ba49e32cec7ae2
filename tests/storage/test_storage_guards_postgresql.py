"""What PostgreSQL itself refuses on a guarded table, and what it doesn't (SAFETY S6).

Statements go through a plain psycopg connection: no part of ours but the triggers sees them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from lockd.errors import StaleToken
from lockd_storage import OutsideFence, fenced
from lockd_storage.schema import upgrade
from lockd_storage.sqlalchemy import SqlFence
from lockd_storage.sqlalchemy.guards import Guard, guard_engine, postgresql
from lockd_storage.sqlalchemy.guards.triggers import clause
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore

pytestmark = pytest.mark.postgres

TABLES = """
CREATE TABLE customers (id int PRIMARY KEY);
CREATE TABLE orders (id int PRIMARY KEY, tenant text, total int NOT NULL DEFAULT 0,
                     customer int REFERENCES customers ON DELETE CASCADE);
CREATE TABLE parts (id int NOT NULL, total int) PARTITION BY RANGE (id);
CREATE TABLE parts_low PARTITION OF parts FOR VALUES FROM (0) TO (100);
INSERT INTO customers VALUES (1), (2);
INSERT INTO orders VALUES (1, 'a', 10, 1), (2, 'b', 20, NULL);
INSERT INTO parts VALUES (1, 10);
"""
WRITES = {
    "update": "UPDATE orders SET total = 1",
    "update of no row": "UPDATE orders SET total = 1 WHERE id = 99",
    "insert": "INSERT INTO orders VALUES (3, 'a', 1)",
    "insert from select": "INSERT INTO orders SELECT id + 10, tenant, total FROM orders",
    "on conflict": "INSERT INTO orders VALUES (1, 'a', 1) ON CONFLICT (id) DO UPDATE SET total = 5",
    "merge": "MERGE INTO orders o USING (VALUES (1)) AS v(id) ON o.id = v.id"
    " WHEN MATCHED THEN UPDATE SET total = 7",
    "delete": "DELETE FROM orders",
    "inside a WITH": "WITH gone AS (DELETE FROM orders RETURNING id) SELECT count(*) FROM gone",
    "copy": "COPY orders (id, tenant) FROM PROGRAM 'printf \"7,a\\n\"' WITH (FORMAT csv)",
    "cascade from an unguarded parent": "DELETE FROM customers WHERE id = 1",
    "truncate": "TRUNCATE orders",
}


@pytest.fixture
def store(postgres_store: SqlStore) -> SqlStore:
    with postgres_store.engine.begin() as connection:
        connection.exec_driver_sql(TABLES)
    postgres_store.fence.install(GivenLease(33))
    return postgres_store


def guard(store: SqlStore, table: str, resource: str, **options: Any) -> Guard:
    made = Guard(table, resource, **options)
    with store.engine.begin() as connection:
        for statement in postgresql.create(made):
            connection.execute(clause(statement))
    return made


@contextmanager
def psql(store: SqlStore, *, begin: str | None = None, **options: Any) -> Iterator[psycopg.Connection]:
    """A connection as psql has it, with a fence begun under lease 33 if `begin` names one."""
    url = store.engine.url
    words: dict[str, Any] = {
        "host": url.host,
        "port": url.port,
        "user": url.username,
        "dbname": url.database,
        **options,
    }
    with psycopg.connect(**words) as connection:
        if begin is not None:
            begin_fence(connection, begin)
        yield connection
        connection.rollback()


def begin_fence(connection: psycopg.Connection, resource: str) -> None:
    fence = GivenLease(33).fence
    connection.execute("SELECT lockd_fence_begin(%s, %s, 9000, 9000)", (resource, fence))


def refused(connection: psycopg.Connection, statement: str, resource: str = "orders") -> None:
    """The statement raises LF007, says which resource it needs, and leaves the transaction as before."""
    with pytest.raises(psycopg.Error) as error, connection.transaction():
        connection.execute(statement.encode())
    assert error.value.sqlstate == "LF007"
    assert f"needs the fence of resource {resource}, which" in str(error.value)
    assert "HINT" in str(error.value)


def test_s6_every_way_to_write_is_refused_outside_a_fence_and_passes_inside(store: SqlStore) -> None:
    guard(store, "orders", "orders")
    for write in WRITES.values():
        with psql(store) as connection:
            refused(connection, write)
            begin_fence(connection, "orders")
            connection.execute(write.encode())


def test_s6_the_refusal_names_table_resource_and_what_to_do(store: SqlStore) -> None:
    guard(store, "orders", "orders")
    with psql(store) as connection, pytest.raises(psycopg.Error) as error:
        connection.execute("UPDATE orders SET total = 1")
    assert str(error.value).splitlines()[0] == (
        "lockd: UPDATE of orders needs the fence of resource orders, which this transaction has not begun"
    )
    assert error.value.diag.table_name == "orders"
    assert "fenced(session, fence, lease)" in str(error.value.diag.message_hint)


def test_s6_a_savepoint_that_is_rolled_back_takes_the_fence_along(store: SqlStore) -> None:
    guard(store, "orders", "orders")
    with psql(store) as connection:
        connection.execute("SAVEPOINT s")
        begin_fence(connection, "orders")
        connection.execute(b"UPDATE orders SET total = 1")
        connection.execute("ROLLBACK TO s")
        refused(connection, "UPDATE orders SET total = 1")


def test_pitfall_20_the_next_transaction_of_a_connection_has_no_fence(store: SqlStore) -> None:
    """Also where the marker was kept for the session: it carries the transaction's id."""
    guard(store, "orders", "orders")
    with psql(store, begin="orders") as connection:
        connection.execute("UPDATE orders SET total = 1")
        connection.execute("SELECT set_config('lockd.fenced', current_setting('lockd.fenced'), false)")
        connection.commit()
        assert connection.execute("SHOW lockd.fenced").fetchone() != ("",)
        refused(connection, "UPDATE orders SET total = 2")


def test_s6_another_fence_does_not_open_a_table(store: SqlStore) -> None:
    guard(store, "orders", "orders")
    for lock in ("order", "orders2", "xorders", "orders:1", "bills\x1forders"):
        store.fence.install(GivenLease(33, lock=lock))
        with psql(store, begin=lock) as connection:
            refused(connection, "UPDATE orders SET total = 1")


def test_s6_a_family_of_fences_opens_a_table_by_prefix(store: SqlStore) -> None:
    guard(store, "orders", "orders:*")
    for lock, passes in (("orders:7", True), ("orders", False), ("xorders:7", False), ("Orders:7", False)):
        store.fence.install(GivenLease(33, lock=lock))
        with psql(store, begin=lock) as connection:
            if passes:
                connection.execute("UPDATE orders SET total = 1")
            else:
                refused(connection, "UPDATE orders SET total = 1", "orders:*")


def test_s6_several_fences_in_one_transaction_all_count(store: SqlStore) -> None:
    guard(store, "orders", "orders")
    guard(store, "customers", "people")
    store.fence.install(GivenLease(33, lock="people"))
    with psql(store, begin="orders") as connection:
        refused(connection, "INSERT INTO customers VALUES (3)", "people")
        begin_fence(connection, "people")
        begin_fence(connection, "orders")
        connection.execute("INSERT INTO customers VALUES (3)")
        connection.execute("UPDATE orders SET total = 1")


def test_pitfall_15_two_locks_can_not_both_open_a_table(store: SqlStore) -> None:
    """The guard binds the table to one resource, and a resource belongs to one lock."""
    guard(store, "orders", "orders")
    store.fence.install(GivenLease(90, lock="nightly"))
    with (
        store.engine.connect() as connection,
        pytest.raises(OutsideFence) as error,
        fenced(guarded(connection), store.fence, GivenLease(90, lock="nightly")),
    ):
        connection.exec_driver_sql("UPDATE orders SET total = 1")
    assert error.value.resource == "orders"


def guarded(connection: sa.Connection) -> sa.Connection:
    guard_engine(connection.engine)
    return connection


def test_pitfall_14_the_mark_is_not_in_the_row_and_outlives_a_delete(store: SqlStore) -> None:
    guard(store, "orders", "orders")
    store.fence.install(GivenLease(34))
    with store.engine.connect() as connection, fenced(connection, store.fence, GivenLease(34)):
        connection.exec_driver_sql("DELETE FROM orders WHERE id = 2")
    with (
        store.engine.connect() as connection,
        pytest.raises(StaleToken),
        fenced(connection, store.fence, GivenLease(33)),
    ):
        connection.exec_driver_sql("INSERT INTO orders VALUES (2, 'b', 20)")


def test_pitfall_05_an_advisory_lock_opens_nothing(store: SqlStore) -> None:
    """Held by whom, and since when, is not known to the table: only a compared mark opens it."""
    guard(store, "orders", "orders")
    with psql(store) as connection:
        connection.execute("SELECT pg_advisory_xact_lock(hashtext('orders'))")
        connection.execute("SELECT 1 FROM lockd_fence WHERE resource = 'orders' FOR KEY SHARE")
        refused(connection, "UPDATE orders SET total = 1")


def test_pitfall_08_a_role_without_execute_can_neither_raise_a_mark_nor_open_a_table(store: SqlStore) -> None:
    guard(store, "orders", "orders")
    with role_of_an_application(store) as role, psql(store, user=role) as connection:
        for call in (
            "SELECT lockd_fence_install('orders', 'orders', '{}/0000000a/9007199254740991')",
            "SELECT lockd_fence_begin('orders', '{}/0000000a/33', 1, 1)",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(call.format("c1" * 16).encode())
        refused(connection, "UPDATE orders SET total = 1")
    mark = store.fence.mark("orders")
    assert mark is not None
    assert mark.token == 33


@contextmanager
def role_of_an_application(store: SqlStore) -> Iterator[str]:
    role = f"guarded_{store.engine.url.database}"
    with store.engine.begin() as owner:
        owner.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        owner.exec_driver_sql(f"GRANT ALL ON orders, customers, parts TO {role}")
    try:
        yield role
    finally:
        with store.engine.begin() as owner:
            owner.exec_driver_sql(f"DROP OWNED BY {role}")
            owner.exec_driver_sql(f"DROP ROLE {role}")


def test_s6_the_applications_role_can_not_switch_a_guard_off(store: SqlStore) -> None:
    guard(store, "orders", "orders")
    with role_of_an_application(store) as role, psql(store, user=role) as connection:
        for bypass in (
            b"ALTER TABLE orders DISABLE TRIGGER ALL",
            b"DROP TRIGGER lockd_guard ON orders",
            b"SET session_replication_role = replica",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege), connection.transaction():
                connection.execute(bypass)
            refused(connection, "UPDATE orders SET total = 1")
            refused(connection, "TRUNCATE orders")


@pytest.mark.parametrize(("resource", "wanted"), [("orders", "orders"), ("o:{tenant}", "o:a")])
def test_s6_a_replica_session_is_stopped_by_always_and_by_nothing_else(
    store: SqlStore, resource: str, wanted: str
) -> None:
    guard(store, "orders", resource)
    with psql(store) as connection:
        connection.execute("SET session_replication_role = replica")
        refused(connection, "UPDATE orders SET total = 1 WHERE id = 1", wanted)
    guard(store, "orders", resource, always=False)
    with psql(store) as connection:
        refused(connection, "UPDATE orders SET total = 1 WHERE id = 1", wanted)
        connection.execute("SET session_replication_role = replica")
        connection.execute("UPDATE orders SET total = 1 WHERE id = 1")


def test_s6_known_limits_the_owner_and_a_marker_made_by_hand_get_through(store: SqlStore) -> None:
    """Guards stop accidents and zombies, not malice; the module says so."""
    guard(store, "orders", "orders")
    with psql(store) as connection:
        connection.execute(
            "SELECT set_config('lockd.fenced', pg_current_xact_id()::text || chr(31) || 'orders', true)"
        )
        connection.execute("UPDATE orders SET total = 1")
    with psql(store) as connection:
        connection.execute("ALTER TABLE orders DISABLE TRIGGER lockd_guard")
        connection.execute("UPDATE orders SET total = 1")


def test_s6_truncate_passes_where_its_guard_was_declined(store: SqlStore) -> None:
    guard(store, "orders", "orders", truncate=False)
    with psql(store) as connection:
        refused(connection, "DELETE FROM orders")
        connection.execute("TRUNCATE orders")


def test_s6_each_row_needs_its_own_fence(store: SqlStore) -> None:
    guard(store, "orders", "{tenant}/orders:{id}")
    store.fence.install(GivenLease(33, lock="a/orders:1"))
    with psql(store, begin="a/orders:1") as connection:
        connection.execute("UPDATE orders SET total = 1 WHERE id = 1")
        connection.execute("UPDATE orders SET total = 1 WHERE id = 99")
        connection.execute("INSERT INTO orders VALUES (1, 'a', 1) ON CONFLICT DO NOTHING")
        refused(connection, "UPDATE orders SET total = 1", "b/orders:2")
        refused(connection, "DELETE FROM orders WHERE id = 2", "b/orders:2")
        refused(connection, "INSERT INTO orders VALUES (3, 'a')", "a/orders:3")
        refused(connection, "INSERT INTO orders VALUES (3, NULL)", "NULL/orders:3")
        connection.execute("DELETE FROM orders WHERE id = 1")


def test_s6_a_row_that_changes_hands_needs_both_fences(store: SqlStore) -> None:
    guard(store, "orders", "o:{id}")
    for lock in ("o:1", "o:5"):
        store.fence.install(GivenLease(33, lock=lock))
    move = "UPDATE orders SET id = 5 WHERE id = 1"
    with psql(store, begin="o:1") as connection:
        refused(connection, move, "o:5")
        begin_fence(connection, "o:5")
        connection.execute(move.encode())
    with psql(store, begin="o:5") as connection:
        refused(connection, move, "o:1")


def test_s6_a_value_can_not_pass_for_two_resources(store: SqlStore) -> None:
    guard(store, "orders", "o:{tenant}")
    for lock in ("o:x", "o:y"):
        store.fence.install(GivenLease(33, lock=lock))
    with psql(store, begin="o:x") as connection:
        begin_fence(connection, "o:y")
        with pytest.raises(psycopg.Error, match="needs the fence"):
            connection.execute("INSERT INTO orders VALUES (9, 'x' || chr(31) || 'o:y')")


def test_s6_rows_are_judged_as_they_are_stored_after_other_triggers(store: SqlStore) -> None:
    """A BEFORE trigger of the user's could move the row to another fence after a check made there."""
    guard(store, "orders", "o:{id}")
    store.fence.install(GivenLease(33, lock="o:3"))
    with store.engine.begin() as owner:
        owner.exec_driver_sql(
            "CREATE FUNCTION moves() RETURNS trigger LANGUAGE plpgsql AS"
            " 'BEGIN NEW.id := 4; RETURN NEW; END';"
            "CREATE TRIGGER zz BEFORE INSERT ON orders FOR EACH ROW EXECUTE FUNCTION moves()"
        )
    with psql(store, begin="o:3") as connection:
        refused(connection, "INSERT INTO orders VALUES (3, 'a')", "o:4")


def test_s6_truncate_is_refused_where_each_row_has_its_own_fence(store: SqlStore) -> None:
    guard(store, "orders", "o:{id}")
    store.fence.install(GivenLease(33, lock="o:1"))
    with psql(store, begin="o:1") as connection:
        refused(connection, "TRUNCATE orders", "o:{id}")


def test_s6_a_renamed_column_is_followed(store: SqlStore) -> None:
    guard(store, "orders", "o:{id}")
    store.fence.install(GivenLease(33, lock="o:1"))
    with psql(store, begin="o:1") as connection:
        connection.execute("ALTER TABLE orders RENAME COLUMN id TO number")
        connection.execute("UPDATE orders SET total = 1 WHERE number = 1")
        with pytest.raises(psycopg.Error, match="needs the fence"):
            connection.execute("UPDATE orders SET total = 1 WHERE number = 2")


@pytest.mark.parametrize("level", ["statement", "row"])
def test_s6_a_partition_is_guarded_by_its_own_name_too(store: SqlStore, level: str) -> None:
    guard(store, "parts", "orders", level=level)
    with psql(store) as connection:
        for table in ("parts", "parts_low"):
            refused(connection, f"UPDATE {table} SET total = 1")
            refused(connection, f"TRUNCATE {table}")
        begin_fence(connection, "orders")
        connection.execute("UPDATE parts_low SET total = 1")


def test_s6_a_later_partition_is_covered_by_row_guards_and_by_guarding_again(store: SqlStore) -> None:
    late = "CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (200)"
    by_statement = guard(store, "parts", "orders")
    with store.engine.begin() as connection:
        assert postgresql.existing(connection) == [by_statement]
        connection.exec_driver_sql(late)
        assert postgresql.existing(connection) == []  # so autogenerate guards it again
    with psql(store) as connection:
        connection.execute("INSERT INTO parts_high VALUES (101, 1)")  # the hole
    guard(store, "parts", "orders")
    with psql(store) as connection:
        refused(connection, "INSERT INTO parts_high VALUES (102, 1)")
    by_row = guard(store, "parts", "orders", level="row", truncate=False)
    with store.engine.begin() as connection:
        connection.exec_driver_sql(late.replace("high", "top").replace("200", "300").replace("100", "200"))
        assert postgresql.existing(connection) == [by_row]
    with psql(store) as connection:
        connection.execute("SET session_replication_role = replica")
        refused(connection, "INSERT INTO parts_top VALUES (250, 1)")


def test_s6_a_row_that_moves_between_partitions_needs_both_fences(store: SqlStore) -> None:
    guard(store, "parts", "p:{id}")
    with store.engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE parts_high PARTITION OF parts FOR VALUES FROM (100) TO (200)"
        )
    for lock in ("p:1", "p:150"):
        store.fence.install(GivenLease(33, lock=lock))
    with psql(store, begin="p:1") as connection:
        refused(connection, "UPDATE parts SET id = 150 WHERE id = 1", "p:150")
        begin_fence(connection, "p:150")
        connection.execute("UPDATE parts SET id = 150 WHERE id = 1")


READ_BACK: list[dict[str, Any]] = [
    {"resource": "orders"},
    {"resource": "orders:*", "truncate": False},
    {"resource": "o'r\"d\\e%s$lockd$ :x", "always": False},
    {"resource": "o:{id}", "level": "row"},
    {"resource": "{tenant}/o:{id}", "truncate": False, "always": False},
    {"resource": "orders", "level": "row"},
]


def test_a_guard_is_read_back_as_it_was_made_and_goes_without_a_trace(store: SqlStore) -> None:
    for options in READ_BACK:
        made = guard(store, "orders", **options)
        with store.engine.begin() as connection:
            assert postgresql.existing(connection) == [made]
            for statement in postgresql.drop(made):
                connection.execute(clause(statement))
            assert postgresql.existing(connection) == []
            left = connection.exec_driver_sql("SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal")
            assert left.scalar() == 0


def test_a_guard_that_was_switched_off_counts_as_missing(store: SqlStore) -> None:
    for resource, trigger in (("orders", "lockd_guard"), ("o:{id}", "lockd_guard_delete")):
        for verb in ("ALTER TABLE orders DISABLE TRIGGER {}", "DROP TRIGGER {} ON orders"):
            guard(store, "orders", resource)
            with store.engine.begin() as connection:
                connection.exec_driver_sql(verb.format(trigger))
                assert postgresql.existing(connection) == []


def test_a_table_in_another_schema_with_a_difficult_name(store: SqlStore) -> None:
    with store.engine.begin() as connection:
        connection.exec_driver_sql('CREATE SCHEMA "My Shop"; CREATE TABLE "My Shop"."Or""der" ("I d" int)')
    made = guard(store, 'Or"der', "o:{I d}", schema="My Shop")
    with store.engine.connect() as connection:
        assert postgresql.existing(connection) == [made]
    with psql(store) as connection:
        refused(connection, 'INSERT INTO "My Shop"."Or""der" VALUES (4)', "o:4")


def test_a_fence_store_can_not_go_while_something_is_guarded(store: SqlStore) -> None:
    made = guard(store, "orders", "orders")
    with psql(store) as connection, pytest.raises(psycopg.errors.DependentObjectsStillExist):
        connection.execute("DROP FUNCTION lockd_guard_table()")
    with store.engine.begin() as connection:
        for statement in postgresql.drop(made):
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("DROP FUNCTION lockd_guard_table()")


def test_s6_a_fence_of_an_older_client_opens_guards_as_well(store: SqlStore) -> None:
    """The marker is left by the function in the database: psql and other languages need no part of ours."""
    guard(store, "orders", "orders")
    upgrade(store.engine)
    engine = sa.create_engine(store.engine.url)
    with SqlFence(engine).write(GivenLease(33)) as connection:
        connection.exec_driver_sql("UPDATE orders SET total = 1")
    engine.dispose()
