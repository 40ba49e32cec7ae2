"""The ledger's database as a fixture: SQLite, a real PostgreSQL and a real MariaDB in turn."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from lockd_scheduler.engines import open_engine
from lockd_scheduler.tables import metadata
from lockd_storage.schema import upgrade
from tests.scheduler.harness import World
from tests.servers.mariadb import MariadbServer
from tests.servers.postgres import PostgresServer


@pytest.fixture(scope="session")
def postgres_ledger_url(postgres_server: PostgresServer) -> Iterator[str]:
    """One database with the ledger's tables for all tests here, which empty it."""
    with postgres_server.fresh_database() as url:
        engine = open_engine(url)
        upgrade(engine, branch="scheduler")
        engine.dispose()
        yield url


@pytest.fixture(scope="session")
def mariadb_ledger_url(mariadb_server: MariadbServer) -> Iterator[str]:
    """The same on MariaDB."""
    with mariadb_server.fresh_database() as url:
        engine = open_engine(url)
        upgrade(engine, branch="scheduler")
        engine.dispose()
        yield url


@pytest.fixture(
    params=(
        "sqlite",
        pytest.param("postgres", marks=pytest.mark.postgres),
        pytest.param("mariadb", marks=pytest.mark.mariadb),
    )
)
def db_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database whose ledger is empty, or not made yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/ledger.db"
    return emptied(str(request.getfixturevalue(f"{request.param}_ledger_url")))


def emptied(url: str) -> str:
    """The URL of a server's ledger, with nothing in it any more."""
    engine = open_engine(url)
    with engine.begin() as connection:
        if engine.dialect.name == "postgresql":
            names = ", ".join(table.name for table in metadata.sorted_tables)
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
        else:
            for table in reversed(metadata.sorted_tables):
                connection.execute(table.delete())
        connection.execute(text("DROP TABLE IF EXISTS effects"))
    engine.dispose()
    return url


@pytest.fixture
def engine(db_url: str) -> Iterator[Engine]:
    """With the ledger's tables, and a table `effects (fire)` for what jobs do."""
    engine = open_engine(db_url)
    upgrade(engine, branch="scheduler")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE effects (fire TEXT)"))
    yield engine
    engine.dispose()


@pytest.fixture
def world(engine: Engine) -> World:
    """No job yet, nobody in office, the clock at noon."""
    return World(engine)
