"""Commands and what their replies mean, as values: no IO, and no difference between sync and async.

A `Query` is the words of one command and how to read its reply; `Client.ask` and
`AsyncClient.ask` carry it out. The table of error words is here too.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from lockd.errors import (
    AccessDenied,
    Deadlock,
    LimitExceeded,
    LimitMismatch,
    LockdError,
    LockTimeout,
    NotHeld,
    OutcomeUnknown,
    Rejected,
    SessionExpired,
    Unavailable,
    WatchGone,
)

T = TypeVar("T")
Word = str | int
Words = tuple[Word, ...]
TTL_MS_MAX: Final = 366 * 24 * 3600 * 1000
"""More than any cluster gives. What exceeds it is no TTL but a damaged answer."""

ERRORS: Mapping[str, type[LockdError]] = {
    "ERR": Rejected,
    "BUSY": LockTimeout,
    "TIMEOUT": LockTimeout,
    "NOTHELD": NotHeld,
    "NOSESSION": SessionExpired,
    "DEADLOCK": Deadlock,
    "LIMIT": LimitExceeded,
    "MISMATCH": LimitMismatch,
    "GONE": WatchGone,
    "UNAVAILABLE": Unavailable,
    "UNKNOWN": OutcomeUnknown,
    "NOAUTH": AccessDenied,
    "NOPERM": AccessDenied,
}
"""Which error a reply's first word becomes. A word that is not here is a refusal: Rejected."""
_USAGE: Final = "; usage: "
"""What the server adds to an ERR about arguments, for people who type them."""


class BusyTail(msgspec.Struct, frozen=True):
    """What a node tells of a lock that was not to be had, behind the text for people."""

    lock: str = ""
    holder: str = ""
    owner: str = ""
    meta: Any = None
    held_ms: int = 0
    queue_length: int = 0


def error_of(text: str, *, lock: str = "", told: BusyTail | None = None) -> LockdError:
    """The exception for a RESP error, given its whole line. `told`: as a push has it beside the text."""
    code, _, message = text.partition(" ")
    kind = ERRORS.get(code)
    if code == "ERR":  # how the verb is written is no news to callers of ours
        message = message.rpartition(_USAGE)[0] or message
    if kind is not LockTimeout:
        return Rejected(text) if kind is None else kind(message)
    message, tail = _busy_tail(message)
    tail = told or tail or BusyTail(holder=_holder_in(message))
    return LockTimeout(
        message,
        lock=lock or tail.lock,
        holder=tail.holder,
        owner=tail.owner,
        meta=tail.meta,
        held_ms=tail.held_ms,
        queue_length=tail.queue_length,
    )


def _busy_tail(message: str) -> tuple[str, BusyTail | None]:
    """The text and the line of JSON behind it, which older nodes and other errors have not.

    The last ` | {` begins it: names and metadata inside the JSON have their quotes escaped, so
    that nothing in them reads as JSON to the end of the line.
    """
    text, found, tail = message.rpartition(" | {")
    while found:
        try:
            return text, msgspec.json.decode("{" + tail, type=BusyTail)
        except (msgspec.DecodeError, RecursionError):
            text, found, more = text.rpartition(" | {")
            tail = f"{more} | {{{tail}"
    return message, None


def _holder_in(message: str) -> str:
    """Who the text names, when that is all there is: `"k" has been held by session 3 "x" for 12 ms`."""
    _, found, rest = message.partition(" held by ")
    return rest.partition(" for ")[0] if found else ""


@dataclass(frozen=True, slots=True)
class Query(Generic[T]):
    """One command that may be asked again safely, and how to read its reply."""

    words: Words
    read: Callable[[Any], T]
    changes: bool = True
    """Whether it changes anything: if not, an answer that never came is no unknown outcome."""


OURS: Final = "lockd"


class Greeting(msgspec.Struct, frozen=True):
    """What a node says of itself in its answer to HELLO."""

    cluster: str = ""
    """"" while the node does not know it yet."""
    incarnation: str = ""
    node: int = 0
    server: str = OURS
    """What kind of server it is: Redis and its kin answer HELLO as well."""


