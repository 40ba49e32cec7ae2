"""One function at a time, anywhere in the cluster. Needs a node: `lockd serve`."""

import sys

import lockd

client = lockd.Client(sys.argv[1] if len(sys.argv) > 1 else None)


@client.locked("report:{user_id}", wait=0, on_busy="skip")
def report(user_id: int, *, lease: lockd.Lease = lockd.HELD) -> str:
    """Only one process makes the report of a user; the others skip it."""
    return f"report of user {user_id} made under token {lease.token}"


if __name__ == "__main__":
    made = report(42)
    print("somebody else is at it" if made is lockd.SKIPPED else made)
    client.close()
