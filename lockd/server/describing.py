"""What a node tells any Redis client about itself: HELLO, INFO, COMMAND."""

from collections.abc import Iterable

from lockd.protocol.resp import Reply, Simple
from lockd.protocol.usage import Argument
from lockd.protocol.verb import Verb
from lockd.protocol.verbs import VERBS
from lockd.server import replies
from lockd.server.port import ClusterStatus

_SINCE = "0.1.0"
"""Of every verb, so far."""


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
        "protocol": replies.PROTOCOL_VERSION,
    }


def info(cluster: ClusterStatus, section: str, *, clients: int, watches: int) -> str:
    """INFO's text: `# Section`, then `name:value` lines. An unknown section is empty, as in Redis."""
    sections: dict[str, dict[str, object]] = {
        "server": {
            "lockd_version": cluster.version,
            "protocol": replies.PROTOCOL_VERSION,
            "node": cluster.node,
            "feature_level": cluster.feature_level,
        },
        "clients": {"connected_clients": clients, "watches": watches},
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
            "waiters": cluster.waiters,
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
    return [None if verb is None else [_name(verb), verb.arity, [], 0, 0, 0] for verb in verbs]


def command_docs(names: Iterable[str] | None) -> dict[str, Reply]:
    """COMMAND DOCS: what each verb does and takes; verbs that do not exist are left out.

    A subcommand is told within its container, or alone when it is asked for. redis-cli makes its hints
    of this, and ends itself over a field of another type than Redis gives it.
    """
    containers = {verb.name.partition(" ")[0]: None for verb in VERBS.values()}
    docs: dict[str, Reply] = {}
    for name in containers if names is None else names:
        verb = _verb(name)
        inside = [verb for verb in VERBS.values() if verb.name.startswith(f"{name} ")]
        if verb is not None or inside:
            docs[name.lower()] = _docs(verb) | _subcommands(inside)
    return docs


def _docs(verb: Verb | None) -> dict[str, Reply]:
    """`verb` is None for a container that is no command of its own."""
    if verb is None:
        return {"summary": "A container of subcommands.", "since": _SINCE, "group": "connection"}
    described: dict[str, Reply] = {"summary": verb.summary, "since": _SINCE, "group": verb.group}
    if verb.arguments:
        described["arguments"] = [_argument(argument) for argument in verb.arguments]
    return described


def _subcommands(verbs: list[Verb]) -> dict[str, Reply]:
    return {"subcommands": {_name(verb): _docs(verb) for verb in verbs}} if verbs else {}


def _argument(argument: Argument) -> dict[str, Reply]:
    described: dict[str, Reply] = {"name": argument.name, "type": argument.kind}
    if argument.kind != "pure-token":
        described["display_text"] = argument.name
    if argument.token:
        described["token"] = argument.token
    flags = ("optional",) * argument.optional + ("multiple",) * argument.multiple
    if flags:
        described["flags"] = [Simple(flag) for flag in flags]
    if argument.arguments:
        described["arguments"] = [_argument(inner) for inner in argument.arguments]
    return described


def _name(verb: Verb) -> str:
    return verb.name.lower().replace(" ", "|")


def _verb(name: str) -> Verb | None:
    return VERBS.get(name.replace("|", " ").encode())
