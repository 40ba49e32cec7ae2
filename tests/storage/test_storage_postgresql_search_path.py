"""lockd_fence_begin runs with its owner's rights, and means the same under any search_path (SAFETY S3)."""

from collections.abc import Iterator
from itertools import product

import pytest
import sqlalchemy as sa
from sqlalchemy import Connection

from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore

pytestmark = pytest.mark.postgres

FUNCTIONS = {
    "current_setting": (["text", "text, boolean"], "text"),
    "set_config": (["text, text, boolean"], "text"),
    "date_part": (["text, interval"], "float8"),
    "strpos": (["text, text"], "integer"),
    "starts_with": (["text, text"], "boolean"),
    "concat_ws": (["text, varchar, varchar, bigint", "text, text, text, bigint"], "text"),
    "pg_current_xact_id": ([""], "xid8"),
    "lockd_fence_refuse": (["text, text"], "void"),
}
WORDS = list(product(("text", "varchar"), repeat=2))
NUMBERS = list(product(("integer", "bigint", "float8", "numeric"), repeat=2))
OPERATORS = {"=": WORDS, "||": WORDS, "<>": WORDS, ">": NUMBERS, "*": NUMBERS}


def lie_in_wait(connection: Connection) -> None:
    """A caller's schema with a twin of everything that the function uses, which fails when it is used."""
    fails = "LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'the caller''s own'; END $$"
    connection.exec_driver_sql("CREATE SCHEMA ambush")
    connection.exec_driver_sql("CREATE TABLE ambush.lockd_fence AS SELECT * FROM lockd_fence")
    connection.exec_driver_sql("UPDATE ambush.lockd_fence SET token = 33")
    for name, (signatures, returns) in FUNCTIONS.items():
        for arguments in signatures:
            connection.exec_driver_sql(
                f"CREATE FUNCTION ambush.{name}({arguments}) RETURNS {returns} {fails}"
            )
    for operator, pairs in OPERATORS.items():
        returns = {"||": "text", "*": "numeric"}.get(operator, "boolean")
        for number, (left, right) in enumerate(pairs):
            function = f'ambush."{operator}{number}"'
            connection.exec_driver_sql(
                f"CREATE FUNCTION {function}({left}, {right}) RETURNS {returns} {fails}"
            )
            sides = f"LEFTARG = {left}, RIGHTARG = {right}"
            connection.exec_driver_sql(f"CREATE OPERATOR ambush.{operator} (FUNCTION = {function}, {sides})")
    connection.exec_driver_sql("CREATE DOMAIN ambush.text AS pg_catalog.text CHECK (false)")
    connection.exec_driver_sql("CREATE TEMP TABLE lockd_fence AS SELECT * FROM ambush.lockd_fence")
    connection.exec_driver_sql("SET LOCAL search_path = pg_temp, ambush, pg_catalog")


@pytest.fixture
def connection(postgres_store: SqlStore) -> Iterator[Connection]:
    """Inside a transaction of a caller that has laid its traps; the marks are 34 and 35."""
    for lease in (GivenLease(34), GivenLease(35, lock="stock")):
        postgres_store.fence.install(lease)
    with postgres_store.engine.connect() as connection:
        lie_in_wait(connection)
        yield connection
        connection.rollback()


def test_s3_a_callers_search_path_opens_nothing_to_a_stale_token(connection: Connection) -> None:
    with pytest.raises(sa.exc.DBAPIError, match="stale token 33"):
        begin(connection, GivenLease(33))


def test_s3_nothing_of_a_callers_search_path_runs_with_the_owners_rights(connection: Connection) -> None:
    limits = "statement_timeout", "idle_in_transaction_session_timeout"
    for limit in limits:
        connection.exec_driver_sql(f"SET LOCAL {limit} = 70000")  # so that it has to be compared
    for lease in (GivenLease(34), GivenLease(34), GivenLease(35, lock="stock")):  # later ones find a marker
        assert begin(connection, lease) == lease.token
    for limit in limits:
        assert connection.exec_driver_sql(f"SHOW {limit}").scalar_one() == "9s"
    marker = connection.exec_driver_sql("SHOW lockd.fenced").scalar_one()
    assert marker.partition("\x1f")[2] == "orders\x1fstock"


def begin(connection: Connection, lease: GivenLease) -> int:
    call = f"SELECT public.lockd_fence_begin('{lease.lock}', '{lease.fence}', 9000, 9000)"
    return int(connection.exec_driver_sql(call).scalar_one())
