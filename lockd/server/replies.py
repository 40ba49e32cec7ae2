"""What the machine and the cluster know, as values for a reply. docs/PROTOCOL.md has the fields.

Session ids are their user's secret: nothing here shows one but to the session itself.
"""

from collections.abc import Sequence

from lockd.ids import ClusterId, Fence, FencingToken, Incarnation
from lockd.locks.commands import Changed, Granted, Outcome, Queued, Refused, SessionOpened
from lockd.locks.events import LockEvent
from lockd.locks.views import HolderView, LockView, QueueView, SessionView, WaiterView
from lockd.protocol.resp import Reply
from lockd.server.port import Backup, ClusterStatus, MemberStatus

PROTOCOL_VERSION = 1
"""Of the verbs and their replies; what is compatible does not count it up."""


def grant(granted: Granted, cluster: ClusterId, incarnation: Incarnation) -> dict[str, Reply]:
    """A grant, for the one who asked for it."""
    return {
        "status": "granted",
        "lock": granted.lock,
        "session": granted.session,
        "token": granted.token,
        "fence": str(Fence(cluster, incarnation, FencingToken(granted.token))),
        "cluster": cluster,
        "incarnation": incarnation,
        "mode": granted.mode,
        "fencing": int(granted.is_fencing),
        "revision": granted.revision,
        "ttl_ms": granted.ttl_ms,
        "repeat": int(granted.repeat),
        "limit": granted.limit,
        "weight": granted.weight,
    }


def queued(waiting: Queued, request: int | str) -> dict[str, Reply]:
    return {
        "status": "queued",
        "lock": waiting.lock,
        "session": waiting.session,
        "request": request,
        "position": waiting.position,
    }


def told(outcome: Outcome) -> str:
    """What came of a command, for the log."""
    match outcome:
        case Refused(code, text):
            return f"{code} {text}"
        case Changed(count):
            return "done" if count else "there was nothing to do"
        case _:
            raise AssertionError(f"{outcome!r} is for its client's eyes")


def wait_ended(refused: Refused, *, lock: str, session: str, request: int | str) -> dict[str, Reply]:
    """A NOTIFY wait that ended without a grant, by its time or by what `code` says."""
    return {
        "lock": lock,
        "session": session,
        "request": request,
        "code": refused.code,
        "text": refused.text,
        "holder": refused.holder,
        "owner": refused.owner,
        "meta": refused.meta,
        "held_ms": refused.held_ms,
        "queue_length": refused.queue_length,
    }


def opened(session: SessionOpened) -> dict[str, Reply]:
    return {"session": session.session, "ttl_ms": session.ttl_ms}


def renewed(session: SessionOpened) -> dict[str, Reply]:
    """What was revoked, as far as it is not acknowledged: number, lock, token and reason of each (K7)."""
    ended = [(notice.number, notice.lock, notice.token, notice.reason) for notice in session.ended]
    return {"ttl_ms": session.ttl_ms, "ended": ended}


def lock(view: LockView) -> dict[str, Reply]:
    return {
        "lock": view.name,
        "status": view.status,
        "mode": view.mode,
        "holders": [_holder(holder) for holder in view.holders],
        "queue_length": view.queue_length,
        "held_ms": view.held_ms,
        "granted_last": view.granted_last,
        "limit": view.limit,
        "used": view.used,
        "delay_ms": view.delay_ms,
        "revision": view.revision,
    }


def _holder(view: HolderView) -> dict[str, Reply]:
    return {
        "session": view.session_number,
        "name": view.session,
        "owner": view.owner,
        "token": view.token,
        "revision": view.revision,
        "held_ms": view.held_ms,
        "meta": view.meta,
        "mode": view.mode,
        "weight": view.weight,
        "ending": view.ending,
    }


def queue(view: QueueView) -> dict[str, Reply]:
    """The head of a queue."""
    return {
        "lock": view.name,
        "revision": view.revision,
        "queue_length": view.length,
        "waiters": [_waiter(waiter) for waiter in view.waiters],
    }


