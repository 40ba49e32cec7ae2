"""Every Redis client passes scenario.yaml, against a real node, and one also against a cluster's."""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest

from tests.processes import running_cluster, running_node
from tests.redis_clients import redis_py
from tests.redis_clients.node import NodeConnection
from tests.redis_clients.scenario import Connection, play
from tests.redis_clients.shells import SHELLS, Shell

pytestmark = pytest.mark.process

both_protocols = pytest.mark.parametrize("resp", [2, 3], ids=["resp2", "resp3"])


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Of one node for all clients of this test process."""
    with running_node(tmp_path_factory.mktemp("node")) as node:
        yield node.ports.client


@both_protocols
def test_redis_py(port: int, resp: Literal[2, 3]) -> None:
    def connect(listening: bool) -> Connection:
        return (redis_py.Listening if listening else redis_py.Plain)(port, resp)

    play(connect, name=f"redis-py-{resp}", resp=resp, can_listen=True)


@both_protocols
def test_redis_py_for_asyncio(port: int, resp: Literal[2, 3]) -> None:
    def connect(listening: bool) -> Connection:
        return (redis_py.AsyncListening if listening else redis_py.AsyncPlain)(port, resp)

    play(connect, name=f"redis-py-asyncio-{resp}", resp=resp, can_listen=True)


@both_protocols
@pytest.mark.parametrize("shell", SHELLS, ids=lambda path: Path(path).name)
def test_a_shell_on_a_terminal(port: int, resp: int, shell: str) -> None:
    name = f"{Path(shell).name}-{resp}"
    play(lambda _: Shell(shell, port, resp), name=name, resp=resp, can_listen=True)


@both_protocols
@pytest.mark.parametrize("library", ["ioredis", "node-redis"])
def test_a_node_client(port: int, resp: int, library: str, node_modules: Path) -> None:
    """Neither hands pushes on; that they come must not disturb it."""
    play(
        lambda _: NodeConnection(node_modules, library, port, resp),
        name=f"{library}-{resp}",
        resp=resp,
        can_listen=False,
    )


def test_each_connection_at_another_node(tmp_path: Path) -> None:
    """A follower passes commands on, and pushes what it has applied itself."""
    with running_cluster(tmp_path) as cluster:
        one, other = cluster.followers()
        ports = iter([node.ports.client for node in (one, cluster.leader(), other)])

        def connect(listening: bool) -> Connection:
            return (redis_py.Listening if listening else redis_py.Plain)(next(ports), 3)

        play(connect, name="cluster", resp=3, can_listen=True)
