"""What lockd nodes say to each other, as bytes.

A connection carries one direction: who dialled sends, who accepted listens. It opens with a
`Hello` and its answer, `Welcome` or `Refusal`; after that come frames of the other kinds.

Every frame has the same header, so that a frame which strays (another cluster behind a reused
address, another instance under a known id, another version) is told by its first bytes
(SAFETY C8, C11):

    offset  size  field
    0       2     magic "lk"
    2       1     version of this layout
    3       1     kind
    4       4     length of the body, big-endian
    8       4     CRC-32 of the rest of the header, and of the body
    12      16    cluster id, zero while it is not known
    28      16    instance id of the sender
    44      ...   body: a MessagePack array
"""

import enum
import struct
import zlib
from dataclasses import dataclass
from typing import ClassVar

import msgspec

from lockd.ids import ClusterId, InstanceId
from lockd.locks.commands import AddMember, Command, Origin, Outcome, PromoteMember, RemoveMember

VERSION = 1
BODY_BYTES_MAX = 8 * 1024 * 1024
HEADER = struct.Struct(">2sBBII16s16s")
_MAGIC = b"lk"
_CHECKSUM_AT = 8
_AFTER_CHECKSUM = 12


class FrameError(Exception):
    """The peer sent something that is not one of our frames. The connection is closed."""


class Kind(enum.IntEnum):
    HELLO = 1
    WELCOME = 2
    REFUSAL = 3
    RAFT = 4
    FORWARD = 5
    FORWARD_REFUSED = 6
    READ_REQUEST = 7
    READ_REPLY = 8
    KEEPALIVE_REQUEST = 9
    KEEPALIVE_REPLY = 10
    SNAPSHOT_CHUNK = 11
    SNAPSHOT_ACK = 12
    STATE_HASH = 13
    OPERATOR_REQUEST = 14
    OPERATOR_REPLY = 15


class Hello(msgspec.Struct, array_like=True, frozen=True):
    """Who is calling. `receiver` is who it thinks it has reached; 0 asks whoever that is to answer.

    What asks so is an empty node that wants to join: nothing but the answer follows.
    """

    KIND: ClassVar[Kind] = Kind.HELLO
    sender: int
    receiver: int
    incarnation: str
    boot: int
    founders: tuple[int, ...]
    """The members that this node was founded with: nodes founded differently never meet. Empty for
    a node that joined a cluster that was there."""
    version: str
    address: str = ""
    """Where the caller is dialled: a follower that is behind may not know it yet."""


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """The connection may carry frames; or, to receiver 0, what it takes to join."""

    KIND: ClassVar[Kind] = Kind.WELCOME
    sender: int
    incarnation: str = ""
    addresses: tuple[tuple[int, str], ...] = ()
    """Where the members are dialled, as far as the acceptor knows."""
    founders: tuple[int, ...] = ()
    """The voters before the first entry: a node that joins replays the log from there."""


class Verdict(enum.IntEnum):
    """What a refusal means for the caller as it is."""

    NOT_NOW = 0
    """Maybe later, or elsewhere."""
    REPLACED = 1
    """Another instance is bound to its id (C8)."""
    REMOVED = 2
    """Its id was removed from the cluster, and is never used again (C8)."""
    CLUSTER_EXISTS = 3
    """It is empty and would found a cluster with nodes that have one."""


class Refusal(msgspec.Struct, array_like=True, frozen=True):
    """Why not."""

    KIND: ClassVar[Kind] = Kind.REFUSAL
    reason: str
    verdict: Verdict = Verdict.NOT_NOW


class Raft(msgspec.Struct, array_like=True, frozen=True):
    KIND: ClassVar[Kind] = Kind.RAFT
    message: bytes


class Forward(msgspec.Struct, array_like=True, frozen=True):
    """Commands for the leader's log, not yet stamped (T1). Their origin is the sending node."""

    KIND: ClassVar[Kind] = Kind.FORWARD
    commands: tuple[Command, ...]


class ForwardRefused(msgspec.Struct, array_like=True, frozen=True):
    """These operations were not appended anywhere."""

    KIND: ClassVar[Kind] = Kind.FORWARD_REFUSED
    origins: tuple[Origin, ...]


class ReadRequest(msgspec.Struct, array_like=True, frozen=True):
    KIND: ClassVar[Kind] = Kind.READ_REQUEST
    call: int


class ReadReply(msgspec.Struct, array_like=True, frozen=True):
    """Reads may be served once this index is applied; -1: not the leader, ask again."""

    KIND: ClassVar[Kind] = Kind.READ_REPLY
    call: int
    index: int


class KeepaliveRequest(msgspec.Struct, array_like=True, frozen=True):
    KIND: ClassVar[Kind] = Kind.KEEPALIVE_REQUEST
    call: int
    user: str
    session: str


class KeepaliveReply(msgspec.Struct, array_like=True, frozen=True):
    """What came of it; no outcome: not the leader, ask again."""

    KIND: ClassVar[Kind] = Kind.KEEPALIVE_REPLY
    call: int
    outcome: Outcome | None


class SnapshotChunk(msgspec.Struct, array_like=True, frozen=True):
    """A piece of a snapshot's file, and the InstallSnapshot that it belongs to (C9)."""

    KIND: ClassVar[Kind] = Kind.SNAPSHOT_CHUNK
    message: bytes
    file_bytes: int
    offset: int
    data: bytes


class SnapshotAck(msgspec.Struct, array_like=True, frozen=True):
    """So much of the snapshot (index, term) has arrived, from its beginning."""

    KIND: ClassVar[Kind] = Kind.SNAPSHOT_ACK
    index: int
    term: int
    received_bytes: int


