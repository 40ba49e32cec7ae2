"""The link to the cluster: one connection at a time, to whichever node answers.

A call stays open until it is answered. When a connection ends, the next node is tried, and every
open call is sent again there: each of them is safe to ask twice, by its request id, its token or
by changing nothing (SAFETY G3, K2). A node that says UNAVAILABLE or UNKNOWN is asked once more and
then left. Only configured nodes and those that members report are tried (K6).
"""

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable

from lockd.client.connection import Connection, Reply, connect, pack
from lockd.client.lease import Clock
from lockd.client.options import ClientOptions, Endpoint, EndpointRing
from lockd.client.queries import Greeting, Words
from lockd.client.session import ATTEMPTS_PER_TTL
from lockd.errors import AccessDenied, LockdError, OutcomeUnknown, Unavailable

log = logging.getLogger("lockd.client")

CLOSED = "the client was closed"
RETRY_SECONDS = 0.02
BACKOFF_SECONDS_MIN = 0.05
BACKOFF_SECONDS_MAX = 1.0
IN_FLIGHT_MAX = 256
"""Commands on one connection that are not answered yet; a node reads only so far ahead."""
_REFUSALS_BEFORE_LEAVING = 2
# A generator of our own: the program's global one, which it may have seeded, is left alone.
_jitter = random.Random()  # noqa: S311 - nothing is kept secret by it


class Call:
    """One command on its way until it is answered. `reply` may be a LockdError."""

    __slots__ = (
        "_on_reply",
        "command",
        "must_arrive",
        "refusal",
        "refusals",
        "reply",
        "sends",
        "sent_at",
        "words",
    )

    def __init__(self, words: Words, on_reply: Callable[["Call"], None], *, must_arrive: bool) -> None:
        self.words = words
        self.must_arrive = must_arrive
        """That a node lets nobody in is no end of it: another one may, or the same one later."""
        self.command = pack(words)
        self.reply: Reply = None
        self.sends = 0
        self.sent_at = 0.0
        """When it was last sent, by the client's clock: before its reply can have been made (K1)."""
        self.refusals = 0
        self.refusal: LockdError | None = None
        """The answer that said nothing of the outcome: the last, or the first that left it unknown."""
        self._on_reply = on_reply

    def answer(self, reply: Reply) -> None:
        self.reply = reply
        self._on_reply(self)


