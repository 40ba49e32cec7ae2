"""What attempts say: captured, kept in order, bounded, and readable while it comes."""

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from lockd_scheduler import Run, capture, outputs
from lockd_scheduler.capture import OutputWriter
from lockd_scheduler.outputs import read_output
from tests.scheduler.harness import NOON, World
from tests.scheduler.running import ran, rows, said, underway, until


def test_what_a_command_says_is_there_while_it_runs(world: World, tmp_path: Path) -> None:
    """`logs -f` asks for what comes after the last piece that it has seen."""
    line = f"echo one; until [ -e {tmp_path}/go ]; do sleep 0.01; done; echo two; echo three >&2"
    world.cron.shell("0 * * * *", line, name="talks")
    process = world.process().elected(1)
    process.turn()
    with underway(process):
        until(lambda: rows(world))
        [first] = rows(world)
        assert (first.number, first.stream, first.text) == (1, "stdout", "one\n")
        assert first.written_at == NOON
        (tmp_path / "go").touch()
    later = rows(world, after=first.number)
    assert [row.number for row in later] == [2, 3]
    assert {(row.stream, row.text) for row in later} == {("stdout", "two\n"), ("stderr", "three\n")}
    assert world.attempts()[0].output_characters == len("one\ntwo\nthree\n")
    assert len(read_output(world.engine, world.attempts()[0].id, limit=2)) == 2


def test_bytes_that_are_no_text_are_kept_as_far_as_they_can_be(world: World) -> None:
    """NUL, which PostgreSQL's text refuses, broken UTF-8, and a character that comes in two pieces."""
    line = r"printf 'a\000b\377c\303'; sleep 0.7; printf '\244\360\237\230\200'"
    world.cron.shell("0 * * * *", line, name="binary")
    ran(world)
    assert said(world, "stdout") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}cä\U0001f600"
    assert world.states() == ["succeeded"]


def test_too_much_is_cut_and_its_end_is_kept(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture, "OUTPUT_CHARACTERS_MAX", 50_000)
    world.cron.shell("0 * * * *", "yes 123456789 | head -c 2000000; printf 'the end'", name="chatty")
    ran(world)
    assert said(world, "stdout") == "123456789\n" * 5_000
    told, tail = said(world, "lockd").split(":]\n")
    assert told == f"\n[{2_000_007 - 50_000 - 4_096} characters are cut here; the last 4096"
    assert len(tail) == 4_096
    assert tail.endswith("the end")
    assert world.attempts()[0].output_characters == 2_000_007
    assert max(len(row.text) for row in rows(world)) <= capture.FLUSH_CHARACTERS


def test_run_log_goes_there_and_print_does_not(world: World) -> None:
    @world.cron.every("1h", name="talks")
    def talks(run: Run) -> None:
        print("the service's own output")
        run.log("one line")
        with run.fenced_session():
            run.log("said inside of a transaction, without waiting for it \udcff")
        run.log("another")

    ran(world)
    assert world.states() == ["succeeded"]
    assert said(world, "log") == (
        "one line\nsaid inside of a transaction, without waiting for it ?\nanother\n"
    )
    assert said(world, "stdout") == ""


def test_all_of_it_is_there_when_the_run_has_ended(world: World) -> None:
    @world.cron.every("1h", name="talks")
    def talks(run: Run) -> None:
        run.log("last words")
        raise ValueError("and an error")

    process = world.process().elected(1)
    process.turn()
    [started] = process.worker.start([process.pop()])
    result = process.worker.carry(started)
    assert said(world, "log") == "last words\n", "written before the result is handed in"
    process.worker.finish([result])
    assert world.states() == ["failed"]


@pytest.fixture
def writer(world: World) -> Iterator[OutputWriter]:
    world.cron.every("1h", name="idle")(lambda: None)
    world.process().elected(1).turn()
    abandoned = threading.Event()
    yield OutputWriter(world.engine, now=world.clock.now, abandoned=abandoned)
    abandoned.set()


def test_a_ledger_that_does_not_answer_loses_and_doubles_nothing(
    world: World, writer: OutputWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Errors before a transaction, and after its commit: pieces have numbers, so they can be sent again."""
    failures = iter(["before", "after", "before"])

    def write(engine: Engine, *words: Any) -> None:
        failure = next(failures, None)
        if failure != "before":
            outputs.write_output(engine, *words)
        if failure is not None:
            raise OperationalError("INSERT", {}, Exception("the server went away"))

    monkeypatch.setattr(capture, "write_output", write)
    monkeypatch.setattr(capture, "FLUSH_SECONDS", 0.01)
    output = writer.open(world.attempts()[0].id)
    output.write("log", "one ")
    until(lambda: said(world, "log") == "one ")
    output.write("log", "two")
    output.close()
    assert said(world, "log") == "one two"
    assert [row.number for row in rows(world)] == [1, 2]
    assert next(failures, None) is None


def test_an_attempt_that_was_forgotten_meanwhile_holds_nobody_up(world: World, writer: OutputWriter) -> None:
    given_up, other = writer.open(0), writer.open(world.attempts()[0].id)
    given_up.write("log", "of no attempt")
    other.write("log", "kept")
    given_up.close()
    other.close()
    assert said(world, "log") == "kept"


def test_a_fault_of_ours_costs_the_output_and_not_the_attempt(
    world: World, writer: OutputWriter, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def write(*_: Any) -> None:
        raise ZeroDivisionError("a fault")

    monkeypatch.setattr(capture, "write_output", write)
    output = writer.open(world.attempts()[0].id)
    output.write("log", "lost")
    output.close()
    assert "output of 1 attempts is dropped by a fault" in caplog.text


def test_a_service_that_leaves_does_not_wait_for_a_silent_ledger(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(*_: Any) -> None:
        abandoned.set()
        raise OperationalError("INSERT", {}, Exception("the server went away"))

    abandoned = threading.Event()
    monkeypatch.setattr(capture, "write_output", write)
    output = OutputWriter(world.engine, now=world.clock.now, abandoned=abandoned).open(1)
    output.write("log", "never written")
    output.close()
    output.write("log", "of work that was given up")
    assert read_output(world.engine, 1) == []
