"""`lockd watch`, `observe`, `elect` and `bench`: commands that go on, as processes."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    with running_node(tmp_path_factory.mktemp("watching")) as started:
        yield started


@pytest.fixture
def lockd(node: LockdProcess, capsys: pytest.CaptureFixture[str]) -> Lockd:
    return Lockd(node, capsys)


def revision(node: LockdProcess) -> int:
    return int(node.ask("LOCK.LIST")["revision"])


def test_watch_shows_events_as_they_happen(node: LockdProcess) -> None:
    since = str(revision(node))
    with running(node, "watch", "jobs/", "--from", since, "--json") as watch:
        node.ask("LOCK.ACQUIRE", "other", "TTL", 60_000)
        grant = node.ask("LOCK.ACQUIRE", "jobs/1", "TTL", 60_000, "META", '{"a": 1}')
        first = watch.document()
        assert (first["event"], first["lock"], first["token"]) == ("acquired", "jobs/1", grant["token"])
        assert first["meta"] == {"a": 1}
        node.ask("LOCK.RELEASE", "jobs/1", grant["token"], "SESSION", grant["session"])
        second = watch.document()
        assert second["event"] == "released"
        assert second["revision"] > first["revision"]
        watch.process.send_signal(signal.SIGINT)
        assert watch.ends() == 130
    with running(node, "watch", "jobs/", "--from", since) as watch:
        assert watch.line().split()[1:3] == ["acquired", "jobs/1"]


def test_whoever_reads_a_watch_may_stop_reading(node: LockdProcess) -> None:
    node.ask("LOCK.ACQUIRE", "piped", "TTL", 60_000)
    command = lockd_command("watch", "--endpoints", node.endpoint, "--from", "0")
    with subprocess.Popen(
        command, env=clean_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as watch:
        assert watch.stdout is not None
        assert watch.stderr is not None
        watch.stdout.readline()
        watch.stdout.close()
        node.ask("LOCK.ACQUIRE", "piped again", "TTL", 60_000)
        assert watch.wait(PATIENCE_S) == 128 + signal.SIGPIPE
        assert watch.stderr.read() == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_standard_stream_is_not_taken_for_a_socket(node: LockdProcess, closed: str) -> None:
    command = lockd_command("acquire", closed, "--ttl", "60s", "--endpoints", node.endpoint)
    ended = subprocess.run(
        ["/bin/sh", "-c", f'"$@" {closed}', "sh", *command],
        env=clean_environment(),
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 0
    assert node.ask("LOCK.INSPECT", closed)["status"] == "held"


def test_a_watch_goes_on_when_its_node_dies(tmp_path: Path) -> None:
    with running_cluster(tmp_path) as cluster:
        followers = cluster.followers()
        with running(followers[0], "watch", "--from", "0", "--json") as watch:
            for number in range(3):
                cluster.leader().ask("LOCK.ACQUIRE", f"k{number}", "TTL", 60_000)
            assert [watch.document()["lock"] for _ in range(3)] == ["k0", "k1", "k2"]
            followers[0].kill()
            for number in range(3, 6):
                cluster.leader().ask("LOCK.ACQUIRE", f"k{number}", "TTL", 60_000)
            assert [watch.document()["lock"] for _ in range(3)] == ["k3", "k4", "k5"]


def test_observe_shows_who_leads(node: LockdProcess) -> None:
    with running(node, "observe", "office") as observe, running(node, "observe", "office", "--json") as json:
        assert observe.line() == "vacant"
        assert json.document()["leader"] is None
        with running(node, "elect", "office", "--value", "host-a", "--json") as elect:
            elected = elect.document()
            assert (elected["election"], elected["event"]) == ("office", "elected")
            assert elected["fence"].endswith(f"/{elected['token']}")
            assert observe.line().split()[:3] == ["leader", "host-a", f"token={elected['token']}"]
            leader = json.document()["leader"]
            assert (leader["value"], leader["token"]) == ("host-a", elected["token"])
            elect.process.terminate()
            assert elect.ends() == 128 + signal.SIGTERM
        assert observe.line() == "vacant", "it resigned"


def test_the_next_candidate_leads_when_the_first_is_broken(node: LockdProcess, lockd: Lockd) -> None:
    """And the first one stands again, behind it."""
    with running(node, "elect", "broken", "--value", "a", "--ttl=3s", "--json") as first:
        token = first.document()["token"]
        with running(node, "elect", "broken", "--value", "b", "--json") as second:
            eventually(lambda: node.ask("LOCK.INSPECT", "broken")["queue_length"] == 1, "it waits")
            assert lockd("break", "broken", "--token", str(token), "--reason", "test")[0] == 0
            assert first.document()["event"] == "lost"
            assert second.document()["token"] > token
            eventually(lambda: node.ask("LOCK.INSPECT", "broken")["queue_length"] == 1, "it stands again")


def test_a_command_runs_while_it_leads(node: LockdProcess, lockd: Lockd, tmp_path: Path) -> None:
    """Stopped with the lease, started again with the next one; when it ends by itself, that is all."""
    go = tmp_path / "go"
    script = f"echo $LOCKD_TOKEN; while [ ! -e {go} ]; do sleep 0.05; done; exit 7"
    options = ["--value", "a", "--ttl=3s", "--", "sh", "-c", script]
    with running(node, "elect", "worked", *options) as elect:
        token = int(elect.line())
        assert lockd.json("inspect", "worked")["holders"][0]["meta"] == "a"
        assert lockd("break", "worked", "--token", str(token), "--reason", "test")[0] == 0
        again = int(elect.line())
        assert again > token
        go.touch()
        assert elect.ends() == 7
    assert node.ask("LOCK.INSPECT", "worked")["status"] == "free"


def test_a_candidate_with_a_command_can_be_interrupted_while_it_waits(node: LockdProcess) -> None:
    """SAFETY K4."""
    node.ask("LOCK.ACQUIRE", "taken", "TTL", 60_000)
    with running(node, "elect", "taken", "--", "true") as elect:
        eventually(lambda: node.ask("LOCK.INSPECT", "taken")["queue_length"] == 1, "it waits")
        elect.process.terminate()
        assert elect.ends() == 128 + signal.SIGTERM
    eventually(lambda: node.ask("LOCK.INSPECT", "taken")["queue_length"] == 0, "the wait is withdrawn")


@pytest.mark.parametrize("options", [[], ["--contended"]])
def test_bench_tells_how_fast_it_goes_and_leaves_nothing(lockd: Lockd, options: list[str]) -> None:
    before = {session["session"] for session in lockd.json("sessions")}
    found = lockd.json("bench", "--clients", "3", "--seconds", "0.3", "--lock", "b/", *options)
    assert found["cycles"] > 0
    assert found["errors"] == {}
    assert 0 < found["p50_ms"] <= found["p90_ms"] <= found["p99_ms"] <= found["max_ms"]
    assert lockd.json("ls", "b/") == []
    assert before.issuperset(session["session"] for session in lockd.json("sessions"))
    status, shown, _ = lockd("bench", "--clients", "1", "--seconds", "0.1", *options)
    assert status == 0
    assert "cycles per s" in shown


def test_without_a_cluster_they_are_status_3() -> None:
    nowhere = f"127.0.0.1:{free_port()}"
    for command in (["watch"], ["observe", "x"], ["bench", "--seconds", "0.1"]):
        ended = run_lockd(*command, "--endpoints", nowhere, timeout=60)
        assert ended.returncode == 3
        assert "Traceback" not in ended.stderr
