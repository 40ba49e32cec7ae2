"""The common commands as methods, for writes at once and for batches.

A command has one key, with arguments after it, or several keys and nothing else. `needs` is the type
that the key must have, for what a batch asks before it writes anything.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from lockd_storage.redis.keys import tagged_key

Key = str | bytes
Value = str | bytes | int | float

ARGUMENTS_MAX = 7000  # what Lua's unpack() takes at once is a little above
INTEGER_MAX = 2**63 - 1
SECONDS_MAX = 10**10


class Command(NamedTuple):
    """One command, encoded for the wire. `parse` makes of its reply what redis-py would."""

    name: bytes
    keys: tuple[bytes, ...]
    arguments: tuple[bytes, ...] = ()
    needs: str = ""
    """`string`, `counter`, `hash`, `list`, `set`, `zset`, `stream`, or "" for any type."""
    resets: bool = False
    """Whatever type the key had, it has none afterwards, or that of `needs`."""
    reads: bool = False
    parse: Callable[[Any], Any] = lambda reply: reply


def _done(reply: Any) -> bool | None:
    return None if reply is None else True


def _pairs(reply: Any) -> dict[Any, Any]:
    return dict(zip(reply[::2], reply[1::2], strict=True))


class FencedWrites(ABC):
    """Commands that write. Each is given to `_do`, whose reply is the method's.

    Raises OutsideFence for a key without the resource's hash tag, and ValueError for arguments that no
    server would take.
    """

    def __init__(self, resource: str, encode: Callable[[Value], bytes]) -> None:
        self._resource = resource
        self._encode = encode

    def key(self, rest: str) -> str:
        """The key `{resource}:rest`."""
        return tagged_key(self._resource, rest)

    @abstractmethod
    def _do(self, command: Command) -> Any: ...

    def delete(self, *keys: Key) -> Any:
        """DEL. Replies how many of the keys there were."""
        return self._do(Command(b"DEL", self._several("keys", keys), resets=True))

    def incrby(self, key: Key, amount: int = 1) -> Any:
        """INCRBY. Replies the new number."""
        if not -INTEGER_MAX <= amount <= INTEGER_MAX:
            raise ValueError(f"amount {amount} does not fit into 64 bits")
        return self._do(self._on(b"INCRBY", key, amount, needs="counter"))

    def expire(self, key: Key, seconds: int) -> Any:
        """EXPIRE. Replies 1, or 0 if there is no such key."""
        return self._do(self._on(b"EXPIRE", key, _seconds(seconds)))

    def persist(self, key: Key) -> Any:
        """PERSIST. Replies 1, or 0 if the key had no time to live."""
        return self._do(self._on(b"PERSIST", key))

    def hset(self, key: Key, mapping: Mapping[Any, Value]) -> Any:
        """HSET. Replies how many fields are new."""
        words = [word for pair in mapping.items() for word in pair]
        return self._do(self._on(b"HSET", key, *_some("fields", words), needs="hash"))

    def hdel(self, key: Key, *fields: Value) -> Any:
        """HDEL. Replies how many fields there were."""
        return self._do(self._on(b"HDEL", key, *_some("fields", fields), needs="hash"))

    def lpush(self, key: Key, *values: Value) -> Any:
        """LPUSH. Replies the list's length."""
        return self._do(self._on(b"LPUSH", key, *_some("values", values), needs="list"))

    def rpush(self, key: Key, *values: Value) -> Any:
        """RPUSH. Replies the list's length."""
        return self._do(self._on(b"RPUSH", key, *_some("values", values), needs="list"))

    def sadd(self, key: Key, *members: Value) -> Any:
        """SADD. Replies how many members are new."""
        return self._do(self._on(b"SADD", key, *_some("members", members), needs="set"))

    def srem(self, key: Key, *members: Value) -> Any:
        """SREM. Replies how many members there were."""
        return self._do(self._on(b"SREM", key, *_some("members", members), needs="set"))

    def zadd(self, key: Key, mapping: Mapping[Any, float]) -> Any:
        """ZADD, members with their scores. Replies how many members are new."""
        if any(math.isnan(score) for score in mapping.values()):
            raise ValueError("a score must be a number, not NaN")
        words = [word for member, score in mapping.items() for word in (score, member)]
        return self._do(self._on(b"ZADD", key, *_some("members", words), needs="zset"))

    def zrem(self, key: Key, *members: Value) -> Any:
        """ZREM. Replies how many members there were."""
        return self._do(self._on(b"ZREM", key, *_some("members", members), needs="zset"))

    def xadd(self, key: Key, fields: Mapping[Any, Value], *, maxlen: int | None = None) -> Any:
        """XADD with an id that the server draws; `maxlen` trims about there. Replies the id."""
        trim = () if maxlen is None else ("MAXLEN", "~", maxlen)
        words = [word for pair in fields.items() for word in pair]
        return self._do(self._on(b"XADD", key, *trim, "*", *_some("fields", words), needs="stream"))

    def _set(
        self, key: Key, value: Value, *, seconds: int | None, option: str | None, resets: bool
    ) -> Command:
        options: list[Value] = [] if seconds is None else ["EX", _seconds(seconds)]
        if option is not None:
            options.append(option)
        return self._on(
            b"SET", key, value, *options, needs="string" if resets else "", resets=resets, parse=_done
        )

    def _on(
        self,
        name: bytes,
        key: Key,
        *arguments: Value,
        needs: str = "",
        resets: bool = False,
        reads: bool = False,
        parse: Callable[[Any], Any] = lambda reply: reply,
    ) -> Command:
        if len(arguments) > ARGUMENTS_MAX:
            raise ValueError(f"{len(arguments)} arguments are more than the {ARGUMENTS_MAX} of one command")
        encode = self._encode
        words = tuple(map(encode, arguments))
        return Command(name, (encode(key),), words, needs, resets, reads, parse)

    def _several(self, what: str, keys: tuple[Key, ...]) -> tuple[bytes, ...]:
        if len(keys) > ARGUMENTS_MAX:
            raise ValueError(f"{len(keys)} keys are more than the {ARGUMENTS_MAX} of one command")
        return tuple(map(self._encode, _some(what, keys)))


