"""For tests of code that uses lockd: servers to test with, and faults, without a sleep.

    def test_the_report_stops(lockd_server, lockd_client):          # fixtures of the pytest plugin
        with lockd_client.lock("report", on_lost="flag") as lease:
            lockd_server.expire(lease)                              # or clock.advance, break_lease, pause
            assert lease.lost

`running_server` gives a server in this process: the real one in memory, whose clock stands still until
the test turns it; its clients go by the same clock, so a lease ends when the test says so.
`running_cluster` gives three real processes, to be killed, paused and cut off. What ends a test with
either leaves nothing behind. Neither promises durability, and the first no speed that means anything.

docs/TESTING_YOUR_CODE.md has complete examples. Start reading with `server` and `cluster`.
"""
