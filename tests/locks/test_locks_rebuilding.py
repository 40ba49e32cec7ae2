"""C9: records that decode and contradict each other make no state."""

import struct
from collections.abc import Callable, Iterable

import msgspec
import pytest

from lockd.errors import CorruptData
from lockd.locks.commands import Notice
from lockd.locks.records import (
    AnswerRecord,
    Head,
    LockRecord,
    MemberRecord,
    NodeRecord,
    PrivateAnswerRecord,
    Record,
    RemovedRecord,
    RequestRecord,
    SessionRecord,
    records_of,
)
from lockd.locks.snapshot import VERSION, decode_state
from tests.locks.test_locks_snapshot import busy_cluster, sealed

Records = list[Record]
Change = Callable[[Records], Records]


def body_of(records: Iterable[Record], *, after: bytes = b"") -> bytes:
    """A whole snapshot with these records, whatever they say."""
    frame = msgspec.msgpack.encode(list(records))
    start = struct.pack(">6sH", b"lockst", VERSION)
    return sealed(start + struct.pack(">I", len(frame)) + frame + bytes(4) + after)


def first(kind: type, **fields: object) -> Change:
    """Change the first record of that kind."""

    def change(records: Records) -> Records:
        at = next(at for at, record in enumerate(records) if isinstance(record, kind))
        return [*records[:at], msgspec.structs.replace(records[at], **fields), *records[at + 1 :]]

    return change


def doubled(kind: type) -> Change:
    """Have the first record of that kind twice."""

    def change(records: Records) -> Records:
        at = next(at for at, record in enumerate(records) if isinstance(record, kind))
        return [*records[: at + 1], *records[at:]]

    return change


def without(kind: type) -> Change:
    return lambda records: [record for record in records if not isinstance(record, kind)]


def each_waiter(**fields: object) -> Change:
    """Change all that wait."""

    def change(records: Records) -> Records:
        return [
            msgspec.structs.replace(record, **fields)
            if isinstance(record, RequestRecord) and not record.token
            else record
            for record in records
        ]

    return change


def revoked(**fields: object) -> Change:
    """Change the grants that are revoked."""

    def change(records: Records) -> Records:
        return [
            msgspec.structs.replace(record, **fields)
            if isinstance(record, RequestRecord) and record.revoked
            else record
            for record in records
        ]

    return change


def test_the_records_themselves_are_taken() -> None:
    body = body_of(records_of(busy_cluster().machine.state))
    assert body_of(records_of(decode_state(body))) == body


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda _: [], "does not begin with its head"),
        (without(Head), "does not begin with its head"),
        (doubled(Head), "two heads"),
        (lambda records: [records[0], *records[:0:-1]], "lacks lock or session|out of order"),
        (doubled(NodeRecord), "out of order"),
        (doubled(MemberRecord), "out of order"),
        (first(RemovedRecord, node=1), "node 1 is registered and removed"),
        (first(RemovedRecord, node=4), "node 4 is a member and removed"),
        (doubled(SessionRecord), "stands twice"),
        (first(SessionRecord, number=10**6), "was never opened"),
        (first(SessionRecord, ttl_ms=10**9), "a TTL out of its range"),
        (first(SessionRecord, silent_ms=2_001), "a silence out of its range"),
        (without(SessionRecord), "without its session"),
        (first(AnswerRecord, request=0), "at or under the floor"),
        (first(AnswerRecord, request=10**6), "out of order"),
        (first(PrivateAnswerRecord, ended_ms=10**9), "an answer of the future"),
        (doubled(PrivateAnswerRecord), "a UUID that stands twice"),
        (without(LockRecord), "lacks lock or session"),
        (without(RequestRecord), "nobody holds or wants"),
        (first(LockRecord, queued=0), "place"),
        (first(RequestRecord, session=10**6), "lacks lock or session"),
        (first(RequestRecord, ticket=10**6), "was never drawn"),
        (first(RequestRecord, token=10**6), "was never drawn"),
        (first(RequestRecord, revision=10**6), "a revision that never was"),
        (first(RequestRecord, granted_ms=10**9), "a grant of the future"),
        (first(RequestRecord, wait_timer=1), "a holder that waits"),
        (first(RequestRecord, orphan_due_ms=10**9), "a deadline without its timer"),
        (doubled(RequestRecord), "stands twice"),
        (each_waiter(token=1), "a holder that waits"),
        (each_waiter(token=1, places=(), wait_timer=0, wait_due_ms=0), "stands twice|more holders"),
        (each_waiter(places=()), "without its places"),
        (each_waiter(hold_timer=10**6), "held too long"),
        (first(RequestRecord, locks=(10**6,)), "lacks lock or session"),
        (first(RequestRecord, locks=(0, 0)), "locks of a request out of order"),
        (first(RequestRecord, mode="semaphore"), "a mode of another kind"),
        (first(RequestRecord, weight=2), "too heavy"),
        (first(RequestRecord, asked_ms=10**9), "a request of the future"),
        (revoked(notice=10**6), "nobody is told of"),
        (revoked(hold_timer=1), "nobody is told of"),
        (first(LockRecord, granted_last=10**6), "was never drawn"),
        (first(LockRecord, granted_last=0), "younger than its lock's last"),
        (first(LockRecord, limit=3), "another kind"),
        (first(LockRecord, delay_due_ms=10**9), "a deadline without its timer"),
        (first(SessionRecord, notices=(Notice(9, "a", 1, ""),)), "never given"),
        (
            first(SessionRecord, noticed=9, notices=(Notice(9, "", 1, ""), Notice(8, "", 1, ""))),
            "out of order",
        ),
        (each_waiter(wait_timer=1, wait_due_ms=10**9), "stands twice or never did"),
        (each_waiter(wait_timer=10**6, wait_due_ms=10**9), "stands twice or never did"),
        (each_waiter(wait_timer=1, wait_due_ms=1), "should have fired"),
        (each_waiter(id=7), "request id 7 stands twice"),
        (each_waiter(owner="t1", id=0), "an owner that waits twice"),
        (first(Head, quiet_timer=0, grants_from_ms=9), "a deadline without its timer"),
        (first(Head, feature_level=2), "feature level 2"),
    ],
)
def test_records_that_contradict_each_other_are_corrupt_data(change: Change, says: str) -> None:
    records = list(records_of(busy_cluster().machine.state))
    with pytest.raises(CorruptData, match=says):
        decode_state(body_of(change(records)))


def test_more_answers_than_are_kept_are_corrupt_data() -> None:
    records = list(records_of(busy_cluster().machine.state))
    at = next(at for at, record in enumerate(records) if isinstance(record, AnswerRecord))
    answer = records[at]
    assert isinstance(answer, AnswerRecord)
    lower = AnswerRecord(answer.request - 1, answer.answer)
    session = records[at - 1]
    assert isinstance(session, SessionRecord)
    lowered = msgspec.structs.replace(session, floor=0)
    with pytest.raises(CorruptData, match="more answers than session"):
        decode_state(body_of([*records[: at - 1], lowered, lower, *records[at:]]))


@pytest.mark.parametrize("after", [b"\0", bytes(4), b"\0\0\0\x01\x90", b"lockst"])
def test_nothing_follows_the_end(after: bytes) -> None:
    with pytest.raises(CorruptData, match="goes on after its end"):
        decode_state(body_of(records_of(busy_cluster().machine.state), after=after))
