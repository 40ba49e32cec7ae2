"""A private ledger for a test: a SQLite file in a folder of its own, gone at the end."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

from lockd_scheduler.engines import open_engine
from lockd_storage.schema import upgrade


@contextmanager
def private_ledger() -> Iterator[Engine]:
    """An engine on an empty ledger. It outlives no power cut: nothing in it is meant to."""
    with tempfile.TemporaryDirectory(prefix="lockd-clock-") as folder:
        file = Path(folder) / "ledger.db"
        file.write_bytes(_empty_ledger())
        engine = open_engine(f"sqlite:///{file}")
        event.listen(engine, "connect", _without_sync)
        try:
            yield engine
        finally:
            engine.dispose()


@cache
def _empty_ledger() -> bytes:
    """The file that the migrations make; made once in a process, as they take a tenth of a second."""
    with tempfile.TemporaryDirectory(prefix="lockd-clock-") as folder:
        file = Path(folder) / "ledger.db"
        engine = open_engine(f"sqlite:///{file}")
        upgrade(engine, branch="scheduler")
        engine.dispose()
        return file.read_bytes()


def _without_sync(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA synchronous = OFF")
