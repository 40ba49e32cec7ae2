"""The MariaDB launcher: its server works wherever the programs are, and ends with whoever started it."""

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pymysql
import pytest

from tests.servers.mariadb import Programs, find_programs, running_mariadb

pytestmark = pytest.mark.mariadb

ROOT = Path(__file__).parents[2]

HOLD_A_SERVER = """
import sys
from pathlib import Path
from tests.servers.mariadb import find_programs, running_mariadb
with running_mariadb(find_programs(Path(sys.argv[1]))) as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def cache(pytestconfig: pytest.Config) -> Path:
    folder = pytestconfig.cache.mkdir("mariadb")
    find_programs(folder)  # skips here, where none can be had
    return folder


@pytest.mark.parametrize("how", [signal.SIGKILL, None], ids=["kill -9", "in order"])
def test_the_server_ends_with_the_process_that_started_it(cache: Path, how: signal.Signals | None) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_SERVER, str(cache)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    port = int(holder.stdout.readline())
    with pymysql.connect(host="127.0.0.1", port=port, user="root").cursor() as client:
        client.execute("SELECT @@datadir")
        row = client.fetchone()
        assert row is not None
        if how is not None:
            holder.send_signal(how)
        holder.stdin.close()
        holder.wait(30)
        holder.stdout.close()
        with pytest.raises(pymysql.err.OperationalError):
            client.execute("SELECT SLEEP(60)")
        client.connection.close()
    home = Path(row[0]).parent
    while home.exists():
        pass


def test_programs_out_of_the_unprivileged_users_reach_are_copied(cache: Path) -> None:
    found = find_programs(cache)
    if not found.libraries:
        pytest.skip("this MariaDB is installed, so everyone reaches it")
    with tempfile.TemporaryDirectory() as closed:  # mode 700: of the tests' user alone
        moved = Path(closed) / "usr"
        shutil.copytree(found.prefix, moved, symlinks=True)
        programs = Programs(moved, tuple(moved / at.relative_to(found.prefix) for at in found.libraries))
        with running_mariadb(programs) as server:
            assert server.execute("SELECT 1") == [(1,)]
