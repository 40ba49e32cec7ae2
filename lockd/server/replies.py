"""What the machine and the cluster know, as values for a reply. docs/PROTOCOL.md has the fields.

Session ids are their user's secret: nothing here shows one but to the session itself.
"""

from collections.abc import Iterable, Sequence

from lockd.ids import ClusterId, Fence, FencingToken, Incarnation
from lockd.locks.commands import Granted, Queued, Refused
from lockd.locks.views import HolderView, LockView
from lockd.protocol.resp import Reply, encode_error
from lockd.protocol.verbs import VERBS, Verb
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
        "mode": "exclusive",
        "fencing": 1,
        "revision": granted.revision,
        "ttl_ms": granted.ttl_ms,
        "repeat": int(granted.repeat),
    }


def queued(waiting: Queued, request: int | str) -> dict[str, Reply]:
    return {
        "status": "queued",
        "lock": waiting.lock,
        "session": waiting.session,
        "request": request,
        "position": waiting.position,
    }


def wait_ended(refused: Refused, *, lock: str, session: str, request: int | str) -> dict[str, Reply]:
    """A NOTIFY wait that ended without a grant, by its time or by what `code` says."""
    return {
        "lock": lock,
        "session": session,
        "request": request,
        "code": refused.code,
        "text": refused.text,
        "holder": refused.holder,
    }


def refusal(refused: Refused) -> bytes:
    return encode_error(refused.code, refused.text)


def lock(view: LockView) -> dict[str, Reply]:
    return {
        "lock": view.name,
        "status": view.status,
        "mode": view.mode,
        "holders": [_holder(holder) for holder in view.holders],
        "queue_length": view.queue_length,
        "held_ms": view.held_ms,
        "granted_last": view.granted_last,
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
    }


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


def hello(cluster: ClusterStatus, *, client: int, resp: int) -> dict[str, Reply]:
    """As Redis answers HELLO, and whose node this is."""
    return {
        "server": "lockd",
        "version": cluster.version,
        "proto": resp,
        "id": client,
        "mode": "standalone",
        "role": "master",
        "modules": [],
        "cluster": cluster.cluster,
        "incarnation": cluster.incarnation,
        "node": cluster.node,
        "protocol": PROTOCOL_VERSION,
    }


def info(cluster: ClusterStatus, section: str, *, clients: int) -> str:
    """INFO's text: `# Section`, then `name:value` lines. An unknown section is empty, as in Redis."""
    sections: dict[str, dict[str, object]] = {
        "server": {
            "lockd_version": cluster.version,
            "protocol": PROTOCOL_VERSION,
            "node": cluster.node,
            "feature_level": cluster.feature_level,
        },
        "clients": {"connected_clients": clients},
        "cluster": {
            "cluster": cluster.cluster,
            "incarnation": cluster.incarnation,
            "role": cluster.role,
            "leader": cluster.leader,
            "members": len(cluster.members),
        },
        "raft": {
            "term": cluster.term,
            "commit_index": cluster.commit_index,
            "last_applied": cluster.last_applied,
            "log_last": cluster.log_last,
        },
        "locks": {
            "locks": cluster.locks,
            "sessions": cluster.sessions,
            "revision": cluster.revision,
        },
    }
    wanted = sections if section in {"", "all", "default", "everything"} else {section}
    return "\r\n".join(
        f"# {name.capitalize()}\r\n" + "".join(f"{field}:{value}\r\n" for field, value in fields.items())
        for name, fields in sections.items()
        if name in wanted
    )


def command_info(names: Iterable[str] | None) -> list[Reply]:
    """COMMAND and COMMAND INFO: name, arity, flags, and that no word is a key; null for no such verb."""
    verbs = VERBS.values() if names is None else [_verb(name) for name in names]
    return [None if verb is None else [verb.name.lower(), verb.arity, [], 0, 0, 0] for verb in verbs]


def command_docs(names: Iterable[str] | None) -> dict[str, Reply]:
    """COMMAND DOCS: what each verb does; verbs that do not exist are left out."""
    verbs = VERBS.values() if names is None else [_verb(name) for name in names]
    return {
        verb.name.lower(): {
            "summary": verb.summary,
            "group": verb.name.split(".")[0].lower() if "." in verb.name else "connection",
            "usage": f"{verb.name} {verb.usage}".rstrip(),
        }
        for verb in verbs
        if verb is not None
    }


def _verb(name: str) -> Verb | None:
    return VERBS.get(name.replace("|", " ").encode())
