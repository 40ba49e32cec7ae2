"""All mutations, and the rules that have none."""

from collections.abc import Mapping

from tests.mutations import client, consensus, disk, grants, locks, programs, promises, server
from tests.mutations.mutation import Mutation

MUTATIONS: tuple[Mutation, ...] = (
    *consensus.MUTATIONS,
    *disk.MUTATIONS,
    *locks.MUTATIONS,
    *grants.MUTATIONS,
    *server.MUTATIONS,
    *promises.MUTATIONS,
    *client.MUTATIONS,
    *programs.MUTATIONS,
)

RULES = (
    *(f"P{n}" for n in range(1, 4)),
    "P6",
    *(f"C{n}" for n in range(1, 12)),
    *(f"D{n}" for n in range(1, 5)),
    *(f"T{n}" for n in range(1, 5)),
    *(f"G{n}" for n in range(1, 9)),
    "G11",
    *(f"K{n}" for n in range(1, 8)),
)
"""The rules that consensus, disk, lock state and client keep; each has a mutation or a reason."""

NOT_MUTATED: Mapping[str, str] = {}
"""Rules that can't be taken out by an edit of one place, and what keeps them instead."""
