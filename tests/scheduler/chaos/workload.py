"""The jobs of a simulation: every choice that has a transaction of its own."""

import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from sqlalchemy import text

from lockd_scheduler import Cron, Run
from lockd_scheduler.policies import Choices

if TYPE_CHECKING:
    from tests.scheduler.chaos.simulation import Actor

SURE: Choices = {"delivery": "at_least_once", "overlap": "allow", "catch_up": "all", "backoff": "10s..20s"}
ONCE: Choices = {"delivery": "at_most_once", "overlap": "allow", "catch_up": "all", "backoff": "10s..20s"}
TOLD: Choices = {"notify": ["failed", "lost"]}

PLAIN: dict[str, tuple[str, Choices]] = {
    "most": ("1m", {**ONCE, **TOLD, "retries": 1}),
    "least": ("1m", {**SURE, **TOLD, "retries": 2}),
    "queue-all": ("1m", {**SURE, **TOLD, "overlap": "queue_all"}),
    "queue-one": ("30s", {**ONCE, "overlap": "queue_one"}),
    "replace": ("1m", {**SURE, "overlap": "replace"}),
    "skip": ("20s", {**ONCE, "overlap": "skip", "keep": {"runs": 3}, "catch_up": "latest"}),
    "jitter": ("1m", {**SURE, "jitter": "30s"}),
    "timed": ("1m", {**ONCE, **TOLD, "timeout": "20s", "retries": 1}),
}
EFFECTS: dict[str, tuple[str, Choices]] = {
    "effect-least": ("1m", {**SURE, "retries": 1}),
    "effect-most": ("1m", {**ONCE, **TOLD}),
}
AFTER = {"child": ("least", "succeeded"), "mourner": ("most", "failed")}
CHANGING = "changing"
NAMES = [*PLAIN, *EFFECTS, CHANGING]


@dataclass
class Call:
    """One call of a job's function."""

    run_id: int
    job: str
    attempt: int
    token: tuple[int, int]
    process: str
    has_ended: bool = False


@dataclass
class Witness:
    """What the jobs' functions have seen."""

    calls: list[Call] = field(default_factory=list)
    breaches: list[str] = field(default_factory=list)

    def begin(self, run: Run, process: str, *, is_at_most_once: bool) -> Call:
        """Note a call; one that must not be is a breach."""
        call = Call(run.id, run.job, run.attempt, run.token, process)
        for other in self.calls:
            if other.run_id != call.run_id:
                continue
            if other.attempt == call.attempt:
                self.breaches.append(f"attempt {call.attempt} of run {call.run_id} was begun twice")
            elif is_at_most_once and not other.has_ended:
                self.breaches.append(
                    f"at_most_once: run {call.run_id} was begun again, and attempt {other.attempt} has no"
                    " known end"
                )
        self.calls.append(call)
        return call


def make_cron(names: list[str], actor: "Actor", witness: Witness, *, version: int) -> Cron:
    """The jobs, as the process `actor` has them; in another version one of them has another trigger."""
    cron = Cron("ops")

    def function(run: Run) -> None:
        policy = cron.jobs[run.job].spec.policy
        call = witness.begin(run, actor.name, is_at_most_once=policy.delivery.value == "at_most_once")
        actor.job_step("before the effect")
        try:
            run.check()
            if run.job in EFFECTS:
                with run.fenced_session() as session:
                    session.execute(text("INSERT INTO effects (fire) VALUES (:fire)"), {"fire": str(run.id)})
            elif zlib.crc32(f"{run.id}/{run.attempt}".encode()) % 4 == 0:
                raise ValueError("it fails this time")
            actor.job_step("after the effect")
        except Exception:
            call.has_ended = True
            raise
        call.has_ended = True

    for name in names:
        if name == CHANGING:
            cron.every("1m" if version % 2 else "90s", name=name, **SURE)(function)
        else:
            period, choices = {**PLAIN, **EFFECTS}[name]
            cron.every(period, name=name, **choices)(function)
    for name, (parent, on) in AFTER.items():
        if parent in names:
            cron.after(parent, on=on, name=name, delivery="at_least_once", overlap="queue_all")(function)
    return cron
