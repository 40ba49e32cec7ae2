"""The verbs of the client protocol: from the words of a command to a typed request.

`parse` looks the verb up in `VERBS`, the one table of what there is, and reads its arguments.
Verbs and option words are taken in any case. Whatever is wrong raises RequestError with one line
that says what, and how the verb is used (P6).
"""

from collections.abc import Callable, Sequence

import msgspec

from lockd.ids import LOCK_NAME_BYTES_MAX, TOKEN_MAX, is_hex_id
from lockd.protocol.arguments import (
    DURATION_MS_MAX,
    options,
    read_address,
    read_lock_name,
    read_meta,
    read_node,
    read_number,
    read_request_number,
    read_session,
    read_text,
    read_uuid,
    read_wait,
    required,
    shown,
)
from lockd.protocol.requests import (
    Auth,
    ClientGetName,
    ClientId,
    ClientSetInfo,
    ClientSetName,
    ClusterAdd,
    ClusterMembers,
    ClusterPromote,
    ClusterRemove,
    ClusterSnapshot,
    ClusterSnapshotPart,
    ClusterStatusRequest,
    ClusterTransfer,
    CommandCount,
    CommandDocs,
    CommandInfo,
    Hello,
    Info,
    LockAcquire,
    LockCancel,
    LockInspect,
    LockList,
    LockRelease,
    Ping,
    Quit,
    Request,
    RequestError,
    Select,
    SessionClose,
    SessionKeepalive,
    SessionOpen,
)

LIST_COUNT_MAX = 1000
LIST_COUNT_DEFAULT = 100
SNAPSHOT_PART_BYTES_MAX = 1024 * 1024


class Verb(msgspec.Struct, frozen=True):
    """A row of the table: how a command is written, and how its arguments are read."""

    name: str
    usage: str
    """The arguments, as a user would write them."""
    summary: str
    parse: Callable[[Sequence[bytes]], Request]
    """Takes the words after the name; raises RequestError or ValueError."""
    words_min: int
    """Fewest words after the name."""
    words_max: int

    @property
    def arity(self) -> int:
        """As Redis counts: words with the name; negative when more may follow."""
        least = self.words_min + len(self.name.split())
        return least if self.words_min == self.words_max else -least


def parse(words: Sequence[bytes]) -> Request:
    """Read one command, given as its words. Raises RequestError."""
    name = words[0].upper()
    if name in _CONTAINERS and (len(words) > 1 or name not in VERBS):
        verb, arguments = _subverb(words)
    elif b" " not in name and (found := VERBS.get(name)) is not None:
        verb, arguments = found, words[1:]
    else:
        raise RequestError(f"unknown command '{shown(words[0])}'")
    if not verb.words_min <= len(arguments) <= verb.words_max:
        raise RequestError(f"wrong number of arguments for '{verb.name}'; {_usage(verb)}")
    try:
        return verb.parse(arguments)
    except ValueError as error:
        raise RequestError(f"{error}; {_usage(verb)}") from None


def _subverb(words: Sequence[bytes]) -> tuple[Verb, Sequence[bytes]]:
    container = words[0].upper()
    if len(words) < 2:
        raise RequestError(f"wrong number of arguments for '{shown(container)}'; it takes a subcommand")
    verb = VERBS.get(container + b" " + words[1].upper())
    if verb is None:
        raise RequestError(f"unknown subcommand '{shown(words[1])}' of '{shown(container)}'")
    return verb, words[2:]


def _usage(verb: Verb) -> str:
    return f"usage: {verb.name} {verb.usage}".rstrip()


def _parse_hello(words: Sequence[bytes]) -> Hello:
    if not words:
        return Hello(protocol=0)
    protocol = read_number(words[0], "the protocol version", low=2, high=3)
    user, password, client_name = "", b"", None
    at = 1
    while at < len(words):
        option, following = words[at].upper(), len(words) - at - 1
        if option == b"AUTH" and following >= 2:
            user, password = _user(words[at + 1]), words[at + 2]
            at += 3
        elif option == b"SETNAME" and following >= 1:
            client_name = _client_name(words[at + 1])
            at += 2
        else:
            raise ValueError(f"unknown or incomplete option '{shown(words[at])}'")
    return Hello(protocol, user, password, client_name)


