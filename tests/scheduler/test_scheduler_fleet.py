"""A handful of real deaths and restarts of replicas on PostgreSQL; more of them in `kills` and `rolling`."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.scheduler.fleet import POSTGRES, broken_promises
from tests.scheduler.kills import fleet_of, kill_often
from tests.scheduler.rolling import disturbed, restart_all
from tests.servers.postgres import PostgresServer, running_postgres

pytestmark = [pytest.mark.process, pytest.mark.postgres]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """With room for replicas that come and go."""
    with running_postgres(POSTGRES) as server:
        yield server


def test_p5_r1_r5_kill_9_and_sigstop_past_the_lease_keep_every_promise(
    tmp_path: Path, server: PostgresServer
) -> None:
    """P5, R1, R3, R5: one kill -9 and one SIGSTOP of the active replica, chosen by a 3-node lockd."""
    with fleet_of(tmp_path, server, "lockd") as fleet:
        kinds = kill_often(fleet, 2, random.Random(1))
        assert set(kinds) == {"kill -9", "SIGSTOP"}
        assert broken_promises(fleet, fleet.settle()) == []


def test_p5_r1_a_rolling_restart_under_load_loses_doubles_and_fences_nothing(
    tmp_path: Path, server: PostgresServer
) -> None:
    """P5, R1: three replicas leave one after the other by SIGTERM, the office a row of PostgreSQL."""
    with fleet_of(tmp_path, server, "row", copies=4) as fleet:
        assert restart_all(fleet, 1) == [0, 0, 0]
        assert [*broken_promises(fleet, fleet.settle()), *disturbed(fleet)] == []
