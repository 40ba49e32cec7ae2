"""The programs in examples/ do what they say, against a real node."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import clean_environment, running_node

pytestmark = pytest.mark.process

EXAMPLES = Path(__file__).parents[2] / "examples"


def run_example(name: str, *arguments: str, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / name), *arguments],
        cwd=cwd,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_decorator(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        assert "report of user 42 made under token 1" in run_example(
            "decorator.py", node.endpoint, cwd=tmp_path
        )


def test_fenced_worker_twice_with_growing_tokens(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        database = f"sqlite:///{tmp_path / 'orders.db'}"
        first = run_example("fenced_worker.py", node.endpoint, database, cwd=tmp_path)
        second = run_example("fenced_worker.py", node.endpoint, database, cwd=tmp_path)
    assert "order 1 is closed, under token 1" in first
    assert "order 1 is closed, under token 2" in second
