"""Seeds played one after the other, each on a ledger of its own."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field

from sqlalchemy import Engine, text

from lockd_scheduler.engines import open_engine
from lockd_scheduler.tables import metadata
from lockd_scheduler.testing.ledgers import private_ledger
from lockd_storage.schema import upgrade
from tests.scheduler.chaos.invariants import Facts, asked, breaches
from tests.scheduler.chaos.simulation import Simulation
from tests.scheduler.chaos.workload import EFFECTS

Ledgers = Callable[[], AbstractContextManager[Engine]]


@dataclass
class Campaign:
    """What many seeds came to."""

    seeds: int = 0
    kills: int = 0
    runs: int = 0
    attempts: int = 0
    late: int = 0
    places: Counter[str] = field(default_factory=Counter)
    broken: dict[int, list[str]] = field(default_factory=dict)
    """The seeds in which something did not hold, with what."""


def play(seed: int, engine: Engine, campaign: Campaign) -> list[str]:
    """Play one seed on an empty ledger; what did not hold."""
    simulation = Simulation(seed, engine)
    try:
        simulation.run()
    except AssertionError as error:
        found = [f"an assertion of the engine: {error}"]
    else:
        facts = Facts(engine)
        found = [
            *simulation.witness.breaches,
            *breaches(facts, effect_jobs=set(EFFECTS), holders=simulation.holders),
            *asked(facts, simulation.manual),
        ]
        campaign.runs += len(facts.runs)
        campaign.attempts += len(facts.attempts)
        campaign.late += sum(one.late_state is not None for one in facts.attempts)
    campaign.seeds += 1
    campaign.kills += simulation.kills
    campaign.places += simulation.places
    if found:
        campaign.broken[seed] = found
    return found


def play_all(
    seeds: Iterable[int], ledgers: Ledgers = private_ledger, *, until_broken: bool = False
) -> Campaign:
    """Play seeds; with `until_broken` no further than to the first that shows something."""
    campaign = Campaign()
    for seed in seeds:
        with ledgers() as engine:
            found = play(seed, engine, campaign)
        if found and until_broken:
            break
    return campaign


def ledgers_on(url: str) -> Ledgers:
    """One database for all, emptied before each seed."""
    engine = open_engine(url)
    upgrade(engine, branch="scheduler")
    engine.dispose()

    @contextmanager
    def emptied() -> Iterator[Engine]:
        engine = open_engine(url)
        with engine.begin() as connection:
            names = ", ".join(table.name for table in metadata.sorted_tables)
            connection.execute(text(f"TRUNCATE {names} RESTART IDENTITY"))
            connection.execute(text("DROP TABLE IF EXISTS effects"))
        try:
            yield engine
        finally:
            engine.dispose()

    return emptied
