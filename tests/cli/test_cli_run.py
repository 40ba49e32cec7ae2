"""`lockd run`: its child lives inside the lease, and its exit status says what happened."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import lockd
from lockd.cli.options import Access
from lockd.cli.run import run_under
from lockd.client import inspection
from lockd.testing.ports import free_port
from tests.processes import (
    PATIENCE_S,
    LockdProcess,
    clean_environment,
    eventually,
    is_alive,
    lockd_command,
    process_state,
    run_lockd,
    running_node,
)

pytestmark = pytest.mark.process

TTL_S = 3.0
"""The shortest that a cluster grants."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LockdProcess]:
    with running_node(tmp_path_factory.mktemp("run")) as started:
        yield started


@pytest.fixture
def own_node(tmp_path: Path) -> Iterator[LockdProcess]:
    """One that this test may freeze."""
    with running_node(tmp_path) as started:
        yield started


def run(node: LockdProcess, lock: str, *command: str, options: Sequence[str] = ()) -> int:
    """Run a command under a lock to its end. Returns the exit status."""
    ended = run_lockd("run", "--endpoints", node.endpoint, "--lock", lock, *options, "--", *command)
    assert "Traceback" not in ended.stderr
    return ended.returncode


@contextlib.contextmanager
def running(
    node: LockdProcess, lock: str, *command: str, options: Sequence[str] = ()
) -> Iterator["subprocess.Popen[str]"]:
    """A `lockd run` on its way; its output is piped. It is killed at the end, if it still runs."""
    arguments = ["run", "--endpoints", node.endpoint, "--lock", lock, *options, "--", *command]
    with subprocess.Popen(
        lockd_command(*arguments),
        env=clean_environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def read_line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def queue_length(node: LockdProcess, lock: str) -> int:
    return int(node.ask("LOCK.INSPECT", lock)["queue_length"])


def is_free(node: LockdProcess, lock: str) -> bool:
    return bool(node.ask("LOCK.INSPECT", lock)["status"] == "free")


def test_the_child_has_the_lock_in_its_environment(node: LockdProcess, tmp_path: Path) -> None:
    seen = tmp_path / "seen"
    program = (
        "import lockd, os, pathlib\n"
        "lease = lockd.Lease.from_env()\n"
        "with lockd.Client(os.environ['ENDPOINT']) as client:\n"
        "    holder = client.inspect(lease.lock).holders[0].token\n"
        "values = [lease.lock, str(lease.token), lease.fence, os.environ['LOCKD_TOKEN'],\n"
        "    os.environ['LOCKD_TTL_MS'], str(holder)]\n"
        f"pathlib.Path({str(seen)!r}).write_text(' '.join(values))\n"
    )
    command = ["env", f"ENDPOINT={node.endpoint}", sys.executable, "-c", program]
    assert run(node, "env", *command, options=["--ttl=7s"]) == 0
    lock, token, fence, variable, ttl_ms, holder = seen.read_text().split()
    assert lock == "env"
    assert token == variable == holder == fence.split("/")[2]
    assert ttl_ms == "7000"
    assert is_free(node, "env")


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -TERM $$", 143)]
)
def test_the_childs_status_is_passed_on(node: LockdProcess, script: str, status: int) -> None:
    assert run(node, "status", "sh", "-c", script) == status


def test_a_command_that_cannot_be_run_is_as_in_a_shell(node: LockdProcess, tmp_path: Path) -> None:
    assert run(node, "none", "no-such-command") == 127
    assert run(node, "none", str(tmp_path)) == 126
    assert is_free(node, "none")


def test_a_lock_not_obtained_is_121(node: LockdProcess) -> None:
    node.ask("LOCK.ACQUIRE", "taken", "TTL", 60_000)
    assert run(node, "taken", "true", options=["--wait=0"]) == 121
    assert run(node, "taken", "true", options=["--wait=50ms"]) == 121


def test_a_busy_lock_may_be_skipped(node: LockdProcess, tmp_path: Path) -> None:
    """As a cron job does whose last run still goes on."""
    node.ask("LOCK.ACQUIRE", "skipped", "TTL", 60_000)
    ran = tmp_path / "ran"
    assert run(node, "skipped", "touch", str(ran), options=["--on-busy=skip"]) == 0
    assert run(node, "skipped", "touch", str(ran), options=["--on-busy=skip", "--wait=50ms"]) == 0
    assert run(node, "skipped", "touch", str(ran), options=["--on-busy=fail"]) == 121, "it tries once"
    assert not ran.exists()
    assert run(node, "not skipped", "sh", "-c", "exit 7", options=["--on-busy=skip"]) == 7


