"""The worker that is paused: takes a lease, writes under it, and writes again when it wakes.

Run as a process: `python -m lockd_scheduler.demo.worker ENDPOINTS DATABASE-URL`. It says what it
does as JSON lines, and goes on when it reads a line.
"""

import json
import sys
from dataclasses import dataclass

from sqlalchemy import create_engine
from sqlalchemy.orm import Session

import lockd
from lockd.errors import LeaseLost, StaleToken
from lockd_scheduler.demo.jobs import accounts
from lockd_storage import HeldLease, fenced
from lockd_storage.sqlalchemy import SqlFence

LOCK = "accounts"
TTL_SECONDS = 2.0


@dataclass(frozen=True)
class TokenInHand:
    """What a program presents that never looks at its lease: the token alone."""

    lock: str
    token: int
    fence: str
    mode: str = "exclusive"

    def remaining(self) -> float:
        """It would say that it has all the time of the world."""
        return 60.0


def main(endpoints: str, database: str) -> None:
    engine = create_engine(database)
    fence = SqlFence(engine)
    client = lockd.Client(endpoints, ttl=TTL_SECONDS, name="paused worker")
    lease = client.acquire(LOCK, wait=10)
    fence.install(lease)
    write(Session(engine), fence, lease, writer="first write of the paused worker")
    tell(event="holding", token=lease.token)

    sys.stdin.readline()  # it is stopped here, past its lease, and woken
    tell(event="awake", lost=lease.lost)
    by_lease = refused(Session(engine), fence, lease)
    by_token = refused(Session(engine), fence, TokenInHand(lease.lock, lease.token, lease.fence))
    tell(event="refused", by_lease=by_lease, by_token=by_token)
    client.close()


def write(session: Session, fence: SqlFence, lease: HeldLease, *, writer: str) -> None:
    """Set the account's row under the fence."""
    with fenced(session, fence, lease) as guarded:
        guarded.execute(accounts.delete())
        guarded.execute(accounts.insert().values(name="main", writer=writer, token=lease.token))


def refused(session: Session, fence: SqlFence, lease: HeldLease) -> dict[str, object]:
    """Try to write; say what came of it."""
    try:
        write(session, fence, lease, writer="stale write of the paused worker")
    except StaleToken as error:
        return {"error": "StaleToken", "presented": error.presented, "mark": error.mark, "text": str(error)}
    except LeaseLost as error:
        return {"error": "LeaseLost", "text": str(error)}
    return {"error": "none", "text": "the write went through"}


def tell(**words: object) -> None:
    print(json.dumps(words), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
