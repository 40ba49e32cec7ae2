"""What must hold once all has ended: read from the ledger, the effects, and what the functions saw."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise
from typing import Any

from sqlalchemy import Engine, select, text

from lockd_scheduler.jobs import JobSpec
from lockd_scheduler.mandates import AFTER, BACKFILL, MANUAL, SCHEDULED
from lockd_scheduler.policies import Delivery, Notice
from lockd_scheduler.runs import ENDS, LIVE, State
from lockd_scheduler.tables import attempt, backfill, outbox, run, schedule, schedule_revision
from lockd_scheduler.triggers import AfterTrigger

FAILURES = {State.FAILED, State.TIMED_OUT}


class Facts:
    """The whole ledger in memory."""

    def __init__(self, engine: Engine) -> None:
        with engine.connect() as connection:

            def rows(table: Any) -> list[Any]:
                return list(connection.execute(select(table).order_by(*table.primary_key)))

            self.schedules = rows(schedule)
            self.runs = rows(run)
            self.attempts = rows(attempt)
            self.outbox = rows(outbox)
            self.backfills = rows(backfill)
            self.revisions = rows(schedule_revision)
            self.effects = Counter(connection.scalars(text("SELECT fire FROM effects")))
        self.end: datetime | None = None
        """Up to when fires are looked at; None: to where their schedules stand."""
        self.names = {row.id: row.name for row in self.schedules}
        self.specs = {row.id: JobSpec.from_json(row.name, row.definition) for row in self.schedules}
        self.attempts_of: dict[int, list[Any]] = {}
        for one in self.attempts:
            self.attempts_of.setdefault(one.run_id, []).append(one)

    def forget_from(self, moment: datetime) -> None:
        """Leave out what fired then or later: it need not have ended."""
        self.runs = [one for one in self.runs if one.fire_time < moment]
        kept = {one.id for one in self.runs}
        self.attempts = [one for one in self.attempts if one.run_id in kept]
        self.outbox = [one for one in self.outbox if one.run_id in kept]
        self.effects = Counter({fire: count for fire, count in self.effects.items() if int(fire) in kept})
        self.end = moment


def breaches(facts: Facts, *, effect_jobs: set[str], holders: dict[int, str] | None = None) -> list[str]:
    """All that does not hold, as sentences; empty: all does.

    `effect_jobs` write their run's id into `effects` in a fenced session, and nothing else. `holders`:
    whose each office token was, where that is known.
    """
    return [
        *_every_fire_has_one_row(facts),
        *_all_has_ended(facts),
        *_deliveries(facts),
        *_effects(facts, effect_jobs),
        *_tokens(facts, holders),
        *_followers(facts),
        *_notices(facts),
        *_backfills(facts),
        *_revisions(facts),
    ]


def _every_fire_has_one_row(facts: Facts) -> Iterator[str]:
    """P5. Every trigger that the schedule has had is walked through the time in which it had it."""
    for row in facts.schedules:
        if isinstance(facts.specs[row.id].trigger, AfterTrigger):
            continue
        rows = [one for one in facts.runs if one.schedule_id == row.id and one.kind == SCHEDULED]
        count = Counter(one.fire_time for one in rows)
        yield from (f"{row.name}: {fire} has {n} rows" for fire, n in count.items() if n > 1)
        ranges = [(one.fire_time, one.skipped_until) for one in rows if one.skipped_until is not None]
        for fire in dict.fromkeys(_nominal(facts, row)):  # of two triggers that meet in a moment, one fire
            is_pruned = row.pruned_until is not None and fire <= row.pruned_until
            is_covered = fire in count or any(start <= fire < end for start, end in ranges)
            if not is_pruned and not is_covered:
                yield f"{row.name}: the fire at {fire} has no row"
            count.pop(fire, None)
        yield from (f"{row.name}: {fire} is no nominal fire" for fire in count)


def _nominal(facts: Facts, row: Any) -> Iterator[Any]:
    """The fires from the schedule's beginning to where it stands."""
    revisions = [one for one in facts.revisions if one.schedule_id == row.id]
    spans: list[tuple[Any, Any]] = []
    for one in revisions:
        trigger = JobSpec.from_json(row.name, one.definition).trigger
        if not spans or spans[-1][0].to_json() != trigger.to_json():
            spans.append((trigger, one.changed_at))
    ends = [began_at for _, began_at in spans[1:]] + [None]
    for (trigger, began_at), ends_at in zip(spans, ends, strict=True):
        fire = trigger.first(began_at)
        while fire is not None:
            if fire >= (facts.end or row.next_fire_at) if ends_at is None else fire > ends_at:
                break
            yield fire
            fire = trigger.next_after(fire)


def _all_has_ended(facts: Facts) -> Iterator[str]:
    for one in facts.runs:
        if one.state in LIVE:
            yield f"run {one.id} of {facts.names[one.schedule_id]} ({one.kind}) is {one.state} for ever"
    final = {one.id for one in facts.runs if one.state in ENDS | {State.SKIPPED}}
    for one in facts.attempts:
        if one.state in LIVE and one.run_id in final:
            yield f"attempt {one.number} of run {one.run_id} is {one.state}, and its run has ended"
        if one.late_state is not None and one.state in LIVE:
            yield f"attempt {one.number} of run {one.run_id} has a late result and lives"


