"""What a holder does in a game, drawn from its seed: wait, install, work, and go on when it should not."""

from collections.abc import Sequence
from random import Random

from lockd.errors import LeaseLost, LockdError, OutcomeUnknown, StaleToken
from lockd_storage import NotInstalled
from tests.storage.hunt.arena import Book, Hands
from tests.storage.hunt.history import History, Installed, Outcome
from tests.storage.hunt.players import pause
from tests.storage.leases import GivenLease

INSTALL_TRIES = 6
REFUSALS = (StaleToken, LeaseLost, NotInstalled)


class Holder:
    """One holder of one or two locks, from its acquire to its end."""

    def __init__(
        self, number: int, leases: Sequence[GivenLease], hands: Hands, history: History, draw: Random
    ) -> None:
        self.number = number
        self.leases = leases
        self._hands = hands
        self._history = history
        self._draw = draw
        self._book = Book(history, number, draw)
        self._failures: tuple[type[Exception], ...] = (LockdError, *hands.broken)

    def run(self) -> None:
        """Play the part, to its end."""
        try:
            self._play()
        finally:
            self._hands.close()

    def _play(self) -> None:
        # A later grant begins later, mostly.
        for _ in range(1 + self._draw.randint(0, 4) * self.number):
            pause()
        if self._draw.random() < 0.1:
            self._block()  # forgot to install: nothing of it may count
        for lease in self.leases:
            if not self._install(lease):
                return
        for _ in range(self._draw.randint(1, 3)):
            # One that was refused is told to stop. Some don't listen.
            if not self._block() and self._draw.random() < 0.5:
                return

    def lose_leases(self) -> None:
        """From here on its own clock says that the leases have ended."""
        for lease in self.leases:
            lease.seconds = 0

    def _install(self, lease: GivenLease) -> bool:
        for _ in range(INSTALL_TRIES):
            pause()
            self._history.called.add((lease.lock, lease.token))
            try:
                self._hands.install(lease)
                at, view = self._history.now(), self._hands.look()
            except REFUSALS:
                return False
            except self._failures:
                continue
            self._history.installs.append(Installed(lease.lock, lease.token, at, view))
            if self._draw.random() < 0.85:
                return True
            # The reply was lost on its way to the holder, which installs again.
        return False

    def _block(self) -> bool:
        """Whether all of one block was applied."""
        book = self._book
        book.leases = [self._draw.choice(self.leases)] if self._draw.random() < 0.5 else self.leases
        pause()
        outcome = Outcome.REFUSED
        try:
            self._hands.work(book)
            outcome = Outcome.ACKNOWLEDGED
        except OutcomeUnknown:
            outcome = Outcome.UNKNOWN
        except self._failures:
            pass
        finally:
            book.end(outcome)
        return outcome is Outcome.ACKNOWLEDGED
