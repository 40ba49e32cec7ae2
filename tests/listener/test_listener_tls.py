"""The client port over TLS."""

import asyncio
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.listener.harness import Client, Run, as_map, pack, run_on_loops, serving

Contexts = tuple[ssl.SSLContext, ssl.SSLContext]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    folder: Path = tmp_path_factory.mktemp("tls")
    cert, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=127.0.0.1"),
            *("-addext", "subjectAltName=IP:127.0.0.1"),
        ],
        check=True,
        capture_output=True,
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(cert, key)
    return server, ssl.create_default_context(cafile=str(cert))


@run_on_loops()
def test_commands_work_over_tls(run: Run, contexts: Contexts) -> None:
    async def main() -> None:
        async with serving(tls=contexts) as served:
            client = await served.client(resp=3)
            session = await served.session(client)
            client.write(b"".join(pack("LOCK.ACQUIRE", f"k{n}", "SESSION", session) for n in range(500)))
            assert [as_map(reply)["lock"] for reply in await client.replies(500)] == [
                f"k{n}" for n in range(500)
            ]
            assert await client.ask("PING", "x" * 60_000) == "x" * 60_000
            assert await client.ask("QUIT") == "OK"
            assert await client.is_closed()

    run(main())


@run_on_loops()
def test_who_does_not_speak_tls_is_closed_and_nobody_else(run: Run, contexts: Contexts) -> None:
    """P6"""

    async def main() -> None:
        async with serving(tls=contexts) as served:
            witness = await served.client()
            plain = Client(*await asyncio.open_connection("127.0.0.1", served.listener.port))
            served.clients.append(plain)
            plain.send("PING")
            assert await plain.is_closed()
            assert await witness.ask("PING") == "PONG"

    run(main())


@run_on_loops()
def test_a_waiting_client_that_hangs_up_over_tls_is_gone(run: Run, contexts: Contexts) -> None:
    """G4"""

    async def main() -> None:
        async with serving(tls=contexts) as served:
            holder, waiter = await served.client(), await served.client()
            await holder.ask("LOCK.ACQUIRE", "k", "TTL", 60_000)
            waiter.send("LOCK.ACQUIRE", "k", "TTL", 60_000, "WAIT", "FOREVER")
            await served.until(lambda: served.node.machine.inspect("k").queue_length == 1)
            await waiter.close()
            await served.until(lambda: served.node.gone == [2])

    run(main())