def _deliveries(facts: Facts) -> Iterator[str]:
    for one in facts.runs:
        spec, attempts = facts.specs[one.schedule_id], facts.attempts_of.get(one.id, [])
        told = f"run {one.id} of {spec.name}"
        if [row.number for row in attempts] != list(range(1, len(attempts) + 1)):
            yield f"{told}: attempts {[row.number for row in attempts]}"
        if len(attempts) != one.attempts:
            yield f"{told} says {one.attempts} attempts and has {len(attempts)}"
        # A run may be cancelled while it waits for its next attempt.
        is_alike = attempts and (attempts[-1].state == one.state or one.state == State.CANCELLED)
        if attempts and one.state in ENDS and not is_alike:
            yield f"{told} is {one.state}, its last attempt {attempts[-1].state}"
        earlier = [row.state for row in attempts[:-1]]
        if spec.policy.delivery is Delivery.AT_MOST_ONCE:
            if any(state not in FAILURES for state in earlier):
                yield f"at_most_once: {told} has attempts {[row.state for row in attempts]}"
        elif one.state == State.LOST and one.cancel_asked_at is None:
            yield f"at_least_once: {told} was lost"
        if any(state not in FAILURES | {State.LOST} for state in earlier):
            yield f"{told} was tried again after {earlier}"
        failures = sum(row.state in FAILURES for row in attempts)
        may_fail = one.cancel_asked_at is not None or len(attempts) > spec.policy.retries
        if one.state in FAILURES and not may_fail:
            yield f"{told} failed {failures} times and may {spec.policy.retries + 1} times"


def _effects(facts: Facts, effect_jobs: set[str]) -> Iterator[str]:
    known = {str(one.id): one for one in facts.runs}
    for fire, count in facts.effects.items():
        if count != 1 or known[fire].state != State.SUCCEEDED:
            yield f"run {fire} has {count} effects and is {known[fire].state}"
    for one in facts.runs:
        is_effect = facts.names[one.schedule_id] in effect_jobs
        if is_effect and one.state == State.SUCCEEDED and str(one.id) not in facts.effects:
            yield f"run {one.id} succeeded and has no effect"


def _tokens(facts: Facts, holders: dict[int, str] | None) -> Iterator[str]:
    """R4: every attempt shuts out those before it; it runs where its token was given out."""
    pairs = Counter((one.office_token, one.ordinal) for one in facts.attempts)
    yield from (f"token {pair} stands at {n} attempts" for pair, n in pairs.items() if n > 1)
    for run_id, attempts in facts.attempts_of.items():
        for one, other in pairwise(attempts):
            if (one.office_token, one.ordinal) >= (other.office_token, other.ordinal):
                yield f"run {run_id}: attempt {other.number} has an older token than the one before"
    for one in facts.attempts if holders is not None else ():
        if one.worker is not None and (holders or {})[one.office_token] != one.worker:
            yield f"attempt {one.number} of run {one.run_id} has {one.worker}'s work and another's token"


def _followers(facts: Facts) -> Iterator[str]:
    for row in facts.schedules:
        trigger = facts.specs[row.id].trigger
        if not isinstance(trigger, AfterTrigger):
            continue
        counts = {"succeeded": {State.SUCCEEDED}, "failed": FAILURES | {State.LOST}}[trigger.on.value]
        parents = {
            one.id
            for one in facts.runs
            if facts.names[one.schedule_id] == trigger.job and one.state in counts
        }
        made = Counter(int(one.key) for one in facts.runs if one.schedule_id == row.id and one.kind == AFTER)
        if made != Counter(parents):
            yield f"{row.name} has runs after {sorted(made)}; of {trigger.job} {sorted(parents)} {trigger.on}"


def _notices(facts: Facts) -> Iterator[str]:
    told = Counter((one.run_id, one.event) for one in facts.outbox)
    wanted: Counter[tuple[int, str]] = Counter()
    for one in facts.runs:
        notify = facts.specs[one.schedule_id].policy.notify
        if one.state in FAILURES and Notice.FAILED in notify:
            wanted[(one.id, Notice.FAILED.value)] += 1
        if one.state == State.LOST and Notice.LOST in notify:
            wanted[(one.id, Notice.LOST.value)] += 1
    for key in told | wanted:
        if told[key] != wanted[key]:
            yield f"run {key[0]}: {told[key]} notices that it has {key[1]}, and it should be {wanted[key]}"


def _backfills(facts: Facts) -> Iterator[str]:
    for one in facts.backfills:
        if one.ended_at is None:
            yield f"backfill {one.id} does not end"
        fires = [row.fire_time for row in facts.runs if row.kind == BACKFILL and row.key == str(one.id)]
        if len(fires) != len(set(fires)) or not all(one.start_at <= fire < one.end_at for fire in fires):
            yield f"backfill {one.id} has runs at {fires}"
        keeps_all = not facts.specs[one.schedule_id].policy.keep.to_json()
        trigger = facts.specs[one.schedule_id].trigger
        fire = trigger.first(one.start_at)
        while fire is not None and fire < one.end_at:
            has_changed = sum(row.schedule_id == one.schedule_id for row in facts.revisions) > 1
            if keeps_all and fire not in fires and not has_changed:
                yield f"backfill {one.id} has no run at {fire}"
            fire = trigger.next_after(fire)


def _revisions(facts: Facts) -> Iterator[str]:
    for row in facts.schedules:
        numbers = [one.revision for one in facts.revisions if one.schedule_id == row.id]
        if numbers != list(range(1, row.revision + 1)):
            yield f"{row.name} is at revision {row.revision} and has rows for {numbers}"


def asked(facts: Facts, manual: list[int]) -> Iterator[str]:
    """Every run that was asked for is there, or its schedule forgets."""
    known = {one.id for one in facts.runs if one.kind == MANUAL}
    forgets = any(spec.policy.keep.to_json() for spec in facts.specs.values())
    if not forgets and not set(manual) <= known:
        yield f"runs that were asked for are gone: {set(manual) - known}"
