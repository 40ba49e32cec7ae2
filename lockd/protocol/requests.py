"""What a client may ask for, as types of the protocol alone.

What a request means for locks is decided by those who turn it into a command of the state machine.
"""

import msgspec


class RequestError(ValueError):
    """The command can't be understood; the text is fit to be sent after `ERR`.

    It ends with how the verb is written; `problem` is the text without that.
    """

    def __init__(self, problem: str, usage: str = "") -> None:
        super().__init__(f"{problem}; {usage}" if usage else problem)
        self.problem = problem


class StreamError(RequestError):
    """What the client sends is no command, and nothing behind it can be one."""


class Hello(msgspec.Struct, frozen=True):
    protocol: int
    """2 or 3; 0 to stay with what the connection speaks."""
    user: str = ""
    """"" when the command carries no AUTH."""
    password: bytes = b""
    client_name: str | None = None


class Auth(msgspec.Struct, frozen=True):
    user: str
    password: bytes


class Ping(msgspec.Struct, frozen=True):
    message: bytes | None


class Quit(msgspec.Struct, frozen=True):
    pass


class Info(msgspec.Struct, frozen=True):
    section: str
    """Lower case; "" for all."""


class ClientSetName(msgspec.Struct, frozen=True):
    name: str


class ClientGetName(msgspec.Struct, frozen=True):
    pass


class ClientId(msgspec.Struct, frozen=True):
    pass


class ClientSetInfo(msgspec.Struct, frozen=True):
    attribute: str
    value: str


class CommandInfo(msgspec.Struct, frozen=True):
    """COMMAND and COMMAND INFO."""

    names: tuple[str, ...] | None
    """None for every verb."""


class CommandCount(msgspec.Struct, frozen=True):
    pass


class CommandDocs(msgspec.Struct, frozen=True):
    names: tuple[str, ...] | None


class Select(msgspec.Struct, frozen=True):
    """SELECT 0, which Redis clients send; there is one name space."""


class SessionOpen(msgspec.Struct, frozen=True):
    ttl_ms: int
    name: str
    meta: str


class SessionKeepalive(msgspec.Struct, frozen=True):
    session: str
    acknowledged: int = 0
    """The number of the last notice that the client has acted on; 0 for none (K7)."""


class SessionClose(msgspec.Struct, frozen=True):
    session: str


class SessionList(msgspec.Struct, frozen=True):
    after: int
    """A public number; 0 for the first page."""
    count: int


class LockAcquire(msgspec.Struct, frozen=True):
    """In a session, or with a TTL in a private one: exactly one of the two is given."""

    lock: str
    session: str
    """"" with a TTL."""
    ttl_ms: int
    """0 with a session."""
    owner: str
    request: int | str
    """In a session a number, 0 for none; with a TTL a UUID as the client wrote it, "" for none."""
    wait_ms: int | None
    """0: refuse at once; None: for ever."""
    notify: bool
    meta: str
    mode: str = "exclusive"
    """"exclusive" or "shared"; of no meaning with a limit."""
    limit: int = 0
    """Units of a semaphore; 0 for a lock."""
    weight: int = 1
    """How many of them."""
    max_hold_ms: int = 0
    """0 for no end but the lease's."""
    delay_ms: int = 0


class LockAcquireAll(msgspec.Struct, frozen=True):
    """All or nothing, exclusively, under one token."""

    locks: tuple[str, ...]
    """At least one, each once, in the client's order."""
    session: str
    owner: str
    request: int
    wait_ms: int | None
    notify: bool
    meta: str


class LockCancel(msgspec.Struct, frozen=True):
    lock: str
    session: str
    """May be "" with a UUID."""
    request: int | str


class LockRelease(msgspec.Struct, frozen=True):
    lock: str
    token: int
    session: str


class LockReleaseAll(msgspec.Struct, frozen=True):
    token: int
    session: str


class LockMeta(msgspec.Struct, frozen=True):
    lock: str
    token: int
    session: str
    meta: str


class LockBreak(msgspec.Struct, frozen=True):
    lock: str
    token: int
    reason: str
    now: bool
    """Pass it on at once, though its holder may trust its lease (P1)."""


class LockValidate(msgspec.Struct, frozen=True):
    lock: str
    token: int


class LockQueue(msgspec.Struct, frozen=True):
    lock: str
    count: int


class LockInspect(msgspec.Struct, frozen=True):
    lock: str
    stale: bool
    """Answer from what this node has applied, without asking the leader."""


class LockList(msgspec.Struct, frozen=True):
    prefix: str
    after: str
    count: int
    session: str = ""
    """Only what it holds or waits for; "" for all."""


class LockWatch(msgspec.Struct, frozen=True):
    prefix: str
    after: int | None
    """The revision after which events are wanted; None: from now on."""


class LockUnwatch(msgspec.Struct, frozen=True):
    prefix: str | None
    """None for all."""


class ClusterStatusRequest(msgspec.Struct, frozen=True):
    pass


class ClusterMembers(msgspec.Struct, frozen=True):
    pass


class ClusterAdd(msgspec.Struct, frozen=True):
    node: int
    peer_address: str
    """HOST:PORT, where the others are to dial it."""
    learner: bool
    """It is to stay one until it is promoted."""
    force: bool


class ClusterPromote(msgspec.Struct, frozen=True):
    node: int
    force: bool


class ClusterRemove(msgspec.Struct, frozen=True):
    node: int
    force: bool


class ClusterTransfer(msgspec.Struct, frozen=True):
    node: int
    """0 for whichever voter is most up to date."""


class ClusterSnapshot(msgspec.Struct, frozen=True):
    """Make a snapshot, to be read over this connection."""


class ClusterSnapshotPart(msgspec.Struct, frozen=True):
    """Read a part of the snapshot that was made last over this connection."""

    backup: str
    """What CLUSTER.SNAPSHOT has called it."""
    offset: int
    count: int


Request = (
    Hello
    | Auth
    | Ping
    | Quit
    | Info
    | ClientSetName
    | ClientGetName
    | ClientId
    | ClientSetInfo
    | CommandInfo
    | CommandCount
    | CommandDocs
    | Select
    | SessionOpen
    | SessionKeepalive
    | SessionClose
    | SessionList
    | LockAcquire
    | LockAcquireAll
    | LockCancel
    | LockRelease
    | LockReleaseAll
    | LockMeta
    | LockBreak
    | LockValidate
    | LockQueue
    | LockInspect
    | LockList
    | LockWatch
    | LockUnwatch
    | ClusterStatusRequest
    | ClusterMembers
    | ClusterAdd
    | ClusterPromote
    | ClusterRemove
    | ClusterTransfer
    | ClusterSnapshot
    | ClusterSnapshotPart
)
