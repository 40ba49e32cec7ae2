"""The adapters under test, each with a journal of writes that it protects.

A write adds one line: the token that wrote it. What is visible is read from outside any fence.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Protocol

import sqlalchemy as sa

from lockd_storage import FencePort, HeldLease
from lockd_storage.filesystem import FileChanges, FileFence
from lockd_storage.memory import MemoryFence
from lockd_storage.schema import upgrade
from lockd_storage.sqlalchemy import SqlFence

metadata = sa.MetaData()
journal = sa.Table(
    "journal",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("token", sa.BigInteger, nullable=False),
)


class Store(Protocol):
    """One adapter with something to protect."""

    @property
    def fence(self) -> FencePort[Any]: ...

    def add(self, handle: Any, lease: HeldLease) -> None:
        """Write one line inside a `fence.write()` block."""
        ...

    def lines(self) -> list[int]:
        """The tokens of all visible lines, in order."""
        ...

    def pinned(self, cluster: str) -> FencePort[Any]:
        """A fence of the same store that takes leases of one cluster only."""
        ...


class MemoryStore:
    def __init__(self) -> None:
        self.fence = MemoryFence()
        self._lines: list[int] = []

    def add(self, handle: None, lease: HeldLease) -> None:
        assert handle is None
        self._lines.append(lease.token)

    def lines(self) -> list[int]:
        return list(self._lines)

    def pinned(self, cluster: str) -> MemoryFence:
        return MemoryFence(cluster=cluster)


@dataclass
class SqlStore:
    engine: sa.Engine
    fence: SqlFence

    def add(self, handle: sa.Connection, lease: HeldLease) -> None:
        handle.execute(journal.insert().values(token=lease.token))

    def lines(self) -> list[int]:
        with self.engine.connect() as connection:
            return list(connection.scalars(sa.select(journal.c.token).order_by(journal.c.id)))

    def pinned(self, cluster: str) -> SqlFence:
        return SqlFence(self.engine, cluster=cluster)


@dataclass
class FileStore:
    """The journal is a folder with a file for each line."""

    folder: Path
    numbers: "count[int]" = field(default_factory=count)

    @property
    def fence(self) -> FileFence:
        return FileFence(self.folder)

    def add(self, handle: FileChanges, lease: HeldLease) -> None:
        handle.write(f"journal/{next(self.numbers):06}", str(lease.token).encode())

    def lines(self) -> list[int]:
        return [int(file.read_text()) for file in sorted(self.folder.glob("journal/*"))]

    def pinned(self, cluster: str) -> FileFence:
        return FileFence(self.folder, cluster=cluster)


@contextmanager
def sql_store(url: str, **engine_options: Any) -> Iterator[SqlStore]:
    """A database that is migrated here, with an empty journal."""
    with opened_store(url, **engine_options) as store:
        upgrade(store.engine)
        metadata.create_all(store.engine)
        yield store


@contextmanager
def opened_store(url: str, **engine_options: Any) -> Iterator[SqlStore]:
    """A database that has been migrated, such as a copy of one."""
    engine = sa.create_engine(url, **engine_options)
    try:
        yield SqlStore(engine, SqlFence(engine))
    finally:
        engine.dispose()


def sqlite_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'data.db'}"
