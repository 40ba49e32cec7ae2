"""What a driver is given: its settings, and the ports through which it acts (SAFETY C1).

The process puts files, sockets and clocks behind the ports, the simulator its own; the driver is the
same code with either.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from lockd.disk.record import LogWrite
from lockd.ids import ClusterId, Incarnation, NodeId
from lockd.server import frames
from lockd.server.snapshots import SnapshotFiles


class Disk(Protocol):
    def submit(self, write: LogWrite) -> None:
        """Take the write; `Driver.on_durable` follows with its ticket, in order."""


class Network(Protocol):
    def send(self, node: NodeId, frame: frames.Frame) -> bool:
        """Take the frame, or return False when it is certain that it won't be delivered."""

    def is_connected(self, node: NodeId) -> bool:
        """Whether frames to the node can be sent now."""


@dataclass(frozen=True, slots=True)
class Ports:
    """Whatever the driver does not decide for itself."""

    disk: Disk
    network: Network
    clock_ms: Callable[[], int]
    """This machine's monotonic clock."""
    wake: Callable[[], None]
    """Asks the owner to call `turn` soon; cheap to call often."""
    draw_cluster: Callable[[], tuple[ClusterId, Incarnation]]
    snapshots: SnapshotFiles
    unix_s: Callable[[], int]
    """The wall clock, for the date of a snapshot alone (T1)."""
    members_changed: Callable[[], None]
    """Another configuration is in force, or an address is new: connect to those who are members now."""


@dataclass(frozen=True, slots=True)
class DriverSettings:
    """What the node is told at its start. Durations in ms."""

    election_timeout_ms: int
    answer_ms_max: int
    """How long a caller waits for an outcome that is not a place in a queue."""
    peer_address: str
    client_address: str
    http_address: str
    version: str
    snapshot_log_bytes: int
    """After so much log a snapshot is taken. Nodes with different values can't compare their states."""
