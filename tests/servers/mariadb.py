"""A MariaDB server for tests: LOCKD_MARIADB_BIN, one installed here, or Debian's packages unpacked.

No wheel ships MariaDB. Where apt-get is, its packages are downloaded once and unpacked into pytest's
cache: nothing is installed, and neither that nor the server needs root.
"""

import fcntl
import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pymysql
import pytest

from lockd.testing.ports import free_port
from tests.servers.process import run_as, start_guarded, stop, unprivileged

START_SECONDS = 30.0
_APT_SECONDS = 50.0
_PACKAGES = ("mariadb-server-core", "mariadb-client-core", "mariadb-common", "mysql-common", "liburing2")
_AIO_PACKAGES = ("libaio1", "libaio1t64")  # before Debian 13, and since
_ADVICE = (
    "install Debian's mariadb-server-core, or set LOCKD_MARIADB_BIN to the folder of a mariadbd"
    " (docs/TESTING.md)"
)

DURABLE = ("--innodb-flush-log-at-trx-commit=1", "--innodb-flush-method=fsync")

# Tests may lose power with us: nothing on this disk is meant to outlive the run.
SETTINGS = (
    "--bind-address=127.0.0.1",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--innodb-buffer-pool-size=32M",
    "--innodb-log-file-size=16M",
    "--innodb-data-file-path=ibdata1:12M:autoextend",
    "--skip-name-resolve",
    "--max-connections=200",
    "--performance-schema=OFF",
)


