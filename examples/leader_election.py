"""One of many processes leads; the others stand by: `python leader_election.py NAME`."""

import sys
import time

import lockd


def main(name: str) -> None:
    """Stand for election, and lead for three rounds."""
    with lockd.Client(ttl=5, name=name) as client:
        election = client.election("example/leader", value={"name": name})

        def lead(lease: lockd.Lease) -> str:
            """Called when elected, and again if the lease was lost; returning resigns."""
            with election.observe() as leaders:
                print(f"{name} leads under token {lease.token}; others see {next(iter(leaders))}")
            for done in range(3):
                lease.check(need=1.0)  # raises LeaseLost when another may lead
                print(f"{name}: round {done + 1}")
                time.sleep(0.1)
            return "done"

        print(f"{name} resigns: {election.run(lead)}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "host-a")
