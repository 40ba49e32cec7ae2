"""C9, C11: a snapshot holds everything that decides a later outcome, and nothing of how it came about."""

import hashlib
import random
import struct
from collections.abc import Callable

import pytest

from lockd.errors import CorruptData
from lockd.ids import LogIndex
from lockd.locks.commands import (
    SHARED,
    WAIT_FOREVER,
    Acquire,
    AcquireAll,
    AddMember,
    Break,
    CreateCluster,
    MarkSilent,
    OpenSession,
    OriginGone,
    RegisterNode,
    RemoveMember,
)
from lockd.locks.fingerprint import fingerprint
from lockd.locks.limits import Limits
from lockd.locks.machine import LockMachine
from lockd.locks.queues import Request
from lockd.locks.snapshot import VERSION, decode_state, encode_state
from lockd.locks.state import LockState
from tests.locks.cluster_state import ClusterState
from tests.locks.random_commands import RandomLog
from tests.locks.test_locks_replay import TIGHT

DIGEST_BYTES = 16


def encoded(state: LockState) -> bytes:
    return b"".join(encode_state(state))


def sealed(body: bytes) -> bytes:
    """The body with the checksum that belongs to it: damage that no checksum shows."""
    return body + hashlib.blake2b(body, digest_size=DIGEST_BYTES).digest()


def reloaded(cluster: ClusterState) -> ClusterState:
    """Go on with the machine that a snapshot makes."""
    cluster.machine = LockMachine.from_snapshot(b"".join(cluster.machine.snapshot()))
    cluster.machine.check_invariants()
    return cluster


def hold_in_every_way(cluster: ClusterState) -> None:
    """Shared, as a semaphore, several at once, for so long at most; revoked; in the delay after an end."""
    for session in ("s3", "s4", "s5"):
        cluster.open(session, ttl_ms=2_000)
    cluster.send(Acquire("sh", 0, 0, "", mode=SHARED), session="s3", owner="t1")
    cluster.send(Acquire("sh", 0, 0, "", mode=SHARED, max_hold_ms=60_000), session="s4", owner="t2")
    cluster.send(Acquire("sh", 0, 900, ""), session="s3", owner="t3", request=5)
    cluster.send(Acquire("sem", 0, 0, "", limit=4, weight=3), session="s3")
    cluster.send(Acquire("sem", 0, 900, "", limit=4, weight=2), session="s4", request=6)
    cluster.send(AcquireAll(("z2", "z1"), 0, ""), session="s3", owner="t4", request=7)
    cluster.send(AcquireAll(("z3", "z1", "sem2"), 900, ""), session="s4", owner="t4", request=8)
    held = cluster.send(Acquire("broken", 0, 0, ""), session="s5", request=9).granted
    cluster.send(Break("broken", held.token, "a test", now=False))
    late = cluster.send(Acquire("late", 0, 0, "", delay_ms=5_000), session="s5", request=10).granted
    cluster.send(Break("late", late.token, "a test", now=True))
    cluster.send(Acquire("late", 0, WAIT_FOREVER, ""), session="s4", request=11)


def busy_cluster() -> ClusterState:
    """A bit of everything that a state can hold."""
    cluster = ClusterState(TIGHT)
    cluster.send(CreateCluster("c" * 32, "1" * 8), user="")
    cluster.send(RegisterNode(1, "a" * 32, "h:1", "h:2", "h:3", "0.1.0"))
    cluster.send(RegisterNode(2, "b" * 32, "g:1", "g:2", "g:3", "0.1.0"), node=2)
    cluster.send(AddMember(4, "k:1", True), user="")
    cluster.send(AddMember(5, "m:1", False), user="")
    cluster.send(RemoveMember(5), user="")
    for session in ("s1", "s2"):
        cluster.open(session, name="billing", ttl_ms=2_000)
    for request in range(1, 10):
        call = cluster.acquire("a", "s1", request=request)
        cluster.release("a", call.granted.token, "s1")
    cluster.acquire("a", "s1", request=10, meta='{"é": 1}', owner="t1")
    cluster.acquire("a", "s2", request=1, wait_ms=900, connection=3)
    cluster.acquire("a", "s2", request=2, owner="t2", connection=4)
    cluster.acquire("b", "p1", ttl_ms=1_500, request="u1")
    cluster.acquire("b", "p2", ttl_ms=1_500, request="u2", wait_ms=700)
    cluster.acquire("b", "p3", ttl_ms=1_500, request="u3", wait_ms=0)
    cluster.send(OriginGone(1, 77, 4), user="")
    cluster.send(MarkSilent((("s2", 1_100),)), user="")
    hold_in_every_way(cluster)
    cluster.pass_ms(100)
    return cluster


