"""What a leader knows of one follower, and how fast it may send to it.

    PROBE      one append at a time, until the follower agrees on a position (§5.3)
    REPLICATE  appends go out ahead of their acks, within a window of messages and bytes
    SNAPSHOT   nothing is sent until a snapshot has arrived: what comes next is not in the log any more

A refusal or a long silence leads from REPLICATE to PROBE, a success back. After a pause an
answered heartbeat lets one more append through, so that lost messages never end the flow. Out
of SNAPSHOT leads an ack that reaches the log's beginning or that snapshot, or the word that sending it
has failed.
"""

import enum
from collections import deque
from typing import Final, final

from lockd.ids import LogIndex

_NO_INDEX: Final = LogIndex(0)


class Pace(enum.Enum):
    PROBE = enum.auto()
    REPLICATE = enum.auto()
    SNAPSHOT = enum.auto()


@final
class Progress:
    """One follower's position: `match_index < next_index`, and `match_index` never goes back.

    `match_index` is the last entry known to be on the follower's disk; `next_index` the next to
    send. `active` tells whether anything was heard since the last check of the quorum.
    `read_acknowledged` is the newest ReadIndex round it has answered in this leader's term.
    """

    __slots__ = (
        "_inflight",
        "_inflight_appends_max",
        "_inflight_bytes",
        "_inflight_bytes_max",
        "active",
        "match_index",
        "next_index",
        "pace",
        "paused",
        "pending_snapshot",
        "read_acknowledged",
        "resume_on_heartbeat",
        "sent_commit",
    )

    def __init__(self, next_index: LogIndex, *, inflight_appends_max: int, inflight_bytes_max: int) -> None:
        self.match_index = LogIndex(0)
        self.next_index = next_index
        self.pace = Pace.PROBE
        self.paused = False
        self.pending_snapshot = LogIndex(0)
        self.active = False
        self.resume_on_heartbeat = False
        self.sent_commit = LogIndex(0)
        self.read_acknowledged = 0
        self._inflight_appends_max = inflight_appends_max
        self._inflight_bytes_max = inflight_bytes_max
        self._inflight: deque[tuple[LogIndex, int]] = deque()  # last index and bytes of each append
        self._inflight_bytes = 0

    @property
    def is_window_full(self) -> bool:
        """No more entries may be in flight (SAFETY C10)."""
        return (
            len(self._inflight) >= self._inflight_appends_max
            or self._inflight_bytes >= self._inflight_bytes_max
        )

    @property
    def inflight_appends(self) -> int:
        return len(self._inflight)

    def lacks_commit(self, commit_index: LogIndex) -> bool:
        """Tell whether another append would let the follower commit more of what it was sent."""
        return min(commit_index, self.next_index - 1) > self.sent_commit

    def sent(self, entries: int, payload_bytes: int, commit_index: LogIndex) -> None:
        """Note an append that goes out, with that many entries from `next_index` on."""
        self.sent_commit = max(self.sent_commit, commit_index)
        if self.pace is Pace.PROBE:
            self.paused = True
            return
        if entries:
            self.next_index = LogIndex(self.next_index + entries)
            self._inflight.append((LogIndex(self.next_index - 1), payload_bytes))
            self._inflight_bytes += payload_bytes
        self.paused = self.is_window_full

    def acknowledged(self, match_index: LogIndex, *, log_base: LogIndex = _NO_INDEX) -> bool:
        """Note entries on the follower's disk; return whether its position changed.

        `log_base` is where the leader's log begins: an ack before it does not end a SNAPSHOT.

        A late ack changes nothing: match_index never goes back (SAFETY C3). An ack of what was
        known moves a probed follower to REPLICATE, as the two logs agree there.
        """
        if match_index < self.match_index:
            return False
        if match_index == self.match_index and self.pace is Pace.REPLICATE:
            return False
        self.match_index = match_index
        self.next_index = max(self.next_index, LogIndex(match_index + 1))
        while self._inflight and self._inflight[0][0] <= match_index:
            self._inflight_bytes -= self._inflight.popleft()[1]
        if self.pace is Pace.SNAPSHOT and match_index < log_base:
            if match_index >= self.pending_snapshot:
                self.become_probe()  # It has arrived, and compaction has overtaken it: the next one is due.
            return True
        if self.pace is not Pace.REPLICATE:
            self.pace = Pace.REPLICATE
            self.pending_snapshot = LogIndex(0)
            self.next_index = LogIndex(match_index + 1)
        self.paused = False
        return True

    def refused(self, rejected_index: LogIndex, hint_index: LogIndex) -> bool:
        """Note that the append after `rejected_index` was refused; return whether to send anew.

        A refusal of what was since acknowledged, or of another probe than the last one, is late
        and changes nothing.
        """
        if self.pace is Pace.REPLICATE:
            if rejected_index <= self.match_index:
                return False
            self.become_probe()
            return True
        if self.pace is Pace.SNAPSHOT or rejected_index != self.next_index - 1:
            return False
        self.next_index = max(LogIndex(min(rejected_index, hint_index + 1)), LogIndex(self.match_index + 1))
        self.sent_commit = min(self.sent_commit, LogIndex(self.next_index - 1))
        self.paused = False
        return True

    def become_snapshot(self, index: LogIndex) -> None:
        """Send nothing more until the snapshot of that index has arrived, or failed to."""
        self.become_probe()
        self.pace = Pace.SNAPSHOT
        self.pending_snapshot = index
        self.next_index = LogIndex(index + 1)
        self.paused = True

    def become_probe(self) -> None:
        """Start over from what is known to be on the follower's disk."""
        self.pace = Pace.PROBE
        self.pending_snapshot = LogIndex(0)
        self.next_index = LogIndex(self.match_index + 1)
        self.sent_commit = min(self.sent_commit, self.match_index)
        self.paused = False
        self._inflight.clear()
        self._inflight_bytes = 0

    def check_invariants(self) -> None:
        assert self.match_index < self.next_index
        assert self._inflight_bytes == sum(size for _, size in self._inflight)
        assert len(self._inflight) <= self._inflight_appends_max
        assert self.pace is Pace.REPLICATE or not self._inflight
        assert (self.pace is Pace.SNAPSHOT) == bool(self.pending_snapshot)
        assert self.paused or self.pace is not Pace.SNAPSHOT
