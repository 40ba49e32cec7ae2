"""Locks from scripts: what is printed, and which exit status says what."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lockd.cli import main
from lockd.server.auth import hash_password
from tests.processes import (
    PATIENCE_S,
    LockdProcess,
    clean_environment,
    eventually,
    free_port,
    lockd_command,
    run_lockd,
    running_cluster,
    running_node,
)

pytestmark = pytest.mark.process


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LockdProcess]:
    with running_node(tmp_path_factory.mktemp("locks")) as started:
        yield started


class Lockd:
    """The command line in this process, against one node."""

    def __init__(self, node: LockdProcess, capsys: pytest.CaptureFixture[str]) -> None:
        self._node = node
        self._capsys = capsys

    def __call__(self, *arguments: str) -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        command, *rest = arguments
        status = main([command, "--endpoints", self._node.endpoint, *rest])
        shown = self._capsys.readouterr()
        assert "Traceback" not in shown.err
        return status, shown.out, shown.err

    def json(self, *arguments: str, status: int = 0) -> Any:
        """The one document on standard output, or on standard error when the status says so."""
        found, out, err = self(*arguments, "--json")
        assert found == status, err
        return json.loads(err if status else out)


@pytest.fixture
def lockd(node: LockdProcess, capsys: pytest.CaptureFixture[str]) -> Lockd:
    return Lockd(node, capsys)


def test_acquire_renew_release(lockd: Lockd) -> None:
    grant = lockd.json("acquire", "way", "--ttl", "20s")
    assert grant["ttl_ms"] == 20_000
    assert grant["fence"].endswith(f"/{grant['token']}")
    session, token = grant["session"], str(grant["token"])
    assert lockd.json("renew", session) == {"session": session, "ttl_ms": 20_000}
    assert lockd("release", "way", token, "--session", session) == (0, "released way\n", "")
    status, out, err = lockd("release", "way", token, "--session", session)
    assert (status, out) == (4, "")
    assert err.startswith("lockd release: 'way' was not held")


def test_what_acquire_prints_for_people(lockd: Lockd) -> None:
    status, out, _ = lockd("acquire", "printed", "--ttl", "20s")
    facts = dict(line.split() for line in out.splitlines())
    assert status == 0
    assert list(facts) == ["lock", "token", "fence", "session", "ttl"]
    assert facts["ttl"] == "20.0s"


def test_a_busy_lock_is_status_1_and_names_its_holder(lockd: Lockd) -> None:
    lockd.json("acquire", "busy", "--ttl", "20s")
    assert lockd("acquire", "busy", "--ttl", "20s")[0] == 1
    error = lockd.json("acquire", "busy", "--ttl", "20s", "--wait", "50ms", status=1)
    assert error["error"] == "LockTimeout"
    assert error["lock"] == "busy"
    assert error["holder"].startswith("session ")
    assert error["exit_status"] == 1


def test_the_same_request_finds_the_same_grant(lockd: Lockd) -> None:
    """SAFETY G3."""
    arguments = ("acquire", "again", "--ttl", "20s", "--request", "6f1c2c9a-59e1-4c8e-9f60-1d1f0b0e7a11")
    assert lockd.json(*arguments)["token"] == lockd.json(*arguments)["token"]


def test_a_session_that_is_over_is_status_4(lockd: Lockd) -> None:
    assert lockd("renew", "0" * 32)[0] == 4


def test_ctrl_c_ends_a_wait_with_status_130(node: LockdProcess) -> None:
    """SAFETY K4: the wait is withdrawn."""
    node.ask("LOCK.ACQUIRE", "waited", "TTL", 60_000)
    command = lockd_command("acquire", "waited", "--ttl=9s", "--wait=forever", "--endpoints", node.endpoint)
    with subprocess.Popen(command, env=clean_environment(), stderr=subprocess.PIPE, text=True) as process:
        eventually(lambda: node.ask("LOCK.INSPECT", "waited")["queue_length"] == 1, "it waits")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130
    assert said.strip() == ""
    eventually(lambda: node.ask("LOCK.INSPECT", "waited")["queue_length"] == 0, "the wait is withdrawn")


def test_what_the_cluster_refuses_is_status_2(lockd: Lockd) -> None:
    error = lockd.json("renew", "no-session-id", status=2)
    assert "32" in error["message"]
    assert lockd("acquire", "n" * 600, "--ttl", "20s")[0] == 2


def test_inspect_and_ls_show_holders(lockd: Lockd) -> None:
    grant = lockd.json("acquire", "shown:1", "--ttl", "20s", "--meta", '{"job": "x"}')
    lock = lockd.json("inspect", "shown:1")
    assert lock["holders"][0]["token"] == grant["token"]
    assert lock["holders"][0]["meta"] == {"job": "x"}
    assert [listed["lock"] for listed in lockd.json("ls", "shown:")] == ["shown:1"]
    assert lockd.json("ls", "nothing:") == []
    assert lockd.json("inspect", "shown:2")["status"] == "free"
    _, shown, _ = lockd("inspect", "shown:1")
    assert f"token    {grant['token']}" in shown
    _, listed, _ = lockd("ls", "shown:")
    header, row = listed.splitlines()
    assert header.split() == ["LOCK", "TOKEN", "HELD", "WAITING", "HOLDER"]
    assert row.split()[:2] == ["shown:1", str(grant["token"])]
    assert grant["session"] not in shown + listed


def test_no_node_is_status_3() -> None:
    ended = run_lockd("ls", "--endpoints", f"127.0.0.1:{free_port()}", "--json")
    assert ended.returncode == 3
    assert ended.stdout == ""
    assert json.loads(ended.stderr)["error"] == "Unavailable"


def test_status_is_told_by_any_node_and_is_status_3_without_a_leader(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        leader = cluster.leader()
        follower = cluster.followers()[0]
        ended = run_lockd("status", "--endpoints", follower.endpoint)
        assert ended.returncode == 0
        assert f"leader       node {leader.node_id}" in ended.stdout
        rows = [line.split() for line in ended.stdout.splitlines()[-3:]]
        assert [row[0] for row in rows] == ["1", "2", "3"]
        assert [row[1] for row in rows].count("leader") == 1
        assert [row[4] for row in rows] == [node.endpoint for node in cluster]
        for node in cluster:
            if node is not follower:
                node.kill()
        without = _status_without_leader(follower)
        assert json.loads(without.stdout)["leader"] == 0


def _status_without_leader(node: LockdProcess) -> "subprocess.CompletedProcess[str]":
    while True:
        ended = run_lockd("status", "--json", "--endpoints", node.endpoint)
        if ended.returncode:
            assert ended.returncode == 3
            return ended


def test_users_come_in_with_their_password(tmp_path: Path) -> None:
    auth = tmp_path / "auth.toml"
    hashed = hash_password("secret")
    auth.write_text(f'[users.me]\npassword_scrypt = "{hashed}"\nroles = ["lock"]\n')
    password = tmp_path / "password"
    password.write_text("secret\n")
    with running_node(tmp_path, flags=[f"--auth-file={auth}"]) as node:
        access = ("--endpoints", node.endpoint)
        assert run_lockd("ls", *access, "--user", "me", "--password-file", password).returncode == 0
        variables = {"LOCKD_USER": "me", "LOCKD_PASSWORD": "secret"}
        assert run_lockd("ls", *access, environ=variables).returncode == 0
        assert run_lockd("ls", *access).returncode == 2
        wrong = run_lockd("ls", *access, "--json", environ=variables | {"LOCKD_PASSWORD": "wrong"})
        assert wrong.returncode == 2
        assert json.loads(wrong.stderr)["error"] == "AccessDenied"


def test_a_password_is_hashed_from_standard_input() -> None:
    ended = run_lockd("hash-password", stdin="secret\n")
    assert ended.returncode == 0
    assert ended.stdout.startswith("scrypt$")
    assert run_lockd("hash-password").returncode == 2
