"""How a cron line is written: five fields or six, macros, and `H` for a hashed slot.

`H` stands for a value that depends on the job's name alone, so that many jobs spread over the hour and
each keeps its place: `H 3 * * *` is some minute after three. `H(0-29)` keeps within a range,
`H/15` begins at a hashed minute and goes on in steps. A hashed day of the month is at most the 28th.
"""

import hashlib
import re

from lockd_scheduler.errors import BadSchedule

MACROS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}

FIELDS = ("second", "minute", "hour", "day of month", "month", "day of week")
_RANGES = {
    "second": (0, 59),
    "minute": (0, 59),
    "hour": (0, 23),
    "day of month": (1, 28),
    "month": (1, 12),
    "day of week": (0, 6),
}
_HASHED = re.compile(r"H(?:\(([0-9]{1,2})-([0-9]{1,2})\))?(?:/([0-9]{1,2}))?", re.IGNORECASE)


def plain_line(text: str, slot: str | None) -> str:
    """The line with its macro and every `H` written out. Raises BadSchedule.

    `slot` is the name that is hashed; None where there is none, and then `H` is refused.
    """
    line = " ".join(text.split())
    if line.startswith("@"):
        return _macro(line)
    fields = line.split(" ")
    if len(fields) not in (5, 6):
        raise BadSchedule(
            f"{text[:80]!r} is not a cron line: it has {len(line.split())} fields and needs 5"
            " (minute hour day month weekday), or 6 with seconds first"
        )
    names = FIELDS[-len(fields) :]
    return " ".join(_field(field, name, slot) for field, name in zip(fields, names, strict=True))


def _macro(line: str) -> str:
    found = MACROS.get(line.lower())
    if found is not None:
        return found
    if line.lower() == "@reboot":
        raise BadSchedule("'@reboot' names no time: run such a job when the service starts")
    raise BadSchedule(f"{line[:40]!r} is not a macro; there are {', '.join(MACROS)} and `@every 5m`")


def _field(field: str, name: str, slot: str | None) -> str:
    return ",".join(_term(term, name, slot) for term in field.split(","))


def _term(term: str, name: str, slot: str | None) -> str:
    found = _HASHED.fullmatch(term)
    if found is None:
        return term
    if slot is None:
        raise BadSchedule(f"{name} {term!r}: H is the hash of a job's name, and there is no job here")
    low, high = _RANGES[name]
    if found.group(1) is not None:
        asked = int(found.group(1)), int(found.group(2))
        if not low <= asked[0] <= asked[1] <= high:
            raise BadSchedule(f"{name} {term!r}: the range must lie within {low}-{high}")
        low, high = asked
    if found.group(3) is None:
        return str(low + _hash(slot, name) % (high - low + 1))
    step = int(found.group(3))
    if not 1 <= step <= high - low + 1:
        raise BadSchedule(f"{name} {term!r}: the step must be from 1 to {high - low + 1}")
    start = low + _hash(slot, name) % step
    return f"{start}-{high}/{step}"


def _hash(slot: str, name: str) -> int:
    # Each field has a hash of its own: the jobs of one minute don't share an hour.
    return int.from_bytes(hashlib.sha256(f"{name}\0{slot}".encode()).digest()[:8])
