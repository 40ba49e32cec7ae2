"""Stand-ins for nodes that others dial."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable

from lockd.server.config import Address

Conversation = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def answering(converse: Conversation, *, port: int = 0) -> AsyncIterator[Address]:
    """Listen, and have `converse` answer each call, which ends with it. All are over after the block."""
    conversations: set[asyncio.Task[None]] = set()

    async def on_dialled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        conversations.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                await converse(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_server(on_dialled, "127.0.0.1", port)
    try:
        yield Address("127.0.0.1", server.sockets[0].getsockname()[1])
    finally:
        server.close()
        for conversation in conversations:
            conversation.cancel()
        await asyncio.gather(*conversations, return_exceptions=True)
