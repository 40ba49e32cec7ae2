"""Plays one seed: which holder takes the next step, what befalls it, and what the judge says in the end."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from random import Random

from tests.storage.hunt.arena import Arena
from tests.storage.hunt.history import History, Look
from tests.storage.hunt.players import PATIENCE_SECONDS, Player, Report
from tests.storage.hunt.script import Holder
from tests.storage.leases import GivenLease

HOLDERS = 3
FIRST_TOKEN = 33

POLL_SECONDS = 0.001
UNSURE_SECONDS = 0.004
"""Where an arena can't know who waits: a step that takes longer is taken to."""

STUCK_SECONDS = 20.0
"""A step that takes so long, and does not wait for another holder, ends the hunt."""

FREED_SECONDS = 0.5
"""When everybody waits for so long, whoever is abandoned goes on: not every store ends it."""

FAULTY_GAMES = 0.4
FAULT = 0.08
ABANDONED = 0.04
LEASE_ENDS = 0.04
LOOK = 0.1


class Conductor:
    """Plays games in one arena, with the same three players. `close()` it."""

    def __init__(self, arena: Arena, *, first_token: int = FIRST_TOKEN) -> None:
        self._arena = arena
        self._first_token = first_token
        self._reports: SimpleQueue[Report] = SimpleQueue()
        self._players = [Player(number, self._reports) for number in range(HOLDERS)]
        self._games = 0

    def play(self, seed: int) -> list[str]:
        """The violations of the rule in this seed's game: none, if it holds."""
        self._games += 1
        self._arena.begin(self._games)
        game = _Game(self._arena, self._reports, Random(seed))
        history = History()
        tokens = {
            # The order in which the holders got one lock says nothing of another.
            resource: [self._first_token + 10 * index + place for place in order]
            for index, (resource, order) in enumerate(self._orders(game.draw))
        }
        locks = 1 if game.draw.random() < 0.5 else len(self._arena.resources)
        for player in self._players:
            leases = [
                GivenLease(tokens[resource][player.number], lock=resource)
                for resource in list(self._arena.resources)[:locks]
            ]
            draw = Random(game.draw.random())
            holder = Holder(player.number, leases, self._arena.hands(player, draw), history, draw)
            game.holders[player] = holder
            player.start(holder.run)
            game.under_way.append(player)
        game.run(history)
        return history.violations()

    def _orders(self, draw: Random) -> list[tuple[str, list[int]]]:
        resources = list(self._arena.resources)
        orders = [(resources[0], list(range(HOLDERS)))]
        return orders + [(resource, draw.sample(range(HOLDERS), HOLDERS)) for resource in resources[1:]]

    def close(self) -> None:
        for player in self._players:
            player.stop()
        self._arena.close()


@dataclass(slots=True)
class _Game:
    arena: Arena
    reports: "SimpleQueue[Report]"
    draw: Random
    holders: dict[Player, Holder] = field(default_factory=dict)
    under_way: list[Player] = field(default_factory=list)  # inside a step
    resting: list[Player] = field(default_factory=list)  # at a pause
    blocked: list[Player] = field(default_factory=list)  # said so themselves
    abandoned: list[Player] = field(default_factory=list)  # at a pause, until the others have ended
    waited: set[Player] = field(default_factory=set)  # for another one, when last asked

    def run(self, history: History) -> None:
        faulty = self.draw.random() < FAULTY_GAMES
        self._settle()
        while self.resting or self.under_way or self.blocked or self.abandoned:
            if self.draw.random() < LOOK:
                self._look(history, "an onlooker")
            self._next(faulty=faulty)
            self._settle()
        self._look(history, "who came in the end")

    def _next(self, *, faulty: bool) -> None:
        if faulty and len(self.resting) > 1 and self.draw.random() < ABANDONED and not self.abandoned:
            self.abandoned.append(self._chosen())
        elif self.resting:
            player = self._chosen()
            self.under_way.append(player)
            act = None
            if faulty and self.draw.random() < LEASE_ENDS:
                self.holders[player].lose_leases()
            faults = self.arena.faults(player) if faulty and self.draw.random() < FAULT else ()
            if faults:
                fault = self.draw.choice(faults)
                if fault.in_its_thread:
                    act = fault.act
                else:
                    fault.act()
            player.go(act)
            self._try_again()
        elif self.under_way:  # somebody waits for a time-out, or for whoever is abandoned
            if not self._hear(FREED_SECONDS if self.abandoned else PATIENCE_SECONDS):
                self._free()
        elif self.blocked:
            player = self.blocked.pop(0)
            self.under_way.append(player)
            player.again(giving_up=True)
        else:
            self._free()

    def _free(self) -> None:
        self.resting, self.abandoned = self.abandoned, []

    def _chosen(self) -> Player:
        return self.resting.pop(self.draw.randrange(len(self.resting)))

    def _try_again(self) -> None:
        """Let those that said they are blocked look again, now that somebody has moved."""
        self._settle()
        for player in list(self.blocked):
            self.blocked.remove(player)
            self.under_way.append(player)
            player.again(giving_up=False)
            self._settle()

    def _settle(self) -> None:
        """Return when each player rests, has ended, or waits for another one."""
        heard_at = time.monotonic()
        while self.under_way:
            if self._hear(0 if self.waited.issuperset(self.under_way) else POLL_SECONDS):
                heard_at = time.monotonic()
                continue
            waiting = self.arena.waiting(self.under_way)
            if waiting is None:
                if time.monotonic() - heard_at > UNSURE_SECONDS:
                    return
                continue
            if time.monotonic() - heard_at > STUCK_SECONDS:
                lost = next(player for player in self.under_way if player not in waiting)
                raise AssertionError(f"holder {lost.number} does not come back from\n{lost.where()}")
            self.waited = waiting
            if waiting.issuperset(self.under_way) and not self._hear(0):
                return

    def _hear(self, seconds: float) -> bool:
        try:
            player, news = self.reports.get(timeout=seconds) if seconds else self.reports.get_nowait()
        except Empty:
            assert seconds < PATIENCE_SECONDS, f"nothing moves any more: {self.under_way}"
            return False
        self.under_way.remove(player)
        if news == "paused":
            self.resting.append(player)
        elif news == "blocked":
            self.blocked.append(player)
        else:
            assert news == "done", f"holder {player.number}: {news}"
        self.resting.sort(key=lambda resting: resting.number)  # whoever came first: a seed is a game
        return True

    def _look(self, history: History, by: str) -> None:
        began = history.now()
        view = self.arena.look()
        if view is not None:
            history.looks.append(Look(by, began, view))


def play(arena: Arena, seeds: Sequence[int]) -> dict[int, list[str]]:
    """The seeds that broke the rule, each with its violations."""
    conductor = Conductor(arena)
    try:
        return {seed: found for seed in seeds if (found := conductor.play(seed))}
    finally:
        conductor.close()
