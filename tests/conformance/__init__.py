"""Our Raft core and our linearizability checker, held to data that others made.

`python -m tests.conformance [--data FOLDER]`, or `make conformance DATA=FOLDER`, plays a folder's files
one by one. `suite` says what there is; `script` what is compared when one of etcd's interaction
scripts is played, and what is not, on purpose. The data is not part of the project: without it the
tests say so and are skipped. `scripts` are our own, for commands that the others' lack; `faults`
are the negative controls.
"""