def _waiter(view: WaiterView) -> dict[str, Reply]:
    return {
        "position": view.position,
        "session": view.session_number,
        "name": view.session,
        "owner": view.owner,
        "mode": view.mode,
        "weight": view.weight,
        "waiting_ms": view.waiting_ms,
        "meta": view.meta,
        "locks": view.locks,
    }


def sessions(views: Sequence[SessionView], *, count: int) -> dict[str, Reply]:
    """A page of sessions; `next` is what AFTER takes for the next one, null after the last."""
    return {
        "sessions": [_session(view) for view in views],
        "next": views[-1].number if len(views) == count else None,
    }


def _session(view: SessionView) -> dict[str, Reply]:
    return {
        "session": view.number,
        "name": view.name,
        "user": view.user,
        "ttl_ms": view.ttl_ms,
        "held": view.requests - view.waiting,
        "waiting": view.waiting,
        "meta": view.meta,
        "private": int(view.is_private),
    }


def event(told: LockEvent) -> dict[str, Reply]:
    """Something that happened to a grant, for those who watch."""
    return {
        "revision": told.revision,
        "event": told.kind.value,
        "lock": told.lock,
        "token": told.token,
        "mode": told.mode,
        "session": told.session,
        "name": told.name,
        "owner": told.owner,
        "meta": told.meta,
        "reason": told.reason,
    }


def gone_text(after: int) -> str:
    """Why a watch can't begin or go on after that revision."""
    return f"this node has not all events after revision {after} any more: list, and watch from there"


def watch_progress(prefix: str, revision: int) -> dict[str, Reply]:
    """A watch has been told everything up to `revision`, of which nothing was for it of late."""
    return {"prefix": prefix, "revision": revision}


def watch_lost(prefix: str, revision: int, text: str) -> dict[str, Reply]:
    """A watch is over, which had been told everything up to `revision`."""
    return {"prefix": prefix, "revision": revision, "text": text}


def locks(views: Sequence[LockView], *, count: int, revision: int) -> dict[str, Reply]:
    """A page of locks; `next` is what AFTER takes for the next one, null after the last."""
    return {
        "revision": revision,
        "locks": [lock(view) for view in views],
        "next": views[-1].name if len(views) == count else None,
    }


def status(cluster: ClusterStatus) -> dict[str, Reply]:
    return {
        "cluster": cluster.cluster,
        "incarnation": cluster.incarnation,
        "node": cluster.node,
        "role": cluster.role,
        "leader": cluster.leader,
        "term": cluster.term,
        "commit_index": cluster.commit_index,
        "last_applied": cluster.last_applied,
        "log_last": cluster.log_last,
        "members": [_member(member) for member in cluster.members],
        "locks": cluster.locks,
        "waiters": cluster.waiters,
        "sessions": cluster.sessions,
        "revision": cluster.revision,
        "version": cluster.version,
        "feature_level": cluster.feature_level,
        "protocol": PROTOCOL_VERSION,
    }


def members(cluster: ClusterStatus) -> dict[str, Reply]:
    return {
        "cluster": cluster.cluster,
        "incarnation": cluster.incarnation,
        "node": cluster.node,
        "leader": cluster.leader,
        "members": [_member(member) for member in cluster.members],
        "removed": list(cluster.removed),
    }


def backup(name: str, made: Backup) -> dict[str, Reply]:
    """A snapshot that is ready to be read in parts, under its name."""
    return {"id": name, "index": made.index, "term": made.term, "bytes": made.reader.size}


def _member(member: MemberStatus) -> dict[str, Reply]:
    return {
        "node": member.node,
        "peer": member.peer_address,
        "client": member.client_address,
        "http": member.http_address,
        "instance": member.instance,
        "voter": int(member.voter),
        "wants_vote": int(member.wants_vote),
        "match_index": member.match_index,
        "alive": int(member.alive),
    }
