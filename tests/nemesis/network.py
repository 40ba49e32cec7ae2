"""The network between nodes and clients: TCP proxies that know who speaks, and can be told to fail.

Each node is reached at a door: a port that it advertises, whose proxy passes bytes on to where the node
listens. Who has dialled is read from the first bytes (Hello of a node, SETNAME of a client), so each
direction of each pair can be disturbed on its own. TLS would hide that: these clusters run without.

    with network.disturbed(Disturbance(only(1), ANYONE, Effect.HOLD)):   # nobody hears node 1
        ...

Bytes that are held are delivered afterwards, late and in their order, like a network's retransmissions:
what the receiver then gets may be long out of date. Bytes that are lost leave a hole that TCP can't
have: when the disturbance ends, those connections are reset.
"""

import asyncio
import contextlib
import enum
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Self, TypeVar

from tests.nemesis.flow import Flow, Link, Party, WhoSpeaks

T = TypeVar("T")
Group = Callable[[Party], bool]
"""Some of the parties: node ids are int, clients' names are str."""


def ANYONE(_: Party) -> bool:  # noqa: N802 - a constant to its readers
    return True


def CLIENTS(party: Party) -> bool:  # noqa: N802
    return isinstance(party, str)


def NODES(party: Party) -> bool:  # noqa: N802
    return isinstance(party, int)


def only(*parties: Party) -> Group:
    return frozenset(parties).__contains__


class Effect(enum.Enum):
    HOLD = "hold"
    LOSE = "lose"
    DELAY = "delay"


@dataclass(frozen=True, eq=False)
class Disturbance:
    """What happens to bytes from any of `sources` to any of `targets`, while it lasts."""

    sources: Group
    targets: Group
    effect: Effect
    delay_s: float = 0.0
    """Of DELAY: how much later each byte arrives."""

    def __post_init__(self) -> None:
        assert (self.effect is Effect.DELAY) == (self.delay_s > 0.0)

    def concerns(self, source: Party, target: Party) -> bool:
        return self.sources(source) and self.targets(target)


class Network:
    """All doors, on one thread with an event loop of its own.

    What a method orders is in force when it returns.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="nemesis-network", daemon=True)
        self._servers: list[asyncio.Server] = []
        self._behind: dict[int, tuple[Party, int]] = {}
        """Who is behind each door, and where he listens."""
        self._links: dict[Link, None] = {}
        self._disturbances: dict[Disturbance, None] = {}

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def open_door(self, *, port: int, to: tuple[Party, int], who: WhoSpeaks) -> None:
        """Listen on `port` of 127.0.0.1 and pass on to the port where that party listens."""
        self.lead_door(port=port, to=to)

        def accept() -> asyncio.Protocol:
            target, upstream_port = self._behind[port]
            link = Link(self, target=target, upstream_port=upstream_port, who=who)
            self._links[link] = None
            return link.dialler

        self._servers.append(self._do(self._listen(accept, port)))

    def lead_door(self, *, port: int, to: tuple[Party, int]) -> None:
        """From now on another is behind that door; connections that are there stay with the one before."""
        self._behind[port] = to

    def begin(self, disturbance: Disturbance) -> None:
        self._ordered(lambda: self._change(lambda: self._disturbances.setdefault(disturbance)))

    def end(self, disturbance: Disturbance) -> None:
        """What was held by it alone is delivered; connections that lost bytes to it are reset."""
        self._ordered(lambda: self._change(lambda: self._disturbances.pop(disturbance, None)))

    @contextlib.contextmanager
    def disturbed(self, *disturbances: Disturbance) -> Iterator[None]:
        for disturbance in disturbances:
            self.begin(disturbance)
        try:
            yield
        finally:
            for disturbance in disturbances:
                self.end(disturbance)

    def heal(self) -> None:
        """End every disturbance."""
        self._ordered(lambda: self._change(self._disturbances.clear))

    def reset(self, sources: Group = ANYONE, targets: Group = ANYONE) -> int:
        """Reset (RST) every connection that one of `sources` has dialled to one of `targets`."""

        def reset() -> int:
            chosen = [link for link in self._links if link.is_between(sources, targets)]
            for link in chosen:
                link.reset()
            return len(chosen)

        return self._ordered(reset)

    def speakers(self) -> set[Party]:
        """Everyone who has a connection that he has dialled."""
        return self._ordered(lambda: {link.speaker for link in self._links if link.speaker is not None})

    # What links ask. On the loop.

    def is_held(self, flow: Flow) -> bool:
        return Effect.HOLD in self._effects(flow)

    def is_lost(self, flow: Flow) -> bool:
        return Effect.LOSE in self._effects(flow)

    def delay_s(self, flow: Flow) -> float:
        return max((each.delay_s for each in self._on(flow)), default=0.0)

    def gone(self, link: Link) -> None:
        self._links.pop(link, None)

    # The thread.

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    async def _listen(self, accept: Callable[[], asyncio.Protocol], port: int) -> asyncio.Server:
        return await self._loop.create_server(accept, "127.0.0.1", port)

    async def _close(self) -> None:
        for server in self._servers:
            server.close()
        for link in list(self._links):
            link.reset()
        for server in self._servers:
            await server.wait_closed()
        await asyncio.sleep(0)  # transports that were aborted close their sockets in the next turn

    def _do(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _ordered(self, order: Callable[[], T]) -> T:
        done: Future[T] = Future()

        def carry_out() -> None:
            try:
                done.set_result(order())
            except BaseException as error:  # noqa: BLE001 - it is raised where it was ordered
                done.set_exception(error)

        self._loop.call_soon_threadsafe(carry_out)
        return done.result()

    def _change(self, change: Callable[[], object]) -> None:
        change()
        for link in list(self._links):
            link.conditions_changed()

    def _on(self, flow: Flow) -> Iterator[Disturbance]:
        return (each for each in self._disturbances if each.concerns(flow.source, flow.target))

    def _effects(self, flow: Flow) -> set[Effect]:
        return {each.effect for each in self._on(flow)}
