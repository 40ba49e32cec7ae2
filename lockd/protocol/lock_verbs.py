"""LOCK.* that obtain, change and end grants. What looks at locks is in `looking_verbs`."""

from collections.abc import Sequence

from lockd.ids import TOKEN_MAX
from lockd.protocol.arguments import (
    DURATION_MS_MAX,
    REASON_BYTES_MAX,
    options,
    read_lock_name,
    read_meta,
    read_number,
    read_request_number,
    read_session,
    read_text,
    read_token,
    read_uuid,
    read_wait,
    required,
    shown,
)
from lockd.protocol.requests import (
    LockAcquire,
    LockAcquireAll,
    LockBreak,
    LockCancel,
    LockMeta,
    LockRelease,
    LockReleaseAll,
)
from lockd.protocol.verb import ANY_NUMBER, Verb

_ASKING = frozenset({b"SESSION", b"OWNER", b"REQUEST", b"WAIT", b"META"})
_HOLDING = frozenset({b"TTL", b"MODE", b"LIMIT", b"WEIGHT", b"MAXHOLD", b"DELAY"})
_FLAGS = frozenset({b"NOTIFY"})
_MODES = {b"EXCLUSIVE": "exclusive", b"SHARED": "shared"}


def _parse_acquire(words: Sequence[bytes]) -> LockAcquire:
    lock = read_lock_name(words[0])
    found = options(words[1:], valued=_ASKING | _HOLDING, flags=_FLAGS)
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
    mode, limit, weight = _read_mode(found)
    return LockAcquire(
        lock=lock,
        session=session,
        ttl_ms=ttl_ms,
        owner=read_text(found.get(b"OWNER", b""), "OWNER"),
        request=request,
        wait_ms=read_wait(found[b"WAIT"]) if b"WAIT" in found else 0,
        notify=b"NOTIFY" in found,
        meta=read_meta(found[b"META"]) if b"META" in found else "",
        mode=mode,
        limit=limit,
        weight=weight,
        max_hold_ms=_read_duration(found, b"MAXHOLD"),
        delay_ms=_read_duration(found, b"DELAY"),
    )


def _read_mode(found: dict[bytes, bytes]) -> tuple[str, int, int]:
    """The mode, the limit (0: no semaphore), and the weight; they exclude and need each other."""
    mode = _MODES.get(found.get(b"MODE", b"EXCLUSIVE").upper())
    if mode is None:
        raise ValueError(f"MODE '{shown(found[b'MODE'])}' is neither exclusive nor shared")
    limit = weight = 0
    if b"LIMIT" in found:
        limit = read_number(found[b"LIMIT"], "LIMIT", low=1, high=TOKEN_MAX)
    if b"WEIGHT" in found:
        weight = read_number(found[b"WEIGHT"], "WEIGHT", low=1, high=TOKEN_MAX)
    if limit and mode == "shared":
        raise ValueError("LIMIT makes a semaphore, which has no MODE shared")
    if weight and not limit:
        raise ValueError("WEIGHT is a semaphore's, which needs a LIMIT")
    if weight > limit:
        raise ValueError(f"WEIGHT {weight} is above the LIMIT {limit}, so it could never be granted")
    if b"DELAY" in found and (limit or mode == "shared"):
        raise ValueError("DELAY is for exclusive locks alone")
    return mode, limit, weight or 1


def _read_duration(found: dict[bytes, bytes], option: bytes) -> int:
    if option not in found:
        return 0
    return read_number(found[option], option.decode(), low=1, high=DURATION_MS_MAX)


def _parse_acquire_all(words: Sequence[bytes]) -> LockAcquireAll:
    # The options end where a number stands in the place of one.
    at = 0
    while at < len(words) and not words[at].isdigit():
        at += 1 if words[at].upper() in _FLAGS else 2
    found = options(words[:at], valued=_ASKING, flags=_FLAGS)
    if at >= len(words):
        raise ValueError("how many locks there are, and their names, are missing")
    count = read_number(words[at], "n", low=1, high=ANY_NUMBER)
    locks = tuple(read_lock_name(word) for word in words[at + 1 :])
    if len(locks) != count:
        raise ValueError(f"n is {count}, and {len(locks)} names follow")
    if len(set(locks)) != count:
        twice = next(lock for lock in locks if locks.count(lock) > 1)
        raise ValueError(f"lock '{shown(twice.encode())}' is named twice")
    return LockAcquireAll(
        locks=locks,
        session=read_session(required(found, b"SESSION")),
        owner=read_text(found.get(b"OWNER", b""), "OWNER"),
        request=read_request_number(found[b"REQUEST"]) if b"REQUEST" in found else 0,
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


def _read_session_option(words: Sequence[bytes]) -> str:
    return read_session(required(options(words, valued=frozenset({b"SESSION"})), b"SESSION"))


def _parse_release(words: Sequence[bytes]) -> LockRelease:
    return LockRelease(read_lock_name(words[0]), read_token(words[1]), _read_session_option(words[2:]))


def _parse_release_all(words: Sequence[bytes]) -> LockReleaseAll:
    return LockReleaseAll(read_token(words[0]), _read_session_option(words[1:]))


def _parse_meta(words: Sequence[bytes]) -> LockMeta:
    lock, token = read_lock_name(words[0]), read_token(words[1])
    return LockMeta(lock, token, _read_session_option(words[2:4]), read_meta(words[4]))


def _parse_break(words: Sequence[bytes]) -> LockBreak:
    lock, token = read_lock_name(words[0]), read_token(words[1])
    found = options(words[2:], valued=frozenset({b"REASON"}), flags=frozenset({b"NOW"}))
    reason = read_text(required(found, b"REASON"), "REASON", bytes_max=REASON_BYTES_MAX)
    if not reason:
        raise ValueError("REASON is empty: its holder is told, and it is logged")
    return LockBreak(lock, token, reason, now=b"NOW" in found)


LOCK_VERBS = (
    Verb(
        "LOCK.ACQUIRE",
        "name SESSION s | TTL ms [OWNER o] [REQUEST id] [WAIT ms|FOREVER] [NOTIFY] [MODE exclusive|shared]"
        " [LIMIT n] [WEIGHT w] [META json] [MAXHOLD ms] [DELAY ms]",
        "Obtain a lock or units of a semaphore, at once or after a wait.",
        _parse_acquire,
        1,
        ANY_NUMBER,
    ),
    Verb(
        "LOCK.ACQUIREALL",
        "SESSION s [OWNER o] [REQUEST id] [WAIT ms|FOREVER] [NOTIFY] [META json] n name...",
        "Obtain several locks under one token, all or none.",
        _parse_acquire_all,
        4,
        ANY_NUMBER,
    ),
    Verb(
        "LOCK.CANCEL",
        "name SESSION s REQUEST id",
        "Withdraw a wait or its grant; that id never holds again.",
        _parse_cancel,
        1,
        ANY_NUMBER,
    ),
    Verb("LOCK.RELEASE", "name token SESSION s", "End a grant.", _parse_release, 2, ANY_NUMBER),
    Verb(
        "LOCK.RELEASEALL",
        "token SESSION s",
        "Give back every lock of a grant.",
        _parse_release_all,
        1,
        ANY_NUMBER,
    ),
    Verb(
        "LOCK.META",
        "name token SESSION s json",
        "Change the metadata of a grant, or the value of an election.",
        _parse_meta,
        5,
        5,
    ),
    Verb(
        "LOCK.BREAK",
        "name token REASON text [NOW]",
        "Take a grant from its holder.",
        _parse_break,
        2,
        ANY_NUMBER,
    ),
)
