"""A TCP link that can stall: what is sent then goes no further, and is lost when the link is cut."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

BUFFER = 65_536


class StalledLink:
    """Forwards to `upstream` until it is stalled."""

    def __init__(self, listener: socket.socket, upstream: tuple[str, int]) -> None:
        self.port = int(listener.getsockname()[1])
        self._listener = listener
        self._upstream = upstream
        self._flows = Event()
        self._flows.set()
        self._cut = Event()
        self._open: list[socket.socket] = []

    def stall(self) -> None:
        """Hold what comes from now on."""
        self._flows.clear()

    def flow(self) -> None:
        """Pass on what was held."""
        self._flows.set()

    def cut(self) -> None:
        """End all connections, and drop what was held."""
        self._cut.set()
        self._flows.set()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(self) -> None:
        with suppress(OSError):  # closing the listener ends us
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._upstream)
                except OSError:
                    client.close()
                    continue
                self._open += (client, server)
                for source, target in ((client, server), (server, client)):
                    Thread(target=self._forward, args=(source, target), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(BUFFER):
                self._flows.wait()
                if self._cut.is_set():
                    break
                target.sendall(data)
        with suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
        source.close()


@contextmanager
def stalled_link(port: int) -> Iterator[StalledLink]:
    """A link to a port on this machine, which flows at first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = StalledLink(listener, ("127.0.0.1", port))
        Thread(target=link.serve, daemon=True).start()
        try:
            yield link
        finally:
            link.cut()
            listener.shutdown(socket.SHUT_RDWR)