def _user(word: bytes) -> str:
    if not word:
        raise ValueError("the user's name can't be empty")
    return read_text(word, "the user's name")


def _client_name(word: bytes) -> str:
    name = read_text(word, "the client's name")
    if " " in name:
        raise ValueError("the client's name can't contain spaces")
    return name


def _parse_auth(words: Sequence[bytes]) -> Auth:
    if len(words) == 1:
        return Auth("default", words[0])
    return Auth(_user(words[0]), words[1])


def _parse_ping(words: Sequence[bytes]) -> Ping:
    return Ping(words[0] if words else None)


def _parse_info(words: Sequence[bytes]) -> Info:
    return Info(read_text(words[0], "the section").lower() if words else "")


def _parse_client_setinfo(words: Sequence[bytes]) -> ClientSetInfo:
    attribute = read_text(words[0], "the attribute").lower()
    if attribute not in ("lib-name", "lib-ver"):
        raise ValueError(f"unknown attribute '{attribute[:64]}'")
    return ClientSetInfo(attribute, read_text(words[1], attribute))


def _verb_names(words: Sequence[bytes]) -> tuple[str, ...] | None:
    return tuple(read_text(word, "a command's name").upper() for word in words) or None


def _parse_select(words: Sequence[bytes]) -> Select:
    read_number(words[0], "the database (there is only 0)", low=0, high=0)
    return Select()


def _parse_session_open(words: Sequence[bytes]) -> SessionOpen:
    ttl_ms = read_number(words[0], "ttl_ms", low=1, high=DURATION_MS_MAX)
    found = options(words[1:], valued=frozenset({b"NAME", b"META"}))
    name = read_text(found.get(b"NAME", b""), "NAME")
    return SessionOpen(ttl_ms, name, read_meta(found[b"META"]) if b"META" in found else "")


_ACQUIRE_VALUED = frozenset({b"SESSION", b"TTL", b"OWNER", b"REQUEST", b"WAIT", b"META"})
_ACQUIRE_FLAGS = frozenset({b"NOTIFY"})


def _parse_keepalive(words: Sequence[bytes]) -> SessionKeepalive:
    session = read_session(words[0])
    options(words[1:], valued=frozenset())
    return SessionKeepalive(session)


def _parse_acquire(words: Sequence[bytes]) -> LockAcquire:
    lock = read_lock_name(words[0])
    found = options(words[1:], valued=_ACQUIRE_VALUED, flags=_ACQUIRE_FLAGS)
    if (b"SESSION" in found) == (b"TTL" in found):
        raise ValueError("one of SESSION and TTL is needed, and not both")
    session, ttl_ms = "", 0
    request: int | str
    if b"SESSION" in found:
        session = read_session(found[b"SESSION"])
        request = read_request_number(found[b"REQUEST"]) if b"REQUEST" in found else 0
    else:
        ttl_ms = read_number(found[b"TTL"], "TTL", low=1, high=DURATION_MS_MAX)
        request = read_uuid(found[b"REQUEST"]) if b"REQUEST" in found else ""
    return LockAcquire(
        lock=lock,
        session=session,
        ttl_ms=ttl_ms,
        owner=read_text(found.get(b"OWNER", b""), "OWNER"),
        request=request,
        wait_ms=read_wait(found[b"WAIT"]) if b"WAIT" in found else 0,
        notify=b"NOTIFY" in found,
        meta=read_meta(found[b"META"]) if b"META" in found else "",
    )


def _parse_cancel(words: Sequence[bytes]) -> LockCancel:
    lock = read_lock_name(words[0])
    found = options(words[1:], valued=frozenset({b"SESSION", b"REQUEST"}))
    request = required(found, b"REQUEST")
    if len(request) < 32 and request.isdigit():
        return LockCancel(lock, read_session(required(found, b"SESSION")), read_request_number(request))
    # Who waits with a TTL has not been told a session yet: the UUID is enough.
    session = read_session(found[b"SESSION"]) if b"SESSION" in found else ""
    return LockCancel(lock, session, read_uuid(request))


