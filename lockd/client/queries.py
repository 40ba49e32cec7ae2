"""Commands and what their replies mean, as values: no IO, and no difference between sync and async.

A `Query` is the words of one command and how to read its reply; `Client.ask` and
`AsyncClient.ask` carry it out. The table of error words is here too.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from lockd.errors import (
    AccessDenied,
    LimitExceeded,
    LockdError,
    LockTimeout,
    NotHeld,
    OutcomeUnknown,
    Rejected,
    SessionExpired,
    Unavailable,
)

T = TypeVar("T")
Word = str | int
Words = tuple[Word, ...]

ERRORS: Mapping[str, type[LockdError]] = {
    "ERR": Rejected,
    "BUSY": LockTimeout,
    "TIMEOUT": LockTimeout,
    "NOTHELD": NotHeld,
    "NOSESSION": SessionExpired,
    "DEADLOCK": Rejected,
    "LIMIT": LimitExceeded,
    "MISMATCH": Rejected,
    "GONE": Rejected,
    "UNAVAILABLE": Unavailable,
    "UNKNOWN": OutcomeUnknown,
    "NOAUTH": AccessDenied,
    "NOPERM": AccessDenied,
}
"""Which error a reply's first word becomes. A word that is not here is a refusal: Rejected."""


def error_of(text: str, *, lock: str = "", holder: str = "") -> LockdError:
    """The exception for a RESP error, given its whole line."""
    code, _, message = text.partition(" ")
    kind = ERRORS.get(code)
    if kind is LockTimeout:
        return LockTimeout(message, lock=lock, holder=holder or _holder_in(message))
    return Rejected(text) if kind is None else kind(message)


def _holder_in(message: str) -> str:
    """Who a BUSY text names: `"k" has been held by session 3 "billing" for 12 ms`."""
    _, found, rest = message.partition(" held by ")
    return rest.partition(" for ")[0] if found else ""


@dataclass(frozen=True, slots=True)
class Query(Generic[T]):
    """One command that may be asked again safely, and how to read its reply."""

    words: Words
    read: Callable[[Any], T]
    changes: bool = True
    """Whether it changes anything: if not, an answer that never came is no unknown outcome."""


class Greeting(msgspec.Struct, frozen=True):
    """What a node says of itself in its answer to HELLO."""

    cluster: str = ""
    """"" while the node does not know it yet."""
    incarnation: str = ""
    node: int = 0


class SessionReply(msgspec.Struct, frozen=True):
    session: str
    ttl_ms: int


class RenewalReply(msgspec.Struct, frozen=True):
    ttl_ms: int


class GrantReply(msgspec.Struct, frozen=True):
    """A grant as the cluster tells it to the one who asked for it."""

    lock: str
    session: str
    token: int
    fence: str
    cluster: str
    incarnation: str
    revision: int = 0
    ttl_ms: int = 0
    repeat: int = 0
    """1: this answer was given before, or after a wait; no deadline may be counted from it (K1)."""


class WaitEnd(msgspec.Struct, frozen=True):
    """A lock.timeout push: the wait is over without a grant."""

    code: str
    text: str = ""
    holder: str = ""


def reading(kind: type[T]) -> Callable[[Any], T]:
    """Read a reply as `kind`; what does not fit says nothing of what happened: OutcomeUnknown."""

    def read(reply: Any) -> T:
        try:
            return msgspec.convert(reply, kind)
        except msgspec.ValidationError as error:
            raise OutcomeUnknown(f"the node's answer can't be read: {error}") from error

    return read


def _as_is(reply: Any) -> Any:
    return reply


def meta_text(meta: Mapping[str, Any] | None) -> str:
    """The holder's metadata as JSON text; "" for none. Raises TypeError for what JSON has not."""
    return "" if meta is None else json.dumps(meta, separators=(",", ":"), ensure_ascii=False)


# Commands.


def open_session(*, ttl_ms: int, name: str) -> Query[SessionReply]:
    named: Words = ("NAME", name) if name else ()
    return Query(("SESSION.OPEN", ttl_ms, *named), reading(SessionReply))


def keepalive(session: str) -> Query[RenewalReply]:
    """Renew a session: the TTL that runs from when the cluster took it up."""
    return Query(("SESSION.KEEPALIVE", session), reading(RenewalReply))


def close_session(session: str) -> Query[int]:
    return Query(("SESSION.CLOSE", session), reading(int))


def release(lock: str, *, token: int, session: str) -> Query[int]:
    """1: released; 0: that grant was not held any more."""
    return Query(("LOCK.RELEASE", lock, token, "SESSION", session), reading(int))


def cancel(lock: str, *, session: str, request: int | str) -> Query[int]:
    """Withdraw the wait, or release the grant, of a request; its id never holds again."""
    return Query(("LOCK.CANCEL", lock, "SESSION", session, "REQUEST", request), reading(int))


def command(*words: Word) -> Query[Any]:
    """Any command by its words; the reply as it is. It must be safe to ask again, and not block."""
    return Query(words, _as_is)


def acquire_words(
    lock: str, *, scope: Words, owner: str, request: int | str, wait: float | None, meta: str
) -> Words:
    """LOCK.ACQUIRE; `scope` is SESSION s or TTL ms. A wait is told of its end by a push."""
    words: Words = ("LOCK.ACQUIRE", lock, *scope)
    if owner:
        words = (*words, "OWNER", owner)
    words = (*words, "REQUEST", request)
    if wait is None:
        words = (*words, "WAIT", "FOREVER", "NOTIFY")
    elif wait > 0:
        words = (*words, "WAIT", max(1, round(wait * 1000)), "NOTIFY")
    return (*words, "META", meta) if meta else words
