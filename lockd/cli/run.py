"""`lockd run`: a command that runs while a lock is held, and not longer.

    wait for the lock ─▶ start the command ─▶ it ends ─▶ stop what it left behind ─▶ release
                               │
                               └─ the lease runs out: TERM, and KILL at the deadline ─▶ 123

The work is stopped before the cluster can pass the lock on: TERM comes a warning time before the
lease's deadline, which is itself a margin before the cluster's (SAFETY K1). The lock is released
when nothing of the command runs any more (K6). When `lockd run` itself is killed or paused, its
guard does the stopping. What no process can do (the machine was paused, the command left its
process group) is what the fence is for.
"""

import os
import queue
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import click
from click.core import ParameterSource

from lockd.cli.children import ChildGroup, Terminal
from lockd.cli.exits import ExitStatus
from lockd.cli.guard import Guard
from lockd.cli.options import (
    Access,
    Duration,
    LockName,
    as_json,
    with_access,
    with_max_hold,
    with_meta,
    with_shared,
)
from lockd.cli.signals import Interrupted, Signals
from lockd.client import clock
from lockd.client.sync import Client
from lockd.client.threads import Lease
from lockd.errors import LeaseLost, LockTimeout

WARNING_SHARE: Final = 0.2
"""Share of the TTL between TERM and KILL when the lease runs out."""
WARNING_SECONDS_MAX: Final = 5.0
LATE_SECONDS: Final = 0.5
"""Between TERM and KILL when the session is over already: somebody else may hold the lock."""
LEFTOVER_SECONDS: Final = 5.0
"""Between TERM and KILL for what a command leaves behind when it ends."""

_LOOK_SECONDS: Final = 0.25
"""The lease is looked at this often: its clock counts suspend, and timers do not (K1)."""


@dataclass(frozen=True, slots=True)
class _Ended:
    status: int


@dataclass(frozen=True, slots=True)
class _Stopped:
    """The child was stopped, by Ctrl-Z or SIGSTOP."""

    number: int


@dataclass(frozen=True, slots=True)
class _Signalled:
    number: int


@dataclass(frozen=True, slots=True)
class _Lost:
    """The lease is lost: look at it now."""


_Event = _Ended | _Stopped | _Signalled | _Lost
_Events = queue.SimpleQueue[_Event]  # its put() may be called from a signal handler


@click.command(context_settings={"allow_interspersed_args": False})
@click.option("--lock", "name", type=LockName(), required=True, metavar="NAME", help="The lock to hold.")
@click.option(
    "--ttl",
    type=Duration(),
    default="10s",
    show_default=True,
    help="How soon others get the lock when this machine dies.",
)
@click.option(
    "--wait",
    type=Duration(or_forever=True),
    default="forever",
    show_default=True,
    help="How long to stand in the queue; 0 to try once.",
)
@click.option(
    "--on-busy",
    type=click.Choice(["fail", "skip"]),
    help="When the lock was not obtained: fail with 121, or skip the command and exit with 0. Without "
    "--wait it tries once, then.  [default: fail]",
)
@with_shared
@with_max_hold
@with_meta
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@as_json
@with_access
@click.pass_context
def run(
    context: click.Context,
    *,
    access: Access,
    name: str,
    ttl: float,
    wait: float | None,
    on_busy: str | None,
    shared: bool,
    max_hold: float | None,
    meta: dict[str, Any] | None,
    command: tuple[str, ...],
    as_json: bool,  # noqa: ARG001 - errors are reported by it; standard output is the command's
) -> int:
    """Run COMMAND while holding the lock NAME: lockd run --lock NAME -- COMMAND ARGS...

    The command finds LOCKD_LOCK, LOCKD_TOKEN, LOCKD_FENCE, LOCKD_TTL_MS and LOCKD_MODE in its environment.
    Signals are passed on to it. Its exit status is passed on, 128+n when signal n ended it. Of its
    own, `run` exits with 121 when the lock was not obtained, 122 when the cluster did not answer,
    123 when the lease was lost and the command had to be stopped; 126 and 127 are as in a shell.

    When `run` itself is paused or killed, a process that it left on guard ends the command in time. A
    machine that was paused can't be helped like that: what protects then is the token, so let the
    command present LOCKD_FENCE to the storage that it writes to.

    What follows COMMAND is the command's, also what looks like an option of ours.
    """
    if on_busy is not None and context.get_parameter_source("wait") is ParameterSource.DEFAULT:
        wait = 0.0

    def obtain(client: Client) -> Lease:
        return client.acquire(name, wait=wait, meta=meta, shared=shared, max_hold=max_hold)

    try:
        return run_under(access, ttl=ttl, command=command, obtain=obtain)
    except LockTimeout:
        if on_busy == "skip":
            return ExitStatus.DONE
        raise


