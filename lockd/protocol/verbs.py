"""The verbs of the client protocol: from the words of a command to a typed request.

`parse` looks the verb up in `VERBS`, the one table of what there is, and reads its arguments.
Verbs and option words are taken in any case; numbers are plain ASCII digits (G6); text is UTF-8.
Whatever is wrong raises RequestError with one line that says what, and how the verb is used (P6).

Requests are types of the protocol alone. What they mean for locks is decided by those who
turn them into commands.
"""

import re
from collections.abc import Callable, Sequence

import msgspec

from lockd.ids import LOCK_NAME_BYTES_MAX, TOKEN_MAX, ascii_int, is_hex_id

DURATION_MS_MAX = 365 * 86_400_000
"""No TTL or wait may be longer than a year; the cluster clamps TTLs far below that."""
TEXT_BYTES_MAX = 256
"""Owners, session names, client names."""
META_BYTES_MAX = 4096
REQUEST_MAX = 2**63 - 1
LIST_COUNT_MAX = 1000
LIST_COUNT_DEFAULT = 100

_UUID = re.compile(r"[0-9a-fA-F]{8}(-?)[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{12}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class RequestError(ValueError):
    """The command can't be understood; the text is fit to be sent after `ERR`."""


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


class SessionClose(msgspec.Struct, frozen=True):
    session: str


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


class LockCancel(msgspec.Struct, frozen=True):
    lock: str
    session: str
    request: int | str


class LockRelease(msgspec.Struct, frozen=True):
    lock: str
    token: int
    session: str


class LockInspect(msgspec.Struct, frozen=True):
    lock: str
    stale: bool
    """Answer from what this node has applied, without asking the leader."""


class LockList(msgspec.Struct, frozen=True):
    prefix: str
    after: str
    count: int


class ClusterStatusRequest(msgspec.Struct, frozen=True):
    pass


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
    | LockAcquire
    | LockCancel
    | LockRelease
    | LockInspect
    | LockList
    | ClusterStatusRequest
)


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
    elif (found := VERBS.get(name)) is not None:
        verb, arguments = found, words[1:]
    else:
        raise RequestError(f"unknown command '{_shown(words[0])}'")
    if not verb.words_min <= len(arguments) <= verb.words_max:
        raise RequestError(f"wrong number of arguments for '{verb.name}'; {_usage(verb)}")
    try:
        return verb.parse(arguments)
    except ValueError as error:
        raise RequestError(f"{error}; {_usage(verb)}") from None


def _subverb(words: Sequence[bytes]) -> tuple[Verb, Sequence[bytes]]:
    container = words[0].upper()
    if len(words) < 2:
        raise RequestError(f"wrong number of arguments for '{_shown(container)}'; it takes a subcommand")
    verb = VERBS.get(container + b" " + words[1].upper())
    if verb is None:
        raise RequestError(f"unknown subcommand '{_shown(words[1])}' of '{_shown(container)}'")
    return verb, words[2:]


def _usage(verb: Verb) -> str:
    return f"usage: {verb.name} {verb.usage}".rstrip()


def _shown(word: bytes) -> str:
    return word[:64].decode("utf-8", "replace")


# Single arguments.


def _text(word: bytes, what: str, *, bytes_max: int = TEXT_BYTES_MAX) -> str:
    if len(word) > bytes_max:
        raise ValueError(f"{what} is longer than {bytes_max} bytes")
    try:
        text = word.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8") from None
    # Names go into logs, terminals and one-line errors.
    if not text.isprintable() and _CONTROL.search(text):
        raise ValueError(f"{what} contains a control character")
    return text


def _lock_name(word: bytes) -> str:
    if not word:
        raise ValueError("a lock's name can't be empty")
    return _text(word, "the lock's name", bytes_max=LOCK_NAME_BYTES_MAX)


def _session(word: bytes) -> str:
    text = _text(word, "the session")
    if not is_hex_id(text, 32):
        raise ValueError(f"session '{text[:40]}' is not 32 lower-case hex digits")
    return text


def _number(word: bytes, what: str, *, low: int, high: int) -> int:
    try:
        return ascii_int(word.decode("latin-1"), low=low, high=high)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _meta(word: bytes) -> str:
    if len(word) > META_BYTES_MAX:
        raise ValueError(f"META is longer than {META_BYTES_MAX} bytes")
    try:
        msgspec.json.decode(word)
        return word.decode("utf-8")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("META is not JSON") from None


def _wait(word: bytes) -> int | None:
    if word.upper() == b"FOREVER":
        return None
    return _number(word, "WAIT", low=0, high=DURATION_MS_MAX)


def _uuid(word: bytes) -> str:
    text = word.decode("latin-1")
    if not _UUID.fullmatch(text):
        raise ValueError(f"REQUEST {text[:40]!a} is not a UUID, which names a request with a TTL")
    return text


def _request_number(word: bytes) -> int:
    return _number(word, "REQUEST (of a session)", low=1, high=REQUEST_MAX)


