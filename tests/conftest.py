"""Fixtures that more than one folder of tests needs."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.redis_clients import npm
from tests.servers.mariadb import MariadbServer, find_programs, running_mariadb
from tests.servers.postgres import PostgresServer, running_postgres

# In a shell's background, or under nohup, all that is started here would ignore what the tests send to it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """One real PostgreSQL server for each test process, started when first asked for."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def postgres_url(postgres_server: PostgresServer) -> Iterator[str]:
    """The URL of an empty PostgreSQL database, for this test alone."""
    with postgres_server.fresh_database() as url:
        yield url


@pytest.fixture(scope="session")
def node_modules(pytestconfig: pytest.Config) -> Path:
    """Where the Node clients are installed; skips what needs them where that can't be done."""
    return npm.install(pytestconfig.cache.mkdir("node-clients"))


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
