"""`lockd demo`: the main job in one command, on SQLite and on PostgreSQL."""

import re

import pytest

from tests.processes import run_lockd

pytestmark = pytest.mark.process


def check(output: str) -> None:
    assert "Every promise held." in output
    assert "BROKEN" not in output
    refused = re.search(r"StaleToken: presented (\d+), installed (\d+)", output)
    assert refused is not None
    assert int(refused[1]) < int(refused[2])
    assert re.search(r"failover took \d+\.\d\d s", output)


def test_the_demo_ends_by_itself_and_every_promise_held() -> None:
    done = run_lockd("demo", timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    check(done.stdout)


@pytest.mark.postgres
def test_the_demo_on_postgresql(postgres_url: str) -> None:
    done = run_lockd("demo", "--db", postgres_url, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr
    check(done.stdout)