class FencedCommands(FencedWrites):
    """Writes that are applied at once, each checked in the same step, and checked reads.

    A read is refused too when someone newer has installed, so it never shows a stale holder the world
    of its successor as if it were its own.
    """

    def set(
        self,
        key: Key,
        value: Value,
        *,
        ex: int | None = None,
        nx: bool = False,
        xx: bool = False,
    ) -> Any:
        """SET, to expire after `ex` seconds; if the key is new (`nx`) or there (`xx`). True, or None."""
        if nx and xx:
            raise ValueError("nx and xx exclude each other")
        option = "NX" if nx else "XX" if xx else None
        return self._do(self._set(key, value, seconds=ex, option=option, resets=False))

    def get(self, key: Key) -> Any:
        """GET."""
        return self._do(self._on(b"GET", key, reads=True))

    def hget(self, key: Key, field: Value) -> Any:
        """HGET."""
        return self._do(self._on(b"HGET", key, field, reads=True))

    def hgetall(self, key: Key) -> Any:
        """HGETALL, as a dict."""
        return self._do(self._on(b"HGETALL", key, reads=True, parse=_pairs))

    def lrange(self, key: Key, start: int = 0, end: int = -1) -> Any:
        """LRANGE, as a list."""
        return self._do(self._on(b"LRANGE", key, start, end, reads=True))

    def smembers(self, key: Key) -> Any:
        """SMEMBERS, as a set."""
        return self._do(self._on(b"SMEMBERS", key, reads=True, parse=set))

    def exists(self, *keys: Key) -> Any:
        """EXISTS. Replies how many of the keys there are."""
        return self._do(Command(b"EXISTS", self._several("keys", keys), reads=True))


def _some(what: str, words: Any) -> Any:
    if not words:
        raise ValueError(f"no {what} were given")
    return words


def _seconds(seconds: int) -> int:
    if not 1 <= seconds <= SECONDS_MAX:
        raise ValueError(f"a time to live is 1 to {SECONDS_MAX} seconds, not {seconds}")
    return seconds
