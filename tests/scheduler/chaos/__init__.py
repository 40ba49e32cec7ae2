"""Simulated deaths of the active process, at every step of every transaction, by seed.

    python -m tests.scheduler.chaos --seeds 0-999 --db sqlite

One seed is one simulation: a clock that stands still, a real database, and processes that are turned by
hand. Each process has an engine of its own that counts its steps: before and after every statement,
before a commit, after one whose reply never comes, between transactions, and inside of a job. At a
step that the seed draws the process dies, sleeps while another takes over (and goes on afterwards, with
a transaction that the server has ended), loses its connection, or loses the reply to a commit. A new
process with a newer token takes over, and in the end a healthy one finishes what is left. Then
`invariants` reads the ledger, the effects table and what the jobs' functions have seen.

It promises to find what it is for: `test_scheduler_chaos_bugs` puts known bugs into the engine, and each
must be found. It can't show what happens while two transactions are open at once: they have one
thread. That is for `tests.scheduler.kills`, with real processes.

Start reading at `simulation`; `faults` has the steps, `workload` the jobs.
"""
