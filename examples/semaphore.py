"""No more than three calls to a fragile service at a time, however many workers there are."""

import time
from concurrent.futures import ThreadPoolExecutor

import lockd

client = lockd.Client()


def call() -> int:
    """Workers may be threads, processes or machines: the cluster counts. `weight=2` would count double."""
    with client.semaphore("example/service", limit=3, wait=30):
        time.sleep(0.05)  # the call
        return client.inspect("example/service").used


if __name__ == "__main__":
    with client, ThreadPoolExecutor(12) as workers:
        calls = [workers.submit(call) for _ in range(24)]
        print(f"{len(calls)} calls made, {max(used.result() for used in calls)} at a time at most")