@pytest.mark.parametrize("seed", range(12))
def test_c9_a_reloaded_machine_goes_on_as_if_nothing_had_happened(seed: int) -> None:
    """Reloaded at many points of a random log; every outcome after it is the same."""
    straight, log = LockMachine(TIGHT), RandomLog(seed)
    other = LockMachine(TIGHT)
    for index in range(1, 401):
        batch = log.next_batch(straight.state)
        expected = straight.apply(LogIndex(index), batch)
        assert other.apply(LogIndex(index), batch) == expected
        assert other.lease_changes == straight.lease_changes
        if index % 9 == seed % 9:
            data = b"".join(other.snapshot())
            other = LockMachine.from_snapshot(data)
            other.check_invariants()
            # The machine that was never reloaded: the same state by another way, so the same bytes.
            assert encoded(straight.state) == data
            assert fingerprint(other.state) == fingerprint(straight.state)
            assert encoded(other.state) == data
        assert other.next_timer_ms() == straight.next_timer_ms()
        assert list(other.lease_sessions()) == list(straight.lease_sessions())
        assert other.stats == straight.stats


def test_equal_states_of_other_histories_have_equal_bytes() -> None:
    """C11: what dicts and heaps went through on the way doesn't show."""

    def filled(detours: int) -> LockMachine:
        cluster = ClusterState()
        for number in range(1, 4):
            cluster.open(f"s{number}")
        for number in range(30):
            cluster.acquire(f"lock-{number}", "s1", request=number + 1)
            cluster.acquire(f"lock-{number}", "s2", request=number + 1, wait_ms=1_000 + number)
        state = cluster.machine.state
        for number in range(detours):  # through the indexes and back, as no log would have it
            timer = state.timers.set(cluster.stamp_ms + 1 + number, next(iter(state.timers.in_order()))[2])
            state.timers.cancel(timer)
            name = f"lock-{number % 30}"
            state.locks[name] = state.locks.pop(name)
            session = f"s{number % 3 + 1}"
            state.sessions[session] = state.sessions.pop(session)
        state.timers.sequence = 30
        return cluster.machine

    plain, shuffled = filled(0), filled(200)
    assert list(plain.state.locks) != list(shuffled.state.locks)
    assert b"".join(plain.snapshot()) == b"".join(shuffled.snapshot())


def test_g1_the_token_counter_is_in_the_snapshot() -> None:
    cluster = ClusterState()
    cluster.open("s1")
    first = cluster.acquire("a", "s1").granted.token
    cluster.release("a", first, "s1")
    assert reloaded(cluster).machine.token == first
    assert cluster.acquire("other", "s1").granted.token > first


def test_g3_answers_are_in_the_snapshot() -> None:
    """A grant answers its id with the same token; an id that is over never holds again."""
    cluster = ClusterState(TIGHT)
    cluster.open("s1")
    ended = cluster.acquire("a", "s1", request=1).granted
    cluster.release("a", ended.token, "s1")
    held = cluster.acquire("a", "s1", request=2).granted
    private = cluster.acquire("b", "p1", ttl_ms=1_000, request="u1").granted
    cluster.release("b", private.token, "p1")
    reloaded(cluster)
    assert cluster.acquire("a", "s1", request=2).granted.token == held.token
    assert cluster.acquire("a", "s1", request=1).refused.code == "NOTHELD"
    assert cluster.acquire("b", "p2", ttl_ms=1_000, request="u1").refused.code == "NOTHELD"
    for request in range(3, 12):
        cluster.cancel("a", "s1", request)
    assert (
        reloaded(cluster).acquire("z", "s1", request=1).refused.text
        == "request 1 is too old: 5 and below are over"
    )


