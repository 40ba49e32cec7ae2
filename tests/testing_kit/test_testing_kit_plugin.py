"""The pytest plugin: that it costs nobody anything who does not use it, and cleans up for those who do."""

import subprocess
import sys
from pathlib import Path

from tests.testing_kit.test_testing_kit_docs import run_pytest

HEAVY = ("asyncio", "hiredis", "lockd.client", "lockd.server", "msgspec", "uvloop")


def test_loading_the_plugin_imports_nothing_of_lockd() -> None:
    code = f"import sys, lockd.testing.plugin; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_run_that_does_not_use_it_imports_no_client(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(
        "import sys\ndef test_own():\n    assert 'lockd.client' not in sys.modules\n"
    )
    done = run_pytest(tmp_path, "-p", "no:xdist", "-p", "no:timeout")
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_what_a_test_leaves_held_is_gone_with_it(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(
        """
import threading

import lockd
import pytest


@pytest.mark.parametrize("time", range(3))
def test_own(lockd_client, time):
    lease = lockd_client.try_lock("k")
    assert lease.token == 1
    threading.Thread(target=lambda: pytest.raises(lockd.SessionExpired, lockd_client.acquire, "k")).start()


def test_nothing_runs_any_more():
    names = {thread.name for thread in threading.enumerate()}
    assert not {name for name in names if name.startswith("lockd")}, names
"""
    )
    done = run_pytest(tmp_path)
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_a_failure_of_the_server_fails_the_test(tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(
        """
def test_own(lockd_server, lockd_client, monkeypatch):
    from lockd.locks.machine import LockMachine

    monkeypatch.setattr(LockMachine, "apply", lambda *_: 1 / 0)
    lockd_server.client(ttl=0.5).try_lock("k")
"""
    )
    done = run_pytest(tmp_path)
    assert "ZeroDivisionError" in done.stdout
    assert "the server has failed" in done.stdout, done.stdout + done.stderr
