"""Leases for the storage tests: plain values of the shape that adapters ask for."""

from dataclasses import dataclass

CLUSTER = "c1" * 16
OTHER_CLUSTER = "d2" * 16
INCARNATION = "0000000a"
OTHER_INCARNATION = "0000000b"


@dataclass(slots=True)
class GivenLease:
    """A lease whose remaining time is what the test says it is."""

    token: int
    lock: str = "orders"
    cluster: str = CLUSTER
    incarnation: str = INCARNATION
    seconds: float = 30.0
    mode: str = "exclusive"
    locks: tuple[str, ...] = ()
    """Of a lease of several locks all their names."""

    @property
    def fence(self) -> str:
        return f"{self.cluster}/{self.incarnation}/{self.token}"

    def remaining(self) -> float:
        return self.seconds
