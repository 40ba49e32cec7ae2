"""The stores as fixtures; `store` is each of them in turn."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.servers.mariadb import MariadbServer, find_programs, running_mariadb
from tests.storage.stores import MemoryStore, SqlStore, Store, sql_store, sqlite_url


@pytest.fixture
def postgres_store(postgres_url: str) -> Iterator[SqlStore]:
    with sql_store(postgres_url) as store:
        yield store


@pytest.fixture(scope="session")
def mariadb_server(pytestconfig: pytest.Config) -> Iterator[MariadbServer]:
    """One real MariaDB server for each test process; skips what needs it where none can be had."""
    with running_mariadb(find_programs(pytestconfig.cache.mkdir("mariadb"))) as server:
        yield server


@pytest.fixture
def mariadb_url(mariadb_server: MariadbServer) -> Iterator[str]:
    """The URL of an empty MariaDB database, for this test alone."""
    with mariadb_server.fresh_database() as url:
        yield url


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[SqlStore]:
    with sql_store(sqlite_url(tmp_path)) as store:
        yield store


POSTGRES = pytest.param("postgres", marks=pytest.mark.postgres)
SQL_STORES = ("sqlite", POSTGRES)


@pytest.fixture(params=SQL_STORES)
def sql(request: pytest.FixtureRequest) -> SqlStore:
    store = request.getfixturevalue(f"{request.param}_store")
    assert isinstance(store, SqlStore)
    return store


@pytest.fixture(params=("memory", *SQL_STORES))
def store(request: pytest.FixtureRequest) -> Store:
    return _store(request)


@pytest.fixture(params=("memory", POSTGRES))
def sharing_store(request: pytest.FixtureRequest) -> Store:
    """The stores that let several holders of one token write at once. SQLite has a single writer."""
    return _store(request)


def _store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return MemoryStore()
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found
