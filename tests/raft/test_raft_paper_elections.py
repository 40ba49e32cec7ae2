"""What the extended Raft paper says of terms and elections (§5.1, §5.2, §5.4.1, §6), claim by claim."""

import random

import pytest

from lockd.ids import NO_NODE, LogIndex, NodeId, Term
from lockd.raft.entries import Configuration, HardState
from lockd.raft.log import Log
from lockd.raft.messages import (
    AppendEntries,
    AppendEntriesReply,
    Heartbeat,
    Message,
    RequestVote,
    RequestVoteReply,
)
from lockd.raft.node import RaftConfig, RaftNode, Role
from tests.raft.single import (
    ELECTION_TICKS,
    LATEST,
    ack_from,
    append_from,
    heartbeat_from,
    heartbeat_reply_from,
    make_candidate,
    make_leader,
    make_node,
    pre_vote_from,
    refusal_from,
    step,
    terms_of,
    tick,
    vote_from,
    vote_request,
)


def in_role(role: Role) -> RaftNode:
    """Return node 1 of three in that role, in term 1 (a follower: of node 2)."""
    node = make_node()
    match role:
        case Role.FOLLOWER:
            step(node, heartbeat_from(2, 1))
        case Role.PRE_CANDIDATE:
            step(node, heartbeat_from(2, 1))
            tick(node, LATEST)
        case Role.CANDIDATE:
            make_candidate(node)
        case Role.LEADER:
            make_leader(node)
    assert (node.role, node.term) == (role, 1)
    return node


@pytest.mark.parametrize("role", Role)
def test_5_1_who_sees_a_higher_term_takes_it_and_follows(role: Role) -> None:
    """§5.1: "if a candidate or leader discovers that its term is out of date, it immediately
    reverts to follower state"."""
    node = in_role(role)
    step(node, append_from(3, 2))
    assert (node.role, node.term, node.leader_id) == (Role.FOLLOWER, 2, 3)


@pytest.mark.parametrize("role", [Role.CANDIDATE, Role.LEADER])
@pytest.mark.parametrize(
    "reply",
    [
        vote_from(3, 5, granted=False),
        ack_from(3, 5, 0),
        refusal_from(3, 5, 0, (0, 0)),
        heartbeat_reply_from(3, 5),
    ],
)
def test_5_1_a_higher_term_in_a_reply_counts_as_well(role: Role, reply: Message) -> None:
    node = in_role(role)
    step(node, reply)
    assert (node.role, node.term, node.leader_id) == (Role.FOLLOWER, 5, NO_NODE)


@pytest.mark.parametrize("role", Role)
@pytest.mark.parametrize(
    "stale",
    [
        append_from(2, 1, terms=[1]),
        heartbeat_from(2, 1, commit=1),
        vote_request(2, 1, last=(9, 9)),
        vote_request(2, 1, last=(9, 9), pre_vote=True),
        vote_from(2, 1),
        ack_from(2, 1, 1),
        heartbeat_reply_from(2, 1, 1),
    ],
)
def test_5_1_a_stale_term_is_rejected(role: Role, stale: Message) -> None:
    """§5.1: "If a server receives a request with a stale term number, it rejects the request"."""
    node = in_role(role)
    while node.term < 3:
        step(node, append_from(2, node.term + 1))
        if role is not Role.FOLLOWER:
            make_leader(node) if role is Role.LEADER else tick(node, LATEST)
        if role is Role.CANDIDATE:
            step(node, pre_vote_from(2, node.term + 1))
    assert node.role is role
    before = (node.role, node.term, node.leader_id, node.commit_index, terms_of(node))
    for answer in step(node, stale):
        assert answer.term == node.term
        assert isinstance(answer, RequestVoteReply | AppendEntriesReply)
        assert not (answer.granted if isinstance(answer, RequestVoteReply) else answer.success)
    assert (node.role, node.term, node.leader_id, node.commit_index, terms_of(node)) == before


def test_5_2_servers_start_as_followers() -> None:
    """§5.2: "When servers start up, they begin as followers"."""
    node = make_node([1, 2], term=3)
    assert (node.role, node.term, node.leader_id) == (Role.FOLLOWER, 3, NO_NODE)


