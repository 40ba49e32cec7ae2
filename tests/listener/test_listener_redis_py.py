"""A stock Redis client, redis-py, talks to a node: its handshake, its pipeline, its errors."""

import asyncio
from collections.abc import Callable
from typing import Any, Literal

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from lockd.passwords import hash_password
from lockd.server.auth import Users
from tests.listener.harness import as_map, serving

Connect = Callable[..., redis.Redis]


def in_thread(work: Callable[[Connect], None], *, users: Users | None = None) -> None:
    """Serve on a loop, and run the synchronous client beside it."""

    async def main() -> None:
        async with serving(users=users) as served:
            port = served.listener.port

            def connect(**options: Any) -> redis.Redis:
                return redis.Redis(port=port, decode_responses=True, retry=Retry(NoBackoff(), 0), **options)

            await asyncio.to_thread(work, connect)

    asyncio.run(main())


@pytest.mark.parametrize("protocol", [2, 3])
def test_execute_command_works(protocol: Literal[2, 3]) -> None:
    def work(connect: Connect) -> None:
        with connect(protocol=protocol, client_name="me") as client:
            assert client.ping()
            assert client.client_getname() == "me"
            assert client.info("server")["node"] == 1
            session = as_map(client.execute_command("SESSION.OPEN", 10_000))["session"]
            grant = as_map(client.execute_command("LOCK.ACQUIRE", "k", "SESSION", session, "REQUEST", 1))
            assert grant["status"] == "granted"
            with pytest.raises(redis.ResponseError, match="has been held"):
                client.execute_command("LOCK.ACQUIRE", "k", "TTL", 5000)
            assert as_map(client.execute_command("SESSION.KEEPALIVE", session))["ttl_ms"] == 10_000
            assert as_map(client.execute_command("LOCK.INSPECT", "k"))["status"] == "held"
            assert client.execute_command("LOCK.CANCEL", "other", "SESSION", session, "REQUEST", 9) == 0
            assert client.execute_command("LOCK.RELEASE", "k", grant["token"], "SESSION", session) == 1
            assert as_map(client.execute_command("CLUSTER.STATUS"))["node"] == 1
            assert client.command_count() > 10
            with client.pipeline(transaction=False) as pipeline:
                for n in range(50):
                    pipeline.execute_command("LOCK.ACQUIRE", f"p{n}", "SESSION", session)
                assert [as_map(reply)["lock"] for reply in pipeline.execute()] == [f"p{n}" for n in range(50)]
            with pytest.raises(redis.ResponseError, match="unknown command 'SET'"):
                client.set("a", "b")

    in_thread(work)


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_default_client_connects(protocol: Literal[2, 3]) -> None:
    """With everything redis-py sends on its own: CLIENT SETINFO, and what it asks for in version 8."""

    def work(connect: Connect) -> None:
        with connect(protocol=protocol, maint_notifications_config=None) as client:
            assert client.ping()
        with redis.Redis(port=connect().get_connection_kwargs()["port"], protocol=protocol) as plain:
            assert plain.ping()

    in_thread(work)


@pytest.mark.parametrize("protocol", [2, 3])
def test_passwords_work(protocol: Literal[2, 3], tmp_path: Any) -> None:
    path = tmp_path / "auth.toml"
    path.write_text(f'[users.app]\npassword_scrypt = "{hash_password("secret")}"\nroles = ["lock"]\n')

    def work(connect: Connect) -> None:
        with connect(protocol=protocol, username="app", password="secret") as client:
            assert client.ping()
        with connect(protocol=protocol) as client, pytest.raises(redis.AuthenticationError):
            client.ping()
        with (
            connect(protocol=protocol, username="app", password="wrong") as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.ping()

    in_thread(work, users=Users.load(path))


@pytest.mark.parametrize("protocol", [2, 3])
def test_the_asyncio_client_works(protocol: Literal[2, 3]) -> None:
    async def main() -> None:
        async with serving() as served:
            client: Any = redis.asyncio.Redis(
                port=served.listener.port, protocol=protocol, decode_responses=True
            )
            grant = as_map(await client.execute_command("LOCK.ACQUIRE", "k", "TTL", 5000))
            release = ("LOCK.RELEASE", "k", grant["token"], "SESSION", grant["session"])
            assert await client.execute_command(*release) == 1
            await client.aclose()

    asyncio.run(main())
