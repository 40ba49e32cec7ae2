"""From a database URL, as an operator has it, to its `Upkeep`."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import URL, Engine, create_engine, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError

from lockd_storage.schema import upgrade
from lockd_storage.sqlalchemy.step import explained
from lockd_storage.sqlalchemy.upkeep import DIALECTS, Upkeep

CONNECT_SECONDS = 5

# A URL may name the driver that the application uses; these work without an event loop.
DRIVERS = {
    "postgres": "postgresql+psycopg",
    "postgresql": "postgresql+psycopg",
    "postgresql+asyncpg": "postgresql+psycopg",
    "sqlite+aiosqlite": "sqlite",
    "mysql": "mysql+pymysql",
    "mysql+aiomysql": "mysql+pymysql",
    "mysql+asyncmy": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
    "mariadb+aiomysql": "mariadb+pymysql",
    "mariadb+asyncmy": "mariadb+pymysql",
}


@contextmanager
def open_upkeep(url: str) -> Iterator[Upkeep]:
    """The operator's verbs on the database at `url`, which is connected to when one is called.

    Raises ValueError for what is not the URL of a database that can be used, ImportError for a missing
    driver. No message repeats the URL: it may hold a password.
    """
    parsed = _parsed(url)
    if (
        parsed.get_backend_name() == "sqlite"
        and not parsed.query
        and not Path(parsed.database or "").is_file()
    ):
        raise ValueError(f"there is no SQLite file {parsed.database!r}")  # connecting would make one
    with _engine(parsed) as engine:
        yield Upkeep(engine)


def upgrade_store(url: str) -> None:
    """Create the fence store in the database at `url`, or bring it up to date. Raises as `open_upkeep`."""
    with _engine(_parsed(url)) as engine, explained():
        upgrade(engine)


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ValueError("not a database URL: write it like postgresql://user@host/name") from None
    parsed = parsed.set(drivername=DRIVERS.get(parsed.drivername, parsed.drivername))
    if parsed.get_backend_name() not in DIALECTS:
        raise ValueError(f"no fence store can be in {parsed.get_backend_name()!r}: {', '.join(DIALECTS)}")
    return parsed


@contextmanager
def _engine(url: URL) -> Iterator[Engine]:
    waits = {} if url.get_backend_name() == "sqlite" else {"connect_timeout": CONNECT_SECONDS}
    try:
        engine = create_engine(url, connect_args=waits)
    except ModuleNotFoundError as error:
        raise ImportError(f"{url.drivername} needs the package {error.name!r}") from error
    except (NoSuchModuleError, ArgumentError):
        raise ValueError(f"unknown database driver {url.drivername!r}") from None
    try:
        yield engine
    except DBAPIError as error:  # one that `step` knows no meaning of
        raise ValueError(f"the database refuses: {' '.join(str(error.orig).split())}") from error
    finally:
        engine.dispose()
