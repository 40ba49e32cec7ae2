"""The calling side of a connection between nodes: dial, say Hello, hear the answer."""

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from dataclasses import dataclass

from lockd.ids import ClusterId, Incarnation, NodeId
from lockd.server import frames
from lockd.server.config import Address
from lockd.server.handshake import Introduction

HANDSHAKE_SECONDS_MAX = 5.0
ANSWER_BYTES_MAX = 64 * 1024
"""The body of a Welcome, which has the addresses of all members, or of a Refusal."""
SILENT_HOST_MS_MAX = 5000
"""A host that acknowledges nothing for so long is gone, or cut off: its connections end."""


@dataclass(frozen=True, slots=True)
class Call:
    """A connection that this node has dialled, and what it was answered."""

    header: frames.Header
    answer: frames.Frame
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter


@contextlib.asynccontextmanager
async def introduced(
    me: Introduction,
    identity: tuple[ClusterId, Incarnation],
    receiver: NodeId,
    address: Address,
    tls: ssl.SSLContext | None,
) -> AsyncIterator[Call]:
    """Dial, say Hello, and hear the answer; the connection is closed at the end of the block.

    Raises OSError, TimeoutError, FrameError.
    """
    async with asyncio.timeout(HANDSHAKE_SECONDS_MAX):
        try:
            reader, writer = await asyncio.open_connection(address.host, address.port, ssl=tls)
        except ValueError as error:  # UnicodeError: no name that can be looked up
            raise OSError(f"{address} can't be dialled: {error}") from error
    try:
        if writer.is_closing():
            raise ConnectionResetError("the peer closed the connection at once")
        notice_silent_host(writer.transport)
        cluster, incarnation = identity
        hello = frames.Hello(me.node_id, receiver, incarnation, me.boot, me.founders, me.version, me.address)
        writer.write(frames.encode(hello, cluster=cluster, instance=me.instance))
        try:
            async with asyncio.timeout(HANDSHAKE_SECONDS_MAX):
                header, answer = await _read_answer(reader)
        except asyncio.IncompleteReadError as error:
            raise frames.FrameError("the peer closed the connection in the handshake") from error
        yield Call(header, answer, reader, writer)
    finally:
        writer.close()


def notice_silent_host(transport: asyncio.BaseTransport) -> None:
    """Have the kernel end a connection whose other host is gone or cut off.

    It would go on for a quarter of an hour, with retries up to two minutes apart: a healed
    partition would stay one for that long.
    """
    end = transport.get_extra_info("socket")
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 2)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, SILENT_HOST_MS_MAX)


async def _read_answer(reader: asyncio.StreamReader) -> tuple[frames.Header, frames.Frame]:
    header = frames.decode_header(await reader.readexactly(frames.HEADER.size))
    if header.length > ANSWER_BYTES_MAX:
        raise frames.FrameError(f"a frame of {header.length} bytes in the handshake")
    return header, frames.decode_body(header, await reader.readexactly(header.length))
