"""The launcher itself: no server outlives the process that asked for it, and none runs as root."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.servers.valkey import Program, running_valkey

pytestmark = pytest.mark.valkey

ROOT = Path(__file__).parents[2]

HOLD_A_SERVER = """
import sys
from tests.servers.valkey import running_valkey
with running_valkey() as server:
    print(server.port, flush=True)
    sys.stdin.read()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, None], ids=["kill -9", "in order"])
def test_the_server_ends_with_the_process_that_started_it(how: signal.Signals | None) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD_A_SERVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    port = int(holder.stdout.readline())
    client: Any = redis.Redis(port=port, retry=Retry(NoBackoff(), 0), socket_timeout=30)
    with client:
        home = Path(client.config_get("dir")["dir"]).parent
        if how is not None:
            holder.send_signal(how)
        holder.stdin.close()
        holder.wait(30)
        holder.stdout.close()
        with pytest.raises(redis.ConnectionError):
            client.blpop("nothing ever comes", 0)  # the guardian stops the server, which drops us
    while home.exists():  # the guardian removes it when the server's process is gone
        pass


@pytest.mark.parametrize("program", Program)
def test_every_program_runs_and_not_as_root(program: Program) -> None:
    with running_valkey(program) as server, server.client() as client:
        info: Any = client.info("server")
        assert os.stat(f"/proc/{info['process_id']}").st_uid != 0  # noqa: PTH116  a process, not a path
        server.pause()  # a server that hangs is stopped as well
