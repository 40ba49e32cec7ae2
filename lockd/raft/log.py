"""The log in memory: parallel lists above a base, and what of it is on this node's disk.

Entries move through three watermarks: `persisted_index <= handed_index <= last_index`. New entries are
taken once with `take_unwritten`, go to the disk in that order, and come back with
`acknowledge_write`. A conflict truncates the list and pulls all watermarks back with it.
"""

from bisect import bisect_right
from collections import deque
from typing import Final, final

from lockd.errors import CorruptData
from lockd.ids import LogIndex, Term
from lockd.raft.entries import EntryKind, EntryRun

_NO_INDEX: Final = LogIndex(0)
_NO_TERM: Final = Term(0)


@final
class Log:
    """Consecutive entries above `base`, the last index that is not kept (0 without a snapshot)."""

    __slots__ = (
        "_base_term",
        "_kinds",
        "_payloads",
        "_terms",
        "_writes",
        "base",
        "handed_index",
        "persisted_index",
    )

    def __init__(self, *, base: LogIndex = _NO_INDEX, base_term: Term = _NO_TERM) -> None:
        self.base = base
        self._base_term = base_term
        self._terms: list[Term] = []
        self._kinds: list[EntryKind] = []
        self._payloads: list[bytes] = []
        self.handed_index = base
        self.persisted_index = base
        # One per run handed to the disk and not yet acknowledged: its last entry's term and
        # index, and how much of it no later conflict has cut off.
        self._writes: deque[tuple[Term, LogIndex, LogIndex]] = deque()

    @classmethod
    def from_run(cls, run: EntryRun, *, base_term: Term = _NO_TERM) -> "Log":
        """Build the log that a disk holds: every entry of it counts as persisted."""
        log = cls(base=LogIndex(run.first - 1), base_term=base_term)
        log._extend(run, 0)
        log.handed_index = log.persisted_index = log.last_index
        return log

    @property
    def last_index(self) -> LogIndex:
        return LogIndex(self.base + len(self._terms))

    @property
    def last_term(self) -> Term:
        return self._terms[-1] if self._terms else self._base_term

    def term_at(self, index: LogIndex) -> Term:
        """Return the term of the entry at `index`, from `base` to `last_index`. Raises IndexError."""
        if index == self.base:
            return self._base_term
        if index < self.base:
            raise IndexError(f"the log begins after {self.base}: {index}")
        return self._terms[index - self.base - 1]

    @property
    def has_unwritten(self) -> bool:
        return self.handed_index < self.last_index

    def matches(self, index: LogIndex, term: Term) -> bool:
        """Tell whether there is an entry at `index` with that term: then all before agree (§5.3)."""
        return self.base <= index <= self.last_index and self.term_at(index) == term

    def is_up_to_date(self, last_log_index: LogIndex, last_log_term: Term) -> bool:
        """Tell whether a candidate's log is at least as up to date as this one (§5.4.1)."""
        return (last_log_term, last_log_index) >= (self.last_term, self.last_index)

    def append(self, term: Term, kind: EntryKind, payload: bytes) -> LogIndex:
        """Append a leader's own entry and return its index."""
        assert term >= self.last_term
        self._terms.append(term)
        self._kinds.append(kind)
        self._payloads.append(payload)
        return self.last_index

    def merge(self, run: EntryRun, *, commit_index: LogIndex) -> LogIndex:
        """Take over a leader's entries that follow one we agree on; return the run's last index.

        Entries that are here already are left alone, so a late or repeated append truncates
        nothing; only an entry of another term at the same index is cut off, with all after it
        (§5.3, SAFETY C3). Raises CorruptData if that would cut a committed entry.
        """
        assert self.base < run.first <= self.last_index + 1
        known = self._agreeing_prefix(run)
        if known == len(run):
            return run.last
        conflict = LogIndex(run.first + known)
        if conflict <= self.last_index:
            if conflict <= commit_index:
                raise CorruptData(
                    f"the leader's entry {conflict} of term {run.terms[known]} contradicts the committed "
                    f"entry of term {self.term_at(conflict)}: this node or a quorum has lost data. "
                    "Replace the damaged node; do not restart it with this data directory."
                )
            self._truncate_from(conflict)
        self._extend(run, known)
        return run.last

    def largest_index_within(self, index: LogIndex, term: Term) -> tuple[LogIndex, Term]:
        """Return the largest index up to `index` whose entry's term is at most `term`, and that term.

        Terms only grow along a log, so entries above it can't agree with a log whose entry at
        `index` has `term`: one refusal skips whole terms (§5.3, last paragraph).
        """
        end = max(0, min(index, self.last_index) - self.base)
        kept = bisect_right(self._terms, term, 0, end)
        found = LogIndex(self.base + kept)
        return found, self.term_at(found)

    def slice(self, first: LogIndex, last: LogIndex, bytes_max: int) -> EntryRun:
        """Return entries from `first` to at most `last`, as many as fit `bytes_max` of payload.

        The first is returned whatever its size; an empty run when `last` < `first`.
        """
        low = high = first - self.base - 1
        end = min(last, self.last_index) - self.base
        if low >= end:
            return EntryRun(first, (), (), ())
        room = bytes_max
        while high < end:
            room -= len(self._payloads[high])
            if room < 0 and high > low:
                break
            high += 1
        return EntryRun(
            first, tuple(self._terms[low:high]), tuple(self._kinds[low:high]), tuple(self._payloads[low:high])
        )

    def payload_bytes(self, first: LogIndex, last: LogIndex) -> int:
        """Return the size of the payloads of the entries `first` to `last`."""
        return sum(map(len, self._payloads[first - self.base - 1 : last - self.base]))

    def take_unwritten(self) -> EntryRun:
        """Hand the entries that the disk has not been given to it; it truncates at the run's first.

        Each non-empty run is to be acknowledged once, in order, with `acknowledge_write`.
        """
        first = LogIndex(self.handed_index + 1)
        if not self.has_unwritten:
            return EntryRun(first, (), (), ())
        low = self.handed_index - self.base
        run = EntryRun(first, tuple(self._terms[low:]), tuple(self._kinds[low:]), tuple(self._payloads[low:]))
        self.handed_index = run.last
        self._writes.append((run.terms[-1], run.last, run.last))
        return run

    def acknowledge_write(self, term: Term, index: LogIndex) -> bool:
        """Note that the run which ended with that entry is on disk, and every run before it.

        Returns whether `persisted_index` grew. What matches no write under way is dropped. To match an entry
        of the present log would not do: after 1·t1 was overwritten by 1·t2 and that by 1·t1
        again, the acknowledgement of the first write would vouch for the third (the ABA race,
        SAFETY C2). So writes are matched in the order in which they were handed over, and one
        that a conflict has cut vouches only for what was left of it.
        """
        if not any((last_term, last) == (term, index) for last_term, last, _ in self._writes):
            return False
        before = self.persisted_index
        while True:
            last_term, last, vouched = self._writes.popleft()
            self.persisted_index = max(self.persisted_index, vouched)
            if (last_term, last) == (term, index):
                return self.persisted_index > before

    def has_kind(self, kind: EntryKind, first: LogIndex, last: LogIndex) -> bool:
        """Tell whether an entry of that kind is among those from `first` to `last`."""
        return kind in self._kinds[first - self.base - 1 : last - self.base]

    def index_leaving(self, payload_bytes: int, *, before: LogIndex) -> LogIndex:
        """Return up to where to compact so that at most so many bytes stay of the entries up to `before`."""
        index, room = before, payload_bytes
        while index > self.base and (room := room - len(self._payloads[index - self.base - 1])) >= 0:
            index = LogIndex(index - 1)
        return index

    def compact(self, index: LogIndex) -> None:
        """Forget the entries up to `index`, which are on disk; their part is played by a snapshot (§7)."""
        assert self.base <= index <= self.persisted_index
        self._base_term = self.term_at(index)
        dropped = index - self.base
        del self._terms[:dropped]
        del self._kinds[:dropped]
        del self._payloads[:dropped]
        self.base = index

    def reset(self, index: LogIndex, term: Term) -> None:
        """Begin anew after `index`: a snapshot takes the place of everything that is here (§7).

        Writes that are under way vouch for nothing any more.
        """
        self.base, self._base_term = index, term
        self._terms.clear()
        self._kinds.clear()
        self._payloads.clear()
        self.handed_index = self.persisted_index = index
        self._writes = deque((t, i, _NO_INDEX) for t, i, _ in self._writes)

    def check_invariants(self) -> None:
        assert len(self._terms) == len(self._kinds) == len(self._payloads)
        assert self.base <= self.persisted_index <= self.handed_index <= self.last_index
        assert self._terms == sorted(self._terms), "terms only grow along a log"
        assert not self._terms or self._terms[0] >= self._base_term
        assert all(vouched <= self.handed_index for _, _, vouched in self._writes)
        if not self._writes:
            assert self.persisted_index == self.handed_index

    def _agreeing_prefix(self, run: EntryRun) -> int:
        low = run.first - self.base - 1
        overlap = self._terms[low : low + len(run)]
        if tuple(overlap) == run.terms[: len(overlap)]:
            return len(overlap)
        return next(
            i for i, (ours, theirs) in enumerate(zip(overlap, run.terms, strict=False)) if ours != theirs
        )

    def _truncate_from(self, index: LogIndex) -> None:
        kept = index - self.base - 1
        del self._terms[kept:]
        del self._kinds[kept:]
        del self._payloads[kept:]
        last = self.last_index
        self.handed_index = min(self.handed_index, last)
        self.persisted_index = min(self.persisted_index, last)
        self._writes = deque((t, i, min(vouched, last)) for t, i, vouched in self._writes)

    def _extend(self, run: EntryRun, skip: int) -> None:
        self._terms.extend(run.terms[skip:])
        self._kinds.extend(run.kinds[skip:])
        self._payloads.extend(run.payloads[skip:])
