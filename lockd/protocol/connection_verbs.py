"""What any Redis client sends before and between its own commands."""

from collections.abc import Sequence

from lockd.protocol.arguments import read_number, read_text, shown
from lockd.protocol.requests import (
    Auth,
    ClientGetName,
    ClientId,
    ClientSetInfo,
    ClientSetName,
    CommandCount,
    CommandDocs,
    CommandInfo,
    Hello,
    Info,
    Ping,
    Quit,
    Select,
)
from lockd.protocol.verb import ANY_NUMBER, Verb


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


CONNECTION_VERBS = (
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
        ANY_NUMBER,
    ),
    Verb(
        "COMMAND DOCS",
        "[name ...]",
        "What verbs do.",
        lambda words: CommandDocs(_verb_names(words)),
        0,
        ANY_NUMBER,
    ),
)
