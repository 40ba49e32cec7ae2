"""G6, P2, P6: apply is total, and a function of the entries alone."""

import hashlib
import os
import subprocess
import sys

import msgspec
import pytest

from lockd.ids import LogIndex
from lockd.locks.codec import decode_batch, encode_batch
from lockd.locks.commands import Granted
from lockd.locks.fingerprint import fingerprint
from lockd.locks.limits import Limits
from lockd.locks.machine import _APPLY, LockMachine
from tests.locks.random_commands import ALL_KINDS, RandomLog

TIGHT = Limits(
    sessions_max=8,
    waiters_per_lock_max=4,
    requests_per_session_max=5,
    answers_per_session_kept=6,
    ttl_ms_max=5_000,
    private_answers_kept_max=3,
    private_answers_forgotten_per_entry=2,
)


def replay(seed: int, count: int) -> tuple[LockMachine, str]:
    """Apply a random log through its bytes; also a digest of all that was said."""
    machine = LockMachine(TIGHT)
    said = hashlib.blake2b(digest_size=16)
    log = RandomLog(seed)
    for index in range(1, count + 1):
        batch = decode_batch(encode_batch(log.next_batch(machine.state)))
        completions = machine.apply(LogIndex(index), batch)
        said.update(msgspec.msgpack.encode(completions))
    return machine, said.hexdigest()


def test_every_operation_can_be_applied() -> None:
    assert set(_APPLY) == set(ALL_KINDS)


@pytest.mark.parametrize("seed", range(15))
def test_apply_is_total_and_keeps_its_invariants(seed: int) -> None:
    """P6: whatever is asked, everyone is answered; P2: tokens grow, whatever happens."""
    machine = LockMachine(TIGHT)
    granted: dict[int, tuple[str, str]] = {}
    log = RandomLog(seed)
    for index in range(1, 601):
        batch = log.next_batch(machine.state)
        before = machine.token
        completions = machine.apply(LogIndex(index), batch)
        machine.check_invariants()
        answered = {completion.origin for completion in completions}
        assert {command.origin for command in batch.commands} <= answered
        for completion in completions:
            outcome = completion.outcome
            if isinstance(outcome, Granted):
                whose = granted.setdefault(outcome.token, (outcome.lock, outcome.session))
                assert whose == (outcome.lock, outcome.session), "P2: a token was issued twice"
                assert outcome.repeat or outcome.token > before
        assert machine.token >= before
    assert len(granted) > 20
    assert max(granted) <= machine.token


def test_g6_the_same_entries_make_the_same_state_in_every_process() -> None:
    """Under any hash seed: a set or a hash that decides something shows here."""
    results = {_in_process(hash_seed) for hash_seed in ("0", "1", "424242")}
    machine, said = replay(5, 1_500)
    assert results == {f"{fingerprint(machine.state).hex()} {said}"}


def test_g6_the_fingerprint_sees_every_difference() -> None:
    machines = [replay(seed, 400)[0] for seed in range(6)]
    prints = {fingerprint(machine.state) for machine in machines}
    assert len(prints) == len(machines)
    before = fingerprint(machines[0].state)
    assert fingerprint(replay(0, 400)[0].state) == before
    machines[0].state.timers.sequence += 1
    assert fingerprint(machines[0].state) != before


def _in_process(hash_seed: str) -> str:
    script = (
        "from lockd.locks.fingerprint import fingerprint\n"
        "from tests.locks.test_locks_replay import replay\n"
        "machine, said = replay(5, 1_500)\n"
        "print(fingerprint(machine.state).hex(), said)\n"
    )
    environment = os.environ | {"PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.strip()
