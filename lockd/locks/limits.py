"""The limits that decide outcomes, and the checks of texts against them.

Every node must refuse the same commands, so these are constants of the feature level and part of
the replicated state (SAFETY G11, C11): no flag of a node changes them.
"""

from dataclasses import dataclass

from lockd.ids import LOCK_NAME_BYTES_MAX
from lockd.locks.commands import Refused

CLOCK_MS_MAX = 2**53
"""The state's clock stops here, so that a clock plus any duration stays a 64-bit number."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Feature level 1. Durations in ms of the state's clock, sizes in bytes of UTF-8."""

    ttl_ms_min: int = 1_000
    """A shorter TTL becomes this."""
    ttl_ms_max: int = 3_600_000
    """A longer TTL becomes this: one hour. For as long the UUID of a TTL request that is over is
    known (G3), so a higher ceiling costs memory on every node."""
    wait_ms_max: int = 7 * 86_400_000
    """A longer WAIT is refused; WAIT FOREVER has no deadline."""

    sessions_max: int = 1_000_000
    waiters_per_lock_max: int = 100_000
    requests_per_session_max: int = 100_000
    """How many locks a session may hold or wait for at one time; each of a request for several counts."""
    answers_per_session_kept: int = 1_024
    """Answers to requests that are over; older ids are at or under the floor (G3)."""
    private_answers_kept_max: int = 500_000
    """Answers to TTL requests that are over, of all users. Beyond it the oldest is forgotten before
    its time: memory stays bounded (C10), and who asks for much costs others no lock (P6). What a
    copy that is later still can do is hold its lock for one TTL: nobody keeps its session alive."""
    private_answers_forgotten_per_entry: int = 1_000
    """How many of those whose time is over may go with one entry. After an idle hour all of them
    are due at once, and apply must not stop for as long as that takes."""

    lock_name_bytes_max: int = LOCK_NAME_BYTES_MAX
    session_id_bytes_max: int = 64
    session_name_bytes_max: int = 256
    owner_bytes_max: int = 256
    request_id_bytes_max: int = 128
    meta_bytes_max: int = 4_096
    address_bytes_max: int = 300
    """HOST:PORT of a member."""

    semaphore_limit_max: int = 1_000_000
    locks_per_request_max: int = 100
    max_hold_ms_max: int = 30 * 86_400_000
    delay_ms_max: int = 600_000
    reason_bytes_max: int = 256
    """Of BREAK."""
    revoked_per_session_max: int = 2_048
    """How many requests with MAXHOLD a session may have, and how many revoked grants that are not passed
    on before BREAK is refused: the answer to a keepalive tells all of them, or the lease would be trusted
    on (P1), and it has to fit into a frame between nodes."""
    notices_per_session_max: int = 1_024
    """Beyond it the oldest is forgotten, if its grant has ended: who never acknowledges isn't told all."""
    deadlock_search_max: int = 12_000
    """How many requests, and locks of theirs, are looked at to tell whether a wait could ever end.
    Beyond it the wait is refused: it would hold up everyone (P6), and let through it might never end (G8)."""
    refusal_meta_bytes_max: int = 512
    """A refusal shows the holder's metadata up to this size: a session keeps a thousand answers."""

    def clamp_ttl(self, ttl_ms: int) -> int:
        """The TTL that is in force when `ttl_ms` is asked for."""
        return min(max(ttl_ms, self.ttl_ms_min), self.ttl_ms_max)


def over_limit(what: str, found: int, at_most: int, unit: str = "") -> Refused:
    """A LIMIT refusal that names the limit."""
    return Refused("LIMIT", f"{what}: {found}{unit}, at most {at_most}{unit}")


def check_name(what: str, text: str, bytes_max: int) -> Refused | None:
    """Refuse a name that is too long or would break the line it is printed on.

    Control characters (C0, DEL, C1) are refused because names stand in RESP error lines, logs and
    terminals. Code points are compared as numbers: Python's Unicode tables differ between its
    versions (G6), and nothing is folded or normalised.
    """
    if text.isascii() and text.isprintable():  # for ASCII the same in every version
        return over_limit(what, len(text), bytes_max, " bytes") if len(text) > bytes_max else None
    if any(point < " " or "\x7f" <= point <= "\x9f" for point in text[: bytes_max + 1]):
        return Refused("ERR", f"{what} has a control character")
    return check_text(what, text, bytes_max)


def check_text(what: str, text: str, bytes_max: int) -> Refused | None:
    """Refuse a text of more than `bytes_max` bytes, or one that has no UTF-8 form."""
    if text.isascii():
        size = len(text)
    else:
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            return Refused("ERR", f"{what} is not valid UTF-8")
    return over_limit(what, size, bytes_max, " bytes") if size > bytes_max else None
