"""SAFETY C2, D1: what rests on a write leaves with that write, and not with the one before it."""

from lockd.disk.record import LogWrite
from lockd.ids import LogIndex, NodeId, Term
from lockd.raft.messages import Message
from lockd.server.writes import Writes
from tests.raft.single import ack_from


class Submitted:
    """A disk that has been given writes and has told of none yet."""

    def __init__(self) -> None:
        self.tickets: list[int] = []

    def submit(self, write: LogWrite) -> None:
        self.tickets.append(write.ticket)


def test_c2_what_waits_for_a_write_leaves_when_that_one_is_durable_and_not_before() -> None:
    disk = Submitted()
    sent: list[Message] = []
    durable: list[tuple[Term, LogIndex]] = []
    told: list[int] = []
    writes = Writes(disk, persisted=lambda term, index: durable.append((term, index)), send=sent.extend)
    acks = [ack_from(1, 1, index, receiver=2) for index in (1, 2, 3)]
    for number, ack in enumerate(acks, start=1):
        writes.submit(
            LogWrite(writes.next_ticket()),
            last=(Term(1), LogIndex(number)),
            messages=(ack,),
            notify=(lambda number=number: told.append(number),),  # type: ignore[misc]
        )
    for count, ticket in enumerate(disk.tickets, start=1):
        writes.on_durable(ticket)
        assert (sent, told) == (acks[:count], [1, 2, 3][:count])
        assert durable == [(1, index) for index in (1, 2, 3)[:count]]


def test_c2_what_rests_on_no_write_of_its_own_waits_for_the_last_one() -> None:
    disk = Submitted()
    sent: list[Message] = []
    writes = Writes(disk, persisted=lambda _term, _index: None, send=sent.extend)
    ack = ack_from(1, 1, 1, receiver=NodeId(2))
    for _ in range(2):
        writes.submit(LogWrite(writes.next_ticket()))
    writes.send_after_all((ack,))
    writes.on_durable(disk.tickets[0])
    assert sent == []
    writes.on_durable(disk.tickets[1])
    assert sent == [ack]
    writes.send_after_all((ack,))
    assert sent == [ack, ack]