def test_g3_a_uuid_is_forgotten_when_its_time_has_passed_and_not_before() -> None:
    cluster = ClusterState(TIGHT)
    token = cluster.acquire("b", "p1", ttl_ms=1_000, request="u1").granted.token
    cluster.release("b", token, "p1")
    cluster.pass_ms(TIGHT.ttl_ms_max - 1)
    assert reloaded(cluster).acquire("b", "p2", ttl_ms=1_000, request="u1").refused.code == "NOTHELD"
    cluster.pass_ms(1)
    assert cluster.acquire("b", "p3", ttl_ms=1_000, request="u1").granted.token > token


def test_g4_origins_and_orphans_are_in_the_snapshot() -> None:
    """A gone connection finds its waits; an orphan stays one, until its id comes back or time is up."""
    cluster = ClusterState()
    for session in ("s1", "s2", "s3"):
        cluster.open(session, ttl_ms=2_000)
    cluster.acquire("a", "s1")
    heard = cluster.acquire("a", "s2", request=1, connection=2)
    cluster.acquire("a", "s3", request=1, connection=3)
    cluster.send(OriginGone(1, 77, 3), user="")
    reloaded(cluster)
    assert cluster.machine.next_timer_ms() == 2_000
    assert cluster.send(OriginGone(1, 77, 3), user="").count == 0
    assert cluster.send(OriginGone(1, 77, 2), user="").count == 1
    assert heard.refused.code == "UNKNOWN"
    again = reloaded(cluster).acquire("a", "s3", request=1, connection=9)
    assert again.waits
    cluster.pass_ms(2_000)
    assert cluster.machine.inspect("a").queue_length == 1
    assert again.waits


def test_t2_silence_marks_are_in_the_snapshot() -> None:
    cluster = ClusterState()
    cluster.open("s1", ttl_ms=4_000)
    cluster.send(MarkSilent((("s1", 2_500),)), user="")
    (session,) = reloaded(cluster).machine.lease_sessions()
    assert session.silent_ms == 2_500


def test_c8_members_and_tombstones_are_in_the_snapshot() -> None:
    machine = reloaded(busy_cluster()).machine
    assert machine.members == {4: ("k:1", True)}
    assert machine.removed == {5: ""}
    assert sorted(machine.nodes) == [1, 2]


def grant_of(state: LockState, name: str) -> Request:
    return next(iter(state.locks[name].holders.values()))


@pytest.mark.parametrize(
    "change",
    [
        lambda state: setattr(state, "clock_ms", state.clock_ms + 1),
        lambda state: setattr(state, "token", state.token + 1),
        lambda state: setattr(state, "incarnation", "2" * 8),
        lambda state: state.removed.update({9: ""}),
        lambda state: setattr(state.sessions["s1"].answers, "floor", 2),
        lambda state: setattr(grant_of(state, "a"), "meta", ""),
        lambda state: setattr(grant_of(state, "sem"), "weight", 1),
        lambda state: setattr(grant_of(state, "broken"), "revoked", "broken: for another reason"),
        lambda state: setattr(grant_of(state, "z1"), "max_hold_ms", 7),
        lambda state: setattr(grant_of(state, "z1"), "delay_ms", 7),
        lambda state: setattr(state.locks["late"], "delayed_until_ms", 7_000),
        lambda state: setattr(state.locks["sh"], "granted_last", 99),
        lambda state: state.sessions["s5"].notices.clear(),
        lambda state: setattr(state.timers, "sequence", 99),
    ],
)
def test_c11_another_state_has_other_bytes(change: Callable[[LockState], None]) -> None:
    state = busy_cluster().machine.state
    before = encoded(state)
    change(state)
    assert encoded(state) != before


def test_pieces_are_bounded() -> None:
    cluster = ClusterState()
    for number in range(60):
        cluster.open(f"s{number}")
        cluster.acquire("a", f"s{number}", meta="x" * 4_000)
    pieces = list(cluster.machine.snapshot())
    assert len(pieces) > 4
    assert max(map(len, pieces)) < 80_000


