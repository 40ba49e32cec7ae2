"""Running a command as a child of this service, under a guardian, with what it says captured."""

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from lockd_scheduler.bounds import AbandonedError
from lockd_scheduler.capture import OURS
from lockd_scheduler.mandates import Claimed
from lockd_scheduler.runners import Work

GUARDIAN = Path(__file__).with_name("guardian.py")
GRACE_SECONDS = 5.0
"""Between TERM and KILL. Shorter than the time after which a worker gives an attempt up."""
LINGER_SECONDS = 2.0
"""How long what a command leaves behind may go on after its end."""
LOOK_SECONDS = 0.5
READ_BYTES = 65_536
OWN_SETTINGS = "LOCKD_SCHEDULER_"
"""Variables that configure the service, and may hold its passwords: jobs don't see them."""


@dataclass
class Ended:
    """What became of a command. Nothing of it is left, unless `is_unknown`."""

    status: int | None = None
    """As the shell counts: 128 and the number of a signal that ended it; None: it has none."""
    was_stopped: bool = False
    """It was told to end before it had ended by itself."""
    refused: str | None = None
    """Why it could not be started."""
    is_unknown: bool = False
    """Its guardian was killed: processes of it may be left."""


def environment(work: Work, env: Mapping[str, str]) -> dict[str, str]:
    """This service's variables, the job's own, and which attempt this is."""
    run = work.run
    own = {name: value for name, value in os.environ.items() if not name.startswith(OWN_SETTINGS)}
    return {
        **own,
        **env,
        "LOCKD_RUN_ID": str(run.id),
        "LOCKD_JOB": run.job,
        "LOCKD_FIRE_TIME": run.fire_at.isoformat().replace("+00:00", "Z"),
        "LOCKD_ATTEMPT": str(run.attempt),
        "LOCKD_TOKEN": run.headers["Fencing-Token"],
        "LOCKD_IDEMPOTENCY_KEY": run.key,
        "LOCKD_ARGS": json.dumps(dict(work.started.claimed.args)),
    }


def run_child(
    work: Work,
    command: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str | None = None,
    pass_fds: Sequence[int] = (),
) -> Ended:
    """Run it until nothing of it is left; end it when the work is to stop. Raises AbandonedError.

    `pass_fds`: descriptors that the command inherits under the same numbers.
    """
    report, report_to = os.pipe()
    words = {
        "command": list(command),
        "cwd": cwd,
        "report": report_to,
        "pass": list(pass_fds),
        "grace": GRACE_SECONDS,
        "linger": LINGER_SECONDS,
    }
    try:
        guardian = subprocess.Popen(  # noqa: S603 - to run commands is what a scheduler is for
            [sys.executable, "-I", "-S", GUARDIAN, json.dumps(words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            env=env,
            pass_fds=[report_to, *pass_fds],
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        os.close(report)
        return Ended(refused=str(error))
    finally:
        os.close(report_to)
    with guardian, os.fdopen(report, "rb", buffering=0) as reporting:
        ended = _Watch(work, guardian, reporting).to_the_end()
    if work.abandoned.is_set() and ended.was_stopped:
        raise AbandonedError(_name(work.started.claimed))
    return ended


class _Watch:
    """Reads what a guarded command says and what its guardian reports."""

    def __init__(self, work: Work, guardian: "subprocess.Popen[bytes]", reporting: IO[bytes]) -> None:
        assert guardian.stdin is not None
        assert guardian.stdout is not None
        assert guardian.stderr is not None
        self._work = work
        self._guardian = guardian
        self._stop_to = guardian.stdin
        self._stopping = threading.Lock()
        self._reporting = reporting
        self._streams: dict[IO[bytes], str] = {guardian.stdout: "stdout", guardian.stderr: "stderr"}
        self._report = b""
        self._pid: int | None = None
        self._is_gone = False
        self._ended = Ended()

    def to_the_end(self) -> Ended:
        for stream in self._streams:
            os.set_blocking(stream.fileno(), False)
        self._work.bounds.on_stop(lambda _: self._stop())
        with selectors.DefaultSelector() as waiting:
            for pipe in (self._reporting, *self._streams):
                waiting.register(pipe, selectors.EVENT_READ)
            while self._reporting in waiting.get_map():
                for key, _ in waiting.select(LOOK_SECONDS):
                    source: Any = key.fileobj
                    if not self._read(source):
                        waiting.unregister(source)
                if self._work.abandoned.is_set():
                    self._stop()
        for stream in self._streams:  # what was said up to the end
            while self._read(stream):
                pass
        self._stop()
        if not self._is_gone and self._ended.refused is None:
            self._end_unguarded()
        return self._ended

    def _read(self, source: IO[bytes]) -> bool:
        """Take what there is; whether more may come."""
        try:
            data = os.read(source.fileno(), READ_BYTES)
        except BlockingIOError:
            return False
        if source in self._streams:
            self._work.output.feed(self._streams[source], data)
        else:
            *lines, self._report = (self._report + data).split(b"\n")
            for line in lines:
                self._hear(json.loads(line))
        return bool(data)

    def _hear(self, words: dict[str, Any]) -> None:
        match words:
            case {"started": int(pid)}:
                self._pid = pid
            case {"refused": str(text)}:
                self._ended.refused = text
            case {"exited": int(code), "stopped": bool(stopped)}:
                self._ended.status = code if code >= 0 else 128 - code
                self._ended.was_stopped = stopped
            case {"left": int(count)}:
                text = f"\n[the command has ended and left {count} processes behind: they are ended now]\n"
                self._work.output.write(OURS, text)
            case {"gone": True}:
                self._is_gone = True

    def _stop(self) -> None:
        """Have the guardian end it; on any thread, any number of times."""
        with self._stopping:
            if not self._stop_to.closed:
                # Told, too: a fork of this process may keep the other end from seeing the close.
                with suppress(BrokenPipeError):
                    self._stop_to.write(b"stop\n")
                self._stop_to.close()

    def _end_unguarded(self) -> None:
        """The guardian was killed, and the command with it; its group may go on."""
        self._ended.is_unknown = True
        give_up = time.monotonic() + GRACE_SECONDS
        while self._pid is not None and time.monotonic() < give_up:
            try:
                os.killpg(self._pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            time.sleep(0.05)


def _name(claimed: Claimed) -> str:
    return f"attempt {claimed.number} of run {claimed.run_id} ({claimed.job})"
