"""Durations, exit statuses and how things are shown: no process is started."""

import json
import sys

import click
import pytest

from lockd import errors
from lockd.cli import main
from lockd.cli.exits import ExitStatus, status_of
from lockd.cli.options import Access, parse_duration
from lockd.cli.output import duration
from lockd.cli.serve import serve
from lockd.server.config import ServerConfig


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10s", 10), ("500ms", 0.5), ("1m30s", 90), ("1.5h", 5400), ("1d2h", 93_600), ("0", 0)],
)
def test_durations_are_read(text: str, seconds: float) -> None:
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text", ["", "10", "s", "-1s", "1 s", "1s ", "\uff11s", "1_0s", "10sec", "1e3s", "forever"]
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("milliseconds", "text"),
    [
        (0, "0ms"),
        (999, "999ms"),
        (12_500, "12.5s"),
        (59_999, "59.9s"),
        (185_000, "3m05s"),
        (7_380_000, "2h03m"),
        (349_200_000, "4d01h"),
    ],
)
def test_durations_are_shown(milliseconds: int, text: str) -> None:
    assert duration(milliseconds) == text


@pytest.mark.parametrize(
    ("error", "status", "status_of_run"),
    [
        (errors.LockTimeout("busy"), 1, 121),
        (errors.LimitExceeded("full"), 1, 121),
        (errors.Rejected("bad"), 2, 2),
        (errors.AccessDenied("who"), 2, 2),
        (errors.Unavailable("down"), 3, 122),
        (errors.OutcomeUnknown("gone"), 3, 122),
        (errors.LeaseLost("over"), 4, 123),
        (errors.SessionExpired("over"), 4, 123),
        (errors.NotHeld("over"), 4, 123),
        (errors.CorruptData("damaged"), 2, 2),
        (click.UsageError("what"), 2, 2),
        (KeyError("a bug"), 70, 70),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_each_error_has_its_exit_status(error: Exception, status: int, status_of_run: int) -> None:
    assert status_of(error, command="acquire") == status
    assert status_of(error, command="run") == status_of_run


def test_serve_has_a_flag_for_each_setting() -> None:
    flags = {parameter.name: parameter.opts[0] for parameter in serve.params}
    expected = {name: f"--{name.replace('_', '-')}" for name in ServerConfig.model_fields}
    assert flags == {"config_file": "--config"} | expected


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--nonsense"],
        ["acquire"],
        ["acquire", "k"],
        ["acquire", "k", "--ttl", "5"],
        ["acquire", "k", "--ttl", "5s", "--meta", "[1]"],
        ["acquire", "k", "--ttl", "5s", "--endpoints", "host:port"],
        ["release", "k", "0", "--session", "s"],
        ["run", "--lock", "k"],
        ["run", "--lock", "", "--", "true"],
        ["run", "--lock", "file-\udcff", "--", "true"],
        ["acquire", "file-\udcff", "--ttl", "5s"],
        ["inspect", ""],
        ["run", "--lock", "k", "--ttl", "1ms", "--", "true"],
        ["status", "--user", "u"],
        ["ls", "--tls-ca", "/nowhere"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_one_line_and_status_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == ExitStatus.USAGE
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("lockd")
    assert shown.err.count("\n") == 1


def test_wrong_usage_is_json_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["acquire", "k", "--json"]) == ExitStatus.USAGE
    document = json.loads(capsys.readouterr().err)
    assert document["exit_status"] == 2
    assert "--ttl" in document["message"]


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    commands = capsys.readouterr().out.partition("Commands:")[2].split("\n")
    names = [line.split()[0] for line in commands if line.strip()]
    assert {"serve", "demo", "run", "acquire", "renew", "release", "inspect", "ls", "status"} <= set(names)
    for name in names:
        assert main([name, "--help"]) == 0, name
        assert capsys.readouterr().out.startswith(f"Usage: lockd {name}")


def test_no_command_shows_the_help_as_wrong_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == ExitStatus.USAGE
    assert "Commands:" in capsys.readouterr().err


def test_a_missing_extra_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lockd_scheduler.demo", None)
    assert main(["demo"]) == ExitStatus.USAGE
    said = capsys.readouterr().err
    assert said.endswith("is not installed: pip install 'lockd[demo]'\n")
    assert said.count("\n") == 1


def test_a_fault_of_our_own_is_one_line_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: Access) -> None:
        raise KeyError("a bug")

    monkeypatch.setattr(Access, "client", fail)
    assert main(["ls"]) == ExitStatus.INTERNAL
    said = capsys.readouterr().err
    assert said.startswith("lockd ls: unexpected KeyError at ")
    assert said.count("\n") == 1