def test_commands_share_a_lock(node: LockdProcess, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"echo $LOCKD_TOKEN; while [ ! -e {go} ]; do sleep 0.05; done"
    with (
        running(node, "shared", "sh", "-c", script, options=["--shared"]) as first,
        running(node, "shared", "sh", "-c", script, options=["--shared"]) as second,
    ):
        assert read_line(first) != read_line(second)
        assert node.ask("LOCK.INSPECT", "shared")["mode"] == "shared"
        assert run(node, "shared", "true", options=["--wait=0"]) == 121
        go.touch()
        assert (first.wait(PATIENCE_S), second.wait(PATIENCE_S)) == (0, 0)
    assert is_free(node, "shared")


def test_what_follows_the_command_is_the_commands(node: LockdProcess) -> None:
    """Without -- too, and also when it looks like an option of ours."""
    ours = ["run", "--endpoints", node.endpoint, "--lock", "k", "--wait=0"]
    ended = run_lockd(*ours, "echo", "--json", "--lock", "x")
    assert (ended.returncode, ended.stdout) == (0, "--json --lock x\n")
    node.ask("LOCK.ACQUIRE", "theirs", "TTL", 60_000)
    ours[4] = "theirs"
    for command in (["echo", "--json"], ["--", "echo", "--json"]):
        ended = run_lockd(*ours, *command)
        assert (ended.returncode, ended.stdout) == (121, "")
        assert ended.stderr.startswith("lockd run: "), "the error is not asked for as JSON"
    asked = run_lockd(*ours, "--json", "echo")
    assert json.loads(asked.stderr)["exit_status"] == 121


def test_the_childs_status_is_had_where_the_parent_ignores_sigchld(node: LockdProcess) -> None:
    """Some cron daemons and container starters do, and it is inherited."""
    command = lockd_command("run", "--endpoints", node.endpoint, "--lock", "ignored", "--", "sh", "-c")
    ignoring = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    ended = subprocess.run(
        [sys.executable, "-c", ignoring, *command, "exit 7"],
        env=clean_environment(),
        timeout=PATIENCE_S,
        check=False,
    )
    assert ended.returncode == 7


def test_a_command_has_time_to_stop_when_its_lock_is_broken(node: LockdProcess, tmp_path: Path) -> None:
    """SAFETY P1: nobody else gets the lock meanwhile."""
    cleaned = tmp_path / "cleaned"
    script = f"trap 'sleep 0.8; touch {cleaned}; exit' TERM; echo $LOCKD_TOKEN; while :; do sleep 0.05; done"
    with running(node, "cleaned", "sh", "-c", script, options=["--ttl=12s"]) as process:
        assert node.ask("LOCK.BREAK", "cleaned", read_line(process), "REASON", "it hangs") == 1
        successor = node.ask("LOCK.ACQUIRE", "cleaned", "TTL", 60_000, "WAIT", "FOREVER", timeout=PATIENCE_S)
        assert successor["status"] == "granted"
        assert cleaned.exists()
        assert process.wait(PATIENCE_S) == 123
        assert process.stderr is not None
        assert "it hangs" in process.stderr.read()


@pytest.mark.parametrize("how", ["broken", "max_hold"])
def test_a_grant_that_is_taken_away_stops_the_command(node: LockdProcess, how: str) -> None:
    """SAFETY P1, K7: and only then may the next one have the lock."""
    options = ["--ttl=3s", *(["--max-hold=1s"] if how == "max_hold" else [])]
    with running(node, how, "sh", "-c", "echo $LOCKD_TOKEN; exec sleep 300", options=options) as process:
        token = read_line(process)
        if how == "broken":
            assert node.ask("LOCK.BREAK", how, token, "REASON", "it hangs") == 1
        assert process.wait(PATIENCE_S) == 123
        assert is_free(node, how), "it was acknowledged"


def test_no_cluster_is_122() -> None:
    ended = run_lockd(
        "run", "--endpoints", f"127.0.0.1:{free_port()}", "--lock=k", "--ttl=1s", "--json", "true"
    )
    assert ended.returncode == 122
    assert json.loads(ended.stderr)["exit_status"] == 122


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on_to_the_whole_group(node: LockdProcess, number: signal.Signals) -> None:
    program = (
        "import os, signal, time\n"
        "def on_signal(*_): os._exit(7 if not child else 42 if os.wait()[1] == 7 << 8 else 1)\n"
        f"signal.signal({int(number)}, on_signal)\n"
        "child = os.fork()\n"
        "os.write(1, b'ready\\n')\n"
        "while True: time.sleep(0.05)\n"  # pause() would miss one that comes just before it
    )
    with running(node, f"signal-{number}", sys.executable, "-c", program) as process:
        assert [read_line(process), read_line(process)] == ["ready", "ready"]
        process.send_signal(number)
        assert process.wait(PATIENCE_S) == 42
    assert is_free(node, f"signal-{number}")


def test_a_signal_while_it_waits_ends_the_wait(node: LockdProcess, tmp_path: Path) -> None:
    """SAFETY K4: the wait is withdrawn."""
    node.ask("LOCK.ACQUIRE", "held", "TTL", 60_000)
    started = tmp_path / "started"
    with running(node, "held", "touch", str(started)) as process:
        eventually(lambda: queue_length(node, "held") == 1, "it waits")
        process.terminate()
        assert process.wait(PATIENCE_S) == 128 + signal.SIGTERM
    eventually(lambda: queue_length(node, "held") == 0, "the wait is withdrawn")
    assert not started.exists()


def test_what_the_child_leaves_behind_is_stopped_before_the_release(
    node: LockdProcess, tmp_path: Path
) -> None:
    """SAFETY K6: stop the work, then release."""
    ready, told, go = (tmp_path / name for name in ("ready", "told", "go"))
    loop = "while {}; do sleep 0.05; done"
    on_term = f"touch {told}; {loop.format(f'[ ! -e {go} ]')}; exit"
    leftover = f"(trap '{on_term}' TERM; touch {ready}; {loop.format(':')}) &"
    script = f"{leftover} {loop.format(f'[ ! -e {ready} ]')}; exit 5"
    with running(node, "left", "sh", "-c", script) as process:
        eventually(told.exists, "what is left has been told to stop")
        assert not is_free(node, "left")
        go.touch()
        assert process.wait(PATIENCE_S) == 5
    assert is_free(node, "left")


def test_the_group_is_ended_before_the_cluster_passes_the_lock_on(
    own_node: LockdProcess, tmp_path: Path
) -> None:
    """SAFETY K1: a child and a grandchild that ignore TERM are killed before the TTL has run."""
    program = (
        "import os, signal, time\n"
        "os.fork()\n"
        f"beats = open({str(tmp_path)!r} + f'/beats-{{os.getpid()}}', 'w')\n"
        "def term(*_): print(time.time(), file=open(beats.name + '-term', 'w'))\n"
        "signal.signal(signal.SIGTERM, term)\n"
        "os.write(1, b'ready\\n')\n"
        "while True:\n"
        "    beats.seek(0); print(f'{time.time():20.3f}', file=beats, flush=True)\n"
        "    time.sleep(0.02)\n"
    )
    with running(own_node, "k", sys.executable, "-c", program, options=[f"--ttl={TTL_S:.0f}s"]) as process:
        assert [read_line(process), read_line(process)] == ["ready", "ready"]
        own_node.freeze()
        frozen_at = time.time()
        assert process.wait(PATIENCE_S) == 123
        assert process.stderr is not None
        said = process.stderr.read()
    assert said.startswith("lockd run: ")
    assert "could not be renewed" in said
    assert said.count("\n") == 1
    last_beats = [float(path.read_text()) for path in tmp_path.glob("beats-*") if path.name[-4:] != "term"]
    terms = [float(path.read_text()) for path in tmp_path.glob("beats-*-term")]
    # The server's TTL began at the last keepalive that it got, before it was frozen.
    assert len(last_beats) == len(terms) == 2
    assert max(last_beats) < frozen_at + TTL_S
    assert min(last_beats) > max(terms) + 0.2, "there was time between TERM and KILL"


def test_a_paused_lockd_run_does_not_keep_its_child_beyond_the_lease(own_node: LockdProcess) -> None:
    """SAFETY K1, K3: the guard ends the child before the lock is free, and it stays lost."""
    with running(own_node, "k", "sh", "-c", "echo $$; exec sleep 300", options=["--ttl=3s"]) as process:
        child = int(read_line(process))
        process.send_signal(signal.SIGSTOP)
        eventually(lambda: is_free(own_node, "k"), "the session is over")
        assert not is_alive(child)
        process.send_signal(signal.SIGCONT)
        assert process.wait(PATIENCE_S) == 123


def test_a_killed_lockd_run_takes_its_child_with_it(own_node: LockdProcess, tmp_path: Path) -> None:
    """SAFETY K6: its guard sends TERM at once, long before the lock is free."""
    said = tmp_path / "said"
    script = f"trap 'echo term > {said}; exit' TERM; echo $$; while :; do sleep 0.05; done"
    with running(own_node, "k", "sh", "-c", script, options=["--ttl=60s"]) as process:
        child = int(read_line(process))
        process.kill()
        eventually(lambda: not is_alive(child), "the child is gone")
        assert not is_free(own_node, "k")
    assert said.read_text() == "term\n"


def test_a_paused_guard_does_not_keep_lockd_run(node: LockdProcess, tmp_path: Path) -> None:
    go = tmp_path / "go"
    script = f"echo $$; while [ ! -e {go} ]; do sleep 0.05; done; exit 3"
    with running(node, "paused guard", "sh", "-c", script) as process:
        child = int(read_line(process))
        (guard,) = set(children(process.pid)) - {child}
        os.kill(guard, signal.SIGSTOP)
        go.touch()
        assert process.wait(PATIENCE_S) == 3
        assert not is_alive(guard)


def test_a_command_is_not_begun_under_a_lease_that_is_lost_already(node: LockdProcess) -> None:
    """SAFETY K3: not even to find that it does not exist. Its guard, which would end it, is paused."""
    before = set(children())

    def obtain(client: lockd.Client) -> lockd.Lease:
        guard = eventually(
            lambda: next((pid for pid in children() if pid not in before and os.getsid(pid) == pid), None),
            "the guard has detached itself",
        )
        os.kill(guard, signal.SIGSTOP)
        lease = client.acquire("late")
        assert node.ask("LOCK.BREAK", "late", lease.token, "REASON", "test", "NOW") == 1
        assert lease.wait_lost(PATIENCE_S)
        return lease

    access = Access(node.endpoint, "", "", None)
    with pytest.raises(lockd.LeaseLost):
        run_under(access, ttl=TTL_S, command=("no-such-command",), obtain=obtain)


def children(process: int | None = None) -> list[int]:
    """The processes that a process has started, or this one."""
    process = process or os.getpid()
    return [int(pid) for pid in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def test_what_is_left_behind_ends_with_the_lease_at_the_latest(
    own_node: LockdProcess, tmp_path: Path
) -> None:
    """SAFETY K1: the child is done, but what it left behind does not heed TERM."""
    go = tmp_path / "go"
    leftover = "(trap '' TERM; echo ready; while :; do sleep 0.05; done) &"
    script = f"{leftover} while [ ! -e {go} ]; do sleep 0.05; done; exit 0"
    with running(own_node, "k", "sh", "-c", script, options=["--ttl=3s"]) as process:
        assert read_line(process) == "ready"
        own_node.freeze()
        go.touch()
        assert process.wait(PATIENCE_S) == 123


def test_the_lock_outlives_a_short_loss_of_the_cluster(own_node: LockdProcess, tmp_path: Path) -> None:
    """SAFETY K2: losing the connection is not losing the lock."""
    go = tmp_path / "go"
    script = f"echo ready; while [ ! -e {go} ]; do sleep 0.05; done; exit 3"
    with running(own_node, "k", "sh", "-c", script, options=["--ttl=20s"]) as process:
        assert read_line(process) == "ready"
        own_node.kill()
        own_node.start().await_ready()
        with lockd.Client(own_node.endpoint) as client:
            renewed = eventually(lambda: client.inspect("k").holders, "the lock is still held")
            assert renewed[0].token == client.ask(inspection.inspect("k")).granted_last
        go.touch()
        assert process.wait(PATIENCE_S) == 3


def test_on_a_terminal_the_child_reads_the_keyboard_and_can_be_paused(node: LockdProcess) -> None:
    ours, theirs = os.openpty()
    command = lockd_command("run", "--endpoints", node.endpoint, "--lock", "terminal", "--", "sh", "-c")
    script = 'echo "child $$"; read line; echo "read $line"; exit 6'
    login = f"import os; os.login_tty({theirs}); os.execv({command[0]!r}, {[*command, script]!r})"
    with subprocess.Popen(
        [sys.executable, "-c", login], env=clean_environment(), pass_fds=[theirs]
    ) as process:
        os.close(theirs)
        try:
            child = int(_read_until(ours, "child ").split()[0])
            eventually(lambda: os.tcgetpgrp(ours) == child, "the child has the terminal")
            os.write(ours, b"\x1a")  # Ctrl-Z
            eventually(lambda: process_state(child) == "T", "the child is paused")
            eventually(lambda: process_state(process.pid) == "T", "lockd run is paused with it")
            process.send_signal(signal.SIGCONT)
            eventually(lambda: process_state(child) == "S", "the child goes on")
            os.write(ours, b"hello\n")
            assert _read_until(ours, "read ").startswith("hello")
            assert process.wait(PATIENCE_S) == 6
        finally:
            process.kill()
            os.close(ours)


def _read_until(terminal: int, text: str) -> str:
    """The line after `text` on the terminal."""
    seen = ""
    while "\n" not in seen.partition(text)[2]:
        seen += os.read(terminal, 4096).decode()
    return seen.partition(text)[2]
