"""`lockd serve` as a process: how it starts, refuses to start, logs and stops."""

import json
import subprocess
import time
from pathlib import Path

import pytest

from tests.processes import LockdProcess, NodePorts, clean_environment, lockd_command, run_lockd, running_node

pytestmark = pytest.mark.process


def _refusal(arguments: list[str], environ: dict[str, str] | None = None) -> str:
    """What a start that must fail with status 2 says, in one line."""
    ended = run_lockd("serve", *arguments, environ=environ)
    lines = ended.stderr.splitlines()
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    assert len(lines) == 1, lines
    return lines[0].removeprefix("lockd serve: ")


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--node-id=x"], "node-id (from the command line)"),
        (["--listen-client=7420"], "'7420' is not HOST:PORT"),
        (["--listen-client=0.0.0.0:7420"], "give TLS files, or --insecure"),
        (["--initial-cluster=1=h:1,2=h:2"], "must be 1, 3, 5 or 7"),
        (["--heartbeat-ms=500"], "at least 4 times heartbeat-ms"),
        (["--tls-cert=/nowhere"], "tls-cert and tls-key go together"),
        (["--auth-file=/nowhere"], "auth-file"),
        (["--config=/nowhere"], "cannot read the configuration file /nowhere"),
        (["--log-format=xml"], "log-format"),
        (["--frobnicate"], "No such option"),
        (["stray"], "unexpected extra argument"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_wrong_configuration_is_one_line_and_status_2(
    tmp_path: Path, arguments: list[str], text: str
) -> None:
    said = _refusal([f"--data-dir={tmp_path / 'data'}", *arguments])
    assert text in said
    assert not (tmp_path / "data").exists()


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    file = tmp_path / "lockd.toml"
    file.write_text('node-id = "file"\n')
    assert "in " + str(file) in _refusal(["--config", str(file)])
    environ = {"LOCKD_CONFIG": str(file), "LOCKD_NODE_ID": "environment"}
    assert "from LOCKD_NODE_ID" in _refusal([], environ)
    assert "from the command line" in _refusal(["--node-id=flag"], environ)


def test_an_unknown_variable_warns_and_the_node_starts(tmp_path: Path) -> None:
    environ = {"LOCKD_SERVICE_HOST": "10.0.0.1", "LOCKD_ELECTION_TIMEOUT_MS": "400"}
    with running_node(tmp_path, environ=environ) as node:
        assert "LOCKD_SERVICE_HOST is set but is not a setting" in node.log_text()
        assert "LOCKD_ELECTION_TIMEOUT_MS" not in node.log_text()


def test_a_second_process_on_the_same_data_is_refused(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        other = LockdProcess(tmp_path / "other", ports=NodePorts.draw())
        other.data_dir = node.data_dir
        assert other.start().await_end() == 2
        assert str(node.data_dir) in other.log_text()
        assert other.log_text().count("\n") == 1
        assert node.is_running


def test_a_taken_port_is_refused(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        other = LockdProcess(tmp_path / "other", ports=node.ports)
        assert other.start().await_end() == 2
        assert "cannot listen" in other.log_text()


def test_a_damaged_log_is_refused(tmp_path: Path) -> None:
    """SAFETY D3: it says what to look at, and is not restarted blindly."""
    with running_node(tmp_path) as node:
        for number in range(20):
            node.ask("LOCK.ACQUIRE", f"k{number}", "TTL", 60_000)
        node.kill()
        segment = max(node.data_dir.rglob("*"), key=lambda path: path.stat().st_size)
        damaged = bytearray(segment.read_bytes())
        damaged[len(bytes(damaged).rstrip(b"\0")) // 2] ^= 0xFF
        segment.write_bytes(damaged)
        before = node.log_text()
        assert node.start().await_end() == 2
        said = node.log_text().removeprefix(before).splitlines()
        assert len(said) == 1, said
        assert said[0].startswith("lockd serve: ")
        assert segment.name in said[0]


def test_term_ends_it_soon_with_status_0(tmp_path: Path) -> None:
    with running_node(tmp_path) as node:
        began = time.monotonic()
        assert node.terminate() == 0
        assert time.monotonic() - began < 5.0
        assert "Traceback" not in node.log_text()


def test_its_log_can_be_json_lines(tmp_path: Path) -> None:
    with running_node(tmp_path, flags=["--log-format=json"]) as node:
        node.terminate()
        lines = [json.loads(line) for line in node.log_text().splitlines()]
        assert {"time", "level", "logger", "message"} <= lines[0].keys()
        assert any(line["message"] == "stopped" for line in lines)
        assert not [line for line in lines if line["logger"].startswith("uvicorn")]


def test_without_flags_it_says_where_it_is(tmp_path: Path) -> None:
    with subprocess.Popen(
        lockd_command("serve"), cwd=tmp_path, env=clean_environment(), stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        first = process.stderr.readline()
        process.kill()
    assert "a durable single node for clients on 127.0.0.1:7420" in first
    assert "./lockd-data" in first
