"""The names that every layer shares, as types.

Raft's numbers, the fencing token and the identities of cluster, instance and session are kept
apart by NewTypes, so that a term can't be passed where a token is meant. Nothing here draws an
identity: randomness belongs to the shell (SAFETY C1, G6).
"""

from dataclasses import dataclass
from typing import NewType

NodeId = NewType("NodeId", int)
"""A Raft member's number, 1 to 2**31-1; 0 stands for "none"."""

Term = NewType("Term", int)
LogIndex = NewType("LogIndex", int)

FencingToken = NewType("FencingToken", int)
"""Strictly increasing over all grants of a cluster, 1 <= token < 2**53 (SAFETY P2)."""

ClusterId = NewType("ClusterId", str)
"""32 lower-case hex digits, drawn by the first leader; "" while it is not known."""

Incarnation = NewType("Incarnation", str)
"""8 lower-case hex digits, drawn anew whenever a cluster is restored (SAFETY G2)."""

InstanceId = NewType("InstanceId", str)
"""32 lower-case hex digits, drawn when a data directory is created (SAFETY C8)."""

SessionId = NewType("SessionId", str)
"""32 lower-case hex digits: 128 random bits, a secret of the user that opened it."""

NO_NODE = NodeId(0)
NODE_ID_MAX = NodeId(2**31 - 1)
TOKEN_MAX = FencingToken(2**53 - 1)
LOCK_NAME_BYTES_MAX = 512
FENCE_TEXT_MAX = 128

_HEX = frozenset("0123456789abcdef")


def ascii_int(text: str, *, low: int, high: int) -> int:
    """Read a plain decimal number between `low` and `high`.

    Only ASCII digits with an optional leading minus count: Python's int() also takes digits of
    other scripts, " 7 " and "1_000" (SAFETY G6). Raises ValueError.
    """
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()) or len(digits) > 20:
        raise ValueError(f"{text[:40]!r} is not a whole number")
    number = int(text)
    if not low <= number <= high:
        raise ValueError(f"{number} is not between {low} and {high}")
    return number


def is_hex_id(text: str, digits: int) -> bool:
    """Tell whether `text` is exactly that many lower-case hex digits."""
    return len(text) == digits and _HEX.issuperset(text)


@dataclass(frozen=True, slots=True)
class Fence:
    """A fencing token with the cluster and incarnation it belongs to.

    Its text, `cluster/incarnation/token`, is the form in which a token leaves a process:
    in headers, environments and storage.
    """

    cluster: ClusterId
    incarnation: Incarnation
    token: FencingToken

    def __post_init__(self) -> None:
        if not is_hex_id(self.cluster, 32):
            raise ValueError(f"cluster {self.cluster[:40]!r} is not 32 hex digits")
        if not is_hex_id(self.incarnation, 8):
            raise ValueError(f"incarnation {self.incarnation[:40]!r} is not 8 hex digits")
        if not 1 <= self.token <= TOKEN_MAX:
            raise ValueError(f"token {self.token} is not between 1 and 2**53-1")

    def __str__(self) -> str:
        return f"{self.cluster}/{self.incarnation}/{self.token}"

    @classmethod
    def parse(cls, text: str) -> "Fence":
        """Read the text form. Raises ValueError that says what is wrong."""
        parts = text.split("/") if len(text) <= FENCE_TEXT_MAX else []
        if len(parts) != 3:
            raise ValueError(f"{text[:40]!r} is not a fence: expected cluster/incarnation/token")
        token = ascii_int(parts[2], low=1, high=TOKEN_MAX)
        return cls(ClusterId(parts[0]), Incarnation(parts[1]), FencingToken(token))
