"""LOCK.* that look at locks, and watch them."""

from collections.abc import Sequence

from lockd.ids import LOCK_NAME_BYTES_MAX
from lockd.protocol.arguments import (
    options,
    read_count,
    read_lock_name,
    read_number,
    read_session,
    read_text,
    read_token,
)
from lockd.protocol.requests import (
    LockInspect,
    LockList,
    LockQueue,
    LockUnwatch,
    LockValidate,
    LockWatch,
)
from lockd.protocol.verb import ANY_NUMBER, Verb


def _read_prefix(word: bytes) -> str:
    """Any beginning of a name; empty for all locks."""
    return read_text(word, "the prefix", bytes_max=LOCK_NAME_BYTES_MAX)


def _parse_inspect(words: Sequence[bytes]) -> LockInspect:
    lock = read_lock_name(words[0])
    found = options(words[1:], valued=frozenset(), flags=frozenset({b"STALE"}))
    return LockInspect(lock, stale=b"STALE" in found)


def _parse_list(words: Sequence[bytes]) -> LockList:
    found = options(words, valued=frozenset({b"PREFIX", b"SESSION", b"AFTER", b"COUNT"}))
    return LockList(
        prefix=_read_prefix(found.get(b"PREFIX", b"")),
        after=read_text(found.get(b"AFTER", b""), "AFTER", bytes_max=LOCK_NAME_BYTES_MAX),
        count=read_count(found),
        session=read_session(found[b"SESSION"]) if b"SESSION" in found else "",
    )


def _parse_queue(words: Sequence[bytes]) -> LockQueue:
    return LockQueue(read_lock_name(words[0]), read_count(options(words[1:], valued=frozenset({b"COUNT"}))))


def _parse_watch(words: Sequence[bytes]) -> LockWatch:
    found = options(words[1:], valued=frozenset({b"FROM"}))
    after = read_number(found[b"FROM"], "FROM", low=0, high=2**63 - 1) if b"FROM" in found else None
    return LockWatch(_read_prefix(words[0]), after)


LOOKING_VERBS = (
    Verb(
        "LOCK.INSPECT", "name [STALE]", "Who holds a lock, and how many wait.", _parse_inspect, 1, ANY_NUMBER
    ),
    Verb(
        "LOCK.LIST",
        "[PREFIX p] [SESSION s] [AFTER name] [COUNT n]",
        "Locks that are held or waited for, by name.",
        _parse_list,
        0,
        ANY_NUMBER,
    ),
    Verb("LOCK.QUEUE", "name [COUNT n]", "Who waits for a lock, in order.", _parse_queue, 1, ANY_NUMBER),
    Verb(
        "LOCK.VALIDATE",
        "name token",
        "Whether a grant is the newest of its lock: current, superseded or free.",
        lambda words: LockValidate(read_lock_name(words[0]), read_token(words[1])),
        2,
        2,
    ),
    Verb(
        "LOCK.WATCH",
        "prefix [FROM revision]",
        "Be told what happens to the locks whose names begin so (RESP3).",
        _parse_watch,
        1,
        ANY_NUMBER,
    ),
    Verb(
        "LOCK.UNWATCH",
        "[prefix]",
        "End the watch of that prefix, or all watches of this connection.",
        lambda words: LockUnwatch(_read_prefix(words[0]) if words else None),
        0,
        1,
    ),
)
