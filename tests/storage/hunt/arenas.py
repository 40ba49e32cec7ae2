"""The arenas by name, each with what it needs to be up."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from tests.servers.mariadb import find_programs, running_mariadb
from tests.servers.moto import running_moto
from tests.servers.postgres import running_postgres
from tests.servers.valkey import running_valkey
from tests.storage.hunt.aiosqlite import AiosqliteArena
from tests.storage.hunt.arena import Arena
from tests.storage.hunt.asyncpg import AsyncpgArena
from tests.storage.hunt.files import FilesArena
from tests.storage.hunt.http import HttpArena
from tests.storage.hunt.mariadb import MariadbArena
from tests.storage.hunt.memory import MemoryArena
from tests.storage.hunt.postgresql import PostgresArena
from tests.storage.hunt.redis import RedisArena
from tests.storage.hunt.s3 import S3Arena
from tests.storage.hunt.sqlite import SqliteArena

MARIADB = Path(".pytest_cache/d/mariadb").resolve()
"""Where tests keep it, if it was downloaded."""


@contextmanager
def _memory(folder: Path) -> Iterator[Arena]:  # noqa: ARG001
    yield MemoryArena()


@contextmanager
def _sqlite(folder: Path) -> Iterator[Arena]:
    yield SqliteArena(folder)


@contextmanager
def _sqlite_wal(folder: Path) -> Iterator[Arena]:
    yield SqliteArena(folder, journal="wal")


@contextmanager
def _aiosqlite(folder: Path) -> Iterator[Arena]:
    yield AiosqliteArena(folder)


@contextmanager
def _postgresql(folder: Path) -> Iterator[Arena]:  # noqa: ARG001
    with running_postgres() as server, server.fresh_database() as url:
        yield PostgresArena(url)


@contextmanager
def _asyncpg(folder: Path) -> Iterator[Arena]:  # noqa: ARG001
    with running_postgres() as server, server.fresh_database() as url:
        yield AsyncpgArena(url)


@contextmanager
def _mariadb(folder: Path) -> Iterator[Arena]:  # noqa: ARG001
    MARIADB.mkdir(parents=True, exist_ok=True)
    with running_mariadb(find_programs(MARIADB)) as server, server.fresh_database() as url:
        yield MariadbArena(url)


@contextmanager
def _redis(folder: Path) -> Iterator[Arena]:  # noqa: ARG001
    with running_valkey() as server:
        yield RedisArena(server.port)


@contextmanager
def _s3(folder: Path) -> Iterator[Arena]:  # noqa: ARG001
    with running_moto() as server:
        yield S3Arena(server)


@contextmanager
def _files(folder: Path) -> Iterator[Arena]:
    yield FilesArena(folder)


@contextmanager
def _http(folder: Path) -> Iterator[Arena]:  # noqa: ARG001
    yield HttpArena()


ARENAS: dict[str, Callable[[Path], AbstractContextManager[Arena]]] = {
    "memory": _memory,
    "sqlite": _sqlite,
    "sqlite-wal": _sqlite_wal,
    "aiosqlite": _aiosqlite,
    "postgresql": _postgresql,
    "asyncpg": _asyncpg,
    "mariadb": _mariadb,
    "redis": _redis,
    "s3": _s3,
    "files": _files,
    "http": _http,
}
