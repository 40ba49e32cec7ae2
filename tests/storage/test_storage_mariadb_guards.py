"""Guards on MariaDB: what its row triggers stop, and what they don't (SAFETY S6)."""

from collections.abc import Iterator

import pytest
import sqlalchemy as sa

from lockd_storage import OutsideFence
from lockd_storage.sqlalchemy.guards import Guard
from lockd_storage.sqlalchemy.guards import mysql as guards
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore

pytestmark = pytest.mark.mariadb

REFUSED = "needs the fence of"


@pytest.fixture
def store(mariadb_store: SqlStore) -> SqlStore:
    mariadb_store.fence.install(GivenLease(33))
    with mariadb_store.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE parent (id int PRIMARY KEY)")
        connection.exec_driver_sql(
            "CREATE TABLE orders (id int PRIMARY KEY AUTO_INCREMENT, amount int NOT NULL, parent int,"
            " FOREIGN KEY (parent) REFERENCES parent (id) ON DELETE CASCADE)"
        )
        connection.exec_driver_sql("INSERT INTO parent VALUES (1), (2)")
        connection.exec_driver_sql("INSERT INTO orders VALUES (1, 100, 1), (2, 100, 2)")
    return mariadb_store


@pytest.fixture
def outside(store: SqlStore) -> Iterator[sa.Connection]:
    """A session that is in no fence, of an engine of its own."""
    engine = sa.create_engine(store.engine.url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


def guard(store: SqlStore, resource: str) -> Guard:
    made = Guard("orders", resource)
    with store.engine.begin() as connection:
        for statement in guards.create(made):
            run(connection, statement)
    return made


def run(connection: sa.Connection, statement: str) -> None:
    """As a driver is given it: text() takes a colon for a parameter, plain strings a percent sign."""
    connection.execute(sa.text(statement.replace(":", r"\:")))


def amounts(store: SqlStore) -> list[int]:
    with store.engine.connect() as connection:
        return list(connection.exec_driver_sql("SELECT amount FROM orders ORDER BY id").scalars())


def fenced_update(store: SqlStore, lease: GivenLease, row: int = 1) -> None:
    with store.fence.write(lease) as connection:
        connection.exec_driver_sql(f"UPDATE orders SET amount = {lease.token} WHERE id = {row}")


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO orders (amount) VALUES (1)",
        "INSERT IGNORE INTO orders (amount) VALUES (1)",
        "INSERT INTO orders (id, amount) VALUES (1, 1) ON DUPLICATE KEY UPDATE amount = 5",
        "REPLACE INTO orders (id, amount) VALUES (1, 1)",
        "UPDATE orders SET amount = 0",
        "UPDATE IGNORE orders SET amount = 0",
        "UPDATE orders, parent SET orders.amount = 0 WHERE orders.parent = parent.id",
        "DELETE FROM orders",
        "DELETE IGNORE FROM orders",
    ],
)
def test_s6_writes_from_outside_a_fence_are_refused(
    store: SqlStore, outside: sa.Connection, statement: str
) -> None:
    guard(store, "orders")
    with pytest.raises(sa.exc.OperationalError, match=REFUSED):
        outside.exec_driver_sql(statement)
    outside.commit()
    assert amounts(store) == [100, 100]


def test_s6_a_fenced_write_passes_and_one_of_another_resource_does_not(store: SqlStore) -> None:
    guard(store, "orders")
    stock = GivenLease(40, lock="stock")
    store.fence.install(stock)
    fenced_update(store, GivenLease(33))
    with pytest.raises(OutsideFence, match=REFUSED):
        fenced_update(store, stock)
    assert amounts(store) == [33, 100]


def test_s6_a_family_is_opened_by_any_of_its_fences(store: SqlStore) -> None:
    guard(store, "orders:*")
    member, likeness = GivenLease(40, lock="orders:'7'"), GivenLease(41, lock="xorders:7")
    for lease in (member, likeness):
        store.fence.install(lease)
    fenced_update(store, member)
    for lease in (GivenLease(33), likeness):
        with pytest.raises(OutsideFence, match=REFUSED):
            fenced_update(store, lease)
    assert amounts(store) == [40, 100]


def test_s6_each_row_needs_its_own_fence(store: SqlStore) -> None:
    guard(store, "orders:{id}")
    first = GivenLease(40, lock="orders:1")
    store.fence.install(first)
    fenced_update(store, first, row=1)
    with pytest.raises(OutsideFence, match=REFUSED):
        fenced_update(store, first, row=2)
    with pytest.raises(OutsideFence, match=REFUSED), store.fence.write(first) as connection:
        connection.exec_driver_sql("UPDATE orders SET id = 9 WHERE id = 1")  # needs orders:9 as well
    assert amounts(store) == [40, 100]