def test_c9_a_cut_or_damaged_state_is_corrupt_data() -> None:
    """Every prefix, and every bit of it."""
    whole = encoded(busy_cluster().machine.state)
    for size in range(len(whole)):
        with pytest.raises(CorruptData):
            decode_state(whole[:size])
    for at in range(len(whole)):
        for bit in range(8):
            data = bytearray(whole)
            data[at] ^= 1 << bit
            with pytest.raises(CorruptData):
                decode_state(bytes(data))
    with pytest.raises(CorruptData):
        decode_state(whole + b"\0")


def test_p6_a_damage_with_a_right_checksum_is_refused_or_a_state() -> None:
    """Nothing but CorruptData comes out of any bytes, and nothing but an assertion of the invariants."""
    draw = random.Random(7)
    whole = encoded(busy_cluster().machine.state)[:-DIGEST_BYTES]
    for size in range(len(whole)):
        with pytest.raises(CorruptData):
            decode_state(sealed(whole[:size]))
    refused = taken = 0
    for _ in range(20_000):
        data = bytearray(whole)
        for _ in range(draw.choice((1, 1, 1, 2, 3))):
            data[draw.randrange(len(data))] = draw.choice((draw.randrange(256), 0, 255, 0xC0))
        try:
            state = decode_state(sealed(bytes(data)))
        except CorruptData:
            refused += 1
            continue
        taken += 1
        _use(state)
    assert refused > 5_000
    assert taken > 1_000


def _use(state: LockState) -> None:
    """A state that was taken and keeps the invariants can be saved, read and gone on with."""
    machine = LockMachine()
    machine.state = state
    try:
        machine.check_invariants()
    except AssertionError:
        return
    data = b"".join(machine.snapshot())
    assert fingerprint(decode_state(data)) == fingerprint(state)


def test_c11_another_version_is_named_with_what_to_do() -> None:
    newer = sealed(struct.pack(">6sH", b"lockst", VERSION + 1) + b"another layout")
    with pytest.raises(CorruptData, match=r"version 2.*reads version 1.*run the release"):
        decode_state(newer)
    state = LockState()
    state.feature_level += 1
    with pytest.raises(CorruptData, match=r"feature level 2.*run the release"):
        decode_state(encoded(state))


def test_limits_are_in_the_snapshot() -> None:
    """G11: they decide outcomes, so a node takes them with the state."""
    cluster = ClusterState(Limits(sessions_max=1))
    cluster.open("s1")
    assert reloaded(cluster).open("s2").refused.code == "LIMIT"
    with pytest.raises(CorruptData, match="limit"):
        decode_state(encoded(LockState(Limits(ttl_ms_min=-1))))


