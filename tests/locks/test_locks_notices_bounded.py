"""C10, P6: what the answer to a keepalive tells of revoked grants is all of it, and bounded."""

from lockd.ids import LOCK_NAME_BYTES_MAX, ClusterId, InstanceId, SessionId
from lockd.locks.commands import AcknowledgeNotices, Acquire, Break, Notice, SessionOpened
from lockd.locks.limits import Limits
from lockd.server import frames
from tests.locks.cluster_state import ClusterState

_FEW = Limits(revoked_per_session_max=2)


def _opened(limits: Limits) -> ClusterState:
    cluster = ClusterState(limits)
    cluster.open("s1", ttl_ms=60_000)
    return cluster


def test_the_most_that_can_be_told_fits_into_a_frame() -> None:
    """A session with 16,000 revoked grants of long names ended every leader that answered its keepalives."""
    limits = Limits()
    most = 2 * limits.revoked_per_session_max + limits.notices_per_session_max
    reason = "broken: " + "x" * limits.reason_bytes_max
    notices = tuple(Notice(2**62, "x" * LOCK_NAME_BYTES_MAX, 2**53, reason) for _ in range(most))
    reply = frames.KeepaliveReply(1, SessionOpened("s", 1, notices))
    size = len(frames.encode(reply, cluster=ClusterId("ab" * 16), instance=InstanceId("cd" * 16)))
    assert size < frames.BODY_BYTES_MAX


def test_a_session_has_so_many_requests_with_max_hold() -> None:
    cluster = _opened(_FEW)
    first = cluster.send(Acquire("a", 0, 0, "", max_hold_ms=5), session="s1").granted
    assert cluster.send(Acquire("b", 0, 0, "", max_hold_ms=5), session="s1").granted.token
    refused = cluster.send(Acquire("c", 0, 0, "", max_hold_ms=5), session="s1").refused
    assert refused.code == "LIMIT"
    assert "MAXHOLD" in refused.text
    assert cluster.send(Acquire("c", 0, 0, ""), session="s1").granted.token
    cluster.pass_ms(10)
    assert cluster.send(Acquire("d", 0, 0, "", max_hold_ms=5), session="s1").refused.code == "LIMIT"
    assert cluster.machine.notices(SessionId("s1"))[0].token == first.token
    assert cluster.send(AcknowledgeNotices(2), session="s1").count == 2
    assert cluster.send(Acquire("d", 0, 0, "", max_hold_ms=5), session="s1").granted.token


def test_break_is_refused_while_a_session_has_too_many_revoked_grants_but_with_now() -> None:
    cluster = _opened(_FEW)
    tokens = {lock: cluster.send(Acquire(lock, 0, 0, ""), session="s1").granted.token for lock in "abcd"}
    for lock in "ab":
        assert cluster.send(Break(lock, tokens[lock], "x", now=False)).count == 1
    assert cluster.send(Break("a", tokens["a"], "x", now=False)).count == 0
    assert cluster.send(Break("c", tokens["c"], "x", now=False)).refused.code == "LIMIT"
    assert cluster.send(Break("c", tokens["c"], "x", now=True)).count == 1
    assert cluster.send(AcknowledgeNotices(1), session="s1").count == 1
    assert cluster.send(Break("d", tokens["d"], "x", now=False)).count == 1
