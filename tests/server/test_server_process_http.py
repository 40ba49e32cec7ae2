"""A real node's HTTP side: waits longer than a stall may last, clients that hang up, and the page."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from lockd.server.admin import STALL_S
from tests.processes import LockdProcess, eventually, running_node

pytestmark = pytest.mark.process


@pytest.fixture
def node(tmp_path: Path) -> Iterator[LockdProcess]:
    with running_node(tmp_path) as running:
        yield running


def url(node: LockdProcess, path: str) -> str:
    return f"http://127.0.0.1:{node.ports.http}{path}"


def queue_length(node: LockdProcess) -> int:
    found = httpx.get(url(node, "/v1/locks/queue"), params={"lock": "k"}).json()
    length = found["queue_length"]
    assert isinstance(length, int)
    return length


def test_a_wait_may_last_longer_than_a_stall(node: LockdProcess) -> None:
    """Who waits for this node's answer is not the one that stalls."""
    held = {"lock": "k", "ttl_ms": 60_000}
    assert httpx.post(url(node, "/v1/locks/acquire"), json=held).status_code == 200
    asked = held | {"wait_ms": int(1000 * STALL_S) + 1000}
    found = httpx.post(url(node, "/v1/locks/acquire"), json=asked, timeout=30)
    assert (found.status_code, found.json()["error"]) == (409, "TIMEOUT")


def test_g4_the_wait_of_a_client_that_hangs_up_is_withdrawn(node: LockdProcess) -> None:
    held = {"lock": "k", "ttl_ms": 60_000}
    assert httpx.post(url(node, "/v1/locks/acquire"), json=held).status_code == 200
    body = json.dumps({"lock": "k", "ttl_ms": 1_500, "wait_ms": "forever"}).encode()
    head = (
        b"POST /v1/locks/acquire HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    )
    with socket.create_connection(("127.0.0.1", node.ports.http)) as waiting:
        waiting.sendall(head + body)
        eventually(lambda: queue_length(node) == 1, "a wait")
    eventually(lambda: queue_length(node) == 0, "an empty queue")


def test_who_waits_for_events_does_not_hold_up_a_stop(node: LockdProcess) -> None:
    request = b"GET /v1/locks/events?wait_ms=60000 HTTP/1.1\r\nHost: x\r\n\r\n"
    with socket.create_connection(("127.0.0.1", node.ports.http), timeout=10) as waiting:
        waiting.sendall(request)
        assert httpx.get(url(node, "/healthz")).status_code == 200
        assert node.terminate() == 0
        assert waiting.recv(100).startswith(b"HTTP/1.1 503 ")
    assert "Exception" not in node.log_text()


def test_the_page_and_the_document_are_there(node: LockdProcess) -> None:
    assert "<title>lockd</title>" in httpx.get(url(node, "/")).text
    found = httpx.get(url(node, "/v1/openapi.json")).json()
    assert "/v1/locks/acquire" in found["paths"]
    assert httpx.get(url(node, "/v1/status")).json()["role"] == "leader"
