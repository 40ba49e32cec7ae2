"""What the server's and the client library's errors mean for the lease (SAFETY S9)."""

import re
from enum import Enum
from typing import NoReturn

from redis.exceptions import (
    AskError,
    AuthenticationError,
    AuthorizationError,
    BusyLoadingError,
    ClusterCrossSlotError,
    ClusterDownError,
    MaxConnectionsError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

from lockd.errors import AccessDenied, CorruptData, LockdError, OutcomeUnknown, Unavailable
from lockd.ids import Fence
from lockd_storage.errors import NotFenceable
from lockd_storage.fencing import judge_write
from lockd_storage.redis.stored import stored_mark

# Refused before the first write of a command or script, and likely to pass.
_PASSING = (ReadOnlyError, OutOfMemoryError, ClusterDownError, TryAgainError, BusyLoadingError)
_PASSING_CODES = ("NOREPLICAS", "MISCONF", "BUSY", "LOADING", "MASTERDOWN", "READONLY", "OOM", "CLUSTERDOWN")

# Redis 6.2 puts the place in front of the code: "@user_script: 1: -OOM command not allowed ...".
_PLACE = re.compile(r"^(?:Error running script \(call to \w+\): )?(?:@user_script: ?\d+: )*-?")
_DENIED = ("ACL failure in script", "The user executing the script can't run this command")


class Lost(Enum):
    """What a reply that did not come leaves open."""

    READ = "read"
    WRITE = "write"
    INSTALL = "install"
    UPKEEP = "upkeep"


def explain(error: RedisError, resource: str, fence: Fence | None, *, lost: Lost) -> NoReturn:
    """Raise what an answer, or the lack of one, means; the error itself where it is the command's own."""
    found = _meaning(error, resource, fence, lost=lost)
    if found is error:
        raise error
    raise found from error


def unreachable(error: Exception) -> LockdError:
    """What it means that no connection was to be had. Nothing was sent."""
    if isinstance(error, AuthenticationError | AuthorizationError):
        return AccessDenied(f"the server refused the user: {error}")
    if isinstance(error, MaxConnectionsError):
        return Unavailable(f"the client's connection pool is used up: {error}")
    return Unavailable(f"the server can't be reached: {error}")


def _meaning(
    error: RedisError, resource: str, fence: Fence | None, *, lost: Lost
) -> LockdError | CorruptData | RedisError:
    if isinstance(error, ResponseError | BusyLoadingError):
        return _answered(error, resource, fence)
    if isinstance(error, AuthenticationError | AuthorizationError):
        return AccessDenied(f"the server refused the user: {error}")
    if isinstance(error.__context__, ReadOnlyError):  # Sentinel's connections hang up when demoted
        return Unavailable(f"the server is no longer the primary: {error.__context__}")
    match lost:
        case Lost.READ:
            return Unavailable(f"the server did not answer: {error}")
        case Lost.INSTALL:
            return OutcomeUnknown(
                f"the reply to the install for {resource!r} was lost: install again ({error})"
            )
        case Lost.UPKEEP:
            return OutcomeUnknown(f"a reply was lost: call it again ({error})")
        case Lost.WRITE:
            return OutcomeUnknown(
                f"the reply to a write to {resource!r} was lost: it may have been applied, and was not sent"
                f" again ({error})"
            )


def _answered(error: RedisError, resource: str, fence: Fence | None) -> LockdError | CorruptData | RedisError:
    text = _PLACE.sub("", str(error), count=1)
    code, _, rest = text.partition(" ")
    if fence is not None and code in ("LFMISSING", "LFMARK"):
        try:
            stands = stored_mark(resource, None, rest.encode() if code == "LFMARK" else None)
            judge_write(stands, resource=resource, fence=fence)
        except (LockdError, CorruptData) as refusal:
            return refusal
    if code == "LFPARTLY":
        number, _, reason = rest.partition(" ")
        return OutcomeUnknown(
            f"the server refused command {number} of a batch for {resource!r} when it had applied those"
            f" before it: {reason}"
        )
    if isinstance(error, AskError | ClusterCrossSlotError):
        return NotFenceable("the server is a node of a cluster: give the fence a RedisCluster client")
    if isinstance(error, NoPermissionError) or any(words in text for words in _DENIED):
        return AccessDenied(f"the server refused the user: {text}")
    if isinstance(error, _PASSING) or code in _PASSING_CODES:
        return Unavailable(f"the server takes no writes now: {error}")
    return error
