"""What has been answered, so that asking again is safe (SAFETY G3).

A request that still waits or holds is found by its id, whoever asks and from wherever. Of those
that are over, the answer is kept as a refusal: an id never holds twice, and a copy of an Acquire
that comes late finds out that its time has passed.
"""

import heapq
from collections import OrderedDict

from lockd.locks.commands import Refused
from lockd.locks.limits import Limits
from lockd.locks.queues import Request

GRANT_ENDED = Refused("NOTHELD", "the grant of this request has ended")
CANCELLED = Refused("ERR", "this request was withdrawn by CANCEL")


class SessionAnswers:
    """The numbered requests of one session.

    Numbers grow within a session, but they may arrive in another order: threads of one client
    reach the leader by different nodes. So the last `kept` of the finished ones are remembered by
    number, the lowest is forgotten first, and `floor` is the highest number ever forgotten: at or
    under it, a number that is not live is refused, whether it was ever seen or not.
    """

    __slots__ = ("_ended", "_kept", "_lowest", "floor", "live")

    def __init__(self, kept: int) -> None:
        self.floor = 0
        self.live: dict[int, Request] = {}
        self._kept = kept
        self._ended: dict[int, Refused] = {}
        self._lowest: list[int] = []

    def recall(self, request_id: int) -> Request | Refused | None:
        """The live request or the answer under this number; None for a number that may begin."""
        live = self.live.get(request_id)
        if live is not None:
            return live
        if request_id <= self.floor:
            return Refused("ERR", f"request {request_id} is too old: {self.floor} and below are over")
        return self._ended.get(request_id)

    def began(self, request_id: int, request: Request) -> None:
        self.live[request_id] = request

    def ended(self, request_id: int, answer: Refused) -> None:
        """This number is over, also one that never began."""
        self.live.pop(request_id, None)
        if request_id <= self.floor or request_id in self._ended:
            return
        self._ended[request_id] = answer
        heapq.heappush(self._lowest, request_id)
        if len(self._lowest) > self._kept:
            self.floor = heapq.heappop(self._lowest)
            del self._ended[self.floor]

    def kept(self) -> list[tuple[int, Refused]]:
        """The finished requests that are remembered, by number."""
        return sorted(self._ended.items())

    def check_invariants(self) -> None:
        """No number is live and over; the floor is under all that are remembered."""
        assert sorted(self._lowest) == sorted(self._ended), "the two orders of answers differ"
        assert len(self._ended) <= self._kept, "more answers than are kept"
        assert not self._lowest or self._lowest[0] > self.floor, "an answer at or under the floor"
        assert self.live.keys().isdisjoint(self._ended), "a request is live and over"


class PrivateAnswers:
    """The requests with a TTL, by user and UUID.

    An answer is kept for the longest TTL from when its request was over. That is the same time for
    all, so those that are over stand in the order in which they may be forgotten. More than the
    limit are never kept: the oldest go first, before their time.
    """

    __slots__ = ("_ended", "_limits", "live")

    def __init__(self, limits: Limits) -> None:
        self.live: dict[tuple[str, str], Request] = {}
        self._limits = limits
        # Not a plain dict, which walks over all that have left it to find its oldest.
        self._ended: OrderedDict[tuple[str, str], tuple[int, Refused]] = OrderedDict()

    def __len__(self) -> int:
        return len(self.live) + len(self._ended)

    def recall(self, user: str, uuid: str) -> Request | Refused | None:
        """The live request or the answer under this UUID; None for one that may begin."""
        over = self._ended.get((user, uuid))
        return self.live.get((user, uuid)) if over is None else over[1]

    def began(self, user: str, uuid: str, request: Request) -> None:
        self.live[user, uuid] = request

    def ended(self, user: str, uuid: str, answer: Refused, clock_ms: int) -> None:
        """This UUID is over, also one that never began."""
        self.live.pop((user, uuid), None)
        self._ended[user, uuid] = (clock_ms, answer)
        if len(self._ended) > self._limits.private_answers_kept_max:
            self._ended.popitem(last=False)

    def forget_old(self, clock_ms: int) -> None:
        """Drop answers that have been kept long enough, the oldest first, a bounded number of them."""
        for _ in range(self._limits.private_answers_forgotten_per_entry):
            oldest = next(iter(self._ended), None)
            if oldest is None or clock_ms - self._ended[oldest][0] < self._limits.ttl_ms_max:
                return
            del self._ended[oldest]

    def kept(self) -> list[tuple[tuple[str, str], tuple[int, Refused]]]:
        """The finished requests that are remembered, oldest first: whose, and (clock then, answer)."""
        return list(self._ended.items())

    def check_invariants(self) -> None:
        """No UUID is live and over; what is over stands by age, and no more than are kept."""
        assert self.live.keys().isdisjoint(self._ended), "a TTL request is live and over"
        ages = [ended_ms for ended_ms, _ in self._ended.values()]
        assert ages == sorted(ages), "answers to TTL requests are out of order"
        assert len(ages) <= self._limits.private_answers_kept_max, "more TTL requests than are kept"
