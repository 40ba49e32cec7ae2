"""The queries of the cluster as a whole: its nodes, changes of them, copies of its state."""

from typing import Any

import msgspec

from lockd.client.queries import Query, Words, reading
from lockd.errors import OutcomeUnknown


class MemberInfo(msgspec.Struct, frozen=True):
    """A node of the cluster, as the node that answers knows it."""

    node: int
    peer: str
    client: str
    """This and `http` are "" until the node has started."""
    http: str
    instance: str
    voter: int
    """0 for a learner, which gets the log and has no vote."""
    wants_vote: int
    """1 for a learner that becomes a voter by itself once it has caught up."""
    match_index: int
    """What the leader knows to be on its disk; 0 when another node answers."""
    alive: int


class MembersReply(msgspec.Struct, frozen=True):
    cluster: str
    incarnation: str
    node: int
    """Who answers."""
    leader: int
    """0 when it is not known."""
    members: tuple[MemberInfo, ...]
    removed: tuple[int, ...]
    """Ids that are never used again."""


def status() -> Query[dict[str, Any]]:
    """Nodes, roles and log positions as the answering node knows them."""
    return Query(("CLUSTER.STATUS",), reading(dict[str, Any]), changes=False)


def members() -> Query[MembersReply]:
    """The members and the removed ids, as the answering node knows them."""
    return Query(("CLUSTER.MEMBERS",), reading(MembersReply), changes=False)


def add_member(node: int, address: str, *, learner: bool, force: bool) -> Query[int]:
    """1: it is a member, of whom more is to be heard with `members`."""
    options: Words = ("LEARNER",) if learner else ()
    return Query(("CLUSTER.ADD", node, address, *options, *_force(force)), reading(int))


def promote_member(node: int, *, force: bool) -> Query[int]:
    return Query(("CLUSTER.PROMOTE", node, *_force(force)), reading(int))


def remove_member(node: int, *, force: bool) -> Query[int]:
    """1: it is out, and its id is used up."""
    return Query(("CLUSTER.REMOVE", node, *_force(force)), reading(int))


def _force(force: bool) -> Words:  # noqa: FBT001 - one option as words
    return ("FORCE",) if force else ()


def transfer_leadership(node: int = 0) -> Query[int]:
    """1: another node leads; 0: that node led already. Node 0: the most up to date."""
    return Query(("CLUSTER.TRANSFER", *((node,) if node else ())), reading(int))


class BackupReply(msgspec.Struct, frozen=True):
    """A copy of the state that can be read in parts over the connection that it was made on."""

    id: str
    index: int
    term: int
    bytes: int


def make_backup() -> Query[BackupReply]:
    return Query(("CLUSTER.SNAPSHOT",), reading(BackupReply), changes=False)


def read_backup(backup: str, offset: int, count: int) -> Query[bytes]:
    """Up to `count` bytes of the copy."""
    return Query(("CLUSTER.SNAPSHOT", backup, offset, count), _as_bytes, changes=False)


def _as_bytes(reply: Any) -> bytes:
    """A bulk string that is no text, as the connection decodes it."""
    if not isinstance(reply, str):
        raise OutcomeUnknown("the node's answer can't be read: it is no bulk string")
    return reply.encode("utf-8", "surrogateescape")
