"""A job's last hours as a drawing: which slices have runs, and how it went for them, in words too."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lockd_scheduler.runs import State
from lockd_scheduler.web.queries import Timeline

GRAVEST_FIRST = (
    State.LOST,
    State.FAILED,
    State.TIMED_OUT,
    State.CANCELLED,
    State.RUNNING,
    State.CLAIMED,
    State.SKIPPED,
    State.SUCCEEDED,
)
"""A slice looks like the first of these that it has, so that one failure among many shows."""


@dataclass(frozen=True)
class Mark:
    """One slice with runs in it."""

    x: int
    """Counted from the left, 0 to `slices` - 1."""
    state: str
    text: str
    """`14:15 UTC: 1 failed, 2 succeeded`."""


@dataclass(frozen=True)
class Drawing:
    """The marks of one job's line."""

    slices: int
    marks: Sequence[Mark]
    summary: str
    """For those who can't see it."""
    blank: int = 0
    """So many slices on the left were not looked at: there are too many runs for that."""


def drawn(timeline: Timeline, schedule_id: int) -> Drawing:
    """The line of one schedule of the timeline."""
    marks = []
    totals: dict[str, int] = {}
    for cell in timeline.cells.get(schedule_id, ()):
        start = timeline.start + cell.slice * timeline.slice_length
        marks.append(Mark(cell.slice, _gravest(cell.states), f"{start:%H:%M} UTC: {_counted(cell.states)}"))
        for state, many in cell.states.items():
            totals[state] = totals.get(state, 0) + many
    summary = _counted(totals) or "no runs"
    cut = timeline.cut.get(schedule_id)
    if cut is None:
        return Drawing(timeline.slices, marks, summary)
    blank = int((cut - timeline.start) / timeline.slice_length)
    return Drawing(timeline.slices, marks, f"{summary} since {cut:%H:%M} UTC, and more before", blank)


def _gravest(states: Mapping[str, int]) -> str:
    return next(state.value for state in GRAVEST_FIRST if state in states)


def _counted(states: Mapping[str, int]) -> str:
    return ", ".join(f"{states[state]} {state.value}" for state in GRAVEST_FIRST if state in states)


assert set(GRAVEST_FIRST) == set(State)
