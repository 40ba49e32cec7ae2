"""The end of who listens for a request: a connection or a node that is gone (SAFETY G4)."""

from lockd.locks.commands import Changed, Command, OriginGone, Outcome, Refused, RequestOrphaned
from lockd.locks.queues import Phase, Request
from lockd.locks.state import LockState


def origin_gone(state: LockState, command: Command, operation: OriginGone) -> Outcome:
    """Orphan the waits of a connection or a node (G4). `command` itself says nothing more.

    Waits only: what was granted before is not touched, for its holder most likely knows of it and
    keeps its session alive through another node. A grant whose answer was lost with the node is
    the client's to ask for again, or to cancel (K4).
    """
    del command
    node, boot = operation.node, operation.boot
    if operation.connection:
        gone = [
            request
            for request in state.waits.of_connection(node, boot, operation.connection)
            if operation.operation in (0, request.origin.operation)
        ]
    elif operation.boot_is_alive:
        gone = state.waits.of_other_boots(node, boot)
    else:
        gone = state.waits.of_boot(node, boot)
    orphan_all(state, gone)
    return Changed(len(gone))


def orphan_all(state: LockState, requests: list[Request]) -> None:
    """Orphan waits. One may end another's wait, or let it in: those are orphans all the same."""
    for request in requests:
        if request.phase is not Phase.ENDED:
            state.orphan(request)


def request_orphaned(state: LockState, command: Command, operation: RequestOrphaned) -> Outcome:
    """The answer to a request could not be written to the connection that the operation names.

    Nothing happens when the request has meanwhile come back over another connection: that one has
    the answer, and its client may rely on the grant (P1).
    """
    request = _find(state, command, operation)
    if request is None or not _came_by(request, command, operation):
        return Changed(0)
    state.orphan(request)
    return Changed(1)


def _came_by(request: Request, command: Command, operation: RequestOrphaned) -> bool:
    """Whether the connection that was gone is the one where the request came in last."""
    origin = request.origin
    gone = (command.origin.node, command.origin.boot, operation.connection)
    return (origin.node, origin.boot, origin.connection) == gone


def _find(state: LockState, command: Command, operation: RequestOrphaned) -> Request | None:
    """The live request that is meant, of that user: by its id, or the newest unnamed one that holds.

    Unnamed ones of other connections are let be: an owner may hold several units by several of them.
    """
    session = state.sessions.get(command.session)
    known: Request | Refused | None = None
    if isinstance(command.request, str) and command.request:
        known = state.private_answers.recall(command.user, command.request)
    elif session is not None and session.user == command.user:
        if isinstance(command.request, int) and command.request:
            known = session.answers.live.get(command.request)
        else:
            stands = session.stands.get((command.owner, operation.lock), {}).values()
            unnamed = (request for request in reversed(stands) if request.is_granted and not request.id)
            known = next((request for request in unnamed if _came_by(request, command, operation)), None)
    if not isinstance(known, Request) or operation.lock not in known.names:
        return None
    return known
