"""What a log entry can ask of the lock state machine, and what comes of it.

These structs are the log format: they are encoded as MessagePack arrays by lockd.locks.codec,
so fields are only ever appended, each with a default (SAFETY C11). Every command carries the
user that the receiving node authorised (G11), session, owner and request id, and its origin.

Times are milliseconds of the state's own clock (T1) or durations; never a wall clock.
"""

from typing import ClassVar

import msgspec

WAIT_FOREVER = -1
"""`Acquire.wait_ms` of a request that waits until it is granted, cancelled or its session ends."""

EXCLUSIVE = "exclusive"
SHARED = "shared"
SEMAPHORE = "semaphore"
"""How a lock is held. The first two are what `Acquire.mode` may say; a limit makes the third."""


class Origin(msgspec.Struct, array_like=True, frozen=True):
    """Where a command came in: who may be told, and whose end withdraws a wait (G4)."""

    node: int
    boot: int
    """Drawn at random when the process starts: a restarted node is another origin."""
    connection: int
    """Counts up within (node, boot); 0 for commands of the cluster itself."""
    operation: int
    """Counts up within (node, boot); names the caller that waits for the outcome."""


class CreateCluster(msgspec.Struct, array_like=True, frozen=True, tag="create_cluster"):
    """The first entry of a log: the identity that every peer and client checks (C8)."""

    cluster: str
    incarnation: str


class RegisterNode(msgspec.Struct, array_like=True, frozen=True, tag="register_node"):
    """A node's instance and advertised addresses, as it starts: a restart can change them (C8)."""

    node: int
    instance: str
    peer_address: str
    client_address: str
    http_address: str
    version: str


class AddMember(msgspec.Struct, array_like=True, frozen=True, tag="add_member"):
    """A node joins; it is told under `peer_address` until it registers an address itself (C7, C8).

    This and the two below are the context of a configuration change and applied with it.
    """

    node: int
    peer_address: str
    wants_vote: bool
    """Its promotion follows by itself once it has caught up; False: it stays a learner until asked."""


class PromoteMember(msgspec.Struct, array_like=True, frozen=True, tag="promote_member"):
    """A learner becomes a voter."""

    node: int


class RemoveMember(msgspec.Struct, array_like=True, frozen=True, tag="remove_member"):
    """A node leaves for good: its id is never used again (C8)."""

    node: int


class OpenSession(msgspec.Struct, array_like=True, frozen=True, tag="open_session"):
    """Opens `Command.session`, an id drawn by the receiving node."""

    ttl_ms: int
    name: str
    meta: str
    """JSON text exactly as the client sent it; never re-encoded (G6)."""


class CloseSession(msgspec.Struct, array_like=True, frozen=True, tag="close_session"):
    """Ends `Command.session`: frees its locks and drops its waits, in sorted order of lock names."""


class ExpireSessions(msgspec.Struct, array_like=True, frozen=True, tag="expire_sessions"):
    """Proposed by the leader alone, for sessions whose TTL ran out on its lease book (T1, T3)."""

    sessions: tuple[str, ...]


class MarkSilent(msgspec.Struct, array_like=True, frozen=True, tag="mark_silent"):
    """The leader has not heard of these sessions for so many ms: the next one gives TTL - d (T2)."""

    silences: tuple[tuple[str, int], ...]


class ClearSilent(msgspec.Struct, array_like=True, frozen=True, tag="clear_silent"):
    """`Command.session` has been renewed: a renewal is answered after this is applied (T2)."""


