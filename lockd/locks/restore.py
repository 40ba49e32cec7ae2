"""The state that a cluster goes on from after a restore (SAFETY G2, C8).

A backup knows nothing of what was granted after it was taken, nor of what an earlier restore of the
same backup has granted. So what is restored is not the state but what must outlive it:

- the token counter, set to the larger of saved + 2^32 and unix seconds x 2^20. The first of these
  also grows by 2^20 for each second since the backup was taken. So both grow alike, and two restores
  of one backup at different seconds never issue the same token, whichever of the two counts;
- the cluster's id, and a new incarnation: peers and clients of before are refused;
- no session, no lock, no wait and no answer. A lease of before may still be trusted by its client,
  so nothing is granted for the longest TTL;
- one node. The ids of all others are used up, as if each had been removed: a data directory of
  before must not come back under its id, nor may an empty one. The restoring node may take an id that
  was a member's, for the new incarnation keeps its old directory out; it may not take the id of a
  node that was removed, which its cluster was told is never used again.
"""

import enum
from collections.abc import Iterable, Iterator

from lockd.ids import NODE_ID_MAX, TOKEN_MAX, FencingToken
from lockd.locks.commands import RegisterNode
from lockd.locks.snapshot import decode_state, encode_state
from lockd.locks.state import LockState, Member

_TOKENS_BEYOND_BACKUP = 2**32
_TOKENS_PER_SECOND = 2**20


class RestoreRefused(Exception):
    """The backup can't be restored so; the text says why, and what would do."""


class Clients(enum.Enum):
    """What the operator knows of the clients of the cluster that is restored."""

    MAY_RUN = "may run"
    """Some may still trust a lease: nothing is granted until the longest TTL has passed."""
    ARE_STOPPED = "are stopped"
    """None is left that was granted anything: locks are granted at once."""


def restored_state(
    data: bytes,
    *,
    now_unix_s: int,
    taken_unix_s: int,
    incarnation: str,
    node: int,
    instance: str,
    peer_address: str,
    former_nodes: Iterable[int] = (),
    clients: Clients = Clients.MAY_RUN,
) -> Iterator[bytes]:
    """The encoded state of a cluster of one, made from the encoded state of a backup.

    `former_nodes` are the members by the backup's configuration: founders that never registered are
    known to it alone. Raises CorruptData when the backup is damaged, and RestoreRefused when the clock
    is earlier than the backup's, when no tokens would be left, or when `node` was removed.
    """
    saved = decode_state(data)
    if not 0 < node <= NODE_ID_MAX:
        raise RestoreRefused(f"{node} is no id of a node: 1 to {NODE_ID_MAX}")
    if node in saved.removed:
        free = next(number for number in range(1, NODE_ID_MAX) if number not in saved.removed)
        raise RestoreRefused(
            f"node {node} was removed, and ids are not used again: take another id, such as {free}"
        )
    if incarnation == saved.incarnation:
        raise RestoreRefused("a restore needs an incarnation of its own")
    state = LockState(saved.limits)
    state.feature_level = saved.feature_level
    state.applied = saved.applied
    state.clock_ms = saved.clock_ms
    state.cluster = saved.cluster
    state.incarnation = incarnation
    state.token = restored_token(saved.token, now_unix_s=now_unix_s, taken_unix_s=taken_unix_s)
    # Numbers that only tell things apart go on, so that old ones in logs keep their meaning.
    state.revision = saved.revision
    state.sessions_opened = saved.sessions_opened
    state.tickets = saved.tickets
    state.timers.sequence = saved.timers.sequence
    state.nodes[node] = RegisterNode(node, instance, peer_address, "", "", "")
    state.members[node] = Member(peer_address, wants_vote=True)
    state.removed = _tombstones(saved, former_nodes)
    state.removed.pop(node, None)
    if clients is Clients.MAY_RUN:
        state.begin_quiet_period(saved.limits.ttl_ms_max)
    return encode_state(state)


def restored_token(saved: int, *, now_unix_s: int, taken_unix_s: int) -> FencingToken:
    """The counter after a restore: every later token is higher than any issued before (P2, G2).

    Raises RestoreRefused when the clock is earlier than the backup's, or when 2^32 tokens are not left.
    """
    if now_unix_s < taken_unix_s:
        raise RestoreRefused(
            f"this machine's clock is {taken_unix_s - now_unix_s} s earlier than the backup's: "
            "set it right, for fencing tokens must not be issued twice"
        )
    since_backup = (now_unix_s - taken_unix_s) * _TOKENS_PER_SECOND
    token = max(saved + _TOKENS_BEYOND_BACKUP + since_backup, now_unix_s * _TOKENS_PER_SECOND)
    if token > TOKEN_MAX - _TOKENS_BEYOND_BACKUP:
        raise RestoreRefused(
            f"fencing tokens would go on from {token}, and they end at {TOKEN_MAX}: is the clock right?"
        )
    return FencingToken(token)


def _tombstones(saved: LockState, former_nodes: Iterable[int]) -> dict[int, str]:
    former = {*former_nodes, *saved.nodes, *saved.members}
    buried = {node: "" for node in former if 0 < node <= NODE_ID_MAX}
    buried |= {node: saved.nodes[node].instance for node in buried if node in saved.nodes}
    return buried | saved.removed
