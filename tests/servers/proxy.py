"""A TCP proxy that loses one reply: it lets a request through, waits for the answer, and hangs up."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Thread

BUFFER = 65_536


class LossyProxy:
    """Forwards to `upstream`. Once `lose` is set, the reply to a request that contains it is lost."""

    def __init__(self, listener: socket.socket, upstream: tuple[str, int]) -> None:
        self.port = int(listener.getsockname()[1])
        self.lose: bytes | None = None
        self._listener = listener
        self._upstream = upstream

    def serve(self) -> None:
        with suppress(OSError):  # closing the listener ends us
            while True:
                client, _ = self._listener.accept()
                Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        with client, socket.create_connection(self._upstream) as server:
            replies = Thread(target=_copy, args=(server, client), daemon=True)
            replies.start()
            with suppress(OSError):
                while data := client.recv(BUFFER):
                    if self.lose is not None and self.lose in data:
                        client.shutdown(socket.SHUT_RDWR)
                        server.sendall(data)
                        server.recv(BUFFER)
                        return
                    server.sendall(data)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(BUFFER):
            target.sendall(data)


@contextmanager
def lossy_proxy(port: int) -> Iterator[LossyProxy]:
    """A proxy in front of a port on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = LossyProxy(listener, ("127.0.0.1", port))
        Thread(target=proxy.serve, daemon=True).start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)