class Acquire(msgspec.Struct, array_like=True, frozen=True, tag="acquire"):
    """Asks for a lock, in `Command.session` or in a private session when `ttl_ms` > 0.

    With a private session, `Command.session` is the id that the receiving node drew for it and
    `Command.request` a UUID; a retry brings another candidate id, and finds the first one's
    answer by the UUID (G3).
    """

    lock: str
    ttl_ms: int
    """0: in the named session. Else the TTL of a private session, which starts at the grant."""
    wait_ms: int
    """0: refuse at once (BUSY); WAIT_FOREVER; else the longest wait, by the state's clock."""
    meta: str
    notify: bool = False
    """The caller is told at once that it waits, and later of the end (NOTIFY). For the node that
    asks alone: the outcome of a request that waits is Queued either way."""
    mode: str = EXCLUSIVE
    """EXCLUSIVE or SHARED; with a `limit` it has to be EXCLUSIVE."""
    limit: int = 0
    """More than 0: the lock is a counting semaphore with so many units."""
    weight: int = 1
    """How many of them this request takes; 1 without a limit."""
    max_hold_ms: int = 0
    """The grant is revoked when it is so old, however it is renewed (K7); 0 for never."""
    delay_ms: int = 0
    """For so long nobody is granted the lock after an abnormal end of this grant; 0 for no delay."""


class AcquireAll(msgspec.Struct, array_like=True, frozen=True, tag="acquire_all"):
    """Asks for several locks, exclusively: all of them at once under one token, or none (G5)."""

    locks: tuple[str, ...]
    """At least one, each once. The order means nothing."""
    wait_ms: int
    meta: str
    notify: bool = False


class Cancel(msgspec.Struct, array_like=True, frozen=True, tag="cancel"):
    """Withdraws the wait, or releases the grant, of `Command.request`; that id never holds again."""

    lock: str


class Release(msgspec.Struct, array_like=True, frozen=True, tag="release"):
    """Ends the grant `token` of `Command.session`; without effect when it is no longer held (G7).

    Of a grant of several locks it gives back this one alone.
    """

    lock: str
    token: int


class ReleaseAll(msgspec.Struct, array_like=True, frozen=True, tag="release_all"):
    """Gives back every lock of the grant `token` of `Command.session` (G7)."""

    token: int


class ChangeMeta(msgspec.Struct, array_like=True, frozen=True, tag="change_meta"):
    """The grant `token` of `Command.session` shows other metadata from now on: an election's value."""

    lock: str
    token: int
    meta: str


class Break(msgspec.Struct, array_like=True, frozen=True, tag="break"):
    """Takes a grant from its holder, whoever asks; the receiving node has checked the right (G11).

    The grant is revoked: its holder is told, and the lock is passed on when it has acknowledged, its
    session has ended, or its TTL has run since (P1).
    """

    lock: str
    token: int
    reason: str
    now: bool
    """Pass it on at once, though its holder may trust its lease: P1 does not hold then."""


class AcknowledgeNotices(msgspec.Struct, array_like=True, frozen=True, tag="acknowledge_notices"):
    """`Command.session` has learnt of the ends of grants up to this notice: they are passed on (K7)."""

    number: int


class FreeRevoked(msgspec.Struct, array_like=True, frozen=True, tag="free_revoked"):
    """Proposed by the leader alone: the TTL of these revoked grants has run since (P1, T1)."""

    tokens: tuple[int, ...]


class OriginGone(msgspec.Struct, array_like=True, frozen=True, tag="origin_gone"):
    """A connection, or a whole node (connection 0, any boot but `boot` when `boot_is_alive`), is gone.

    Its waits are withdrawn when the TTL of their session has passed without the same request id
    coming back (G4).
    """

    node: int
    boot: int
    connection: int
    boot_is_alive: bool = False
    operation: int = 0
    """One operation of that connection alone; 0 for all that it has."""


class RequestOrphaned(msgspec.Struct, array_like=True, frozen=True, tag="request_orphaned"):
    """The answer to `Command.request`, or to an unnamed one of the owner, could not be written.

    As OriginGone, for one request (G4).

    Without effect when the request has since been asked again over another connection: its client
    may rely on the grant (P1).
    """

    lock: str
    connection: int
    """The one that was gone, of the node and boot in `Command.origin`."""


