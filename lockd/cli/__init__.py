"""The command line: `lockd serve`, and what a person or a script does with locks.

It promises exit statuses that a script can rely on (`exits`), one JSON document on standard output
with `--json`, errors of one line on standard error, and never a traceback. It refuses to guess: an
outcome that is not known is exit status 3, not 0 and not 1.

Start with `main`. A command is imported when it is called: `lockd renew` in a shell script should
not wait for the server's imports. `serve` runs a node; `locks` and `status` are thin over
lockd.Client; `run` and `children` keep a child process inside its lease.
"""

import importlib
import importlib.metadata
import json
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from types import FrameType
from typing import Any, NamedTuple, NoReturn

import click

from lockd.cli.exits import ExitStatus, facts_of, status_of
from lockd.errors import CorruptData, LockdError


class _Command(NamedTuple):
    module: str
    attribute: str
    summary: str
    extra: str = ""
    """What `pip install 'lockd[...]'` must have brought."""

    def load(self) -> click.Command:
        command = getattr(importlib.import_module(self.module), self.attribute)
        assert isinstance(command, click.Command)
        return command


_COMMANDS = {
    "serve": _Command("lockd.cli.serve", "serve", "Run a node."),
    "demo": _Command("lockd_scheduler.demo", "demo", "Show a cluster survive what breaks others.", "demo"),
    "run": _Command("lockd.cli.run", "run", "Run a command while holding a lock."),
    "acquire": _Command("lockd.cli.locks", "acquire", "Take a lock for a time."),
    "renew": _Command("lockd.cli.locks", "renew", "Give a session its full time again."),
    "release": _Command("lockd.cli.locks", "release", "Give a lock back."),
    "inspect": _Command("lockd.cli.looking", "inspect", "Show who holds a lock, and who waits for it."),
    "validate": _Command("lockd.cli.looking", "validate", "Tell whether a token is still that of its lock."),
    "ls": _Command("lockd.cli.looking", "ls", "List the locks that are held or waited for."),
    "break": _Command("lockd.cli.locks", "break_lock", "Take a lock from its holder."),
    "watch": _Command("lockd.cli.watching", "watch", "Show what happens to locks, as it happens."),
    "elect": _Command("lockd.cli.elect", "elect", "Stand for election, and lead."),
    "observe": _Command("lockd.cli.watching", "observe", "Show who leads an election, as it changes."),
    "sessions": _Command("lockd.cli.looking", "sessions", "List the sessions that live."),
    "status": _Command("lockd.cli.status", "status", "Show the cluster and its nodes."),
    "members": _Command("lockd.cli.members", "members", "List, add, promote and remove the cluster's nodes."),
    "snapshot": _Command("lockd.cli.snapshot", "snapshot", "Save, restore and look at the cluster's state."),
    "log": _Command("lockd.cli.log", "log", "Look into a node's log on disk."),
    "bench": _Command("lockd.cli.bench", "bench", "Measure how fast locks are granted and released."),
    "fences": _Command("lockd_storage.cli", "fences", "Look after the marks in a storage.", "sqlalchemy"),
    "hash-password": _Command("lockd.cli.passwords", "hash_password", "Hash a password for --auth-file."),
}


class _Commands(click.Group):
    """The table above as a click group that imports one command at a time."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        entry = _COMMANDS.get(cmd_name)
        return None if entry is None else entry.load()

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            # Whoever read our output has seen enough: `lockd watch | head`. What is left can't be flushed.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return ExitStatus.SIGNALLED + signal.SIGPIPE

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in _COMMANDS.items()])


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("lockd"), message="lockd %(version)s")
def lockd() -> None:
    """Locks that are safe to rely on, and a fencing token with each."""


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return the process's exit status. Errors become one line, or JSON."""
    _fill_closed_streams()
    given = list(sys.argv[1:] if args is None else args)
    if given[:1] == ["serve"]:
        # Its imports take long, and the kernel drops a SIGTERM for which a container's first process
        # has no handler. Until the node has one of its own, an end is what a crash is to it: safe.
        signal.signal(signal.SIGTERM, _end)
    try:
        status = lockd.main(given, prog_name="lockd", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitStatus.USAGE
    except click.Abort:
        return ExitStatus.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the boundary: a person or a script reads one line
        return _report(error, given)
    return int(status or ExitStatus.DONE)


def _fill_closed_streams() -> None:
    """Have standard streams that are closed (`>&-`) lead nowhere.

    Their numbers would go to the next files that are opened: a socket, or the log on a node's disk,
    into which whatever writes to standard error then writes. libuv aborts when it finds such a one.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it gets the lowest number that is free: this one


def _end(number: int, _: FrameType | None) -> NoReturn:
    del number
    raise SystemExit(ExitStatus.DONE)


def _report(error: Exception, given: Sequence[str]) -> ExitStatus:
    command = given[0] if given and given[0] in _COMMANDS else ""
    status = status_of(error, command=command)
    message = " ".join(_text_of(error, command).split())
    if isinstance(error, ModuleNotFoundError) and command and (extra := _COMMANDS[command].extra):
        status = ExitStatus.USAGE
        message = f"{error.name} is not installed: pip install 'lockd[{extra}]'"
    if "--json" in _our_arguments(given, command):
        document = {"error": type(error).__name__, "message": message, "exit_status": int(status)}
        click.echo(json.dumps(document | facts_of(error)), err=True)
    else:
        click.echo(f"{f'lockd {command}'.rstrip()}: {message}", err=True)
    return status


def _our_arguments(given: Sequence[str], command: str) -> Sequence[str]:
    """Without those of the command that `run` or `elect` has behind its own, with -- or without."""
    ours = given[: given.index("--") if "--" in given else None]
    if command != "run":
        return ours
    taking_values = {
        name
        for option in _COMMANDS[command].load().params
        if isinstance(option, click.Option) and not option.is_flag
        for name in option.opts
    }
    at = 1
    while at < len(ours) and ours[at].startswith("-"):
        at += 2 if ours[at] in taking_values else 1
    return ours[:at]


def _text_of(error: Exception, command: str) -> str:
    if isinstance(error, click.UsageError):
        return f"{error.format_message()} (see `{f'lockd {command}'.rstrip()} --help`)"
    if isinstance(error, click.ClickException):
        return error.format_message()
    if isinstance(error, LockdError | CorruptData):
        return str(error)
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__} at {where.filename}:{where.lineno}: {error}"
