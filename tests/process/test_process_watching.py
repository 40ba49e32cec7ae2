"""A watch over a cluster of processes: what it saw through kills is what happened, in order, once."""

import socket
from pathlib import Path
from typing import Any

import hiredis
import httpx
import pytest

from tests.processes import ClusterProcesses, LockdProcess, running_cluster

pytestmark = pytest.mark.process


class Watch:
    """A RESP3 connection that watches every lock from a revision on."""

    def __init__(self, node: LockdProcess, after: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", node.ports.client), timeout=20)
        self._reader = hiredis.Reader(encoding="utf-8")
        self._socket.sendall(b"*2\r\n$5\r\nHELLO\r\n$1\r\n3\r\n")
        assert isinstance(self._next(), dict)
        revision = str(after).encode()
        self._socket.sendall(
            b"*4\r\n$10\r\nLOCK.WATCH\r\n$0\r\n\r\n$4\r\nFROM\r\n$%d\r\n%b\r\n" % (len(revision), revision)
        )
        assert self._next()["revision"] == after

    def _next(self) -> Any:
        while (found := self._reader.gets()) is False:
            data = self._socket.recv(65536)
            assert data, "the node has closed the connection"
            self._reader.feed(data)
        return found

    def events(self, count: int) -> list[tuple[int, str, str]]:
        pushes = [self._next() for _ in range(count)]
        assert all(kind == "lock.event" for kind, _ in pushes)
        return [(event["revision"], event["event"], event["lock"]) for _, event in pushes]

    def close(self) -> None:
        self._socket.close()


def url(node: LockdProcess, path: str) -> str:
    return f"http://127.0.0.1:{node.ports.http}/v1{path}"


def take(cluster: ClusterProcesses, name: str) -> dict[str, Any]:
    found = httpx.post(
        url(cluster.leader(), "/locks/acquire"),
        json={"lock": name, "ttl_ms": 60_000, "wait_ms": 9000},
        timeout=20,
    )
    assert found.status_code == 200, found.text
    grant = found.json()
    assert isinstance(grant, dict)
    return grant


def test_a_watch_goes_on_at_another_node_when_its_own_is_killed(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        take(cluster, "a")
        watched, other = cluster.followers()
        watch = Watch(watched, 0)
        assert watch.events(1) == [(1, "acquired", "a")]
        watched.kill()
        watch.close()
        take(cluster, "b")
        watch = Watch(other, 1)
        assert watch.events(1) == [(2, "acquired", "b")]
        watched.start().await_ready()
        cluster.leader().kill()
        take(cluster, "c")
        watch.close()
        for node in cluster.running:
            again = Watch(node, 0)  # the log is applied anew: a restarted node has the events too
            assert again.events(3) == [(1, "acquired", "a"), (2, "acquired", "b"), (3, "acquired", "c")]
            again.close()


def test_any_node_takes_any_request_over_http(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        grant = take(cluster, "k")
        for node in cluster:
            found = httpx.get(url(node, "/locks/inspect"), params={"lock": "k"}).json()
            assert found["holders"][0]["token"] == grant["token"]
            renewed = httpx.post(url(node, "/sessions/renew"), json={"session": grant["session"]}).json()
            assert renewed == {"ttl_ms": 60_000, "ended": []}
        one, other = cluster.followers()
        broken = {"lock": "k", "token": grant["token"], "reason": "test"}
        assert httpx.post(url(one, "/locks/break"), json=broken).json() == {"done": True}
        renewed = httpx.post(url(other, "/sessions/renew"), json={"session": grant["session"]}).json()
        notice = {"number": 1, "lock": "k", "token": grant["token"], "reason": "broken: test"}
        assert renewed["ended"] == [notice]  # K7
        acknowledged = {"session": grant["session"], "ack": 1}
        last = httpx.post(url(one, "/sessions/renew"), json=acknowledged)
        assert (last.status_code, last.json()["error"]) == (404, "NOSESSION")  # it was for that grant alone
        assert httpx.get(url(other, "/locks/inspect"), params={"lock": "k"}).json()["status"] == "free"
