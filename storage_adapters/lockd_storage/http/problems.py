"""Refusals as HTTP replies, and back: one table for the service and for its callers.

    status  type                 raised in the service    raised in the caller
    428     outside-fence        OutsideFence             OutsideFence
    400     malformed-token      MalformedToken           MalformedToken
    412     stale-token          StaleToken               StaleToken
    409     not-installed        NotInstalled             NotInstalled
    409     wrong-cluster        WrongCluster             WrongCluster
    409     wrong-lock           WrongLock                WrongLock
    409     wrong-mode           WrongMode                WrongMode
    503     not-durable          NotDurable               NotDurable
    503     out-of-time          LeaseLost                Unavailable
    503     unavailable          Unavailable              Unavailable
    500     outcome-unknown      OutcomeUnknown           OutcomeUnknown

Each says that nothing of the transaction was written, but for `outcome-unknown`. LeaseLost in the
service means that the request's time was over, which says nothing about the caller's lease.
OutcomeUnknown is no 503 or 504, since proxies and clients repeat those by themselves. NotFenceable has
no line: it is a mistake in the service, so it ends in the framework's own 500 with a traceback.

The bodies are RFC 9457's, `application/problem+json`: type (with TYPE_PREFIX before it), title,
status, detail, and, where they are known, resource, presented and mark. The last two are numbers:
tokens are below 2**53, so every reader of JSON gets them exactly (research: pitfall 17).
"""

import json
from dataclasses import dataclass
from typing import Any

from lockd.errors import LeaseLost, LockdError, OutcomeUnknown, StaleToken, Unavailable
from lockd_storage.errors import (
    MalformedToken,
    NotDurable,
    NotInstalled,
    OutsideFence,
    WrongCluster,
    WrongLock,
    WrongMode,
)

PROBLEM_JSON = "application/problem+json"
TYPE_PREFIX = "tag:lockd,2026:fence/"
RETRY_AFTER_SECONDS = 1


@dataclass(frozen=True)
class Kind:
    """One line of the table."""

    slug: str
    status: int
    title: str
    raised: type[LockdError]


KINDS = (
    Kind("outside-fence", 428, "A lock's fencing token is required", OutsideFence),
    Kind("malformed-token", 400, "The Fencing-Token header can't be read", MalformedToken),
    Kind("stale-token", 412, "A newer holder of the lock has taken over", StaleToken),
    Kind("not-installed", 409, "The token was not installed before the write", NotInstalled),
    Kind("wrong-cluster", 409, "The token is of another lockd cluster", WrongCluster),
    Kind("wrong-lock", 409, "The resource is guarded by another lock", WrongLock),
    Kind("wrong-mode", 409, "The lease is not of a mode that may do this", WrongMode),
    Kind("not-durable", 503, "Too few copies of the store have confirmed the mark", NotDurable),
    Kind("out-of-time", 503, "The request took longer than it may; nothing was written", LeaseLost),
    Kind("unavailable", 503, "Nothing was written; the same call may succeed later", Unavailable),
    Kind("outcome-unknown", 500, "It is not known whether the write was applied", OutcomeUnknown),
)


def kind_of(error: LockdError) -> Kind | None:
    """The line for an error, or None if it isn't for the caller."""
    for cls in type(error).__mro__:
        for kind in KINDS:
            if kind.raised is cls:
                return kind
    return None


def problem_of(error: LockdError, kind: Kind) -> dict[str, Any]:
    """The body of the reply."""
    body: dict[str, Any] = {
        "type": TYPE_PREFIX + kind.slug,
        "title": kind.title,
        "status": kind.status,
        "detail": str(error),
    }
    for name in ("resource", "presented", "mark"):
        if hasattr(error, name):
            body[name] = getattr(error, name)
    return body


def error_in(content_type: str, body: bytes) -> LockdError | None:
    """The refusal that a reply tells, or None for one that tells none.

    A type of this family that is not known here, from a later version, is OutcomeUnknown: nothing may
    be concluded from it.
    """
    if content_type.partition(";")[0].strip().lower() != PROBLEM_JSON:
        return None
    try:
        problem = json.loads(body)
    except ValueError:
        return None
    if not isinstance(problem, dict):
        return None
    name = problem.get("type")
    if not isinstance(name, str) or not name.startswith(TYPE_PREFIX):
        return None
    return _error(name.removeprefix(TYPE_PREFIX), problem)


def _error(slug: str, problem: dict[str, Any]) -> LockdError:
    detail = str(problem.get("detail") or problem.get("title") or slug)
    resource = str(problem.get("resource", ""))
    raised = next((kind.raised for kind in KINDS if kind.slug == slug), None)
    if raised is StaleToken:
        presented, mark = problem.get("presented"), problem.get("mark")
        if isinstance(presented, int) and isinstance(mark, int):
            return StaleToken(detail, resource=resource, presented=presented, mark=mark)
        raised = None
    if raised is None:
        return OutcomeUnknown(
            f"the service replied with a problem that is not known here, {slug!r}: {detail}"
        )
    if raised is LeaseLost:
        return Unavailable(detail)
    if raised in (MalformedToken, Unavailable, OutcomeUnknown):
        return raised(detail)
    return raised(detail, resource=resource)  # type: ignore[call-arg]  # the rest take a resource