def _parse_release(words: Sequence[bytes]) -> LockRelease:
    lock = read_lock_name(words[0])
    token = read_number(words[1], "token", low=1, high=TOKEN_MAX)
    found = options(words[2:], valued=frozenset({b"SESSION"}))
    return LockRelease(lock, token, read_session(required(found, b"SESSION")))


def _parse_inspect(words: Sequence[bytes]) -> LockInspect:
    lock = read_lock_name(words[0])
    found = options(words[1:], valued=frozenset(), flags=frozenset({b"STALE"}))
    return LockInspect(lock, stale=b"STALE" in found)


def _parse_list(words: Sequence[bytes]) -> LockList:
    found = options(words, valued=frozenset({b"PREFIX", b"AFTER", b"COUNT"}))
    return LockList(
        prefix=read_text(found.get(b"PREFIX", b""), "PREFIX", bytes_max=LOCK_NAME_BYTES_MAX),
        after=read_text(found.get(b"AFTER", b""), "AFTER", bytes_max=LOCK_NAME_BYTES_MAX),
        count=read_number(found[b"COUNT"], "COUNT", low=1, high=LIST_COUNT_MAX)
        if b"COUNT" in found
        else LIST_COUNT_DEFAULT,
    )


_FORCE = frozenset({b"FORCE"})


def _parse_add(words: Sequence[bytes]) -> ClusterAdd:
    node, address = read_node(words[0]), read_address(words[1])
    found = options(words[2:], valued=frozenset(), flags=frozenset({b"LEARNER"}) | _FORCE)
    return ClusterAdd(node, address, learner=b"LEARNER" in found, force=b"FORCE" in found)


def _node_and_force(words: Sequence[bytes]) -> tuple[int, bool]:
    return read_node(words[0]), b"FORCE" in options(words[1:], valued=frozenset(), flags=_FORCE)


def _parse_snapshot(words: Sequence[bytes]) -> ClusterSnapshot | ClusterSnapshotPart:
    if not words:
        return ClusterSnapshot()
    if len(words) != 3:
        raise ValueError("id, offset and count go together")
    backup = shown(words[0])
    if not is_hex_id(backup, 16):
        raise ValueError(f"id '{backup}' is not 16 lower-case hex digits")
    offset = read_number(words[1], "offset", low=0, high=2**63 - 1)
    return ClusterSnapshotPart(
        backup, offset, read_number(words[2], "count", low=1, high=SNAPSHOT_PART_BYTES_MAX)
    )


_ANY_NUMBER = 1024

