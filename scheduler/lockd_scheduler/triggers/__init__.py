"""When a schedule fires: by a cron line in a zone, at an interval, by the calendar, once, or after another.

Every trigger answers one question, `next_after(moment)`, from its own definition alone: the same
series of UTC moments in every process and after every restart. None of them reads a clock.

They are also APScheduler 3 triggers (`get_next_fire_time`), so they work in a stock
APScheduler. Its own CronTrigger is not used: since 3.11 it loses the fires from 00:00 to 00:59 after
spring-forward (SAFETY R6); nor are its jitter, which feeds back, and its AndTrigger, which can loop for
ever. The cron fields are read by cronsim, over plain wall time; where that meets a zone's changes is
decided here, for five fields and for six.

Start reading at `base`, the question; `zones` knows where clocks change, `cron` what follows from
that, `cronline` how a line is written. `read_schedule` takes what users write.
"""

from datetime import datetime
from typing import Any

from lockd_scheduler.durations import parse_duration
from lockd_scheduler.errors import BadSchedule
from lockd_scheduler.triggers.after import After, AfterTrigger
from lockd_scheduler.triggers.at import AtTrigger
from lockd_scheduler.triggers.base import Trigger
from lockd_scheduler.triggers.calendar import CalendarTrigger
from lockd_scheduler.triggers.cron import CronTrigger, Dst
from lockd_scheduler.triggers.every import EveryTrigger, hashed_slot
from lockd_scheduler.triggers.zones import zone_named

__all__ = [
    "After",
    "AfterTrigger",
    "AtTrigger",
    "CalendarTrigger",
    "CronTrigger",
    "Dst",
    "EveryTrigger",
    "Trigger",
    "hashed_slot",
    "read_schedule",
    "trigger_from_json",
    "zone_named",
]


def read_schedule(text: str, *, tz: str = "UTC", dst: str = "once", slot: str | None = None) -> Trigger:
    """The trigger that a schedule's line names: a cron line, a macro, or `@every 5m`.

    `slot`: the name whose hash an `H` stands for. Raises BadSchedule that names what is wrong.
    """
    words = text.split()
    if words[:1] == ["@every"]:
        if len(words) != 2:
            raise BadSchedule(f"{text[:80]!r}: write an interval as `@every 5m`")
        return EveryTrigger(parse_duration(words[1]))
    return CronTrigger(text, tz, dst=dst, slot=slot)


def trigger_from_json(definition: dict[str, Any]) -> Trigger:
    """Make the trigger again from what its `to_json` gave. Raises BadSchedule."""
    match definition:
        case {"type": "cron", "expression": str(expression), "tz": str(tz), "dst": str(dst)}:
            return CronTrigger(expression, tz, dst=dst)
        case {"type": "every", "period": str(period), "offset": str(offset)}:
            return EveryTrigger(parse_duration(period), parse_duration(offset))
        case {"type": "at", "moment": str(moment)}:
            return AtTrigger(datetime.fromisoformat(moment))
        case {"type": "after", "job": str(job), "on": str(on)}:
            return AfterTrigger(job, on)
        case {"type": "calendar"}:
            return CalendarTrigger.from_json(definition)
        case _:
            raise BadSchedule(f"unknown trigger in the ledger: {str(definition)[:200]}")
