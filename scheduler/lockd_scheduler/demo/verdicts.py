"""Did every promise hold? Judged from the tables, the cluster and what the story saw."""

import itertools
from collections import Counter
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import Engine, func, select

from lockd_scheduler.demo.jobs import accounts, effects
from lockd_scheduler.demo.screen import Screen
from lockd_scheduler.demo.stage import Stage
from lockd_scheduler.tables import attempt, run

PERIOD = timedelta(seconds=1)


@dataclass(frozen=True)
class StaleWrite:
    """What became of the paused worker."""

    token: int
    successor_token: int
    lease_knew: bool
    """Whether its lease said on waking that it is lost."""
    by_lease: dict[str, Any]
    """What its fenced write met."""
    by_token: dict[str, Any]
    """What a write met that does not ask the lease: the storage alone decides."""


@dataclass
class Evidence:
    """What the acts saw, and where to read the rest."""

    stage: Stage
    engine: Engine
    tokens: list[int] = field(default_factory=list)
    """Of the grants that the demo saw, in their order."""
    anchor: tuple[str, int] = ("", 0)
    """A lock that was granted before the faults and never released, and its token."""
    anchor_found: int = 0
    stale_write: StaleWrite | None = None
    killed_node: int = 0
    failover_seconds: float = 0.0
    offices: tuple[int, int] = (0, 0)
    statuses: dict[int, dict[str, Any]] = field(default_factory=dict)


def judge(evidence: Evidence, screen: Screen) -> bool:
    """Show a verdict for each promise; True when all held."""
    verdicts = [
        _tokens_grew(evidence),
        _stale_write_was_refused(evidence),
        _grant_survived(evidence),
        _each_fire_ran_once(evidence),
        _office_moved_up(evidence),
        _nodes_agree(evidence),
    ]
    for held, promise, text in verdicts:
        screen.verdict(held=held, promise=promise, evidence=text)
    return all(held for held, _, _ in verdicts)


Verdict = tuple[bool, str, str]


def show_runs(evidence: Evidence, screen: Screen) -> None:
    """Show the ledger: every fire, its attempts, and under which office's token it ran."""
    newest = func.max(attempt.c.office_token).label("token")
    offices = select(attempt.c.run_id, newest).group_by(attempt.c.run_id).subquery()
    listing = (
        select(run.c.fire_time, run.c.state, run.c.attempts, offices.c.token)
        .outerjoin(offices, offices.c.run_id == run.c.id)
        .order_by(run.c.fire_time)
    )
    with evidence.engine.connect() as connection:
        found = connection.execute(listing).all()
    rows = [(f"{row.fire_time:%H:%M:%S}", row.state, row.attempts, row.token) for row in found]
    screen.table("the ledger", ("fire (UTC)", "run", "tries", "office token"), rows)


def _tokens_grew(evidence: Evidence) -> Verdict:
    tokens = evidence.tokens
    grew = all(earlier < later for earlier, later in itertools.pairwise(tokens))
    return grew, "tokens strictly grow over all grants (P2)", " < ".join(map(str, tokens))


def _stale_write_was_refused(evidence: Evidence) -> Verdict:
    seen = evidence.stale_write
    assert seen is not None, "the story was not told to its end"
    with evidence.engine.connect() as connection:
        row = connection.execute(select(accounts.c.writer, accounts.c.token)).one()
    refusal = seen.by_token
    held = (
        seen.lease_knew
        and seen.by_lease["error"] in {"LeaseLost", "StaleToken"}
        and refusal["error"] == "StaleToken"
        and (refusal["presented"], refusal["mark"]) == (seen.token, seen.successor_token)
        and (row.writer, row.token) == ("the successor", seen.successor_token)
    )
    text = (
        f"{refusal['error']}: presented {refusal.get('presented')}, installed {refusal.get('mark')}; "
        f"the row is by {row.writer} with token {row.token}"
    )
    return held, "a stale write is refused by the storage itself (P4)", text


def _grant_survived(evidence: Evidence) -> Verdict:
    name, token = evidence.anchor
    text = (
        f"{name!r} was granted with token {token} before node {evidence.killed_node} was killed, and is "
        f"held with token {evidence.anchor_found} after; failover took {evidence.failover_seconds:.2f} s"
    )
    return token == evidence.anchor_found, "an acknowledged grant survives the leader (P3)", text


def _each_fire_ran_once(evidence: Evidence) -> Verdict:
    with evidence.engine.connect() as connection:
        runs = connection.execute(select(run.c.fire_time, run.c.state).order_by(run.c.fire_time)).all()
        ran = Counter(connection.execute(select(effects.c.fire)).scalars())
    fires = [row.fire_time for row in runs]
    missing = sum(later - earlier != PERIOD for earlier, later in itertools.pairwise(fires))
    states = Counter(row.state for row in runs)
    doubled = sum(count > 1 for count in ran.values())
    held = bool(fires) and not missing and not doubled and states == {"succeeded": len(ran)}
    text = (
        f"{len(fires)} fires, one every second: {dict(states)}; {len(ran)} effects, "
        f"{missing} gaps, {doubled} doubled"
    )
    return held, "each fire has one run and one effect, across both kills (P5, R4)", text


def _office_moved_up(evidence: Evidence) -> Verdict:
    before, after = evidence.offices
    text = f"office token {before}, then {after}"
    return before < after, "the scheduler that takes over shuts out the one before (R1)", text


def _nodes_agree(evidence: Evidence) -> Verdict:
    statuses = evidence.statuses
    clusters = {status["cluster"] for status in statuses.values()}
    leaders = {status["leader"] for status in statuses.values()}
    applied = {node: status["last_applied"] for node, status in statuses.items()}
    held = len(clusters) == 1 and len(leaders) == 1 and max(applied.values()) - min(applied.values()) <= 3
    text = f"leader {leaders}, applied {applied}"
    return held, "all nodes are of one cluster and one mind", text
