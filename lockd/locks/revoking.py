"""Taking a grant from its holder: BREAK and MAXHOLD (SAFETY P1, K7).

A client trusts its lease until its own deadline, so a grant that is taken from it goes on keeping
others out. It is passed on when the session has acknowledged the notice, which comes with its
keepalives, or has ended, or when the leader has counted the session's TTL since the revocation:
every keepalive that was answered before it has no effect by then. BREAK ... NOW does not wait.
"""

from lockd.locks.answers import GRANT_ENDED
from lockd.locks.commands import (
    MAX_HOLD,
    AcknowledgeNotices,
    Break,
    Changed,
    Command,
    FreeRevoked,
    Outcome,
    Refused,
)
from lockd.locks.events import EventKind
from lockd.locks.limits import check_name, over_limit
from lockd.locks.queues import Lock, Phase, Request
from lockd.locks.refusals import NO_SESSION
from lockd.locks.state import LockState


def break_grant(state: LockState, command: Command, operation: Break) -> Outcome:
    """Revoke a grant, of whichever session. 0: it isn't held, or is revoked already."""
    del command
    refusal = check_name("the reason", operation.reason, state.limits.reason_bytes_max)
    if refusal is not None:
        return refusal
    lock = state.locks.get(operation.lock)
    grant = None if lock is None else lock.holders.get(operation.token)
    if lock is None or grant is None:
        return Changed(0)
    if grant.phase is Phase.HELD:
        refusal = None if operation.now else _too_many_revoked(state, grant)
        if refusal is not None:
            return refusal
        _revoke(state, grant, lock, reason=f"broken: {operation.reason}", says_so=not operation.now)
    elif not operation.now:
        return Changed(0)
    if operation.now:
        pass_on(state, grant)
    return Changed(1)


def _too_many_revoked(state: LockState, grant: Request) -> Refused | None:
    """LIMIT when its session has to be told of too many others already."""
    at_most = state.limits.revoked_per_session_max
    found = state.sessions[grant.session].revoked
    if found < at_most:
        return None
    return over_limit("revoked grants of a session that are not passed on", found + 1, at_most)


def hold_over(state: LockState, grant: Request) -> None:
    """The grant is as old as its MAXHOLD."""
    _revoke(state, grant, grant.lock, reason=MAX_HOLD, says_so=True)


def _revoke(state: LockState, grant: Request, lock: Lock, *, reason: str, says_so: bool) -> None:
    state.revoke(grant, lock, reason=reason)
    if says_so:
        for held in grant.locks:
            state.note_event(EventKind.BREAKING, held, grant, reason)


def pass_on(state: LockState, grant: Request) -> None:
    """A revoked grant ends: its holder can't trust it any more, or nobody cares whether it does."""
    state.end_request(grant, GRANT_ENDED)


def acknowledge_notices(state: LockState, command: Command, operation: AcknowledgeNotices) -> Outcome:
    """The session knows of the ends up to that notice. Changed: how many it had not acknowledged."""
    session = state.sessions.get(command.session)
    if session is None or session.user != command.user:
        return NO_SESSION
    dropped = session.acknowledge(operation.number)
    for token in sorted(notice.token for notice in dropped):
        grant = state.revoked.get(token)
        if grant is not None:
            pass_on(state, grant)
    return Changed(len(dropped))


def free_revoked(state: LockState, command: Command, operation: FreeRevoked) -> Outcome:
    """Those that are left of the leader's choice end; their notices stay, for who still asks."""
    del command
    ended = 0
    for token in operation.tokens:
        grant = state.revoked.get(token)
        if grant is not None:
            pass_on(state, grant)
            ended += 1
    return Changed(ended)
