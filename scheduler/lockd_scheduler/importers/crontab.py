"""A crontab, as Debian's cron(8) and crontab(5) read it: a user's, or a system one with a user column.

cron's own rule for changes of the clocks is our `dst="once"`, so nothing differs there. It starts a
job also while the one before runs, and runs nothing later that it missed: `overlap: allow`, no catch-up.
"""

import re
import shlex
from pathlib import PurePath
from typing import Any

from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.importers.imported import Imported, free_name
from lockd_scheduler.triggers import read_schedule, zone_named

_VARIABLE = re.compile(r"""\s*(?:"([^"]+)"|'([^']+)'|([A-Za-z_][A-Za-z0-9_]*))\s*=\s*(.*?)\s*""")
_MACRO = re.compile(r"\s*(@\w+)\s+(.*)")
_SHELLS = ("/bin/sh", "sh")
_NO_NAMES = frozenset(("cd", "test", "exec", "nice", "ionice", "sudo", "flock", "env", "timeout"))
NAME_CHARACTERS_MAX = 100


def read_crontab(text: str, *, tz: str, is_system: bool) -> list[Imported]:
    """The jobs of a crontab; `tz` is the zone of its machine, unless CRON_TZ says another.

    `is_system`: each line has a user before its command. Raises BadSchedule for an unknown zone.
    """
    zone_named(tz)
    found: list[Imported] = []
    taken: set[str] = set()
    variables: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        variable = _VARIABLE.fullmatch(line)
        if variable is not None:
            name = next(group for group in variable.groups()[:3] if group)
            variables[name] = _unquoted(variable.group(4))
            continue
        found.append(_job(line, number, taken, variables, tz=tz, is_system=is_system))
    return found


def _job(
    line: str, number: int, taken: set[str], variables: dict[str, str], *, tz: str, is_system: bool
) -> Imported:
    origin = f"line {number}"
    parts = _split(line, is_system=is_system)
    if parts is None:
        told = f"not imported: {line.strip()[:80]!r} is not a line of a crontab"
        return Imported(free_name(origin, taken), origin, None, [told])
    schedule, user, command = parts
    name = free_name(_name_of(command), taken)
    command, notes = _with_input(command)
    if user is not None and user != "root":
        notes.append(f"cron ran it as {user!r}; here it runs as whoever the service runs as")
    elif user == "root":
        notes.append("cron ran it as root; here it runs as whoever the service runs as")
    one = Imported(name, origin, None, notes)
    try:
        read_schedule(schedule)
    except BadSchedule as error:
        notes.append(f"not imported: {error}")
        return one
    words: dict[str, Any] = {"schedule": schedule}
    zone = variables.get("CRON_TZ") or tz
    if zone != "UTC":
        words["tz"] = zone
    words["run"] = _run(command, variables, notes)
    words["overlap"] = "allow"
    one.words = words
    return one


def _split(line: str, *, is_system: bool) -> tuple[str, str | None, str] | None:
    """The schedule, the user and the command."""
    macro = _MACRO.fullmatch(line)
    if macro is not None:
        schedule, rest = macro.groups()
    else:
        fields = line.split(None, 5)
        if len(fields) < 6:
            return None
        schedule, rest = " ".join(fields[:5]), fields[5]
    user = None
    if is_system:
        words = rest.split(None, 1)
        if len(words) < 2:
            return None
        user, rest = words
    return schedule, user, rest.strip()


def _with_input(command: str) -> tuple[str, list[str]]:
    r"""What cron makes of `%`: the first ends the command, the rest is its input; `\%` is a percent sign."""
    pieces = re.split(r"(?<!\\)%", command)
    shown, *lines = [piece.replace("\\%", "%") for piece in pieces]
    if not lines:
        return shown, []
    text = "\n".join(lines) + "\n"
    piped = f"printf %s {shlex.quote(text)} | {{ {shown.strip()}\n}}"
    return piped, ["its input, after `%`, comes from printf"]


def _run(command: str, variables: dict[str, str], notes: list[str]) -> dict[str, Any]:
    env = dict(variables)
    env.pop("CRON_TZ", None)
    mail = env.pop("MAILTO", None)
    env.pop("MAILFROM", None)
    if mail:
        notes.append(f"no mail goes to {mail!r}: the output is kept with the run, `notify` tells of failures")
    shell = env.pop("SHELL", "/bin/sh")
    run: dict[str, Any] = {"shell": command}
    if shell not in _SHELLS:
        run["shell"] = f"exec {shlex.quote(shell)} -c {shlex.quote(command)}"
    if env:
        run["env"] = env
    if "HOME" in env:
        run["cwd"] = env["HOME"]
    else:
        notes.append("cron ran it in the user's home folder; here `cwd` says where, or it is the service's")
    return run


def _name_of(command: str) -> str:
    """From `/usr/local/bin/backup.sh --all > /dev/null` to `backup.sh`."""
    for word in command.split():
        name = re.sub(r"[^\w.-]+", "", PurePath(word).name)[:NAME_CHARACTERS_MAX]
        if name and name not in _NO_NAMES and "=" not in word and not name.startswith("-"):
            return name
    return "job"


def _unquoted(text: str) -> str:
    if len(text) > 1 and text[0] == text[-1] and text[0] in "\"'":
        return text[1:-1]
    return text