_TABLE = (
    Verb("HELLO", "[2|3] [AUTH user password] [SETNAME name]", "Choose the protocol.", _parse_hello, 0, 6),
    Verb("AUTH", "[user] password", "Say who you are.", _parse_auth, 1, 2),
    Verb("PING", "[message]", "Ask for an answer.", _parse_ping, 0, 1),
    Verb("QUIT", "", "Close the connection after the answers that are due.", lambda _: Quit(), 0, 0),
    Verb("INFO", "[section]", "Facts about this node.", _parse_info, 0, 1),
    Verb("SELECT", "0", "For Redis clients; there is one name space.", _parse_select, 1, 1),
    Verb(
        "CLIENT SETNAME",
        "name",
        "Name this connection.",
        lambda words: ClientSetName(_client_name(words[0])),
        1,
        1,
    ),
    Verb("CLIENT GETNAME", "", "The name of this connection.", lambda _: ClientGetName(), 0, 0),
    Verb("CLIENT ID", "", "The number of this connection.", lambda _: ClientId(), 0, 0),
    Verb("CLIENT SETINFO", "LIB-NAME|LIB-VER value", "Name your library.", _parse_client_setinfo, 2, 2),
    Verb("COMMAND", "", "All verbs.", lambda _: CommandInfo(None), 0, 0),
    Verb("COMMAND COUNT", "", "How many verbs there are.", lambda _: CommandCount(), 0, 0),
    Verb(
        "COMMAND INFO",
        "[name ...]",
        "Verbs by name.",
        lambda words: CommandInfo(_verb_names(words)),
        0,
        _ANY_NUMBER,
    ),
    Verb(
        "COMMAND DOCS",
        "[name ...]",
        "What verbs do.",
        lambda words: CommandDocs(_verb_names(words)),
        0,
        _ANY_NUMBER,
    ),
    Verb(
        "SESSION.OPEN", "ttl_ms [NAME n] [META json]", "Open a session.", _parse_session_open, 1, _ANY_NUMBER
    ),
    Verb(
        "SESSION.KEEPALIVE",
        "session",
        "Renew a session for its TTL.",
        _parse_keepalive,
        1,
        _ANY_NUMBER,
    ),
    Verb(
        "SESSION.CLOSE",
        "session",
        "End a session: free its locks, drop its waits.",
        lambda words: SessionClose(read_session(words[0])),
        1,
        1,
    ),
    Verb(
        "LOCK.ACQUIRE",
        "name SESSION s | TTL ms [OWNER o] [REQUEST id] [WAIT ms|FOREVER] [NOTIFY] [META json]",
        "Obtain a lock, at once or after a wait.",
        _parse_acquire,
        1,
        _ANY_NUMBER,
    ),
    Verb(
        "LOCK.CANCEL",
        "name SESSION s REQUEST id",
        "Withdraw a wait or its grant; that id never holds again.",
        _parse_cancel,
        1,
        _ANY_NUMBER,
    ),
    Verb("LOCK.RELEASE", "name token SESSION s", "End a grant.", _parse_release, 2, _ANY_NUMBER),
    Verb(
        "LOCK.INSPECT", "name [STALE]", "Who holds a lock, and how many wait.", _parse_inspect, 1, _ANY_NUMBER
    ),
    Verb(
        "LOCK.LIST",
        "[PREFIX p] [AFTER name] [COUNT n]",
        "Locks that are held or waited for, by name.",
        _parse_list,
        0,
        _ANY_NUMBER,
    ),
    Verb(
        "CLUSTER.STATUS",
        "",
        "Nodes, roles and log positions, as this node knows them.",
        lambda _: ClusterStatusRequest(),
        0,
        0,
    ),
    Verb(
        "CLUSTER.MEMBERS",
        "",
        "The members and the ids that were removed, as this node knows them.",
        lambda _: ClusterMembers(),
        0,
        0,
    ),
    Verb(
        "CLUSTER.ADD",
        "id peer_addr [LEARNER] [FORCE]",
        "Add a node as a learner, which becomes a voter once it has caught up.",
        _parse_add,
        2,
        4,
    ),
    Verb(
        "CLUSTER.PROMOTE",
        "id [FORCE]",
        "Make a learner a voter.",
        lambda words: ClusterPromote(*_node_and_force(words)),
        1,
        2,
    ),
    Verb(
        "CLUSTER.REMOVE",
        "id [FORCE]",
        "Remove a node for good: its id is never used again.",
        lambda words: ClusterRemove(*_node_and_force(words)),
        1,
        2,
    ),
    Verb(
        "CLUSTER.TRANSFER",
        "[id]",
        "Hand leadership to a voter, or to the one that is most up to date.",
        lambda words: ClusterTransfer(read_node(words[0]) if words else 0),
        0,
        1,
    ),
    Verb(
        "CLUSTER.SNAPSHOT",
        "[id offset count]",
        "Make a snapshot of the state, or read a part of the one made last on this connection.",
        _parse_snapshot,
        0,
        3,
    ),
)

VERBS: dict[bytes, Verb] = {verb.name.encode(): verb for verb in _TABLE}
"""Every verb by its upper-case name, subcommands with a space."""

_CONTAINERS = frozenset(name.split()[0] for name in VERBS if b" " in name)
