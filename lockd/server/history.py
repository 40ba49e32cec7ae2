"""What happened to locks lately, as this node has applied it: the source of all watches.

Every node makes the events of the entries that it applies, so a follower serves watches as well as the
leader does. They are in order and without gaps, and may be behind what the leader has acknowledged. A
snapshot that is installed in place of entries leaves no events of them: whoever has not seen all up
to there has missed some, and is told so.
"""

from collections.abc import Callable, Iterator, Sequence

from lockd.locks.events import LockEvent

EVENTS_MAX = 65_536
BYTES_MAX = 16 * 1024 * 1024
_EVENT_BYTES = 200
"""What an event costs beside its texts."""


class History:
    """The last events, by their revisions. One task owns it."""

    def __init__(self, revision: int, *, events_max: int = EVENTS_MAX, bytes_max: int = BYTES_MAX) -> None:
        """Starts out empty, at the revision of a state whose events are not known."""
        self.revision = revision
        """Of the last event."""
        self.turned = 0.0
        """How many times over it has been filled."""
        self._events: dict[int, LockEvent] = {}
        self._bytes = 0
        self._events_max = events_max
        self._bytes_max = bytes_max
        self._on_events: list[Callable[[Sequence[LockEvent]], None]] = []
        self._on_gap: list[Callable[[int], None]] = []

    def subscribe(
        self, on_events: Callable[[Sequence[LockEvent]], None], on_gap: Callable[[int], None]
    ) -> None:
        """`on_events` gets all that are recorded from now on.

        `on_gap` gets the revision before a snapshot took the place of the events up to `revision`.
        """
        self._on_events.append(on_events)
        self._on_gap.append(on_gap)

    def record(self, events: Sequence[LockEvent]) -> None:
        """Take in the events of one entry, and pass them on."""
        if not events:
            return
        size = 0
        for event in events:
            assert event.revision == self.revision + 1, f"event {event} after revision {self.revision}"
            self.revision = event.revision
            self._events[event.revision] = event
            size += _size(event)
        self._bytes += size
        self.turned += max(len(events) / self._events_max, size / self._bytes_max)
        while len(self._events) > self._events_max or self._bytes > self._bytes_max:
            self._bytes -= _size(self._events.pop(self._first))
        for told in self._on_events:
            told(events)

    def restart(self, revision: int) -> None:
        """A snapshot is in force: what happened up to its revision is not known here."""
        seen, self.revision = self.revision, revision
        self._events.clear()
        self._bytes = 0
        for told in self._on_gap:
            told(seen)

    def reaches(self, revision: int) -> bool:
        """Whether every event after that revision is here; so is it for one that is yet to come."""
        return revision >= self._first - 1

    def after(self, revision: int) -> Iterator[LockEvent]:
        """The events after that revision, which `reaches` has to cover, oldest first."""
        for number in range(revision + 1, self.revision + 1):
            yield self._events[number]

    @property
    def _first(self) -> int:
        """Revision of the oldest event, or of the next when there is none."""
        return self.revision - len(self._events) + 1


def _size(event: LockEvent) -> int:
    return _EVENT_BYTES + sum(map(len, (event.lock, event.name, event.owner, event.meta, event.reason)))
