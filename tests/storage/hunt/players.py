"""Threads that go one step for each permission they get, so that a seed decides who goes next.

A player stops at each `pause()`. The code under test is not asked to call it: an arena puts it into
hooks of the library or the driver, between two statements or requests.
"""

import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import NamedTuple

PATIENCE_SECONDS = 60.0


class Report(NamedTuple):
    """What a player says to the conductor: `paused`, `blocked`, `done`, or an error's words."""

    player: "Player"
    news: str


Act = Callable[[], None]
"""What a player is told to do in its own thread before it goes on."""

_current = threading.local()


class GameOver(BaseException):
    """The conductor has given the game up: leave it, through all handlers."""


class Player:
    """One thread. It lives for many games and plays one part in each."""

    def __init__(self, number: int, reports: "SimpleQueue[Report]") -> None:
        self.number = number
        self._reports = reports
        self._parts: SimpleQueue[Act | None] = SimpleQueue()
        self._go: SimpleQueue[Act | None] = SimpleQueue()
        self._again: SimpleQueue[bool] = SimpleQueue()
        self._game_over = False
        self.thread = threading.Thread(target=self._run, name=f"player-{number}", daemon=True)
        self.thread.start()

    def start(self, part: Act) -> None:
        """Let it play a part. It reports `done` at the end, or the error that ended it."""
        self._parts.put(part)

    def go(self, act: Act | None = None) -> None:
        """Let it leave its `pause()`, after doing `act` in its own thread."""
        self._go.put(act)

    def again(self, *, giving_up: bool) -> None:
        """Answer its `blocked()`: try once more, or give up."""
        self._again.put(not giving_up)

    def stop(self) -> None:
        """End the thread, also in the middle of a game."""
        self._parts.put(None)
        self._game_over = True
        self._go.put(None)
        self._again.put(False)
        self.thread.join(PATIENCE_SECONDS)

    def where(self) -> str:
        """What its thread is doing now, as a traceback."""
        frame = sys._current_frames().get(self.thread.ident or 0)
        return "".join(traceback.format_stack(frame)) if frame is not None else "(ended)"

    def _run(self) -> None:
        _current.player = self
        while (part := self._parts.get()) is not None:
            try:
                part()
            except BaseException:  # noqa: BLE001  the conductor fails the game with it
                self._reports.put(Report(self, traceback.format_exc()))
            else:
                self._reports.put(Report(self, "done"))

    def _stop_here(self) -> None:
        act = None
        if not self._game_over:
            self._reports.put(Report(self, "paused"))
            act = self._go.get(timeout=PATIENCE_SECONDS)
        if self._game_over:
            raise GameOver
        if act is not None:
            act()

    def _wait_for_others(self) -> bool:
        if self._game_over:
            return False
        self._reports.put(Report(self, "blocked"))
        return self._again.get(timeout=PATIENCE_SECONDS)


def current() -> Player | None:
    """The player whose thread this is; None in any other thread."""
    return getattr(_current, "player", None)


@contextmanager
def in_place_of(player: Player) -> Iterator[None]:
    """Let this thread pause as the player, whose own thread waits for it meanwhile."""
    stand_in_for(player)
    try:
        yield
    finally:
        del _current.player


def stand_in_for(player: Player) -> None:
    """As `in_place_of`, to this thread's end."""
    _current.player = player


def pause() -> None:
    """Stand still until the conductor says go. In a thread of no player: nothing."""
    player = current()
    if player is not None:
        player._stop_here()


def blocked() -> bool:
    """Say that another holder is in the way, and learn whether to try once more."""
    player = current()
    return player is not None and player._wait_for_others()