def test_5_2_a_leader_sends_heartbeats_to_all_at_each_interval() -> None:
    """§5.2: "Leaders send periodic heartbeats to all followers in order to maintain their authority"."""
    node = make_node(config=RaftConfig(NodeId(1), heartbeat_ticks=3))
    make_leader(node)
    assert tick(node, 2) == []
    sent = tick(node)
    assert [type(message) for message in sent] == [Heartbeat, Heartbeat]
    assert [(message.receiver, message.term) for message in sent] == [(2, 1), (3, 1)]


def test_5_2_a_follower_that_hears_nothing_begins_an_election() -> None:
    """§5.2 and thesis §9.6: after the timeout a pre-vote, which leaves term and vote alone."""
    node = make_node([1, 1], term=4)
    assert tick(node, LATEST - 1) == []
    sent = tick(node)
    assert (node.role, node.term) == (Role.PRE_CANDIDATE, 4)
    expected = [vote_request(1, 5, last=(2, 1), pre_vote=True, receiver=peer) for peer in (2, 3)]
    assert sent == expected


def test_5_2_a_candidate_raises_its_term_votes_for_itself_and_asks_all_others() -> None:
    """§5.2: "a follower increments its current term and transitions to candidate state. It then
    votes for itself and issues RequestVote RPCs in parallel to each of the other servers"."""
    node = make_node([1, 1], term=4)
    sent = make_candidate(node)
    assert (node.role, node.term) == (Role.CANDIDATE, 5)
    assert sent == [vote_request(1, 5, last=(2, 1), receiver=peer) for peer in (2, 3)]
    # Its own vote is one of the two that three voters need.
    step(node, vote_from(2, 5))
    assert node.role is Role.LEADER


def test_5_2_a_candidate_whose_election_comes_to_nothing_starts_a_new_one() -> None:
    """§5.2: "each candidate will time out and start a new election by incrementing its term"."""
    node = make_node()
    make_candidate(node)
    sent = tick(node, LATEST)
    assert sent == [vote_request(1, 2, pre_vote=True, receiver=peer) for peer in (2, 3)]
    step(node, pre_vote_from(3, 2))
    assert (node.role, node.term) == (Role.CANDIDATE, 2)


@pytest.mark.parametrize(
    ("voters", "answers", "expected"),
    [
        (1, {}, Role.LEADER),
        (3, {2: True, 3: True}, Role.LEADER),
        (3, {2: True}, Role.LEADER),
        (5, {2: True, 3: True, 4: True, 5: True}, Role.LEADER),
        (5, {2: True, 3: True, 4: True}, Role.LEADER),
        (5, {2: True, 3: True}, Role.LEADER),
        (3, {2: False, 3: False}, Role.FOLLOWER),
        (5, {2: False, 3: False, 4: False, 5: False}, Role.FOLLOWER),
        (5, {2: True, 3: False, 4: False, 5: False}, Role.FOLLOWER),
        (3, {}, Role.CANDIDATE),
        (5, {2: True}, Role.CANDIDATE),
        (5, {2: False, 3: False}, Role.CANDIDATE),
        (5, {}, Role.CANDIDATE),
    ],
)
def test_5_2_a_candidate_wins_with_the_votes_of_a_majority(
    voters: int, answers: dict[int, bool], expected: Role
) -> None:
    """§5.2: "A candidate wins an election if it receives votes from a majority of the servers in
    the full cluster for the same term"."""
    node = make_node(voters=range(1, voters + 1))
    if voters == 1:
        tick(node, LATEST)
    else:
        make_candidate(node)
    step(node, *(vote_from(voter, 1, granted=granted) for voter, granted in answers.items()))
    assert (node.role, node.term) == (expected, 1)


@pytest.mark.parametrize(("voted_for", "granted"), [(NO_NODE, True), (2, True), (3, False)])
def test_5_2_a_vote_goes_to_at_most_one_candidate_in_a_term(voted_for: int, granted: bool) -> None:
    """§5.2: "Each server will vote for at most one candidate in a given term, on a
    first-come-first-served basis"."""
    node = make_node(term=1, voted_for=voted_for)
    assert step(node, vote_request(2, 1)) == [vote_from(1, 1, granted=granted, receiver=2)]


