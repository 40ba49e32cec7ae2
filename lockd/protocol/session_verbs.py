"""SESSION.*: a client's liveness with the cluster."""

from collections.abc import Sequence

from lockd.protocol.arguments import (
    DURATION_MS_MAX,
    options,
    read_count,
    read_meta,
    read_number,
    read_session,
    read_text,
)
from lockd.protocol.requests import SessionClose, SessionKeepalive, SessionList, SessionOpen
from lockd.protocol.verb import ANY_NUMBER, Verb


def _parse_open(words: Sequence[bytes]) -> SessionOpen:
    ttl_ms = read_number(words[0], "ttl_ms", low=1, high=DURATION_MS_MAX)
    found = options(words[1:], valued=frozenset({b"NAME", b"META"}))
    name = read_text(found.get(b"NAME", b""), "NAME")
    return SessionOpen(ttl_ms, name, read_meta(found[b"META"]) if b"META" in found else "")


def _parse_keepalive(words: Sequence[bytes]) -> SessionKeepalive:
    session = read_session(words[0])
    found = options(words[1:], valued=frozenset({b"ACK"}))
    acknowledged = read_number(found[b"ACK"], "ACK", low=1, high=2**63 - 1) if b"ACK" in found else 0
    return SessionKeepalive(session, acknowledged)


def _parse_list(words: Sequence[bytes]) -> SessionList:
    found = options(words, valued=frozenset({b"AFTER", b"COUNT"}))
    after = read_number(found[b"AFTER"], "AFTER", low=0, high=2**63 - 1) if b"AFTER" in found else 0
    return SessionList(after, read_count(found))


SESSION_VERBS = (
    Verb("SESSION.OPEN", "ttl_ms [NAME n] [META json]", "Open a session.", _parse_open, 1, ANY_NUMBER),
    Verb(
        "SESSION.KEEPALIVE",
        "session [ACK n]",
        "Renew a session for its TTL, and learn which of its grants were revoked.",
        _parse_keepalive,
        1,
        ANY_NUMBER,
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
        "SESSION.LIST",
        "[AFTER n] [COUNT n]",
        "The sessions that are open, by their public numbers.",
        _parse_list,
        0,
        ANY_NUMBER,
    ),
)
