"""Releases and withdrawals: commands that are sent until they are answered, whoever still waits for them.

Who gave a lock back, or was cancelled while it was asked for, may be gone; the command must arrive all
the same (SAFETY K4). It is over when it is answered, or when there is nothing left that it could end.
"""

import asyncio

from lockd.client.connection import Reply
from lockd.client.link import Call, Link
from lockd.client.queries import Words
from lockd.errors import OutcomeUnknown


class Duty:
    """One of them. `done` has its reply, or the OutcomeUnknown that was its end."""

    def __init__(self, session: str) -> None:
        self.session = session
        """With whose end it is over; "" for one that has a time limit instead."""
        self.done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.call: Call | None = None

    @property
    def was_repeated(self) -> bool:
        """Whether an earlier sending may have done it already."""
        return self.call is not None and self.call.sends > 1


class Duties:
    """All of one client."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._open: set[Duty] = set()

    def begin(self, words: Words, *, session: str, at_most: float | None = None) -> Duty:
        """Send a command until it is answered, its session is over or `at_most` seconds have passed."""
        duty = Duty(session)
        duty.call = self._link.call(words, lambda call: self._end(duty, call.reply), must_arrive=True)
        self._open.add(duty)
        if at_most is not None:
            asyncio.get_running_loop().call_later(at_most, self._give_up, duty, "its time was over")
        return duty

    def of_ended_session(self, session: str, because: str) -> None:
        """The cluster frees by itself what was held or waited for there."""
        for duty in [duty for duty in self._open if duty.session == session]:
            self._give_up(duty, because)

    def _give_up(self, duty: Duty, because: str) -> None:
        assert duty.call is not None, "it was begun"
        self._link.forget(duty.call)
        self._end(duty, OutcomeUnknown(f"{duty.call.words[0]} was not answered before {because}"))

    def _end(self, duty: Duty, reply: Reply) -> None:
        self._open.discard(duty)
        if not duty.done.done():
            duty.done.set_result(reply)