@pytest.mark.parametrize("role", [Role.PRE_CANDIDATE, Role.CANDIDATE])
@pytest.mark.parametrize("term", [1, 2])
@pytest.mark.parametrize("heartbeat", [True, False])
def test_5_2_a_candidate_that_hears_a_leader_of_its_term_or_later_follows(
    role: Role, term: int, heartbeat: bool
) -> None:
    """§5.2: "If the leader's term is at least as large as the candidate's current term, then the
    candidate recognizes the leader as legitimate and returns to follower state"."""
    node = make_node()
    if role is Role.PRE_CANDIDATE:
        step(node, vote_request(3, 1))
        tick(node, LATEST)
    else:
        make_candidate(node)
    step(node, heartbeat_from(2, term) if heartbeat else append_from(2, term))
    assert (node.role, node.term, node.leader_id) == (Role.FOLLOWER, term, 2)


@pytest.mark.parametrize("role", [Role.FOLLOWER, Role.PRE_CANDIDATE, Role.CANDIDATE])
def test_5_2_election_timeouts_are_drawn_anew_from_a_fixed_interval(role: Role) -> None:
    """§5.2: "election timeouts are chosen randomly from a fixed interval"; here 10 to 19 ticks,
    drawn by the source that is handed in and by nothing else (SAFETY C1)."""
    source = random.Random(7)
    asked: list[tuple[int, int]] = []

    def draw(low: int, high: int) -> int:
        asked.append((low, high))
        return source.randint(low, high)

    node = RaftNode(
        RaftConfig(NodeId(1)),
        configuration=Configuration((NodeId(1), NodeId(2), NodeId(3))),
        hard_state=HardState(Term(0), NO_NODE, LogIndex(0)),
        log=Log(),
        draw=draw,
    )
    waited = set()
    for _ in range(300):
        step(node, append_from(2, node.term + 1))
        if role is not Role.FOLLOWER:
            while not tick(node):
                pass
        if role is Role.CANDIDATE:
            step(node, pre_vote_from(2, node.term + 1))
        assert node.role is role
        ticks = 1
        while not tick(node):
            ticks += 1
        waited.add(ticks)
    assert waited == set(range(ELECTION_TICKS, 2 * ELECTION_TICKS))
    assert set(asked) == {(ELECTION_TICKS, 2 * ELECTION_TICKS - 1)}


def test_5_2_random_timeouts_keep_candidates_apart() -> None:
    """§5.2: "This spreads out the servers so that in most cases only a single server will time out"."""
    source = random.Random(11)
    conflicts = 0
    for _ in range(300):
        nodes = [
            RaftNode(
                RaftConfig(NodeId(i)),
                configuration=Configuration((NodeId(1), NodeId(2), NodeId(3))),
                hard_state=HardState(Term(0), NO_NODE, LogIndex(0)),
                log=Log(),
                draw=source.randint,
            )
            for i in (1, 2, 3)
        ]
        standing = 0
        while not standing:
            standing = sum(bool(tick(node)) for node in nodes)
        conflicts += standing > 1
    assert conflicts < 0.3 * 300


def test_5_4_1_a_request_for_votes_says_how_up_to_date_the_log_is() -> None:
    """§5.4.1: "the RPC includes information about the candidate's log"."""
    for terms, last in (([1], (1, 1)), ([1, 2], (2, 2)), ([1, 1, 3], (3, 3))):
        node = make_node(terms)
        sent = make_candidate(node)
        assert {type(message) for message in sent} == {RequestVote}
        assert sent == [vote_request(1, node.term, last=last, receiver=peer) for peer in (2, 3)]


@pytest.mark.parametrize("pre_vote", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs", "granted"),
    [
        # Logs that end in the same term: the longer is more up to date.
        ([1], (1, 1), True),
        ([1], (2, 1), True),
        ([1, 1], (1, 1), False),
        # Else the later term is, whatever the length.
        ([1], (1, 2), True),
        ([1], (2, 2), True),
        ([1, 1], (1, 2), True),
        ([2], (1, 1), False),
        ([2], (2, 1), False),
        ([1, 2], (1, 1), False),
    ],
)
def test_5_4_1_a_vote_is_denied_to_a_log_less_up_to_date(
    ours: list[int], theirs: tuple[int, int], granted: bool, pre_vote: bool
) -> None:
    """§5.4.1: "the voter denies its vote if its own log is more up-to-date than that of the candidate"."""
    node = make_node(ours, term=3)
    (reply,) = step(node, vote_request(2, 4, last=theirs, pre_vote=pre_vote))
    assert isinstance(reply, RequestVoteReply)
    assert (reply.granted, reply.pre_vote) == (granted, pre_vote)


