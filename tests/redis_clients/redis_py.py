"""redis-py, for threads and for asyncio."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.processes import PATIENCE_S
from tests.redis_clients.scenario import Connection, Refused


def _is_push(message: Any) -> bool:
    """No reply of ours is a list under RESP3; what `parse_response` shows as one is a push."""
    return isinstance(message, list)


class Plain(Connection):
    """`execute_command`, as everyone uses it."""

    def __init__(self, port: int, protocol: Literal[2, 3]) -> None:
        self._client: Any = redis.Redis(
            port=port,
            protocol=protocol,
            decode_responses=True,
            socket_timeout=PATIENCE_S,  # above every WAIT: redis-py sends again after it
            retry=Retry(NoBackoff(), 0),
        )
        self._client.response_callbacks.clear()  # they show OK as True

    def ask(self, words: Sequence[str]) -> Any:
        try:
            return self._client.execute_command(*words)
        except redis.ResponseError as error:
            raise Refused(str(error)) from None

    def push(self) -> Any:
        raise NotImplementedError("a connection of the pool hands out no pushes")

    def close(self) -> None:
        self._client.close()


class Listening(Plain):
    """A PubSub object is redis-py's way to a connection of one's own, and to pushes."""

    def __init__(self, port: int, protocol: Literal[2, 3]) -> None:
        super().__init__(port, protocol)
        self._own = self._client.pubsub()
        self._pushes: deque[Any] = deque()

    def ask(self, words: Sequence[str]) -> Any:
        self._own.execute_command(*words)
        try:
            while _is_push(message := self._own.parse_response(timeout=PATIENCE_S)):
                self._pushes.append(message)
        except redis.ResponseError as error:
            raise Refused(str(error)) from None
        return message

    def push(self) -> Any:
        return self._pushes.popleft() if self._pushes else self._own.parse_response(timeout=PATIENCE_S)

    def close(self) -> None:
        self._own.close()
        super().close()


class AsyncPlain(Connection):
    """The client for asyncio, on a loop of its own."""

    def __init__(self, port: int, protocol: Literal[2, 3]) -> None:
        self._runner = asyncio.Runner()
        self._client: Any = redis.asyncio.Redis(
            port=port,
            protocol=protocol,
            decode_responses=True,
            socket_timeout=PATIENCE_S,
            retry=AsyncRetry(NoBackoff(), 0),
        )
        self._client.response_callbacks.clear()

    def ask(self, words: Sequence[str]) -> Any:
        return self._run(lambda: self._client.execute_command(*words))

    def push(self) -> Any:
        raise NotImplementedError("a connection of the pool hands out no pushes")

    def close(self) -> None:
        self._run(self._client.aclose)
        self._runner.close()

    def _run(self, work: Callable[[], Awaitable[Any]]) -> Any:
        async def main() -> Any:
            return await work()

        try:
            return self._runner.run(main())
        except redis.ResponseError as error:
            raise Refused(str(error)) from None


class AsyncListening(AsyncPlain):
    """As `Listening`."""

    def __init__(self, port: int, protocol: Literal[2, 3]) -> None:
        super().__init__(port, protocol)
        self._own = self._client.pubsub()
        self._pushes: deque[Any] = deque()

    def ask(self, words: Sequence[str]) -> Any:
        async def command() -> Any:
            await self._own.execute_command(*words)
            while _is_push(message := await self._own.parse_response(timeout=PATIENCE_S)):
                self._pushes.append(message)
            return message

        return self._run(command)

    def push(self) -> Any:
        if self._pushes:
            return self._pushes.popleft()
        return self._run(lambda: self._own.parse_response(timeout=PATIENCE_S))

    def close(self) -> None:
        self._run(self._own.aclose)
        super().close()
