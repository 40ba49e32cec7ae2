"""lockd: locks that are safe to rely on, with a fencing token for each grant.

    client = lockd.Client("127.0.0.1:7420")
    with client.lock("invoice:42", wait=5) as lease:
        ...                       # lease.token, lease.fence, lease.remaining(), lease.check()

This package exports the client. A lock alone protects nothing: let the storage refuse a stale
token, with `lockd_storage`. The errors are grouped by what the caller may conclude, in
`lockd.errors`. To read on, start with `lockd.client`.
"""

from importlib.metadata import version

from lockd.client.aio import AsyncClient, AsyncLease
from lockd.client.decorator import HELD, SKIPPED, Skipped
from lockd.client.inspection import HolderInfo, LockInfo, QueueInfo, SessionInfo, WaiterInfo
from lockd.client.lease import LeaseState
from lockd.client.sync import Client, Lease
from lockd.errors import (
    AccessDenied,
    CorruptData,
    LeaseLost,
    LimitExceeded,
    LockdError,
    LockTimeout,
    NotHeld,
    OutcomeUnknown,
    Rejected,
    SessionExpired,
    StaleToken,
    Unavailable,
)

__version__ = version("lockd")

__all__ = [
    "HELD",
    "SKIPPED",
    "AccessDenied",
    "AsyncClient",
    "AsyncLease",
    "Client",
    "CorruptData",
    "HolderInfo",
    "Lease",
    "LeaseLost",
    "LeaseState",
    "LimitExceeded",
    "LockInfo",
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
    "__version__",
]
