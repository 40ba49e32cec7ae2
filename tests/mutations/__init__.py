"""Negative controls: take a rule out of the code, and a test must fail.

Each mutation is one deliberate bug as data: which rule of SAFETY.md it breaks, the text that it
replaces, and the narrowest tests that are to notice. `python -m tests.mutations` (`make mutations`)
puts them into a copy of the tree one by one, runs those tests, and says by which each is caught. One
that survives shows a rule that no test keeps.

    mutation.py     the words
    consensus.py, disk.py, locks.py, server.py     the bugs, by the part of lockd that they are put into
    promises.py     those by which a node promises too early or too much, wherever they are
    catalogue.py    all of them, and the rules that have none, with the reason
    trial.py        one mutation, one copy of the tree, one run of its tests
    __main__.py     all trials, and the verdict

What it does not show: that the tests notice bugs that nobody has thought of. The simulator is for that.
"""
