"""A TCP proxy that loses one reply: it lets a request through, waits for the answer, and hangs up."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

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
        hang_up = Event()
        with client, socket.create_connection(self._upstream) as server:
            Thread(target=_copy_replies, args=(server, client, hang_up), daemon=True).start()
            with suppress(OSError):
                while data := client.recv(BUFFER):
                    if self.lose is not None and self.lose in data:
                        hang_up.set()
                    server.sendall(data)


def _copy_replies(server: socket.socket, client: socket.socket, hang_up: Event) -> None:
    with suppress(OSError):
        while (data := server.recv(BUFFER)) and not hang_up.is_set():
            client.sendall(data)
    with suppress(OSError):  # also when the server has reset the connection: nobody else would tell
        client.shutdown(socket.SHUT_RDWR)


@contextmanager
def lossy_proxy(port: int) -> Iterator[LossyProxy]:
    """A proxy in front of a port on this machine."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        proxy = LossyProxy(listener, ("127.0.0.1", port))
        Thread(target=proxy.serve, daemon=True).start()
        yield proxy
        listener.shutdown(socket.SHUT_RDWR)