def _options(
    words: Sequence[bytes], *, valued: frozenset[bytes], flags: frozenset[bytes] = frozenset()
) -> dict[bytes, bytes]:
    """Read `OPTION value` pairs and bare flags, each at most once; a flag's value is empty."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(words):
        option = words[at].upper()
        if option in found:
            raise ValueError(f"option {_shown(option)} is given twice")
        if option in valued:
            if at + 1 == len(words):
                raise ValueError(f"option {_shown(option)} needs a value")
            found[option] = words[at + 1]
            at += 2
        elif option in flags:
            found[option] = b""
            at += 1
        else:
            raise ValueError(f"unknown option '{_shown(words[at])}'")
    return found


def _required(found: dict[bytes, bytes], option: bytes) -> bytes:
    try:
        return found[option]
    except KeyError:
        raise ValueError(f"{option.decode()} is missing") from None


# Verbs.


def _parse_hello(words: Sequence[bytes]) -> Hello:
    if not words:
        return Hello(protocol=0)
    protocol = _number(words[0], "the protocol version", low=2, high=3)
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
            raise ValueError(f"unknown or incomplete option '{_shown(words[at])}'")
    return Hello(protocol, user, password, client_name)


def _user(word: bytes) -> str:
    if not word:
        raise ValueError("the user's name can't be empty")
    return _text(word, "the user's name")


def _client_name(word: bytes) -> str:
    name = _text(word, "the client's name")
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
    return Info(_text(words[0], "the section").lower() if words else "")


def _parse_client_setinfo(words: Sequence[bytes]) -> ClientSetInfo:
    attribute = _text(words[0], "the attribute").lower()
    if attribute not in ("lib-name", "lib-ver"):
        raise ValueError(f"unknown attribute '{attribute[:64]}'")
    return ClientSetInfo(attribute, _text(words[1], attribute))


def _verb_names(words: Sequence[bytes]) -> tuple[str, ...] | None:
    return tuple(_text(word, "a command's name").upper() for word in words) or None


def _parse_select(words: Sequence[bytes]) -> Select:
    _number(words[0], "the database (there is only 0)", low=0, high=0)
    return Select()


def _parse_session_open(words: Sequence[bytes]) -> SessionOpen:
    ttl_ms = _number(words[0], "ttl_ms", low=1, high=DURATION_MS_MAX)
    found = _options(words[1:], valued=frozenset({b"NAME", b"META"}))
    name = _text(found.get(b"NAME", b""), "NAME")
    return SessionOpen(ttl_ms, name, _meta(found[b"META"]) if b"META" in found else "")


_ACQUIRE_VALUED = frozenset({b"SESSION", b"TTL", b"OWNER", b"REQUEST", b"WAIT", b"META"})
_ACQUIRE_FLAGS = frozenset({b"NOTIFY"})


def _parse_keepalive(words: Sequence[bytes]) -> SessionKeepalive:
    session = _session(words[0])
    _options(words[1:], valued=frozenset())
    return SessionKeepalive(session)


def _parse_acquire(words: Sequence[bytes]) -> LockAcquire:
    lock = _lock_name(words[0])
    found = _options(words[1:], valued=_ACQUIRE_VALUED, flags=_ACQUIRE_FLAGS)
    if (b"SESSION" in found) == (b"TTL" in found):
        raise ValueError("one of SESSION and TTL is needed, and not both")
    session, ttl_ms = "", 0
    request: int | str
    if b"SESSION" in found:
        session = _session(found[b"SESSION"])
        request = _request_number(found[b"REQUEST"]) if b"REQUEST" in found else 0
    else:
        ttl_ms = _number(found[b"TTL"], "TTL", low=1, high=DURATION_MS_MAX)
        request = _uuid(found[b"REQUEST"]) if b"REQUEST" in found else ""
    return LockAcquire(
        lock=lock,
        session=session,
        ttl_ms=ttl_ms,
        owner=_text(found.get(b"OWNER", b""), "OWNER"),
        request=request,
        wait_ms=_wait(found[b"WAIT"]) if b"WAIT" in found else 0,
        notify=b"NOTIFY" in found,
        meta=_meta(found[b"META"]) if b"META" in found else "",
    )


def _parse_cancel(words: Sequence[bytes]) -> LockCancel:
    lock = _lock_name(words[0])
    found = _options(words[1:], valued=frozenset({b"SESSION", b"REQUEST"}))
    session = _session(_required(found, b"SESSION"))
    request = _required(found, b"REQUEST")
    is_uuid = len(request) >= 32 or not request.isdigit()
    return LockCancel(lock, session, _uuid(request) if is_uuid else _request_number(request))


def _parse_release(words: Sequence[bytes]) -> LockRelease:
    lock = _lock_name(words[0])
    token = _number(words[1], "token", low=1, high=TOKEN_MAX)
    found = _options(words[2:], valued=frozenset({b"SESSION"}))
    return LockRelease(lock, token, _session(_required(found, b"SESSION")))


def _parse_inspect(words: Sequence[bytes]) -> LockInspect:
    lock = _lock_name(words[0])
    found = _options(words[1:], valued=frozenset(), flags=frozenset({b"STALE"}))
    return LockInspect(lock, stale=b"STALE" in found)


def _parse_list(words: Sequence[bytes]) -> LockList:
    found = _options(words, valued=frozenset({b"PREFIX", b"AFTER", b"COUNT"}))
    return LockList(
        prefix=_text(found.get(b"PREFIX", b""), "PREFIX", bytes_max=LOCK_NAME_BYTES_MAX),
        after=_text(found.get(b"AFTER", b""), "AFTER", bytes_max=LOCK_NAME_BYTES_MAX),
        count=_number(found[b"COUNT"], "COUNT", low=1, high=LIST_COUNT_MAX)
        if b"COUNT" in found
        else LIST_COUNT_DEFAULT,
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
        lambda words: SessionClose(_session(words[0])),
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
)

VERBS: dict[bytes, Verb] = {verb.name.encode(): verb for verb in _TABLE}
"""Every verb by its upper-case name, subcommands with a space."""

_CONTAINERS = frozenset(name.split()[0] for name in VERBS if b" " in name)
