"""Single arguments of a command: from bytes to values, each with its limits (SAFETY P6).

Numbers are plain ASCII digits (G6), text is UTF-8 without control characters, for names go into
logs, terminals and one-line errors. Everything here raises ValueError that says what is wrong.
"""

import re
from collections.abc import Sequence

import msgspec

from lockd.ids import LOCK_NAME_BYTES_MAX, NODE_ID_MAX, TOKEN_MAX, ascii_int, is_hex_id

DURATION_MS_MAX = 365 * 86_400_000
"""No TTL or wait may be longer than a year; the cluster clamps TTLs far below that."""
TEXT_BYTES_MAX = 256
"""Owners, session names, client names."""
META_BYTES_MAX = 4096
META_DEPTH_MAX = 64
"""Whoever reads it back may parse it by recursion."""
REASON_BYTES_MAX = 256
"""Of LOCK.BREAK."""
LIST_COUNT_MAX = 1000
LIST_COUNT_DEFAULT = 100
"""Of all lists that come in pages."""
ADDRESS_BYTES_MAX = 300
REQUEST_MAX = 2**63 - 1

_UUID = re.compile(r"[0-9a-fA-F]{8}(-?)[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{4}\1[0-9a-fA-F]{12}")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_JSON_TEXT = re.compile(r'"(?:[^"\\]|\\.)*"')
_BRACKET = re.compile(r"[\[{\]}]")


def read_text(word: bytes, what: str, *, bytes_max: int = TEXT_BYTES_MAX) -> str:
    if len(word) > bytes_max:
        raise ValueError(f"{what} is longer than {bytes_max} bytes")
    try:
        text = word.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{what} is not UTF-8") from None
    if not text.isprintable() and _CONTROL.search(text):
        raise ValueError(f"{what} contains a control character")
    return text


def read_lock_name(word: bytes) -> str:
    if not word:
        raise ValueError("a lock's name can't be empty")
    return read_text(word, "the lock's name", bytes_max=LOCK_NAME_BYTES_MAX)


def read_session(word: bytes) -> str:
    text = read_text(word, "the session")
    if not is_hex_id(text, 32):
        raise ValueError(f"session '{text[:40]}' is not 32 lower-case hex digits")
    return text


def read_number(word: bytes, what: str, *, low: int, high: int) -> int:
    digits = word.removeprefix(b"-")
    if digits.isdigit() and len(digits) > 20:
        raise ValueError(f"{what}: a number of {len(digits)} digits is not between {low} and {high}")
    try:
        return ascii_int(word.decode("utf-8", "replace"), low=low, high=high)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def read_node(word: bytes) -> int:
    return read_number(word, "the node's id", low=1, high=NODE_ID_MAX)


def read_address(word: bytes) -> str:
    """HOST:PORT as others can dial it; an IPv6 host in brackets."""
    text = read_text(word, "the address", bytes_max=ADDRESS_BYTES_MAX)
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_bracketed = host.startswith("[") and host.endswith("]")
    if bare.split() != [bare] or (":" in bare and not is_bracketed):
        raise ValueError(f"'{text[:80]}' is not HOST:PORT (an IPv6 host goes in brackets)")
    try:
        bare.encode("idna")
    except UnicodeError:
        raise ValueError(f"'{host[:80]}' can't be the name of a host") from None
    if bare in ("0.0.0.0", "::"):  # noqa: S104 - it is refused here
        raise ValueError(f"'{text}' is every address of a machine: say which one the other nodes are to dial")
    read_number(port.encode(), "the port", low=1, high=65535)
    return text


def read_token(word: bytes) -> int:
    return read_number(word, "token", low=1, high=TOKEN_MAX)


def read_count(found: dict[bytes, bytes]) -> int:
    """The COUNT of a page, if it is among the options."""
    if b"COUNT" not in found:
        return LIST_COUNT_DEFAULT
    return read_number(found[b"COUNT"], "COUNT", low=1, high=LIST_COUNT_MAX)


def read_meta(word: bytes) -> str:
    """JSON text, as it is."""
    if len(word) > META_BYTES_MAX:
        raise ValueError(f"META is longer than {META_BYTES_MAX} bytes")
    try:
        msgspec.json.decode(word)
        text = word.decode("utf-8")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise ValueError("META is not JSON") from None
    depth = 0
    for bracket in _BRACKET.findall(_JSON_TEXT.sub("", text)):
        depth += 1 if bracket in "[{" else -1
        if depth > META_DEPTH_MAX:
            raise ValueError(f"META is nested deeper than {META_DEPTH_MAX} levels")
    return text


def read_wait(word: bytes) -> int | None:
    if word.upper() == b"FOREVER":
        return None
    return read_number(word, "WAIT", low=0, high=DURATION_MS_MAX)


def read_uuid(word: bytes) -> str:
    text = word.decode("utf-8", "replace")
    if not _UUID.fullmatch(text):
        raise ValueError(f"REQUEST {text[:40]!r} is not a UUID, which names a request with a TTL")
    return text


def read_request_number(word: bytes) -> int:
    return read_number(word, "REQUEST (of a session)", low=1, high=REQUEST_MAX)


def options(
    words: Sequence[bytes], *, valued: frozenset[bytes], flags: frozenset[bytes] = frozenset()
) -> dict[bytes, bytes]:
    """Read `OPTION value` pairs and bare flags, each at most once; a flag's value is empty."""
    found: dict[bytes, bytes] = {}
    at = 0
    while at < len(words):
        option = words[at].upper()
        if option in found:
            raise ValueError(f"option {shown(option)} is given twice")
        if option in valued:
            if at + 1 == len(words):
                raise ValueError(f"option {shown(option)} needs a value")
            found[option] = words[at + 1]
            at += 2
        elif option in flags:
            found[option] = b""
            at += 1
        else:
            raise ValueError(f"unknown option '{shown(words[at])}'")
    return found


def required(found: dict[bytes, bytes], option: bytes) -> bytes:
    try:
        return found[option]
    except KeyError:
        raise ValueError(f"{option.decode()} is missing") from None


def shown(word: bytes) -> str:
    return word[:64].decode("utf-8", "replace")
