"""One function at a time, anywhere in the cluster; who comes second skips it."""

import lockd

client = lockd.Client()  # LOCKD_ENDPOINTS, or a node on this machine


@client.locked("report:{user_id}", wait=0, on_busy="skip")
def report(user_id: int, *, lease: lockd.Lease = lockd.HELD) -> str:
    """Callers give `user_id` alone: the lease comes from the decorator."""
    return f"report of user {user_id} made under token {lease.token}"


if __name__ == "__main__":
    made = report(42)
    print("somebody else is at it" if made is lockd.SKIPPED else made)
    client.close()