Operation = (
    CreateCluster
    | RegisterNode
    | OpenSession
    | CloseSession
    | ExpireSessions
    | MarkSilent
    | ClearSilent
    | Acquire
    | Cancel
    | Release
    | OriginGone
    | RequestOrphaned
    | AddMember
    | PromoteMember
    | RemoveMember
    | AcquireAll
    | ReleaseAll
    | ChangeMeta
    | Break
    | AcknowledgeNotices
    | FreeRevoked
)


class Command(msgspec.Struct, array_like=True, frozen=True):
    """One operation and who asked for it."""

    user: str
    """As authenticated by the receiving node; "" for the cluster itself."""
    session: str
    owner: str
    """Who within the session; "" takes no part in what is decided between owners (G8)."""
    request: int | str
    """Names this request within its session, growing (int); a UUID (str) with a TTL; 0 or "" for none."""
    origin: Origin
    operation: Operation


class Batch(msgspec.Struct, array_like=True, frozen=True):
    """The payload of one COMMANDS entry."""

    version: int
    stamp_ms: int
    """The state's clock, advanced to this before the commands are applied (T1). Never goes back."""
    commands: tuple[Command, ...]

    VERSION: ClassVar[int] = 1


# What becomes of a command. Outcomes leave the state machine and never enter the log.


class Granted(msgspec.Struct, array_like=True, frozen=True, tag="granted"):
    """The lock is held. The same answer for every retry of the request while the grant lives."""

    lock: str
    session: str
    token: int
    revision: int
    ttl_ms: int
    repeat: bool = False
    """An answer given again, or given after a wait: it starts no client deadline (K1)."""
    locks: tuple[str, ...] = ()
    """All that the grant holds, by name; `lock` is the first of them."""
    mode: str = EXCLUSIVE
    """EXCLUSIVE, SHARED or SEMAPHORE."""
    limit: int = 0
    weight: int = 1

    @property
    def is_fencing(self) -> bool:
        """Whether the token is ordered against all grants that conflict with this one (G10)."""
        return self.mode != SEMAPHORE


class Queued(msgspec.Struct, array_like=True, frozen=True, tag="queued"):
    """The request waits at `position` (0 is next). Another completion for its origin follows.

    After a retry `position` may be too high by as many as have withdrawn ahead of it since.
    """

    lock: str
    session: str
    position: int


class Notice(msgspec.Struct, array_like=True, frozen=True):
    """Tells a session that a grant of its own was revoked (K7)."""

    number: int
    """Grows within the session; AcknowledgeNotices names it."""
    lock: str
    token: int
    reason: str
    """`broken: ...` with the text of whoever broke it, or MAX_HOLD."""


MAX_HOLD = "max_hold"


class SessionOpened(msgspec.Struct, array_like=True, frozen=True, tag="session_opened"):
    """A session was opened, or renewed."""

    session: str
    ttl_ms: int
    """As clamped between the cluster's floor and ceiling."""
    ended: tuple[Notice, ...] = ()
    """What it has not acknowledged yet."""


class Changed(msgspec.Struct, array_like=True, frozen=True, tag="changed"):
    """How many things the command ended: 1, or 0 when there was nothing to do."""

    count: int


class Refused(msgspec.Struct, array_like=True, frozen=True, tag="refused"):
    """Not done. `code` is the first word of a RESP error: BUSY, TIMEOUT, NOSESSION, LIMIT, ERR, ..."""

    code: str
    text: str
    lock: str = ""
    holder: str = ""
    """For BUSY and TIMEOUT: the session name or public number of who has held it longest."""
    owner: str = ""
    meta: str = ""
    """That holder's; "" as well when it is over `Limits.refusal_meta_bytes_max`."""
    held_ms: int = 0
    queue_length: int = 0
    """How many waited for the lock then, but for the one that is told."""


Outcome = Granted | Queued | SessionOpened | Changed | Refused


class Completion(msgspec.Struct, array_like=True, frozen=True):
    """An outcome and the origin it belongs to; the node with that (id, boot) hands it on."""

    origin: Origin
    outcome: Outcome
