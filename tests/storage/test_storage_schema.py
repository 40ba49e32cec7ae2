"""Our tables: made once, by whoever comes first, and as `lockd_storage.tables` says."""

import multiprocessing
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext

from lockd.errors import StaleToken
from lockd_storage.fencing import Floor
from lockd_storage.schema import MIGRATIONS, upgrade
from lockd_storage.sqlalchemy.upkeep import Upkeep
from lockd_storage.tables import metadata
from tests.storage.leases import GivenLease
from tests.storage.stores import SqlStore, sqlite_url

FENCE_TABLES = {"lockd_alembic_version", "lockd_fence", "lockd_fence_floor"}


def upgrade_in_process(url: str) -> None:
    engine = sa.create_engine(url)
    upgrade(engine)
    engine.dispose()


def check_many_at_once(url: str) -> None:
    # "spawn": a fork would take the test's own connections along.
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        pool.map(upgrade_in_process, [url] * 2)
    engine = sa.create_engine(url)
    with engine.connect() as connection:
        assert set(sa.inspect(connection).get_table_names()) == FENCE_TABLES
        assert connection.exec_driver_sql("SELECT id, token FROM lockd_fence_floor").all() == [(1, 0)]
    engine.dispose()


@pytest.mark.postgres
def test_processes_that_upgrade_postgresql_at_once_all_succeed(postgres_url: str) -> None:
    check_many_at_once(postgres_url)


def test_processes_that_upgrade_sqlite_at_once_all_succeed(tmp_path: Path) -> None:
    check_many_at_once(sqlite_url(tmp_path))


def test_a_second_upgrade_changes_nothing(sql: SqlStore) -> None:
    with sql.engine.connect() as connection:
        upgrade(connection)
        assert not connection.in_transaction()
    upgrade(sql.engine)


def test_an_upgrade_joins_the_callers_transaction(tmp_path: Path) -> None:
    engine = sa.create_engine(sqlite_url(tmp_path))
    with engine.connect() as connection:
        connection.exec_driver_sql("BEGIN")
        upgrade(connection)
        connection.rollback()
        assert sa.inspect(connection).get_table_names() == []
    engine.dispose()


def test_the_tables_in_code_are_those_of_the_migrations(sql: SqlStore) -> None:
    def ours(_object: object, name: str | None, kind: str, reflected: bool, _to: object) -> bool:
        return not (kind == "table" and reflected and name not in metadata.tables)

    with sql.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"include_object": ours, "compare_server_default": False}
        )
        assert compare_metadata(context, metadata) == []


def test_a_users_own_alembic_version_is_left_alone(sql: SqlStore) -> None:
    with sql.engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE alembic_version (version_num varchar(32))")
        connection.exec_driver_sql("INSERT INTO alembic_version VALUES ('theirs')")
    upgrade(sql.engine)
    with sql.engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT * FROM alembic_version").all() == [("theirs",)]
        ours = connection.exec_driver_sql("SELECT version_num FROM lockd_alembic_version").scalars().all()
    assert len(ours) == 1
    assert ours[0].startswith("fence_")


@pytest.mark.postgres
def test_on_the_way_down_and_up_again_installs_and_rights_go_on(postgres_store: SqlStore) -> None:
    engine, fence = postgres_store.engine, postgres_store.fence
    role = f"writer_{engine.url.database}"
    may_install = (
        f"SELECT has_function_privilege('{role}', 'lockd_fence_install(text, text, text)', 'EXECUTE')"
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role}")
        connection.exec_driver_sql(f"GRANT EXECUTE ON FUNCTION lockd_fence_install TO {role}")
    Upkeep(engine).adopt(GivenLease(5).fence)
    with engine.begin() as connection:
        config = Config(attributes={"connection": connection})
        config.set_main_option("script_location", MIGRATIONS)
        command.downgrade(config, "fence_0001")
        columns = [column["name"] for column in sa.inspect(connection).get_columns("lockd_fence_floor")]
        assert columns == ["id", "token"]
        assert connection.exec_driver_sql(may_install).scalar()
    fence.install(GivenLease(33))
    with pytest.raises(StaleToken):
        fence.install(GivenLease(5))
    upgrade(engine)
    assert Upkeep(engine).floor() == Floor(5)
    with engine.begin() as connection:
        assert connection.exec_driver_sql(may_install).scalar()
        connection.exec_driver_sql(f"DROP OWNED BY {role}")
        connection.exec_driver_sql(f"DROP ROLE {role}")