Ttl = Annotated[int, msgspec.Meta(ge=1, le=TTL_MS_MAX)]


class SessionReply(msgspec.Struct, frozen=True):
    session: str
    ttl_ms: Ttl


class EndedNotice(msgspec.Struct, frozen=True, array_like=True):
    """A grant of this session was revoked: broken by somebody, or held for its max_hold (K7)."""

    number: int
    """Grows within the session; acknowledging it acknowledges those before it."""
    lock: str
    token: int
    reason: str


class RenewalReply(msgspec.Struct, frozen=True):
    ttl_ms: Ttl
    ended: tuple[EndedNotice, ...]
    """What has not been acknowledged yet. Always there: no other answer may pass for a renewal."""


class GrantReply(msgspec.Struct, frozen=True):
    """A grant as the cluster tells it to the one who asked for it."""

    lock: str
    session: str
    token: int
    cluster: str
    incarnation: str
    fence: str = ""
    revision: int = 0
    ttl_ms: int = 0
    repeat: int = 0
    """1: this answer was given before, or after a wait; no deadline may be counted from it (K1)."""
    mode: str = "exclusive"
    limit: int = 0
    weight: int = 1
    locks: tuple[str, ...] = ()
    """All that an acquisition of several locks holds, by name; () for one lock."""


class WaitEnd(msgspec.Struct, frozen=True):
    """A lock.timeout push: the wait is over without a grant."""

    code: str
    text: str = ""
    lock: str = ""
    holder: str = ""
    owner: str = ""
    meta: str = ""
    """JSON text, or ""."""
    held_ms: int = 0
    queue_length: int = 0

    def error(self) -> LockdError:
        """As the same end would be told in an error reply."""
        if not self.holder:
            return error_of(f"{self.code} {self.text}", lock=self.lock)
        try:
            meta = msgspec.json.decode(self.meta) if self.meta else None
        except (msgspec.DecodeError, RecursionError):
            meta = None
        told = BusyTail(
            lock=self.lock,
            holder=self.holder,
            owner=self.owner,
            meta=meta,
            held_ms=self.held_ms,
            queue_length=self.queue_length,
        )
        return error_of(f"{self.code} {self.text}", told=told)


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


def meta_text(meta: Any) -> str:
    """Metadata as JSON text; "" for None. Raises TypeError for what JSON has not."""
    return "" if meta is None else json.dumps(meta, separators=(",", ":"), ensure_ascii=False)


# Commands.


def open_session(*, ttl_ms: int, name: str) -> Query[SessionReply]:
    named: Words = ("NAME", name) if name else ()
    return Query(("SESSION.OPEN", ttl_ms, *named), reading(SessionReply))


def keepalive(session: str, *, acknowledge: int = 0) -> Query[RenewalReply]:
    """Renew a session: the TTL that runs from when the cluster took it up.

    `acknowledge`: the work under all grants that it has told of up to this number has stopped.
    """
    known: Words = ("ACK", acknowledge) if acknowledge else ()
    return Query(("SESSION.KEEPALIVE", session, *known), reading(RenewalReply))


def close_session(session: str) -> Query[int]:
    return Query(("SESSION.CLOSE", session), reading(int))


def release(lock: str, *, token: int, session: str) -> Query[int]:
    """1: released; 0: that grant was not held any more."""
    return Query(("LOCK.RELEASE", lock, token, "SESSION", session), reading(int))


def release_all(*, token: int, session: str) -> Query[int]:
    """How many locks of that grant were given back; 0: it was not held any more."""
    return Query(("LOCK.RELEASEALL", token, "SESSION", session), reading(int))


def cancel(lock: str, *, session: str, request: int | str) -> Query[int]:
    """Withdraw the wait, or release the grant, of a request; its id never holds again."""
    return Query(("LOCK.CANCEL", lock, "SESSION", session, "REQUEST", request), reading(int))


def command(*words: Word) -> Query[Any]:
    """Any command by its words; the reply as it is. It must be safe to ask again, and not block."""
    return Query(words, _as_is)
