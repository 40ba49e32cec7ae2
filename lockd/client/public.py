"""What `import lockd` gives: the client, its leases and what goes with them, and the errors."""

from importlib.metadata import version

from lockd.client.aio import AsyncClient
from lockd.client.decorator import HELD, SKIPPED, Skipped
from lockd.client.demand import LockMode
from lockd.client.election import AsyncElection, Election, Leader
from lockd.client.feeds import AsyncFeed, Feed
from lockd.client.inspection import HolderInfo, LockEvent, LockInfo, QueueInfo, SessionInfo, WaiterInfo
from lockd.client.lease import LeaseState
from lockd.client.sync import Client
from lockd.client.tasks import AsyncLease
from lockd.client.threads import Lease
from lockd.errors import (
    AccessDenied,
    CorruptData,
    Deadlock,
    LeaseLost,
    LimitExceeded,
    LimitMismatch,
    LockdError,
    LockTimeout,
    NotHeld,
    OutcomeUnknown,
    Rejected,
    SessionExpired,
    StaleToken,
    Unavailable,
    WatchGone,
)

__version__ = version("lockd")

__all__ = [
    "HELD",
    "SKIPPED",
    "AccessDenied",
    "AsyncClient",
    "AsyncElection",
    "AsyncFeed",
    "AsyncLease",
    "Client",
    "CorruptData",
    "Deadlock",
    "Election",
    "Feed",
    "HolderInfo",
    "Leader",
    "Lease",
    "LeaseLost",
    "LeaseState",
    "LimitExceeded",
    "LimitMismatch",
    "LockEvent",
    "LockInfo",
    "LockMode",
    "LockTimeout",
    "LockdError",
    "NotHeld",
    "OutcomeUnknown",
    "QueueInfo",
    "Rejected",
    "SessionExpired",
    "SessionInfo",
    "Skipped",
    "StaleToken",
    "Unavailable",
    "WaiterInfo",
    "WatchGone",
    "__version__",
]
