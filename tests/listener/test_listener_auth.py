"""Who may come in and what they may do (SAFETY G11), and what a stranger can cost (P6)."""

import asyncio
from pathlib import Path

import pytest

from lockd.passwords import hash_password
from lockd.server.auth import Users
from lockd.server.config import ConfigError
from lockd.server.connection import ConnectionLimits
from tests.listener.harness import Run, as_map, run_on_loops, serving


@pytest.fixture(scope="module")
def auth_text() -> str:
    users = {"app": ["lock"], "ops": ["operator"], "root": ["admin"], "default": ["lock"], "guest": []}
    return "".join(
        f'[users.{name}]\npassword_scrypt = "{hash_password(name + "-secret")}"\nroles = {roles}\n'
        for name, roles in users.items()
    )


@pytest.fixture
def users(auth_text: str, tmp_path: Path) -> Users:
    path = tmp_path / "auth.toml"
    path.write_text(auth_text)
    return Users.load(path)


@run_on_loops()
def test_a_stranger_is_asked_who_he_is_before_anything_else(run: Run, users: Users) -> None:
    """G11: not even which commands exist is told."""

    async def main() -> None:
        async with serving(users=users) as served:
            client = await served.client()
            for words in (
                ["PING"],
                ["NOPE"],
                ["LOCK.ACQUIRE"],
                ["LOCK.INSPECT", "k"],
                ["HELLO", 3],
                ["INFO"],
            ):
                assert (await client.refused(*words)).startswith("NOAUTH ")
            for words in (["AUTH", "app", "wrong"], ["AUTH", "nobody", "app-secret"], ["AUTH", "wrong"]):
                assert await client.refused(*words) == "NOAUTH wrong user name or password"
            assert (await client.refused("HELLO", 3, "AUTH", "app", "wrong")).startswith("NOAUTH ")
            assert await client.ask("AUTH", "app", "app-secret") == "OK"
            assert await client.ask("PING") == "PONG"
            assert served.node.batches == []

    run(main())


@run_on_loops()
def test_hello_logs_in_and_greets(run: Run, users: Users) -> None:
    async def main() -> None:
        async with serving(users=users) as served:
            client = await served.client()
            client.send("HELLO", 3, "AUTH", "app", "app-secret", "SETNAME", "n")
            client.send("CLIENT", "GETNAME")
            greeting, name = await client.replies(2)
            assert (greeting["proto"], name) == (3, "n")
            plain = await served.client()
            assert await plain.ask("AUTH", "default-secret") == "OK"

    run(main())


@run_on_loops()
def test_roles_decide_what_is_allowed(run: Run, users: Users) -> None:
    """G11: the node that took the command decides, before anything goes into the log."""

    async def main() -> None:
        async with serving(users=users) as served:
            clients = {}
            for name in ("app", "ops", "root", "guest"):
                clients[name] = await served.client()
                assert await clients[name].ask("AUTH", name, f"{name}-secret") == "OK"
            acquire = ("LOCK.ACQUIRE", "k", "TTL", 5000)
            for name in ("ops", "guest"):
                assert await clients[name].refused(*acquire) == f"NOPERM user '{name}' needs the role lock"
            assert served.node.batches == []
            assert as_map(await clients["app"].ask(*acquire))["status"] == "granted"
            assert as_map(await clients["ops"].ask("LOCK.INSPECT", "k"))["status"] == "held"
            assert (await clients["root"].refused(*acquire)).startswith("BUSY ")
            assert (await clients["guest"].refused("LOCK.LIST")).startswith("NOPERM ")
            assert as_map(await clients["guest"].ask("CLUSTER.STATUS"))["node"] == 1

    run(main())


@run_on_loops()
def test_a_session_belongs_to_its_user(run: Run, users: Users) -> None:
    """G11: the entry carries the user, so that a stolen session id is of no use to another."""

    async def main() -> None:
        async with serving(users=users) as served:
            app, root = [await served.client() for _ in range(2)]
            await app.ask("AUTH", "app", "app-secret")
            await root.ask("AUTH", "root", "root-secret")
            session = await served.session(app)
            for words in (
                ["SESSION.KEEPALIVE", session],
                ["LOCK.ACQUIRE", "k", "SESSION", session],
                ["SESSION.CLOSE", session],
            ):
                assert (await root.refused(*words)).startswith("NOSESSION ")

    run(main())


@run_on_loops()
def test_a_stranger_gets_little_room_and_little_time(run: Run, users: Users) -> None:
    """P6: what is read before authentication is bounded more tightly (dflockd P1-03)."""

    async def main() -> None:
        # Long enough for a friend to log in on a busy machine: a password takes its time.
        async with serving(users=users, limits=ConnectionLimits(login_s=2.0)) as served:
            large = await served.client()
            assert "Protocol error" in await large.refused("AUTH", "x" * 5000)
            assert await large.is_closed()
            silent, friend = await served.client(), await served.client()
            assert await friend.ask("AUTH", "app", "app-secret") == "OK"
            assert await silent.is_closed()
            assert await friend.ask("PING", "x" * 5000) == "x" * 5000

    run(main())


@run_on_loops()
def test_logging_in_does_not_stop_the_loop(run: Run, users: Users) -> None:
    """P6: scrypt runs on a thread; others are served meanwhile."""

    async def main() -> None:
        async with serving(users=users) as served:
            friend = await served.client()
            assert await friend.ask("AUTH", "app", "app-secret") == "OK"
            guessing = [await served.client() for _ in range(5)]
            for client in guessing:
                client.send("AUTH", "app", "guess")
            assert await friend.ask("PING") == "PONG"
            for client in guessing:
                assert str(await client.reply()).startswith("NOAUTH ")

    run(main())


def test_a_right_password_is_hashed_once(users: Users) -> None:
    """A cluster that lost a node gets all its clients back at once."""

    async def main() -> None:
        user = await users.authenticate("app", b"app-secret")
        assert user is not None
        users.close()  # no thread from here on
        assert await users.authenticate("app", b"app-secret") is user
        with pytest.raises(RuntimeError, match="shutdown"):
            await users.authenticate("app", b"wrong")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[users", "is not valid TOML"),
        ("", "users: Field required"),
        ("[users.a]\nroles = []", "users.a.password_scrypt: Field required"),
        ('[users.a]\npassword_scrypt = "plain"\nroles = []', "expected scrypt"),
        ('[users.a]\npassword_scrypt = "scrypt$3$8$1$aa$bb"\nroles = []', "not a power of two"),
        ('[users.a]\npassword_scrypt = "scrypt$16384$8$1$aa$bb"\nroles = []', "too short"),
        ('[users.a]\npassword_scrypt = "HASH"\nroles = ["king"]', "unknown role 'king'"),
        ('[users.a]\npassword_scrypt = "HASH"\nroles = []\nx = 1', "users.a.x: Extra inputs"),
    ],
)
def test_a_wrong_auth_file_is_refused_with_one_line(text: str, what: str, tmp_path: Path) -> None:
    path = tmp_path / "auth.toml"
    path.write_text(text.replace("HASH", hash_password("x")))
    with pytest.raises(ConfigError) as caught:
        Users.load(path)
    assert what in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "scrypt$16384" not in str(caught.value)


def test_a_missing_auth_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        Users.load(tmp_path / "none.toml")
