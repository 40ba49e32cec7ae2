"""The stores as fixtures; `store` is each of them in turn."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from tests.servers.mariadb import MariadbServer
from tests.servers.moto import S3Server, running_moto
from tests.servers.postgres import PostgresServer
from tests.servers.seaweed import running_seaweed
from tests.servers.valkey import Program, ValkeyServer, running_valkey
from tests.storage.http_store import HttpStore, Sites, running_sites, store_behind_http
from tests.storage.redis_stores import RedisStore, async_redis_store, redis_store
from tests.storage.s3_stores import S3Store
from tests.storage.stores import FileStore, MemoryStore, SqlStore, Store, opened_store, sql_store, sqlite_url

# Migrating a database takes ten times as long as most tests do in it: each gets a copy.


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> Iterator[str]:
    """The name of a migrated database with an empty journal, to copy."""
    with postgres_server.fresh_database() as url:
        with sql_store(url):
            pass
        yield str(sa.make_url(url).database)


@pytest.fixture
def postgres_store_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    with postgres_server.fresh_database(postgres_template) as url:
        yield url


@pytest.fixture
def postgres_store(postgres_store_url: str) -> Iterator[SqlStore]:
    with opened_store(postgres_store_url) as store:
        yield store


@pytest.fixture(scope="session")
def mariadb_template(mariadb_server: MariadbServer) -> Iterator[str]:
    with mariadb_server.fresh_database() as url:
        with sql_store(url):
            pass
        yield str(sa.make_url(url).database)


@pytest.fixture
def mariadb_store_url(mariadb_server: MariadbServer, mariadb_template: str) -> Iterator[str]:
    with mariadb_server.fresh_database(mariadb_template) as url:
        yield url


@pytest.fixture
def mariadb_store(mariadb_store_url: str) -> Iterator[SqlStore]:
    with opened_store(mariadb_store_url) as store:
        yield store


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sqlite")
    with sql_store(sqlite_url(folder)) as store:
        return Path(str(store.engine.url.database))


@pytest.fixture
def sqlite_store_url(tmp_path: Path, sqlite_template: Path) -> str:
    url = sqlite_url(tmp_path)
    shutil.copyfile(sqlite_template, str(sa.make_url(url).database))
    return url


@pytest.fixture
def sqlite_store(sqlite_store_url: str) -> Iterator[SqlStore]:
    with opened_store(sqlite_store_url) as store:
        yield store


@pytest.fixture
def file_store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """One S3 server for each test process: moto's, or SeaweedFS from LOCKD_WEED_BIN."""
    weed = os.environ.get("LOCKD_WEED_BIN")
    with running_moto() if weed is None else running_seaweed(Path(weed)) as server:
        yield server


@pytest.fixture
def s3_store(s3_server: S3Server) -> S3Store:
    return S3Store(s3_server.fresh_bucket(), s3_server.shared_client)


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[ValkeyServer]:
    """One real Valkey 9 for each test process."""
    with running_valkey(Program.VALKEY_9) as server:
        yield server


@pytest.fixture(scope="session")
def redis6_server() -> Iterator[ValkeyServer]:
    """One real Redis 6.2, for what older servers lack."""
    with running_valkey(Program.REDIS_6) as server:
        yield server


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.valkey) for name in ("valkey", "redis6")])
def redis_server(request: pytest.FixtureRequest) -> ValkeyServer:
    """The newest server and the oldest, emptied."""
    server: ValkeyServer = request.getfixturevalue(f"{request.param}_server")
    server.reset()
    return server


@pytest.fixture
def valkey_store(valkey_server: ValkeyServer) -> Iterator[RedisStore]:
    with redis_store(valkey_server) as store:
        yield store


@pytest.fixture
def redis6_store(redis6_server: ValkeyServer) -> Iterator[RedisStore]:
    with redis_store(redis6_server, decode_responses=True) as store:
        yield store


@pytest.fixture
def valkey_async_store(valkey_server: ValkeyServer) -> Iterator[RedisStore]:
    with async_redis_store(valkey_server, decode_responses=True) as store:
        yield store


@pytest.fixture
def redis6_async_store(redis6_server: ValkeyServer) -> Iterator[RedisStore]:
    with async_redis_store(redis6_server) as store:
        yield store


@pytest.fixture(scope="session")
def sites() -> Iterator[Sites]:
    """One real web server for each test process."""
    with running_sites() as found:
        yield found


@pytest.fixture
def http_store(sites: Sites) -> Iterator[HttpStore]:
    with store_behind_http(sites, MemoryStore()) as store:
        yield store


@pytest.fixture
def http_sqlite_store(sites: Sites, sqlite_store: SqlStore) -> Iterator[HttpStore]:
    with store_behind_http(sites, sqlite_store) as store:
        yield store


POSTGRES = pytest.param("postgres", marks=pytest.mark.postgres)
MARIADB = pytest.param("mariadb", marks=pytest.mark.mariadb)
SQL_STORES = ("sqlite", POSTGRES, MARIADB)
HTTP_STORES = ("http", "http_sqlite")
REDIS_STORES = tuple(
    pytest.param(name, marks=pytest.mark.valkey)
    for name in ("valkey", "valkey_async", "redis6", "redis6_async")
)


@pytest.fixture(params=SQL_STORES)
def sql(request: pytest.FixtureRequest) -> SqlStore:
    store = request.getfixturevalue(f"{request.param}_store")
    assert isinstance(store, SqlStore)
    return store


@pytest.fixture(params=("memory", "file", "s3", *SQL_STORES, *REDIS_STORES, *HTTP_STORES))
def store(request: pytest.FixtureRequest) -> Store:
    return _store(request)


@pytest.fixture(params=("memory", "file", *SQL_STORES))
def holding_store(request: pytest.FixtureRequest) -> Store:
    """The stores in which an open write keeps the mark where it is, so that an install waits for it."""
    return _store(request)


@pytest.fixture(params=("s3", *REDIS_STORES, *HTTP_STORES))
def sending_store(request: pytest.FixtureRequest) -> Store:
    """The stores that are sent a write when it is complete, and check it then."""
    return _store(request)


@pytest.fixture(params=("memory", "s3", POSTGRES, MARIADB, *REDIS_STORES, "http"))
def sharing_store(request: pytest.FixtureRequest) -> Store:
    """The stores that let several holders of one token write at once; SQLite and files have one writer."""
    return _store(request)


def _store(request: pytest.FixtureRequest) -> Store:
    if request.param == "memory":
        return MemoryStore()
    found: Store = request.getfixturevalue(f"{request.param}_store")
    return found
