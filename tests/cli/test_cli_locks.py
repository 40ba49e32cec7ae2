"""Locks from scripts: what is printed, and which exit status says what."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lockd.passwords import hash_password
from lockd.testing.ports import free_port
from tests.cli.commands import Lockd, running
from tests.processes import (
    PATIENCE_S,
    LockdProcess,
    clean_environment,
    eventually,
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


@pytest.fixture
def lockd(node: LockdProcess, capsys: pytest.CaptureFixture[str]) -> Lockd:
    return Lockd(node, capsys)


def test_acquire_renew_release(lockd: Lockd) -> None:
    grant = lockd.json("acquire", "way", "--ttl", "20s")
    assert grant["ttl_ms"] == 20_000
    assert grant["fence"].endswith(f"/{grant['token']}")
    session, token = grant["session"], str(grant["token"])
    assert lockd.json("renew", session) == {"session": session, "ttl_ms": 20_000, "ended": []}
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
    assert (error["queue_length"], error["meta"]) == (0, None)
    assert error["held_ms"] >= 50
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
    assert header.split() == ["LOCK", "MODE", "TOKEN", "HELD", "WAITING", "HOLDER"]
    assert row.split()[:3] == ["shown:1", "exclusive", str(grant["token"])]
    assert grant["session"] not in shown + listed


def test_a_queue_is_shown_in_its_order(lockd: Lockd, node: LockdProcess) -> None:
    node.ask("LOCK.ACQUIRE", "queued", "TTL", 60_000)
    assert lockd.json("inspect", "queued", "--queue")["waiters"] == []
    with running(node, "acquire", "queued", "--ttl=9s", "--wait=forever", "--meta", '{"job": 1}'):
        eventually(lambda: node.ask("LOCK.INSPECT", "queued")["queue_length"] == 1, "it waits")
        (waiter,) = lockd.json("inspect", "queued", "--queue")["waiters"]
        assert (waiter["position"], waiter["mode"], waiter["meta"]) == (0, "exclusive", {"job": 1})
        _, shown, _ = lockd("inspect", "queued", "--queue")
        header, row = shown.splitlines()[-2:]
        assert header.split() == ["POSITION", "SESSION", "OWNER", "MODE", "WEIGHT", "WAITING", "META"]
        assert row.split()[:2] == ["0", str(waiter["session"])]
        assert lockd.json("ls", "queued")[0]["queue_length"] == 1


def test_locks_are_shared_and_semaphores_have_units(lockd: Lockd) -> None:
    first = lockd.json("acquire", "read", "--ttl", "20s", "--shared")
    assert lockd.json("acquire", "read", "--ttl", "20s", "--shared")["token"] > first["token"]
    assert lockd("acquire", "read", "--ttl", "20s")[0] == 1
    status, shown, _ = lockd("acquire", "pool", "--ttl", "20s", "--limit", "3", "--weight", "2")
    assert status == 0
    assert "2 of 3" in shown
    assert "fence" not in shown, "a semaphore's grants fence nothing"
    assert lockd("acquire", "pool", "--ttl", "20s", "--limit", "3", "--weight", "2")[0] == 1
    mismatch = lockd.json("acquire", "pool", "--ttl", "20s", "--limit", "4", status=2)
    assert mismatch["error"] == "LimitMismatch"
    assert "used     2 of 3" in lockd("inspect", "pool")[1]
    assert "semaphore 2/3" in lockd("ls", "pool")[1]


@pytest.mark.parametrize(
    "options",
    [
        *(["--weight", "2"], ["--limit", "2", "--weight", "3"], ["--limit", "2", "--shared"]),
        *(["--shared", "--delay", "1s"], ["--max-hold", "0"], ["--limit", "0"]),
    ],
)
def test_what_cannot_be_asked_for_is_status_2(lockd: Lockd, options: list[str]) -> None:
    status, _, said = lockd("acquire", "odd", "--ttl", "20s", *options)
    assert status == 2
    assert "unexpected" not in said


def test_a_broken_lock_is_told_to_its_holder_and_passed_on_when_it_has_stopped(lockd: Lockd) -> None:
    """SAFETY P1, K7: over what scripts have, `renew` and `release`."""
    grant = lockd.json("acquire", "stuck", "--ttl", "20s")
    session, token = grant["session"], str(grant["token"])
    broken = lockd.json("break", "stuck", "--reason", "it hangs")
    assert broken == {"lock": "stuck", "token": grant["token"], "broken": True, "now": False}
    assert lockd("acquire", "stuck", "--ttl", "20s")[0] == 1, "its holder may still work"
    assert "broken: it hangs" in lockd("inspect", "stuck")[1]
    renewal = lockd.json("renew", session, status=4)
    (ended,) = renewal["ended"]
    assert (ended["lock"], ended["token"]) == ("stuck", grant["token"])
    assert "it hangs" in ended["reason"]
    assert "ended  stuck" in lockd("renew", session)[1]
    lockd("release", "stuck", token, "--session", session)
    assert lockd("acquire", "stuck", "--ttl", "20s")[0] == 0


def test_a_lock_is_broken_at_once_only_when_that_is_asked_for(lockd: Lockd) -> None:
    grant = lockd.json("acquire", "torn", "--ttl", "20s")
    lockd.json("break", "torn", "--token", str(grant["token"]), "--reason", "now", "--now")
    assert lockd("acquire", "torn", "--ttl", "20s")[0] == 0


def test_it_is_said_that_a_broken_lock_is_not_free_yet(lockd: Lockd) -> None:
    grant = lockd.json("acquire", "ends", "--ttl", "20s")
    assert (
        "passed on when its holder has stopped, or a TTL later" in lockd("break", "ends", "--reason", "x")[1]
    )
    assert lockd("ls", "ends")[1].endswith(" (ending)\n")
    token = str(grant["token"])
    assert (
        lockd("break", "ends", "--reason", "x", "--token", token, "--now")[1]
        == f"broke ends, token {token}\n"
    )


def test_breaking_needs_a_grant_that_is_held(lockd: Lockd) -> None:
    assert lockd("break", "nobody's", "--reason", "x")[0] == 4
    assert lockd("break", "nobody's", "--reason", "x", "--token", "7")[0] == 4
    assert lockd("break", "nobody's")[0] == 2
    tokens = [lockd.json("acquire", "many", "--ttl", "20s", "--shared")["token"] for _ in range(2)]
    status, _, said = lockd("break", "many", "--reason", "x")
    assert status == 2
    assert all(str(token) in said for token in tokens)


def test_a_token_is_validated_with_an_exit_status(lockd: Lockd) -> None:
    first = lockd.json("acquire", "valid", "--ttl", "20s")
    token = str(first["token"])
    assert lockd("validate", "valid", token) == (0, "current\n", "")
    lockd("release", "valid", token, "--session", first["session"])
    assert lockd("validate", "valid", token) == (4, "free\n", "")
    lockd.json("acquire", "valid", "--ttl", "20s")
    document = {"lock": "valid", "token": first["token"], "status": "superseded"}
    assert lockd.json("validate", "valid", token, status=4) == document


def test_sessions_are_listed_by_public_numbers(lockd: Lockd, node: LockdProcess) -> None:
    opened = node.ask("SESSION.OPEN", 20_000, "NAME", "listed", "META", '{"on":"host"}')
    node.ask("LOCK.ACQUIRE", "of a session", "SESSION", opened["session"])
    (found,) = [session for session in lockd.json("sessions") if session["name"] == "listed"]
    assert (found["held"], found["waiting"], found["meta"]) == (1, 0, {"on": "host"})
    assert found["private"] is False
    _, shown, _ = lockd("sessions")
    assert opened["session"] not in shown
    assert "listed" in shown


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
        breaking = ("break", "k", "--token", "1", "--reason", "x", "--json")
        refused = run_lockd(*breaking, *access, environ=variables)
        assert refused.returncode == 2
        assert json.loads(refused.stderr)["error"] == "AccessDenied", "that takes another role"
        wrong = run_lockd("ls", *access, "--json", environ=variables | {"LOCKD_PASSWORD": "wrong"})
        assert wrong.returncode == 2
        assert json.loads(wrong.stderr)["error"] == "AccessDenied"


def test_a_password_is_hashed_from_standard_input() -> None:
    ended = run_lockd("hash-password", stdin="secret\n")
    assert ended.returncode == 0
    assert ended.stdout.startswith("scrypt$")
    assert run_lockd("hash-password").returncode == 2
