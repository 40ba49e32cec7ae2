"""Your test proves that your code stops when its lease is lost, without a sleep: `pytest test_books.py`.

The fixtures come with lockd, and so does the server: the real one, in memory, with a clock to turn.
"""

from collections.abc import Iterable, Iterator

import pytest

import lockd
from lockd.testing import Server


def close_books(client: lockd.Client, invoices: Iterable[int], closed: list[int]) -> None:
    """Your code. It asks before each step that can't be undone."""
    with client.lock("books") as lease:
        for invoice in invoices:
            lease.check()
            closed.append(invoice)


def test_stops_when_the_lease_expires(lockd_server: Server, lockd_client: lockd.Client) -> None:
    def invoices() -> Iterator[int]:
        yield 1
        lockd_server.expire("books")  # or break_lease, or pause
        yield 2

    closed: list[int] = []
    with pytest.raises(lockd.LeaseLost):
        close_books(lockd_client, invoices(), closed)
    assert closed == [1]


def test_stops_after_a_pause(lockd_server: Server, lockd_client: lockd.Client) -> None:
    def invoices() -> Iterator[int]:
        yield 1
        with lockd_server.paused():
            lockd_server.clock.advance(11)  # the TTL is 10 s
        yield 2

    closed: list[int] = []
    with pytest.raises(lockd.LeaseLost):
        close_books(lockd_client, invoices(), closed)
    assert closed == [1]