def run_under(
    access: Access, *, ttl: float, command: tuple[str, ...], obtain: Callable[[Client], Lease]
) -> int:
    """Run a command under the lease that `obtain` waits for. Returns its status, once all of it is gone.

    Raises LeaseLost when the lease was lost, and what `obtain` raises. No thread may have been
    started yet.
    """
    # Ignored, as some parents leave it, the kernel would keep the child's status from us.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    events = _Events()
    try:
        with (
            ChildGroup(command) as child,
            Guard(child) as guard,
            Signals() as signals,
            access.client(ttl=ttl, name=client_name()) as client,
        ):
            lease = obtain(client)
            signals.deliver = lambda number: events.put(_Signalled(number))
            lease.on_lost(lambda: events.put(_Lost()))
            return _Supervision(child, guard, lease, events).until_gone()
    except Interrupted as interrupted:
        return ExitStatus.SIGNALLED + interrupted.number


def client_name() -> str:
    """What others see of this command where it holds or waits."""
    return f"{socket.gethostname()}:{os.getpid()}"


def _environment(lease: Lease) -> dict[str, str]:
    return {
        "LOCKD_LOCK": lease.lock,
        "LOCKD_TOKEN": str(lease.token),
        "LOCKD_FENCE": lease.fence,
        "LOCKD_TTL_MS": str(round(lease.grant.trust.ttl * 1000)),
        # A shared lease may install its fence and may not write (SAFETY G10): the command must know.
        "LOCKD_MODE": lease.mode.value,
    }


class _Supervision:
    """One command under its lease."""

    def __init__(self, child: ChildGroup, guard: Guard, lease: Lease, events: _Events) -> None:
        self._child = child
        self._guard = guard
        self._lease = lease
        self._events = events
        self._terminal = Terminal()
        self._warning = min(WARNING_SECONDS_MAX, WARNING_SHARE * lease.grant.trust.ttl)

    def until_gone(self) -> int:
        """Returns the command's status once all of its group is gone. Raises LeaseLost, then too."""
        self._lease.check()  # it may have been lost on the way here
        self._guard.allow(self._lease.remaining())
        with self._terminal.lent_to(self._child):
            self._child.begin(_environment(self._lease))
            self._child.watch(
                on_end=lambda status: self._events.put(_Ended(status)),
                on_stop=lambda number: self._events.put(_Stopped(number)),
            )
            try:
                return self._supervise()
            except BaseException:
                # Whatever went wrong: stop the work, then release.
                self._stop(kill_after=LATE_SECONDS)
                raise

    def _supervise(self) -> int:
        lease = self._lease
        trusted_until = clock.now()
        while (left := lease.remaining() - self._warning) > 0.0:
            trusted_until = clock.now() + lease.remaining()
            self._guard.allow(lease.remaining())
            match _next(self._events, timeout=min(left, _LOOK_SECONDS)):
                case _Ended(status):
                    self._stop(kill_after=min(LEFTOVER_SECONDS, lease.remaining()))
                    if lease.lost:
                        raise lease.grant.lost_error()
                    return status
                case _Signalled(number):
                    self._child.send(number)
                case _Stopped(number):
                    self._terminal.on_stopped(self._child, number)
                case _Lost() | None:
                    pass
        text = f"lock {lease.lock!r}: the lease with token {lease.token} could not be renewed"
        text = str(lease.grant.lost_error()) if lease.lost else text
        self._stop(kill_after=lease.remaining() or self._time_after_loss(trusted_until))
        raise LeaseLost(f"{text}; the command was stopped", lock=lease.lock, token=lease.token)

    def _time_after_loss(self, trusted_until: float) -> float:
        """Between TERM and KILL when the lease is lost.

        A grant that was taken away while its session lives is passed on a TTL after that, or when its
        end is acknowledged: not before the deadline that stood when the loss was not known yet (P1).
        """
        if self._lease.grant.trust.remaining(clock.now()) <= 0.0:
            return LATE_SECONDS
        return max(LATE_SECONDS, min(self._warning, trusted_until - clock.now()))

    def _stop(self, *, kill_after: float) -> None:
        self._guard.allow(kill_after)
        self._child.stop(kill_after=kill_after)


def _next(events: _Events, *, timeout: float) -> _Event | None:
    try:
        return events.get(timeout=timeout)
    except queue.Empty:
        return None
