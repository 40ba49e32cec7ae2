"""Free ports for processes that are yet to be started."""

import os
import random
import socket

_NUMBERS = random.SystemRandom()
_claims: dict[int, int] = {}
"""By port, the descriptor of a socket with a name that nobody else can have meanwhile."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that no other process which asks here is given while this one lives,
    or until it is given back.

    It is below the ports that the kernel gives to outgoing connections: nobody takes it while its
    node is down.
    """
    while True:
        port = _NUMBERS.randrange(10_000, 32_000)
        claim = socket.socket(socket.AF_UNIX)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                claim.bind(f"\0lockd-test-port-{port}")
                probe.bind(("127.0.0.1", port))
            except OSError:
                claim.close()
                continue
        _claims[port] = claim.detach()
        return port


def give_back(port: int) -> None:
    """Others may have it: it is not needed any more."""
    os.close(_claims.pop(port))
