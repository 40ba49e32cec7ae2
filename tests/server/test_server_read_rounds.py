"""SAFETY C6, T3: a question that came after a round had begun is not answered by that round."""

from lockd.ids import LogIndex
from lockd.raft.node import ReadReady
from lockd.server.reads import Reads
from tests.raft.single import ready_leader, settle


def test_c6_a_round_answers_those_who_joined_it_or_an_earlier_one() -> None:
    raft = ready_leader()
    reads = Reads(boot=1, raft=raft, send=lambda _node, _frame: False, renew=lambda *_: None)
    answers: list[tuple[str, LogIndex | None]] = []
    for name in ("first", "second", "third"):
        reads.lead_round(lambda index, name=name: answers.append((name, index)))  # type: ignore[misc]
        settle(raft)  # the round begins: who comes now is of the next
    reads.on_rounds((ReadReady(2, LogIndex(1)),), dropped=False)
    assert answers == [("first", 1), ("second", 1)]
    reads.on_rounds((), dropped=True)
    assert answers[2:] == [("third", None)], "void, and asked again: another leads"
