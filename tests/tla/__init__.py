"""Do recorded runs of our Raft fit etcd's TLA+ specification of Raft? TLC says.

`recording` runs the shipped core in a small simulated cluster and writes down what its nodes do as
actions of the specification; `module` puts the runs into TLA+; `LockdTrace.tla` holds each event against
the specification, which is not part of this project: it is read from a folder. `controls` has runs
that must be refused. Start reading at `recording`; `python -m tests.tla --spec FOLDER`, or `make tla`.
"""