def test_5_4_1_only_a_granted_vote_restarts_the_timer() -> None:
    """Figure 2, followers: a timeout "without receiving AppendEntries RPC from current leader or
    granting vote to candidate"; a pre-vote is no vote (hashicorp/raft#609)."""
    node = make_node(term=1)
    tick(node, LATEST - 1)
    step(node, vote_request(2, 2, pre_vote=True))
    assert tick(node) != []
    granting = make_node(term=1)
    tick(granting, LATEST - 1)
    step(granting, vote_request(2, 1))
    assert tick(granting, LATEST - 1) == []


def test_6_a_server_that_hears_a_leader_ignores_candidates() -> None:
    """§6: "servers disregard RequestVote RPCs when they believe a current leader exists [...]
    within the minimum election timeout"; the term is not taken over either."""
    node = in_role(Role.FOLLOWER)
    tick(node, ELECTION_TICKS - 1)
    for pre_vote in (True, False):
        assert step(node, vote_request(3, 9, last=(9, 8), pre_vote=pre_vote)) == []
    assert (node.term, node.leader_id) == (1, 2)
    tick(node)
    assert step(node, vote_request(3, 9, last=(9, 8))) == [vote_from(1, 9, receiver=3)]


def test_6_a_leader_ignores_candidates_while_it_has_its_quorum() -> None:
    node = in_role(Role.LEADER)
    assert step(node, vote_request(3, 9, last=(9, 8))) == []
    assert (node.role, node.term) == (Role.LEADER, 1)


def test_3_10_an_election_that_the_leader_asked_for_is_not_ignored() -> None:
    """Thesis §3.10: the target of a transfer may be voted for at once."""
    node = in_role(Role.FOLLOWER)
    assert step(node, vote_request(3, 2, transfer=True)) == [vote_from(1, 2, receiver=3)]


def test_9_6_a_pre_vote_changes_nothing_at_the_voter() -> None:
    """Thesis §9.6: several may be granted in a term, and the vote is still free after it."""
    node = make_node(term=1)
    assert step(node, vote_request(2, 2, pre_vote=True)) == [pre_vote_from(1, 2, receiver=2)]
    assert step(node, vote_request(3, 2, pre_vote=True)) == [pre_vote_from(1, 2, receiver=3)]
    assert (node.term, node.role) == (1, Role.FOLLOWER)
    assert step(node, vote_request(3, 2)) == [vote_from(1, 2, receiver=3)]


def test_9_6_no_term_is_raised_without_a_quorum_that_would_vote() -> None:
    """Thesis §9.6: a server that is cut off does not raise its term, however long it is alone."""
    node = in_role(Role.FOLLOWER)
    sent = tick(node, 50 * ELECTION_TICKS)
    assert (node.role, node.term) == (Role.PRE_CANDIDATE, 1)
    assert all(isinstance(message, RequestVote) and message.pre_vote for message in sent)


def test_9_6_a_lost_pre_vote_leads_back_to_follower() -> None:
    node = in_role(Role.PRE_CANDIDATE)
    step(node, pre_vote_from(2, 1, granted=False), pre_vote_from(3, 1, granted=False))
    assert (node.role, node.term) == (Role.FOLLOWER, 1)


def test_6_2_a_leader_that_hears_no_quorum_for_an_election_timeout_steps_down() -> None:
    """Thesis §6.2: "a leader in Raft steps down if an election timeout elapses without a
    successful round of heartbeats to a majority of its cluster"."""
    node = in_role(Role.LEADER)
    for _ in range(3):
        tick(node, ELECTION_TICKS - 1)
        step(node, heartbeat_reply_from(3, 1))
        tick(node)
        assert node.role is Role.LEADER
    tick(node, ELECTION_TICKS)
    assert (node.role, node.term, node.leader_id) == (Role.FOLLOWER, 1, NO_NODE)


def test_learners_are_sent_entries_and_never_stand_or_count() -> None:
    """Thesis §4.2.1: servers without a vote."""
    learner = make_node(voters=(2, 3), learners=(1,))
    assert tick(learner, 10 * ELECTION_TICKS) == []
    assert learner.role is Role.FOLLOWER
    leader = make_node(voters=(1, 2), learners=(3,))
    sent = make_leader(leader)
    assert {message.receiver for message in sent if isinstance(message, AppendEntries)} == {2, 3}
    step(leader, ack_from(3, 1, 1))
    assert leader.commit_index == 0
    step(leader, ack_from(2, 1, 1))
    assert leader.commit_index == 1