GOLDEN = (
    "6c6f636b7374000100000667dd000000209e0101de0019aa74746c5f6d735f6d696ecd03e8aa74746c5f6d735f6d6178ce00"
    "36ee80ab776169745f6d735f6d6178ce240c8400ac73657373696f6e735f6d6178ce000f4240b4776169746572735f706572"
    "5f6c6f636b5f6d6178ce000186a0b872657175657374735f7065725f73657373696f6e5f6d6178ce000186a0b8616e737765"
    "72735f7065725f73657373696f6e5f6b657074cd0400b8707269766174655f616e73776572735f6b6570745f6d6178ce0007"
    "a120d923707269766174655f616e73776572735f666f72676f7474656e5f7065725f656e747279cd03e8b36c6f636b5f6e61"
    "6d655f62797465735f6d6178cd0200b473657373696f6e5f69645f62797465735f6d617840b673657373696f6e5f6e616d65"
    "5f62797465735f6d6178cd0100af6f776e65725f62797465735f6d6178cd0100b4726571756573745f69645f62797465735f"
    "6d6178cc80ae6d6574615f62797465735f6d6178cd1000b1616464726573735f62797465735f6d6178cd012cb373656d6170"
    "686f72655f6c696d69745f6d6178ce000f4240b56c6f636b735f7065725f726571756573745f6d617864af6d61785f686f6c"
    "645f6d735f6d6178ce9a7ec800ac64656c61795f6d735f6d6178ce000927c0b0726561736f6e5f62797465735f6d6178cd01"
    "00b77265766f6b65645f7065725f73657373696f6e5f6d6178cd0800b76e6f74696365735f7065725f73657373696f6e5f6d"
    "6178cd0400b3646561646c6f636b5f7365617263685f6d6178cd2ee0b67265667573616c5f6d6574615f62797465735f6d61"
    "78cd02001800a26331a26931070a050c060000920297ad72656769737465725f6e6f646501a26131a3683a31a3683a32a368"
    "3a33a5302e312e30940304a3683a31c3930405a09d05a2703102a3616e6ecd07d0a0a0c3c2000000909d05a2733101a3616e"
    "6ecd2710a762696c6c696e67a87b2261223a20317dc2c30000009093060199a772656675736564a3455252d9247468697320"
    "72657175657374207761732077697468647261776e2062792043414e43454ca0a0a0a000009d05a2733303a3616e6ecd07d0"
    "a0a0c2c3000000909d05a2733404a3616e6ecd07d0a0a0c2c3000000909d05a2733505a3616e6ecd07d0a0a0c2c300000292"
    "9401a662726f6b656e06ae62726f6b656e3a206120746573749402a46c61746507ae62726f6b656e3a206120746573749306"
    "0a99a772656675736564a74e4f5448454c44d923746865206772616e74206f66207468697320726571756573742068617320"
    "656e646564a0a0a0a000009507a3616e6ea275300099a772656675736564a3455252d9247468697320726571756573742077"
    "61732077697468647261776e2062792043414e43454ca0a0a0a000009708a16101000100009708a662726f6b656e00000600"
    "009708a46c61746501000706cd13889708a373656d01040400009708a473656d3201000000009708a2736801000300009708"
    "a27a3101000500009708a27a3200000500009708a27a330100000000dc001a0901910001a00294014d0108a96578636c7573"
    "69766501a00000009000000000000101000000a000dc001a0902910002a0a2753194014d0109a96578636c757369766501a0"
    "0000009101cd01f401cd01f400000000000000a000dc001a0903910503a274310094014d010da673686172656401a0000000"
    "9000000000000202000000a000dc001a0904910504a274320094014d010ea673686172656401a000cdea6000900000000000"
    "03030002cdea60a000dc001a0905910503a274330594014d010fa96578636c757369766501a00000009101cd038403cd0384"
    "00000000000000a000dc001a0906910303a00094014d0110a973656d6170686f726503a00000009000000000000404000000"
    "a000dc001a0907910304a00694014d0111a973656d6170686f726502a00000009101cd038404cd038400000000000000a000"
    "dc001a090892060703a274340794014d0112a96578636c757369766501a00000009000000000000506000000a000dc001a09"
    "099304060804a274340894014d0113a96578636c757369766501a000000093010101cd038405cd038400000000000000a000"
    "dc001a090a910105a00994014d0114a96578636c757369766501a00000009000000000000607000000ae62726f6b656e3a20"
    "61207465737401dc001a090c910204a00b94014d0118a96578636c757369766501a00000009101ff000000000000000000a0"
    "000000000073b8d6af398cb22b7f5e2294051e5ac3"
)
"""A state as a released snapshot may hold it. A change of these bytes is a new version of the
format: never edit them to make this test pass."""


def test_c11_the_format_is_frozen() -> None:
    cluster = ClusterState()
    cluster.send(CreateCluster("c1", "i1"), user="")
    cluster.send(AddMember(4, "h:1", True), user="")
    cluster.send(RemoveMember(5), user="")
    cluster.send(RegisterNode(1, "a1", "h:1", "h:2", "h:3", "0.1.0"))
    cluster.send(OpenSession(10_000, "billing", '{"a": 1}'), session="s1")
    cluster.cancel("a", "s1", 1)
    cluster.cancel("a", "", "u0")
    cluster.acquire("a", "s1", request=2)
    cluster.acquire("a", "p1", ttl_ms=2_000, wait_ms=500, request="u1")
    hold_in_every_way(cluster)
    assert encoded(cluster.machine.state).hex() == GOLDEN
    assert fingerprint(decode_state(bytes.fromhex(GOLDEN))) == fingerprint(cluster.machine.state)
