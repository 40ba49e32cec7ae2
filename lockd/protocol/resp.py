"""RESP2 and RESP3 as bytes: commands in, replies out.

A command is an array of bulk strings and nothing else: no inline commands, no nesting, lengths in
plain decimal digits. `CommandReader` takes the stream in pieces of any size; its answer does not
depend on how the stream was cut.

Two parsers do the work. hiredis reads whole commands at the speed of C, but trusts what it is
told: `*2147483647` makes it allocate, and it takes types that are no commands. So it is given
only windows without large counts, and what it read counts only as far as it encodes to the very
same bytes again. Everything else, a command cut in two or whatever is wrong, is read by `_step`, which
checks every length before it keeps a byte.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import hiredis


class Simple(str):
    """A text that is sent as a simple string: what Redis clients compare with, and its flags."""

    __slots__ = ()


Reply = None | int | str | bytes | Sequence["Reply"] | Mapping[str, "Reply"]
"""A reply as a value; str and bytes become bulk strings but for Simple, mappings maps."""

OK = Simple("OK")
PONG = Simple("PONG")

_HEADER_BYTES_MAX = 16
_LENGTH = re.compile(rb"0|[1-9][0-9]*")
_LARGE_COUNT = re.compile(rb"[*%~>|][0-9]{5}")
_LINE_BREAKS = re.compile(r"[\x00-\x1f\x7f]+")
_ERROR_CHARACTERS_MAX = 1000


@dataclass(frozen=True, slots=True)
class FrameLimits:
    """What one command may cost (SAFETY P6)."""

    words_max: int = 1024
    word_bytes_max: int = 64 * 1024
    frame_bytes_max: int = 1024 * 1024


LIMITS = FrameLimits()
LIMITS_BEFORE_AUTH = FrameLimits(words_max=32, word_bytes_max=4096, frame_bytes_max=16 * 1024)
"""For a stranger: enough for HELLO and AUTH (dflockd P1-03: 64 MiB before authentication)."""


class _Violation(Exception):
    """The stream is no command from here on."""


class CommandReader:
    """Cuts one connection's stream into commands.

    `violation` is None until the stream breaks a rule; then it says which, and nothing more is
    read: the connection can only be told and closed.
    """

    def __init__(self, limits: FrameLimits = LIMITS) -> None:
        self.limits = limits
        self.violation: str | None = None
        self._hiredis = hiredis.Reader()
        self._words_missing = 0
        self._word_bytes = -1
        self._words: list[bytes] = []
        self._frame_bytes = 0
        self._pending = bytearray()

    @property
    def partial(self) -> bool:
        """A command has begun and not ended."""
        return self._words_missing > 0 or len(self._pending) > 0

    def feed(self, chunk: bytes) -> list[list[bytes]]:
        """Take the next bytes; return the commands that they complete, empty ones left out."""
        commands: list[list[bytes]] = []
        if self.violation is not None:
            return commands
        at = window_end = 0
        try:
            while at < len(chunk):
                if at >= window_end and not self.partial:
                    window_end = at + self.limits.word_bytes_max
                    at += self._read_window(chunk[at:window_end], commands)
                else:
                    at = self._step(chunk, at, commands)
        except _Violation as violation:
            self.violation = f"Protocol error: {violation}"
            self._pending.clear()
        return commands

    def _read_window(self, window: bytes, commands: list[list[bytes]]) -> int:
        """Read whole commands with hiredis; return how many bytes they take, 0 if in doubt.

        The window is no longer than a word may be, so each of its words keeps that limit.
        """
        if _LARGE_COUNT.search(window):
            return 0
        found: list[list[bytes]] = []
        self._hiredis.feed(window)
        try:
            while type(command := self._hiredis.gets()) is list and len(command) <= self.limits.words_max:
                found.append(command)
            encoded = b"".join(map(_pack, found))
        except (hiredis.HiredisError, TypeError, ValueError):
            encoded = b""
        if encoded != window:
            self._hiredis = hiredis.Reader()
            if not encoded or not window.startswith(encoded):
                return 0
        commands += filter(None, found)
        return len(encoded)

    def _step(self, chunk: bytes, at: int, commands: list[list[bytes]]) -> int:
        """Read one header or one word, or as much of it as is there; return where it ends."""
        if self._word_bytes >= 0:
            return self._step_word(chunk, at, commands)
        kept = len(self._pending)
        self._pending += chunk[at : at + _HEADER_BYTES_MAX - kept]
        kind = b"$" if self._words_missing else b"*"
        if not self._pending.startswith(kind):
            raise _Violation(_unexpected(bytes(self._pending[:1]), kind))
        end = self._pending.find(b"\r\n")
        if end < 0:
            if len(self._pending) >= _HEADER_BYTES_MAX:
                raise _Violation("a length is not a number of a few digits")
            return len(chunk)
        header = bytes(self._pending[1:end])
        self._pending.clear()
        if not _LENGTH.fullmatch(header):
            raise _Violation("a length is not a number of a few digits")
        self._begin(int(header), header_bytes=end + 2)
        return at + end + 2 - kept

    def _begin(self, length: int, *, header_bytes: int) -> None:
        limits = self.limits
        if self._words_missing == 0:
            if length > limits.words_max:
                raise _Violation(f"a command of more than {limits.words_max} words")
            self._words_missing = length
            self._frame_bytes = header_bytes
            return
        if length > limits.word_bytes_max:
            raise _Violation(f"a word of more than {limits.word_bytes_max} bytes")
        self._frame_bytes += header_bytes + length + 2
        if self._frame_bytes > limits.frame_bytes_max:
            raise _Violation(f"a command of more than {limits.frame_bytes_max} bytes")
        self._word_bytes = length

    def _step_word(self, chunk: bytes, at: int, commands: list[list[bytes]]) -> int:
        wanted = self._word_bytes + 2
        end = at + wanted - len(self._pending)
        self._pending += chunk[at:end]
        if len(self._pending) < wanted:
            return len(chunk)
        if not self._pending.endswith(b"\r\n"):
            raise _Violation("a word is not followed by CR LF")
        self._words.append(bytes(self._pending[:-2]))
        self._pending.clear()
        self._word_bytes = -1
        self._words_missing -= 1
        if self._words_missing == 0:
            commands.append(self._words)
            self._words = []
        return end


def _pack(command: list[bytes]) -> bytes:
    encoded: bytes = hiredis.pack_command(tuple(command))  # type: ignore[arg-type]  # its stub: tuples of one
    return encoded


def _unexpected(got: bytes, expected: bytes) -> str:
    if expected == b"*":
        return f"expected '*', got {got!r}: commands are arrays of bulk strings, not lines"
    return f"expected '$', got {got!r}: the words of a command are bulk strings"


# Replies.


def encode(value: Reply, protocol: int) -> bytes:
    """Write a reply for RESP `protocol` 2 or 3: mappings are flat arrays under RESP2."""
    parts: list[bytes] = []
    _encode(value, protocol, parts)
    return b"".join(parts)


def _encode(value: Reply, protocol: int, parts: list[bytes]) -> None:
    if isinstance(value, Simple):
        parts.append(b"+" + _one_line(value) + b"\r\n")
    elif isinstance(value, str):
        parts.append(_bulk(value.encode("utf-8", "replace")))
    elif isinstance(value, int):
        parts.append(b":%d\r\n" % value)
    elif isinstance(value, bytes):
        parts.append(_bulk(value))
    elif value is None:
        parts.append(b"_\r\n" if protocol == 3 else b"$-1\r\n")
    elif isinstance(value, Mapping):
        parts.append(b"%%%d\r\n" % len(value) if protocol == 3 else b"*%d\r\n" % (2 * len(value)))
        for key, item in value.items():
            parts.append(_key(key))
            _encode(item, protocol, parts)
    else:
        parts.append(b"*%d\r\n" % len(value))
        for item in value:
            _encode(item, protocol, parts)


def encode_push(kind: str, value: Reply) -> bytes:
    """Write an out-of-band message, which RESP3 alone has."""
    return b">2\r\n" + _key(kind) + encode(value, 3)


def encode_error(code: str, text: str, facts: str = "") -> bytes:
    """Write an error. Whatever is in `text`, it stays one line of bounded length (P6).

    `facts` follow after " | ", whole: JSON in ASCII without line breaks.
    """
    assert facts.isascii(), facts
    tail = f" | {facts}".encode("ascii") if facts else b""
    return b"-" + _one_line(f"{code} {text}") + tail + b"\r\n"


def _one_line(text: str) -> bytes:
    return _LINE_BREAKS.sub(" ", text[:_ERROR_CHARACTERS_MAX]).encode("utf-8", "replace")


def _bulk(raw: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(raw), raw)


@lru_cache(maxsize=256)
def _key(text: str) -> bytes:
    return _bulk(text.encode())
