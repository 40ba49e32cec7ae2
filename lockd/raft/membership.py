"""Changes of the configuration (§6): who votes, who only listens, and the way from one to the next.

    simple        one voter more or less: majorities of before and after always overlap
    enter joint   any change: from here on both the old and the new voters must agree
    leave joint   the new voters alone

A change is an entry of the log. It takes effect when it is applied, as in etcd, not when it is
appended as in the paper: then a change that is truncated has never been in force. What that needs
is in lockd.raft.state and replication: one change pending at a time, the commit index on disk with
the entries, and no election with a change that is committed and not yet applied (SAFETY C7).
"""

import enum
from collections.abc import Iterable
from typing import Final

import msgspec

from lockd.errors import CorruptData
from lockd.ids import NO_NODE, NodeId
from lockd.raft.entries import Configuration


class ChangeKind(enum.IntEnum):
    """The numbers are in the log."""

    ADD_VOTER = 1
    ADD_LEARNER = 2
    """Also makes a learner of a voter."""
    REMOVE = 3
    UPDATE = 4
    """Changes no membership: the entry's context speaks of this node."""


class Transition(enum.IntEnum):
    """How a change goes through joint mode. The numbers are in the log."""

    AUTO = 0
    """A single change is simple; several enter a joint mode that the leader leaves by itself."""
    IMPLICIT = 1
    """Enters a joint mode that the leader leaves by itself."""
    EXPLICIT = 2
    """Enters a joint mode that is left by another change, an empty one."""


class Objection(enum.Enum):
    """Why a change can't be applied to a configuration."""

    IS_JOINT = "the configuration is joint: a simple change has to wait until it is left"
    ALREADY_JOINT = "the configuration is joint already"
    NOT_JOINT = "the configuration is not joint: there is nothing to leave"
    NO_VOTERS_BEFORE = "a configuration without voters can't become joint"
    NO_VOTERS_LEFT = "it would leave no voter"
    SEVERAL_VOTERS = "it changes more than one voter, which takes a joint configuration"


class MembershipError(Exception):
    """The change can't be applied; nothing was changed."""

    def __init__(self, objection: Objection) -> None:
        super().__init__(objection.value)
        self.objection = objection


class Change(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """One node's part in a change. Node 0 is nobody: such a change is passed over."""

    kind: ChangeKind
    node: NodeId


class ConfigurationChange(msgspec.Struct, array_like=True, frozen=True, forbid_unknown_fields=True):
    """The content of a CONFIGURATION entry. Without changes it leaves the joint mode."""

    changes: tuple[Change, ...]
    transition: Transition = Transition.AUTO
    context: bytes = b""
    """What the state machine is told along with it; opaque to Raft."""

    @property
    def leaves_joint(self) -> bool:
        return not self.changes and self.transition is Transition.AUTO


LEAVE_JOINT: Final = ConfigurationChange(())
_VERSION: Final = b"\x01"
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ConfigurationChange)


def encode_change(change: ConfigurationChange) -> bytes:
    """The payload of a CONFIGURATION entry: a version byte, then MessagePack (SAFETY C11)."""
    return _VERSION + _encoder.encode(change)


def decode_change(payload: bytes) -> ConfigurationChange:
    """Read a payload. Raises CorruptData, whose text tells a newer version from damage."""
    if payload[:1] != _VERSION:
        raise CorruptData(
            f"a membership change has version {payload[:1].hex() or 'none'}, and this node reads version 1: "
            "run the release that wrote this log, or a later one"
        )
    try:
        return _decoder.decode(memoryview(payload)[1:])
    except msgspec.DecodeError as error:
        raise CorruptData(f"a membership change of {len(payload)} bytes does not decode: {error}") from error


def apply_change(configuration: Configuration, change: ConfigurationChange) -> Configuration:
    """Return the configuration after a change, by whichever of the three ways it asks for.

    Raises MembershipError.
    """
    if change.leaves_joint:
        return leave_joint(configuration)
    if change.transition is Transition.AUTO and len(change.changes) == 1:
        return simple(configuration, change.changes)
    auto_leave = change.transition is not Transition.EXPLICIT
    return enter_joint(configuration, change.changes, auto_leave=auto_leave)


def simple(configuration: Configuration, changes: Iterable[Change]) -> Configuration:
    """Change at most one voter, and any learners, at once. Raises MembershipError."""
    if configuration.is_joint:
        raise MembershipError(Objection.IS_JOINT)
    after = _changed(configuration, changes)
    if len({*configuration.voters} ^ {*after.voters}) > 1:
        raise MembershipError(Objection.SEVERAL_VOTERS)
    return after


def enter_joint(
    configuration: Configuration, changes: Iterable[Change], *, auto_leave: bool
) -> Configuration:
    """Have both the present voters and those after the changes decide (§6). Raises MembershipError."""
    if configuration.is_joint:
        raise MembershipError(Objection.ALREADY_JOINT)
    if not configuration.voters:
        raise MembershipError(Objection.NO_VOTERS_BEFORE)
    joint = Configuration(
        configuration.voters, configuration.voters, configuration.learners, auto_leave=auto_leave
    )
    return _changed(joint, changes)


def leave_joint(configuration: Configuration) -> Configuration:
    """Let the incoming voters decide alone. Raises MembershipError."""
    if not configuration.is_joint:
        raise MembershipError(Objection.NOT_JOINT)
    learners = sorted({*configuration.learners, *configuration.learners_next})
    return Configuration(configuration.voters, learners=tuple(learners))


def _changed(configuration: Configuration, changes: Iterable[Change]) -> Configuration:
    voters, outgoing = {*configuration.voters}, {*configuration.voters_outgoing}
    learners, learners_next = {*configuration.learners}, {*configuration.learners_next}
    for change in changes:
        node = change.node
        if node == NO_NODE or change.kind is ChangeKind.UPDATE:
            continue
        for role in (voters, learners, learners_next):
            role.discard(node)
        if change.kind is ChangeKind.ADD_VOTER:
            voters.add(node)
        elif change.kind is ChangeKind.ADD_LEARNER:
            # Who still votes in the outgoing half can't be a learner before that is left.
            (learners_next if node in outgoing else learners).add(node)
    if not voters:
        raise MembershipError(Objection.NO_VOTERS_LEFT)
    return Configuration(
        tuple(sorted(voters)),
        tuple(sorted(outgoing)),
        tuple(sorted(learners)),
        tuple(sorted(learners_next)),
        configuration.auto_leave,
    )
