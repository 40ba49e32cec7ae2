"""See what happens to locks, without holding any: for dashboards, caches, audits."""

import itertools

import lockd


def main() -> None:
    """Watch from a revision on: nothing is missed between looking and watching."""
    with lockd.Client(name="watcher") as watcher, lockd.Client(name="worker") as worker:
        seen = watcher.inspect("orders/7").revision
        with worker.lock("orders/7", meta={"step": "pack"}), worker.lock("orders/8"):
            pass
        with watcher.watch("orders/", revision=seen) as events:
            for event in itertools.islice(events, 4):
                print(f"{event.lock} {event.event} by {event.name} {event.meta}".strip())


if __name__ == "__main__":
    main()
