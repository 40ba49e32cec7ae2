"""Fixtures that more than one folder of tests needs."""

from collections.abc import Iterator

import pytest

from tests.servers.postgres import PostgresServer, running_postgres


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
