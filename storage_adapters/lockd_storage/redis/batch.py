"""Commands that are queued and then applied in one step, all of them or none."""

import re
from collections.abc import Callable
from typing import Any

from lockd_storage.errors import NotFenceable
from lockd_storage.redis.verbs import INTEGER_MAX, Command, FencedWrites, Key, Value

COUNTER_MAX = 10**17
COMMANDS_MAX = 10_000

_NUMBER = re.compile(rb"0|-?[1-9][0-9]{0,15}")


class Batch(FencedWrites):
    """What `fence.write(lease)` yields. Its methods queue; the block's end applies.

    Redis takes nothing back of a script that fails half-way. So a batch has only commands of which
    the server can be asked beforehand whether they will work: the types of the keys, numbers to be
    incremented, and on Redis 7, Valkey and later the user's permissions are looked at before anything
    is written.
    """

    def __init__(
        self, resource: str, encode: Callable[[Value], bytes], *, check: Callable[[bytes], None]
    ) -> None:
        super().__init__(resource, encode)
        self.replies: list[Any] = []
        """One for each command (for DEL, each key), in order, once the block has ended."""
        self._check = check
        self._commands: list[Command] = []
        self._types: dict[bytes, str] = {}
        self._added: dict[bytes, int] = {}
        self._needs: dict[bytes, str] = {}
        self._has_ended = False

    def set(self, key: Key, value: Value, *, ex: int | None = None) -> Any:
        """SET, to expire after `ex` seconds."""
        return self._do(self._set(key, value, seconds=ex, option=None, resets=True))

    def _do(self, command: Command) -> None:
        if self._has_ended:
            raise NotFenceable("the block that this batch is of has ended: nothing is applied any more")
        if len(self._commands) >= COMMANDS_MAX:
            raise ValueError(f"a batch has at most {COMMANDS_MAX} commands")
        for key in command.keys:
            self._check(key)
        for key in command.keys:
            self._follow(key, command)
            if len(command.keys) > 1:
                self._commands.append(Command(command.name, (key,), command.arguments))
        if len(command.keys) == 1:
            self._commands.append(command)

    def _follow(self, key: bytes, command: Command) -> None:
        """Keep track of the type that the key has from here on, and of what it must have had before."""
        if command.resets:
            self._types[key] = "number" if _is_number(command) else command.needs
            self._added[key] = 0
            return
        if not command.needs:
            return
        known = self._types.get(key)
        if known is None:
            self._needs[key] = command.needs
        elif known and known != command.needs and (known, command.needs) != ("number", "counter"):
            raise ValueError(f"key {key[:80]!r} is a {known} at this point of the batch: {command.name!r}")
        if command.needs == "counter":
            self._added[key] = self._added.get(key, 0) + abs(int(command.arguments[0]))
            if self._added[key] > INTEGER_MAX - COUNTER_MAX:
                raise ValueError(f"key {key[:80]!r} could overflow 64 bits")
        if not known:
            self._types[key] = command.needs

    def script_words(self) -> tuple[list[bytes], list[bytes]]:
        """Keys and arguments of the batch script, without mark and fence. Nothing is queued any more."""
        self._has_ended = True
        keys: dict[bytes, int] = {}
        for command in self._commands:
            keys.setdefault(command.keys[0], len(keys) + 1)
        arguments = [b"%d" % len(self._needs)]
        for key, need in self._needs.items():
            arguments += [b"%d" % keys[key], need.encode()]
        for command in self._commands:
            arguments += [
                b"%d" % len(command.arguments),
                command.name,
                b"%d" % keys[command.keys[0]],
                *command.arguments,
            ]
        return list(keys), arguments

    def take_replies(self, replies: list[Any]) -> None:
        """Keep the server's replies, parsed."""
        self.replies = [command.parse(reply) for command, reply in zip(self._commands, replies, strict=True)]


def _is_number(command: Command) -> bool:
    return command.name == b"SET" and _NUMBER.fullmatch(command.arguments[0]) is not None