class StateHash(msgspec.Struct, array_like=True, frozen=True):
    """What the sender's state hashed to when it had applied this entry (C11)."""

    KIND: ClassVar[Kind] = Kind.STATE_HASH
    index: int
    state_hash: str


class ChangeMembers(msgspec.Struct, array_like=True, frozen=True, tag="change_members"):
    """An operator's wish for the membership."""

    operation: AddMember | PromoteMember | RemoveMember
    force: bool


class Transfer(msgspec.Struct, array_like=True, frozen=True, tag="transfer"):
    """An operator's wish for another leader; 0: whoever is most up to date."""

    target: int


class OperatorRequest(msgspec.Struct, array_like=True, frozen=True):
    """What only the leader can do, asked of another node by `user`, whom that node has authorised (G11)."""

    KIND: ClassVar[Kind] = Kind.OPERATOR_REQUEST
    call: int
    user: str
    wish: ChangeMembers | Transfer


class OperatorReply(msgspec.Struct, array_like=True, frozen=True):
    """What came of it; no outcome: not the leader, ask again."""

    KIND: ClassVar[Kind] = Kind.OPERATOR_REPLY
    call: int
    outcome: Outcome | None


Frame = (
    Hello
    | Welcome
    | Refusal
    | Raft
    | Forward
    | ForwardRefused
    | ReadRequest
    | ReadReply
    | KeepaliveRequest
    | KeepaliveReply
    | SnapshotChunk
    | SnapshotAck
    | StateHash
    | OperatorRequest
    | OperatorReply
)

_encoder = msgspec.msgpack.Encoder()
_decoders: dict[int, msgspec.msgpack.Decoder[Frame]] = {
    Kind.HELLO: msgspec.msgpack.Decoder(Hello),
    Kind.WELCOME: msgspec.msgpack.Decoder(Welcome),
    Kind.REFUSAL: msgspec.msgpack.Decoder(Refusal),
    Kind.RAFT: msgspec.msgpack.Decoder(Raft),
    Kind.FORWARD: msgspec.msgpack.Decoder(Forward),
    Kind.FORWARD_REFUSED: msgspec.msgpack.Decoder(ForwardRefused),
    Kind.READ_REQUEST: msgspec.msgpack.Decoder(ReadRequest),
    Kind.READ_REPLY: msgspec.msgpack.Decoder(ReadReply),
    Kind.KEEPALIVE_REQUEST: msgspec.msgpack.Decoder(KeepaliveRequest),
    Kind.KEEPALIVE_REPLY: msgspec.msgpack.Decoder(KeepaliveReply),
    Kind.SNAPSHOT_CHUNK: msgspec.msgpack.Decoder(SnapshotChunk),
    Kind.SNAPSHOT_ACK: msgspec.msgpack.Decoder(SnapshotAck),
    Kind.STATE_HASH: msgspec.msgpack.Decoder(StateHash),
    Kind.OPERATOR_REQUEST: msgspec.msgpack.Decoder(OperatorRequest),
    Kind.OPERATOR_REPLY: msgspec.msgpack.Decoder(OperatorReply),
}


@dataclass(frozen=True, slots=True)
class Header:
    """A frame's first 44 bytes, checked."""

    kind: Kind
    length: int
    checksum: int
    seed: int
    """The checksum of the header alone, from which that of the body goes on."""
    cluster: ClusterId
    """"" while the sender does not know it."""
    instance: InstanceId


def encode(frame: Frame, *, cluster: ClusterId, instance: InstanceId) -> bytes:
    """The frame's bytes. Raises FrameError when the body is over BODY_BYTES_MAX."""
    body = _encoder.encode(frame)
    if len(body) > BODY_BYTES_MAX:
        raise FrameError(f"a frame of {len(body)} bytes is over the limit of {BODY_BYTES_MAX}")
    ids = bytes.fromhex(cluster or "00" * 16), bytes.fromhex(instance)
    checksum = zlib.crc32(body, _seed(HEADER.pack(_MAGIC, VERSION, frame.KIND, len(body), 0, *ids)))
    return HEADER.pack(_MAGIC, VERSION, frame.KIND, len(body), checksum, *ids) + body


def decode_header(data: bytes) -> Header:
    """Read exactly HEADER.size bytes. Raises FrameError."""
    magic, version, kind, length, checksum, cluster, instance = HEADER.unpack(data)
    if magic != _MAGIC:
        raise FrameError("not a lockd peer: the first bytes are foreign")
    if version != VERSION:
        raise FrameError(f"peer protocol version {version}; this node speaks {VERSION}")
    if length > BODY_BYTES_MAX:
        raise FrameError(f"a frame of {length} bytes is over the limit of {BODY_BYTES_MAX}")
    if kind not in _decoders:
        raise FrameError(f"unknown frame kind {kind}")
    known = ClusterId(cluster.hex()) if any(cluster) else ClusterId("")
    return Header(Kind(kind), length, checksum, _seed(data), known, InstanceId(instance.hex()))


def decode_body(header: Header, body: bytes) -> Frame:
    """Read the body that `header` announced. Raises FrameError."""
    if zlib.crc32(body, header.seed) != header.checksum:
        raise FrameError(f"{header.kind.name} frame fails its checksum")
    try:
        return _decoders[header.kind].decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise FrameError(f"{header.kind.name} frame does not decode: {error}") from error


def _seed(header: bytes) -> int:
    return zlib.crc32(header[_AFTER_CHECKSUM:], zlib.crc32(header[:_CHECKSUM_AT]))
