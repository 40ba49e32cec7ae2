"""As many seeds as you like; see the package's text."""

import argparse
import logging
import time
from collections import Counter

from lockd_scheduler.testing.ledgers import private_ledger
from tests.scheduler.chaos.campaign import Campaign, Ledgers, ledgers_on, play
from tests.servers.postgres import running_postgres


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.scheduler.chaos", description=__doc__)
    logging.disable(logging.CRITICAL)
    parser.add_argument("--seeds", default="0-99", help="one, or a range: 0-999")
    parser.add_argument("--db", choices=("sqlite", "postgres"), default="sqlite")
    given = parser.parse_args()
    low, _, high = given.seeds.partition("-")
    seeds = range(int(low), int(high or low) + 1)
    if given.db == "sqlite":
        campaign = _campaign(seeds, private_ledger, given.db)
    else:
        with running_postgres() as server, server.fresh_database() as url:
            campaign = _campaign(seeds, ledgers_on(url), given.db)
    raise SystemExit(1 if campaign.broken else 0)


def _campaign(seeds: range, ledgers: Ledgers, db: str) -> Campaign:
    campaign = Campaign()
    began_at = time.monotonic()
    for seed in seeds:
        with ledgers() as engine:
            for sentence in play(seed, engine, campaign):
                print(f"seed {seed}: {sentence}", flush=True)
        if seed in campaign.broken:
            print(f"again: python -m tests.scheduler.chaos --db {db} --seeds {seed}", flush=True)
        if campaign.seeds % 50 == 0:
            print(f"{campaign.seeds} seeds, {campaign.kills} kills", flush=True)
    faults = Counter(place.split(" ", 1)[0] for place in campaign.places.elements())
    print(f"{campaign.seeds} seeds on {db} in {time.monotonic() - began_at:.0f} s: {campaign.kills} kills")
    print(f"faults: {dict(faults)}; at {len(campaign.places)} different places")
    within = Counter(place.split(": ")[1] for place in campaign.places.elements())
    print(f"within: {dict(within.most_common())}")
    print(f"runs: {campaign.runs}, attempts: {campaign.attempts}, late results: {campaign.late}")
    print(f"broken seeds: {sorted(campaign.broken) or 'none'}")
    return campaign


if __name__ == "__main__":
    main()
