"""Elections: who may become leader, and when a leader must stop (§5.2, §5.4.1, §6, thesis §9.6).

Every election starts with a pre-vote, which changes nothing anywhere, so that a node which was
cut off comes back without raising the term. A node that hears a leader ignores candidates. A
leader that has not heard a quorum for an election timeout steps down.
"""

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import EntryKind
from lockd.raft.messages import RequestVote, RequestVoteReply
from lockd.raft.quorum import VoteResult, vote_result
from lockd.raft.state import RaftState, Role


def tick(state: RaftState) -> None:
    """Count a tick of one who doesn't lead; stand for election when the timeout is over."""
    state.election_elapsed += 1
    if state.election_elapsed >= state.election_timeout:
        campaign(state)


def campaign(state: RaftState) -> None:
    """Stand for election, if this node may.

    Learners and removed nodes never do, nor a node with a membership change that is committed and
    not yet in force here: it would ask a quorum that is none any more (SAFETY C7).
    """
    if state.role is Role.LEADER or not state.is_voter or state.has_unapplied_change:
        return
    if state.config.pre_vote:
        _start_pre_vote(state)
    else:
        _start_election(state, transfer=False)


def tick_leader(state: RaftState) -> None:
    """Count a tick of a leader; each election timeout it steps down unless it has heard a quorum.

    Followers that were silent are probed from now on, instead of filling their windows.
    """
    state.election_elapsed += 1
    if state.election_elapsed < state.config.election_ticks:
        return
    state.election_elapsed = 0
    state.transferee = NO_NODE  # It has not taken over in time: go on leading (thesis §3.10).
    if not state.config.check_quorum:
        return
    configuration = state.configuration
    heard = {peer: progress.active for peer, progress in state.progress.items()}
    if vote_result(configuration.voters, configuration.voters_outgoing, heard) is not VoteResult.WON:
        state.become_follower(state.term, NO_NODE)
        return
    for peer, progress in state.progress.items():
        if peer != state.node_id:
            if not progress.active:
                progress.become_probe()
            progress.active = False


def handle_timeout_now(state: RaftState) -> None:
    """Take over from the leader that asks for it: an election without pre-vote or waiting (thesis §3.10)."""
    if state.role is Role.FOLLOWER and state.is_voter and not state.has_unapplied_change:
        _start_election(state, transfer=True)


def ignores_candidate(state: RaftState, request: RequestVote) -> bool:
    """Tell whether the request is not even to be looked at, its term included (§6, last problem).

    Else a node that was removed or cut off could depose a working leader (SAFETY C5). A request
    that the leader itself asked for is looked at.
    """
    return state.config.check_quorum and state.hears_leader and not request.transfer


def handle_request_vote(state: RaftState, request: RequestVote) -> None:
    """Grant or refuse a vote or pre-vote; `request.term` is ours, or above it in a pre-vote.

    A vote may be granted again to the same candidate in the same term, as the first reply may
    be lost (SAFETY C4). Granting a vote restarts the election timer; a pre-vote changes nothing.
    """
    free = state.voted_for == NO_NODE and state.leader_id == NO_NODE
    ahead = request.pre_vote and request.term > state.term
    may_vote = free or ahead or state.voted_for == request.sender
    granted = may_vote and state.log.is_up_to_date(request.last_log_index, request.last_log_term)
    if not granted:
        _refuse(state, request)
        _learn_commit(state, request)
        return
    if not request.pre_vote:
        state.voted_for = request.sender
        state.election_elapsed = 0
    state.send(
        RequestVoteReply(state.node_id, request.sender, request.term, granted=True, pre_vote=request.pre_vote)
    )


def refuse_old_candidate(state: RaftState, request: RequestVote) -> None:
    """Tell a candidate of an old term the present one (§5.1)."""
    _refuse(state, request)


def handle_vote_reply(state: RaftState, reply: RequestVoteReply) -> bool:
    """Count an answer; return whether this node has now won and is to lead its term.

    Answers to another round than the one under way are dropped. Each voter's first answer
    counts, a repeat does not (SAFETY C4). A lost election leads back to follower, keeping the vote.
    """
    if not _answers_present_round(state, reply):
        return False
    if not reply.granted:
        _learn_commit(state, reply)
        if state.has_unapplied_change:  # The quorum that was asked is none any more.
            state.become_follower(state.term, NO_NODE)
            return False
    state.votes.setdefault(reply.sender, reply.granted)
    return _count_votes(state)


def _answers_present_round(state: RaftState, reply: RequestVoteReply) -> bool:
    if reply.pre_vote:
        # A grant carries the term that was asked for, a refusal the term of who refuses.
        expected = Term(state.term + 1) if reply.granted else state.term
        return state.role is Role.PRE_CANDIDATE and reply.term == expected
    return state.role is Role.CANDIDATE and reply.term == state.term


def _refuse(state: RaftState, request: RequestVote) -> None:
    state.send(
        RequestVoteReply(
            state.node_id,
            request.sender,
            state.term,
            granted=False,
            pre_vote=request.pre_vote,
            commit_index=state.commit_index,
            commit_term=state.log.term_at(state.commit_index),
        )
    )


def _learn_commit(state: RaftState, other: RequestVote | RequestVoteReply) -> None:
    """Commit a change of membership that the other knows to be committed, if it is in this log (§5.3).

    Without it a change can end all elections. A voter of the new configuration that has the change and
    does not know that it is committed still asks the voters of before, who may have longer logs and,
    being removed, stand no more; and the one who knows has a shorter log. (tikv/raft-rs does so for
    all entries, maybe_commit_by_vote. The paper, where a change is in force when it is appended, needs
    no such thing.)
    """
    first = LogIndex(state.commit_index + 1)
    if (
        state.role is not Role.LEADER
        and state.log.matches(other.commit_index, other.commit_term)
        and state.log.has_kind(EntryKind.CONFIGURATION, first, other.commit_index)
    ):
        state.commit_to(other.commit_index)


def _count_votes(state: RaftState) -> bool:
    configuration = state.configuration
    match vote_result(configuration.voters, configuration.voters_outgoing, state.votes):
        case VoteResult.PENDING:
            return False
        case VoteResult.LOST:
            state.become_follower(state.term, NO_NODE)
            return False
        case VoteResult.WON if state.role is Role.PRE_CANDIDATE:
            _start_election(state, transfer=False)
            return False
        case VoteResult.WON:
            return True


def _start_pre_vote(state: RaftState) -> None:
    state.become_pre_candidate()
    state.votes[state.node_id] = True
    term = Term(state.term + 1)
    for voter in _other_voters(state):
        state.send(_request_vote(state, voter, term, pre_vote=True))
    _count_votes(state)


def _start_election(state: RaftState, *, transfer: bool) -> None:
    state.become_candidate()
    # The own vote counts when it is on disk, like any other (SAFETY C2): it comes back with step().
    state.send(RequestVoteReply(state.node_id, state.node_id, state.term, granted=True, pre_vote=False))
    for voter in _other_voters(state):
        state.send(_request_vote(state, voter, state.term, transfer=transfer))


def _request_vote(
    state: RaftState, voter: NodeId, term: Term, *, pre_vote: bool = False, transfer: bool = False
) -> RequestVote:
    return RequestVote(
        state.node_id,
        voter,
        term,
        state.log.last_index,
        state.log.last_term,
        pre_vote,
        transfer,
        state.commit_index,
        state.log.term_at(state.commit_index),
    )


def _other_voters(state: RaftState) -> list[NodeId]:
    voters = {*state.configuration.voters, *state.configuration.voters_outgoing}
    return sorted(voters - {state.node_id})