def test_s6_a_row_whose_number_the_server_draws_needs_the_fence_of_that_number(store: SqlStore) -> None:
    guard(store, "orders:{id}")
    third = GivenLease(41, lock="orders:3")
    store.fence.install(third)
    with store.fence.write(third) as connection:
        connection.exec_driver_sql("INSERT INTO orders (amount) VALUES (41)")
    assert amounts(store) == [100, 100, 41]


def test_s6_a_leftover_variable_lets_nobody_write_under_an_older_token(
    store: SqlStore, outside: sa.Connection
) -> None:
    """Pitfall 20: it is on the session still, and the mark has moved."""
    guard(store, "orders")
    fence = GivenLease(33).fence
    outside.exec_driver_sql("SET @lockd_fenced = %s", (f"\0\0orders\0{fence}\0",))
    outside.exec_driver_sql("UPDATE orders SET amount = 33 WHERE id = 1")
    outside.commit()
    store.fence.install(GivenLease(34))
    with pytest.raises(sa.exc.OperationalError, match=REFUSED):
        outside.exec_driver_sql("UPDATE orders SET amount = 0 WHERE id = 1")
    assert amounts(store) == [33, 100]


def test_s6_the_trigger_locks_its_own_mark_and_no_other(store: SqlStore) -> None:
    guard(store, "orders")
    store.fence.install(GivenLease(30, lock="a"))
    store.fence.install(GivenLease(31, lock="z"))
    with store.fence.write(GivenLease(33)) as connection:
        connection.exec_driver_sql("UPDATE orders SET amount = 33 WHERE id = 1")
        for name in ("a", "z", "new"):
            store.fence.install(GivenLease(40, lock=name), timeout=0)
        connection.exec_driver_sql("UPDATE orders SET amount = 34 WHERE id = 1")
    assert amounts(store) == [34, 100]


def test_limit_rows_that_a_cascade_deletes_fire_no_trigger(store: SqlStore, outside: sa.Connection) -> None:
    guard(store, "orders")
    outside.exec_driver_sql("DELETE FROM parent WHERE id = 1")
    outside.commit()
    assert amounts(store) == [100]


def test_limit_truncate_fires_no_trigger(store: SqlStore, outside: sa.Connection) -> None:
    guard(store, "orders")
    outside.exec_driver_sql("TRUNCATE orders")
    assert amounts(store) == []


def test_limit_a_statement_that_touches_no_row_passes(store: SqlStore, outside: sa.Connection) -> None:
    guard(store, "orders")
    assert outside.exec_driver_sql("UPDATE orders SET amount = 0 WHERE id = 77").rowcount == 0


@pytest.mark.parametrize(
    "resource", ["orders", "orders:*", "orders:{id}", "it's \\ 100% `odd`:{parent}-{id}"]
)
def test_a_guard_is_found_again_and_goes(store: SqlStore, outside: sa.Connection, resource: str) -> None:
    made = guard(store, resource)
    assert guards.existing(outside) == [made]
    outside.exec_driver_sql(guards.drop(made)[0])
    assert guards.existing(outside) == []  # one trigger is missing: it no longer holds
    for statement in guards.drop(made):
        outside.exec_driver_sql(statement)
    outside.exec_driver_sql("UPDATE orders SET amount = 0")
    outside.commit()
    assert amounts(store) == [0, 0]


def test_odd_names_are_guarded_as_they_are(store: SqlStore) -> None:
    guard(store, "it's \\ 100% `odd`:{id}")
    lease = GivenLease(40, lock="it's \\ 100% `odd`:1")
    store.fence.install(lease)
    fenced_update(store, lease)
    with pytest.raises(OutsideFence, match=REFUSED):
        fenced_update(store, lease, row=2)


@pytest.mark.usefixtures("store")
def test_the_longest_table_name_can_be_guarded(outside: sa.Connection) -> None:
    made = Guard("t" * 64, "orders:" + "x" * 300)
    outside.exec_driver_sql(f"CREATE TABLE {made.table} (id int)")
    for statement in guards.create(made):
        outside.exec_driver_sql(statement)
    with pytest.raises(sa.exc.OperationalError, match="lockd: INSERT of"):
        outside.exec_driver_sql(f"INSERT INTO {made.table} VALUES (1)")


def test_a_table_of_another_database_is_refused() -> None:
    with pytest.raises(ValueError, match="database that holds"):
        guards.create(Guard("orders", "orders", schema="elsewhere"))
