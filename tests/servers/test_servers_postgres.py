"""The launcher itself: no server outlives the process that asked for it."""

import signal
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest

ROOT = Path(__file__).parents[2]

HOLD_A_SERVER = """
import sys
from tests.servers.postgres import running_postgres
with running_postgres() as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""


@pytest.mark.postgres
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, None], ids=["kill -9", "TERM", "in order"])
def test_the_server_ends_with_the_process_that_started_it(how: signal.Signals | None) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_SERVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    port = int(holder.stdout.readline())
    with psycopg.connect(f"host=127.0.0.1 port={port} user=postgres dbname=postgres") as client:
        row = client.execute("SHOW data_directory").fetchone()
        assert row is not None
        if how is not None:
            holder.send_signal(how)
        holder.stdin.close()
        holder.wait(30)
        holder.stdout.close()
        with pytest.raises(psycopg.OperationalError):
            client.execute("SELECT pg_sleep(60)")  # the guardian stops the server, which drops us
    # The guardian removes the folder when the server's process is gone.
    home = Path(row[0]).parent
    while home.exists():
        pass
