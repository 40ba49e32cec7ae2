"""Real nodes that are started wrong, stopped under load, and sent what nobody should send."""

import contextlib
import random
import re
import signal
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockd.testing.ports import free_port
from tests.processes import LockdProcess, eventually, run_lockd, running_node

STOP_S = 8.0
"""A stop takes at most the graces of clients and HTTP; more is a hang."""
PIPELINED = b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100
WAIT = b"*6\r\n$12\r\nLOCK.ACQUIRE\r\n$1\r\nk\r\n$3\r\nTTL\r\n$4\r\n5000\r\n$4\r\nWAIT\r\n$7\r\nFOREVER\r\n"


def dial(port: int, data: bytes = b"", *, host: str = "127.0.0.1") -> socket.socket:
    connection = socket.create_connection((host, port), timeout=10)
    connection.sendall(data)
    return connection


def fill(port: int, data: bytes) -> socket.socket:
    """Send, and read nothing, until the other end takes no more."""
    connection = socket.create_connection(("127.0.0.1", port))
    connection.settimeout(1.0)
    with contextlib.suppress(TimeoutError):
        while True:
            connection.sendall(data)
    return connection


@pytest.mark.parametrize("taken", ["listen-client", "listen-peer", "listen-http"])
def test_a_port_in_use_is_one_line_that_names_the_setting(tmp_path: Path, taken: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        ports = {name: free_port() for name in ("listen-client", "listen-peer", "listen-http")} | {
            taken: port
        }
        flags = [f"--{name}=127.0.0.1:{number}" for name, number in ports.items()]
        ended = run_lockd("serve", f"--data-dir={tmp_path}/data", *flags)
    assert ended.returncode == 2
    assert ended.stderr == (
        f"lockd serve: {taken}: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    )


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LockdProcess]:
    with running_node(tmp_path) as running:
        yield running


def test_sigterm_ends_a_node_that_is_still_being_imported(tmp_path: Path) -> None:
    """Before it serves: its own handler comes last, and a container's first process needs one."""
    node = LockdProcess(tmp_path)
    with subprocess.Popen(node.command, stderr=subprocess.PIPE) as process:
        status = Path(f"/proc/{process.pid}/status")

        def has_handler() -> bool:
            caught = re.search(r"^SigCgt:\s*(\w+)$", status.read_text(), re.MULTILINE)
            return caught is not None and bool(int(caught[1], 16) >> signal.SIGTERM - 1 & 1)

        try:
            eventually(has_handler, "a handler of SIGTERM")
            process.terminate()
            _, said = process.communicate(timeout=STOP_S)
        finally:
            process.kill()
    assert (process.returncode, b"Traceback" in said, b"serves clients" in said) == (0, False, False)


def test_sigterm_ends_a_node_whose_clients_wait_stall_and_say_nothing(node: LockdProcess) -> None:
    node.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)
    waiting = dial(node.ports.client, WAIT)
    kept = [
        waiting,
        dial(node.ports.client),
        dial(node.ports.client, b"*2\r\n$4\r\nPI"),
        fill(node.ports.client, b"*1\r\n$4\r\nINFO\r\n" * 1000),
        dial(node.ports.http),
        dial(node.ports.http, b"GET /read"),
        dial(node.ports.http, b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"),
        fill(node.ports.http, PIPELINED),
        dial(node.ports.peer),
        dial(node.ports.peer, b"lk\x01"),
    ]
    assert node.terminate(patience=STOP_S) == 0
    assert waiting.recv(100).startswith(b"-UNKNOWN this node is stopping")
    for connection in kept:
        connection.close()


def test_signals_during_the_stop_change_nothing(node: LockdProcess) -> None:
    stalled = fill(node.ports.http, PIPELINED)
    assert node.process is not None
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGINT):
        node.process.send_signal(number)
    assert node.await_end(patience=STOP_S) == 0
    stalled.close()


def test_p6_http_connections_that_ask_for_nothing_make_room(node: LockdProcess) -> None:
    kept = [dial(node.ports.http) for _ in range(400)]
    eventually(lambda: node.http("/healthz")[0] == 200, "HTTP answers again")
    for connection in kept:
        connection.close()


def garbage(draw: random.Random) -> Iterator[bytes]:
    yield from (b"*2147483647\r\n", b"*1\r\n$999999999999\r\n", b"*1\r\n" * 5000, b"\x16\x03\x01\x02\x00")
    yield from (b"lk\x01\x01\xff\xff\xff\xff" + bytes(100), b"lk\x01\x04" + bytes(40), b"lk\x09" + bytes(60))
    yield from (
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    )
    yield from (draw.randbytes(draw.randrange(1, 5000)) for _ in range(20))


def test_p6_garbage_at_every_port_costs_its_sender_the_connection_and_nobody_else(node: LockdProcess) -> None:
    draw = random.Random(1)
    for port in node.ports:
        for data in garbage(draw):
            with (
                contextlib.suppress(ConnectionError),
                socket.create_connection(("127.0.0.1", port)) as sender,
            ):
                if draw.random() < 0.3:  # some end with a reset
                    sender.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                sender.sendall(data)
    assert node.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)["status"] == "granted"
    assert node.http("/readyz") == (200, "ready\n")
    assert node.terminate(patience=STOP_S) == 0
    assert "Traceback" not in node.log_text()