class Link:
    """See the module's text. It connects when there is something to send, and not before."""

    def __init__(
        self,
        options: ClientOptions,
        clock: Clock,
        *,
        is_needed: Callable[[], bool],
        accept: Callable[[Greeting], str],
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_push: Callable[[str, Reply], None],
    ) -> None:
        """`is_needed`: connect again when the connection is lost, also with nothing to send. `accept`
        says what is wrong with a node that greets, "" for nothing. `on_up` comes before the open
        calls are sent again."""
        self._options = options
        self._clock = clock
        self._is_needed = is_needed
        self._accept = accept
        self._on_up = on_up
        self._on_down = on_down
        self._on_push = on_push
        self._loop = asyncio.get_running_loop()
        self._endpoints = EndpointRing(options.endpoints)
        self._endpoint = options.endpoints[0]
        self._connection: Connection | None = None
        self._open: dict[Call, None] = {}
        self._unsent: deque[Call] = deque()
        self._supervisor: asyncio.Task[None] | None = None
        self._attempts = 0
        """Connections tried since a node last answered a call."""
        self._trouble = "no node has been tried"
        self._is_closed = False

    @property
    def answer_timeout(self) -> float:
        """How long a node may take for one answer, and to connect and greet. Seconds."""
        return self._options.ttl / ATTEMPTS_PER_TTL

    def call(
        self,
        words: Words,
        on_reply: Callable[[Call], None],
        *,
        is_urgent: bool = False,
        must_arrive: bool = False,
    ) -> Call:
        """Send a command as soon as a node is reached, and again until it is answered.

        One that is urgent goes before all that have not been sent. One that has not been sent is
        answered with AccessDenied when a node lets nobody in, unless it `must_arrive`; one that has
        been sent may have been applied, and stays open. Raises ValueError for words that can't be sent.
        """
        call = Call(words, on_reply, must_arrive=must_arrive)
        self._open[call] = None
        if self._is_closed:
            self._loop.call_soon(self._finish, call, Unavailable(CLOSED))
        elif self._connection is None:
            self._connect_soon()
        elif is_urgent:
            self._unsent.appendleft(call)
        else:
            self._unsent.append(call)
        self._send_more()
        return call

    def forget(self, call: Call) -> None:
        """Nobody waits for this answer any more."""
        self._open.pop(call, None)

    async def ask(self, words: Words, *, patience: float, changes: bool) -> Call:
        """Send a command and wait for its reply, at most `patience` seconds.

        Raises the LockdError that is the reply; Unavailable when no node took the command in that
        time, OutcomeUnknown when one may have (`changes`).
        """
        future: asyncio.Future[Call] = self._loop.create_future()
        call = self.call(words, future.set_result)
        try:
            async with asyncio.timeout(patience):
                await future
        except TimeoutError:
            raise self.unanswered(call, changes=changes) from None
        finally:
            self.forget(call)
        if isinstance(call.reply, LockdError):
            raise call.reply
        return call

    def unanswered(self, call: Call, *, changes: bool) -> LockdError:
        """What may be concluded from a call that was given up."""
        if call.refusal is not None and call.sends == call.refusals:
            return call.refusal
        what = f"{call.words[0]} was not answered: {self._trouble}"
        return OutcomeUnknown(what) if changes and call.sends else Unavailable(what)

    @property
    def endpoint(self) -> Endpoint:
        """The node that was tried last: the one it is connected to, if it is."""
        return self._endpoint

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All that are known, several of one node maybe."""
        return self._endpoints.all()

    def drop(self, because: str) -> None:
        """Leave the node, for the next one if anything is open or needed."""
        if self._connection is not None:
            self._connection.abort(because)

    def stop(self) -> None:
        """Drop the connection and give up what is open. Idempotent."""
        self._is_closed = True
        for call in list(self._open):
            self._finish(call, Unavailable(CLOSED))
        if self._supervisor is not None:
            self._supervisor.cancel()
        if self._connection is not None:
            self._connection.abort(CLOSED)

    async def close(self) -> None:
        """As `stop`, and wait until nothing of it runs any more."""
        self.stop()
        if self._supervisor is not None:
            await asyncio.wait([self._supervisor])

    # The connection.

    def _connect_soon(self) -> None:
        if not self._is_closed and (self._supervisor is None or self._supervisor.done()):
            self._supervisor = self._loop.create_task(self._supervise(), name="lockd-link")

    async def _supervise(self) -> None:
        while self._open or self._is_needed():
            await asyncio.sleep(self._pause())
            self._attempts += 1
            connection = await self._try_next()
            if connection is not None:
                self._up(connection)
                self._trouble = await connection.closed
                self._down()

    def _pause(self) -> float:
        """How long to wait before the next attempt: not at all in the first round of all nodes."""
        rounds = self._attempts // len(self._endpoints)
        if rounds == 0:
            return 0.0
        longest = min(BACKOFF_SECONDS_MAX, self._options.ttl / 10)
        pause = min(longest, BACKOFF_SECONDS_MIN * (1 << min(rounds - 1, 10)))
        # Spread out the clients of a node that has just died.
        spread: float = _jitter.uniform(0.5, 1.0)
        return pause * spread

    async def _try_next(self) -> Connection | None:
        endpoint = self._endpoint = self._endpoints.next()
        try:
            connection, greeting = await connect(
                endpoint, self._options, answer_timeout=self.answer_timeout, on_push=self._on_push
            )
        except AccessDenied as error:
            # Trying again can't help, and the callers can act on it. But it is no answer to what
            # another connection took: that must still be withdrawn, or released (K4).
            for call in list(self._open):
                if call.sends == 0 and not call.must_arrive:
                    self._finish(call, error)
            self._trouble = f"{endpoint}: {error}"
            return None
        except (OSError, UnicodeError, LockdError) as error:
            self._trouble = f"{endpoint}: {str(error) or type(error).__name__}"
            log.debug("no connection to %s: %s", endpoint, error)
            return None
        objection = self._accept(greeting)
        if objection:
            connection.abort(objection)
            self._trouble = f"{endpoint}: {objection}"
            log.warning("node at %s is not used: %s", endpoint, objection)
            return None
        return connection

    def _up(self, connection: Connection) -> None:
        if connection.closed.done():
            return
        self._connection = connection
        self._unsent.extend(self._open)
        self._on_up()
        self._send_more()
        connection.send(pack(("CLUSTER.STATUS",)), self._on_members)

    def _down(self) -> None:
        if self._connection is not None:
            self._connection = None
            self._unsent.clear()
            self._on_down()

    def _on_members(self, reply: Reply) -> None:
        members = reply.get("members") if isinstance(reply, dict) else None
        if isinstance(members, list):
            self._endpoints.reported(
                [str(each.get("client", "")) for each in members if isinstance(each, dict)]
            )

    # Calls.

    def _send_more(self) -> None:
        connection = self._connection
        if connection is None or connection.closed.done():
            return  # all that is open is sent when the next connection is up
        while self._unsent and connection.in_flight < IN_FLIGHT_MAX:
            call = self._unsent.popleft()
            if call in self._open:
                self._send(call, connection)

    def _send(self, call: Call, connection: Connection) -> None:
        call.sends += 1
        call.sent_at = self._clock()
        connection.send(call.command, lambda reply: self._on_reply(call, reply, connection))

    def _send_again(self, call: Call, connection: Connection) -> None:
        if connection is self._connection:
            self._unsent.append(call)
            self._send_more()

    def _on_reply(self, call: Call, reply: Reply, connection: Connection) -> None:
        if isinstance(reply, Unavailable | OutcomeUnknown):
            if not isinstance(call.refusal, OutcomeUnknown):
                call.refusal = reply  # once it may have been applied, a later refusal does not undo that
            call.refusals += 1
            if call.refusals % _REFUSALS_BEFORE_LEAVING:
                self._loop.call_later(RETRY_SECONDS, self._send_again, call, connection)
            else:
                connection.abort(f"the node said: {reply}")
        else:
            self._attempts = 0
            self._finish(call, reply)
        self._send_more()

    def _finish(self, call: Call, reply: Reply) -> None:
        if call in self._open:
            del self._open[call]
            call.answer(reply)
