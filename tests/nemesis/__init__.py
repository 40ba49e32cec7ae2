"""Real nodes under faults, for every test that wants them.

    with nemesis_cluster(tmp_path) as cluster, lockd.Client(cluster.endpoints) as client:
        with FAULTS["leader cut off"](cluster, random.Random(seed)) as what:
            ...
        cluster.recover()

`cluster` has the nodes: processes behind doors, with clocks and disks that may be their own. `network` is
what lies between their doors: any direction between any two can be held, lost or delayed. `faults` has
what can be done, by name. `clients` lock and write everything down in a `history`, which `checks` holds
against P1, P2 and linearizability (tests.linearizability). `run` puts it together under a seed:

    python -m tests.nemesis --seconds 600 --seed 7

What a machine does not allow (time namespaces, mounts) is told by `clocks.why_not` and `disks.why_not`.
"""
