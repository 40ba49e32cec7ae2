"""How a client comes in: over TLS, with a password, over IPv6, by a Unix socket; all on real sockets."""

import asyncio
import socket
import ssl
import subprocess
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest

import lockd
from lockd.client.connection import Connection, greet
from lockd.client.options import ClientOptions
from lockd.passwords import hash_password
from lockd.protocol.resp import encode_error
from lockd.server.auth import Users
from tests.client.peer import Peer
from tests.listener.harness import serving

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    """A server's context, and one that trusts it."""
    folder = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    command = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=127.0.0.1"
    names = ["-addext", "subjectAltName=IP:127.0.0.1"]
    arguments = ["openssl", *command.split(), *names, "-keyout", str(key), "-out", str(cert)]
    subprocess.run(arguments, check=True, capture_output=True)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return server, ssl.create_default_context(cafile=str(cert))


def test_locks_work_over_tls(contexts: Contexts) -> None:
    async def main() -> None:
        async with serving(tls=contexts) as server:
            client = lockd.AsyncClient(f"127.0.0.1:{server.listener.port}", tls=contexts[1])
            async with client.lock("k") as lease:
                assert (await client.inspect("k")).holders[0].token == lease.token
            await client.close()

    run(main())


def test_a_node_that_cannot_prove_who_it_is_is_not_used(contexts: Contexts) -> None:
    async def main() -> None:
        async with serving(tls=contexts) as server:
            client = lockd.AsyncClient(f"127.0.0.1:{server.listener.port}", tls=True, ttl=0.5)
            with pytest.raises(lockd.Unavailable, match="CERTIFICATE_VERIFY_FAILED"):
                await client.acquire("k")
            await client.close()

    run(main())


def test_a_password_opens_and_a_wrong_one_is_said_at_once(tmp_path: Path) -> None:
    auth_file = tmp_path / "users.toml"
    auth_file.write_text(f'[users.me]\npassword_scrypt = "{hash_password("s3cret")}"\nroles = ["lock"]\n')

    async def main() -> None:
        async with serving(users=Users.load(auth_file)) as server:
            endpoint = f"127.0.0.1:{server.listener.port}"
            async with (
                lockd.AsyncClient(endpoint, auth=("me", "s3cret")) as client,
                client.lock("k") as lease,
            ):
                assert lease.token
            async with lockd.AsyncClient(endpoint, auth=("me", "wrong")) as client:
                with pytest.raises(lockd.AccessDenied, match="wrong user name or password"):
                    await client.acquire("k")
            async with lockd.AsyncClient(endpoint) as client:
                with pytest.raises(lockd.AccessDenied, match="authentication required"):
                    await client.acquire("k")

    run(main())


def test_a_node_that_is_full_is_told_as_such_though_it_has_hung_up() -> None:
    """It says so to whoever comes in, and hangs up: often both before this end has sent its greeting."""

    class Socket(asyncio.Transport):
        def abort(self) -> None: ...

    async def main() -> None:
        connection = Connection(answer_timeout=1.0, on_push=lambda *_: None)
        connection.connection_made(Socket())
        connection.data_received(encode_error("LIMIT", "clients of this node: at most 7"))
        with pytest.raises(ConnectionError, match="LIMIT clients of this node: at most 7"):
            await greet(connection, ClientOptions(endpoints=(), ttl=1.0))

    run(main())


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_a_node_on_ipv6_is_reached() -> None:
    async def main() -> None:
        peer = Peer()
        await peer.listen(0, host="::1")
        client = lockd.AsyncClient(f"[::1]:{peer.port}")
        async with client.lock("k") as lease:
            assert lease.token == 1
        await client.close()
        await peer.stop()

    run(main())


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="this system has no Unix sockets")
def test_a_node_behind_a_unix_socket_is_reached_from_tasks_and_threads(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "lockd.sock"
        peer = Peer()
        await peer.listen_at(path)
        async with lockd.AsyncClient([f"unix:{path}", "127.0.0.1:1"]) as client, client.lock("k") as lease:
            assert lease.token == 1

        def in_a_thread() -> int:
            with lockd.Client(f"unix:{path}") as client, client.lock("k") as lease:
                return lease.token

        assert await asyncio.to_thread(in_a_thread) == 2
        await peer.stop()

    run(main())


def test_a_unix_socket_that_is_not_there_is_named() -> None:
    async def main() -> None:
        async with lockd.AsyncClient("unix:/nowhere/lockd.sock", ttl=0.5) as client:
            with pytest.raises(lockd.Unavailable, match=r"unix:/nowhere/lockd.sock: .*No such file"):
                await client.acquire("k")

    run(main())
