"""Linearizable reads without the disk: ReadIndex (§8, thesis §6.4; SAFETY C6).

A read names a round. The round begins with the next Ready, when the leader notes its commit
index and sends heartbeats with the round's sequence number; it is confirmed when a quorum has
answered that number or a later one in the same term, for then no other leader had been elected
when the round began. Sequence numbers are drawn here and never reused, so that no late answer confirms a
later read (etcd#20418). Nothing rests on a clock: a process can be paused between any two lines.
"""

from lockd.raft.messages import HeartbeatReply
from lockd.raft.quorum import acknowledged_by_quorum
from lockd.raft.state import NotLeader, RaftState, ReadReady, Role


def join_round(state: RaftState) -> int:
    """Join the round that begins next and return its sequence. Raises NotLeader."""
    if state.role is not Role.LEADER:
        raise NotLeader(state.leader_id)
    if not state.read_is_joinable:
        state.read_sequence += 1
        state.read_is_joinable = True
    return state.read_sequence


def begin_round(state: RaftState) -> bool:
    """Begin the round that reads have joined, if any; return whether heartbeats are to carry it.

    Not before an entry of the own term is committed: until then the commit index may lag behind
    what an earlier leader has acknowledged (§8; etcd#7331, tikv#6340). While too many rounds are
    under way it keeps taking reads in.
    """
    if not state.read_is_joinable or not state.is_leader_ready:
        return False
    if len(state.read_rounds) >= state.config.read_rounds_max:
        return False
    state.read_is_joinable = False
    state.read_rounds.append(ReadReady(state.read_sequence, state.commit_index))
    own = state.progress.get(state.node_id)
    if own is not None:
        own.read_acknowledged = state.read_sequence
    confirm_rounds(state)
    return bool(state.read_rounds)


def handle_heartbeat_reply(state: RaftState, reply: HeartbeatReply) -> None:
    """Count a follower's answer for the round it names and all before it."""
    progress = state.progress.get(reply.sender)
    if progress is None or not state.read_rounds:
        return
    begun = state.read_rounds[-1].sequence
    if progress.read_acknowledged < reply.read_sequence <= begun:
        progress.read_acknowledged = reply.read_sequence
        confirm_rounds(state)


def confirm_rounds(state: RaftState) -> None:
    """Hand out the rounds that a quorum of the present configuration has answered."""
    configuration = state.configuration
    acknowledged = {peer: progress.read_acknowledged for peer, progress in state.progress.items()}
    confirmed = acknowledged_by_quorum(configuration.voters, configuration.voters_outgoing, acknowledged)
    while state.read_rounds and state.read_rounds[0].sequence <= confirmed:
        state.reads_confirmed.append(state.read_rounds.popleft())
