"""What lies between the nodes of a cluster under test: a door before each, at which the others call.

A node advertises its door and not where it listens. Who calls is told by the first frame, so a door
can let some through and leave others standing.
"""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from lockd.server import frames

_PIECE_BYTES = 64 * 1024


@dataclass(eq=False)
class _Call:
    """A connection from one node to another."""

    caller: int
    target: int
    task: asyncio.Task[None]
    may_pass: asyncio.Event = field(default_factory=asyncio.Event)


class Doors:
    """All doors of one cluster, on one event loop."""

    def __init__(self) -> None:
        self._servers: list[asyncio.Server] = []
        self._calls: set[_Call] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._apart: frozenset[int] = frozenset()

    async def open(self, target: int, port: int, *, door: int) -> None:
        """Have that node, which listens on `port`, reached at `door`; both on 127.0.0.1."""

        async def on_call(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self._tasks.add(task)
            try:
                await self._serve(task, target, port, reader, writer)
            except (OSError, EOFError, frames.FrameError, asyncio.CancelledError):
                pass  # one connection's end; the nodes call again
            finally:
                self._tasks.discard(task)
                writer.transport.abort()

        self._servers.append(await asyncio.start_server(on_call, "127.0.0.1", door))

    def part(self, apart: frozenset[int]) -> None:
        """From now on nothing goes between these nodes and the others; what is on its way is lost."""
        self._apart = apart
        for call in list(self._calls):
            if self._is_cut(call):
                call.may_pass.clear()
            elif not call.may_pass.is_set():
                call.task.cancel()  # what it lost is lost: they must connect anew

    async def close(self) -> None:
        for server in self._servers:
            server.close()
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        for server in self._servers:
            await server.wait_closed()

    def _is_cut(self, call: _Call) -> bool:
        return (call.caller in self._apart) != (call.target in self._apart)

    async def _serve(
        self,
        task: asyncio.Task[None],
        target: int,
        port: int,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        first = await reader.readexactly(frames.HEADER.size)
        header = frames.decode_header(first)
        body = await reader.readexactly(header.length)
        hello = frames.decode_body(header, body)
        call = _Call(getattr(hello, "sender", 0), target, task)
        self._calls.add(call)
        try:
            if not self._is_cut(call):
                call.may_pass.set()
            await call.may_pass.wait()
            node_reader, node_writer = await asyncio.open_connection("127.0.0.1", port)
            try:
                node_writer.write(first + body)
                await _until_one_ends(
                    _pass_on(reader, node_writer, call.may_pass), _pass_on(node_reader, writer, call.may_pass)
                )
            finally:
                node_writer.transport.abort()
        finally:
            self._calls.discard(call)


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, may_pass: asyncio.Event
) -> None:
    while data := await reader.read(_PIECE_BYTES):
        await may_pass.wait()
        writer.write(data)
        await writer.drain()


async def _until_one_ends(*ways: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