@dataclass(frozen=True, slots=True)
class Programs:
    """A MariaDB on this machine: its prefix folder (usr, with bin and sbin) and how to load it."""

    prefix: Path
    libraries: tuple[Path, ...] = ()

    @property
    def server(self) -> Path:
        return self._find("mariadbd")

    @property
    def install_db(self) -> Path:
        return self._find("mariadb-install-db")

    @property
    def env(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LD_LIBRARY_PATH": os.pathsep.join(map(str, self.libraries))}

    def _find(self, name: str) -> Path:
        folders = [self.prefix / folder for folder in ("bin", "sbin", "scripts")]
        found = shutil.which(name, path=os.pathsep.join(map(str, folders)))
        if found is None:
            raise RuntimeError(f"{self.prefix} has no {name}: {_ADVICE}")
        return Path(found)


class MariadbServer:
    """A running server. `fresh_database()` gives each caller a database of its own."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._numbers = count(1)

    @contextmanager
    def fresh_database(self, template: str | None = None) -> Iterator[str]:
        """The SQLAlchemy URL of an empty database, or of a copy of another's tables with their rows.

        It is dropped afterwards, and whoever is still in it is ended.
        """
        name = f"test_{next(self._numbers)}"
        self.execute(f"CREATE DATABASE {name}")
        if template is not None:
            self._copy(template, name)
        try:
            yield f"mysql+pymysql://root@127.0.0.1:{self.port}/{name}"
        finally:
            self._end_sessions(name)
            self.execute(f"DROP DATABASE {name}")

    def execute(self, statement: str) -> list[tuple[object, ...]]:
        """Run one statement as root, in autocommit, and give its rows."""
        with _connect(self.port) as connection, connection.cursor() as cursor:
            cursor.execute(statement)
            return list(cursor.fetchall())

    def _copy(self, template: str, name: str) -> None:
        with _connect(self.port) as connection, connection.cursor() as cursor:
            cursor.execute(f"SHOW TABLES FROM {template}")
            for (table,) in cursor.fetchall():
                cursor.execute(f"CREATE TABLE {name}.{table} LIKE {template}.{table}")
                cursor.execute(f"INSERT INTO {name}.{table} SELECT * FROM {template}.{table}")

    def _end_sessions(self, database: str) -> None:
        # DROP DATABASE would wait for a transaction that a failed test left open.
        for (session,) in self.execute(
            f"SELECT id FROM information_schema.processlist WHERE db = '{database}'"
        ):
            try:
                self.execute(f"KILL {session}")
            except pymysql.err.OperationalError:
                continue  # it has ended by itself


def find_programs(cache: Path) -> Programs:
    """The MariaDB to test with. Skips the test, saying what to do, where none can be had.

    `cache` keeps what was downloaded between runs; test processes that want it at a time wait
    for the one that downloads.
    """
    configured = os.environ.get("LOCKD_MARIADB_BIN")
    if configured:
        return Programs(Path(configured).resolve().parent)
    installed = shutil.which("mariadbd", path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if installed:
        return Programs(Path(installed).resolve().parents[1])
    root = cache / "root"
    with (cache / "lock").open("w") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        if not root.exists():
            _download(cache, root)
    libraries = {library.parent for library in (root / "usr/lib").glob("*/*.so.*")}
    return Programs(root / "usr", tuple(libraries))


@contextmanager
def running_mariadb(programs: Programs, settings: Sequence[str] = ()) -> Iterator[MariadbServer]:
    """Start a server of its own data folder on a free port, and stop it for certain.

    `settings` go over those of tests: DURABLE for a benchmark.
    """
    guardian, port = _start(programs, settings)
    try:
        yield MariadbServer(port)
    finally:
        stop(guardian)


def _start(programs: Programs, settings: Sequence[str]) -> tuple[subprocess.Popen[bytes], int]:
    user = unprivileged()
    home = Path(tempfile.mkdtemp(prefix="lockd-mariadb-"))
    try:
        home.chmod(0o755)
        programs = _within_reach(programs, home, user)
        data = home / "data"
        data.mkdir(mode=0o700)
        if user is not None:
            os.chown(data, user.pw_uid, user.pw_gid)
        run_as(
            user,
            home,
            [
                programs.install_db,
                "--no-defaults",
                f"--basedir={programs.prefix}",
                f"--datadir={data}",
                "--auth-root-authentication-method=normal",
                "--skip-test-db",
                "--skip-name-resolve",
            ],
            env=programs.env,
        )
        return _serve(programs, home, data, user, settings)
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise


def _serve(
    programs: Programs, home: Path, data: Path, user: pwd.struct_passwd | None, settings: Sequence[str]
) -> tuple[subprocess.Popen[bytes], int]:
    port = free_port()
    command: list[str | Path] = [
        *(programs.server, "--no-defaults", f"--basedir={programs.prefix}", f"--datadir={data}"),
        *(f"--port={port}", f"--socket={data / 'socket'}", *SETTINGS, *settings),
    ]
    # KILL loses nothing that anyone will read, and an orderly stop takes a second.
    guardian = start_guarded(command, home=home, stop_signal="SIGKILL", user=user, env=programs.env)
    if _answers(port, guardian):
        return guardian, port
    log = home / "log"
    text = log.read_text() if log.exists() else "(no log)"
    stop(guardian)
    raise RuntimeError(f"MariaDB did not start:\n{text}")


def _answers(port: int, guardian: subprocess.Popen[bytes]) -> bool:
    give_up = time.monotonic() + START_SECONDS
    while guardian.poll() is None and time.monotonic() < give_up:
        try:
            _connect(port).close()
        except pymysql.err.OperationalError:
            time.sleep(0.02)
        else:
            return True
    return False


def _connect(port: int) -> "pymysql.Connection[pymysql.cursors.Cursor]":
    return pymysql.connect(host="127.0.0.1", port=port, user="root", autocommit=True, connect_timeout=5)


def _within_reach(programs: Programs, home: Path, user: pwd.struct_passwd | None) -> Programs:
    """The programs, as a copy in `home` if the unprivileged user can't reach where they are."""
    try:
        run_as(user, home, [programs.server, "--no-defaults", "--version"], env=programs.env)
    except PermissionError:
        copy = home / "programs"
        shutil.copytree(programs.prefix, copy, symlinks=True)
        libraries = tuple(copy / folder.relative_to(programs.prefix) for folder in programs.libraries)
        return Programs(copy, libraries)
    return programs


def _download(cache: Path, root: Path) -> None:
    for program in ("apt-get", "dpkg-deb"):
        if shutil.which(program) is None:
            pytest.skip(f"MARIADB NOT TESTED: there is no mariadbd and no {program} here; {_ADVICE}")
    fresh = Path(tempfile.mkdtemp(dir=cache))  # in the cache's file system, so that it can be renamed
    try:
        _apt_get(fresh, "update")
        try:
            _apt_get(fresh, "download", *_PACKAGES, _AIO_PACKAGES[0])
        except subprocess.CalledProcessError:
            _apt_get(fresh, "download", *_PACKAGES, _AIO_PACKAGES[1])
        for package in fresh.glob("*.deb"):
            _run("dpkg-deb", "--extract", str(package), str(fresh / "root"), cwd=fresh)
        (fresh / "root").rename(root)
    except subprocess.CalledProcessError as error:
        said = " ".join(error.stderr.split())[:300]
        pytest.skip(f"MARIADB NOT TESTED: {error.cmd[0]} can't fetch it ({said}); {_ADVICE}")
    except subprocess.TimeoutExpired:
        pytest.skip(f"MARIADB NOT TESTED: apt-get took more than {_APT_SECONDS:.0f} s; {_ADVICE}")
    finally:
        shutil.rmtree(fresh)


def _apt_get(folder: Path, *words: str) -> None:
    """Run apt-get with lists and cache of its own: the machine's are left alone, and may be empty."""
    lists = folder / "lists"
    lists.mkdir(exist_ok=True)
    settings = (f"Dir::State::lists={lists}", f"Dir::Cache={folder}", "APT::Sandbox::User=root")
    options = [word for setting in settings for word in ("-o", setting)]
    _run("apt-get", "--quiet", *options, *words, cwd=folder)


def _run(*command: str, cwd: Path) -> None:
    subprocess.run(
        command,
        cwd=cwd,
        check=True,
        capture_output=True,
        text=True,
        timeout=_APT_SECONDS,
        stdin=subprocess.DEVNULL,
    )
