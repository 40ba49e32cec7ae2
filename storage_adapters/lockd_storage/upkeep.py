"""What an operator does to a fence store: look, clear out, and start anew after a restore or a move.

A mark refuses every older token of its resource, so a mark that is lost, or set back, lets older
holders in again. Four things lose marks, and each has its verb. All of them are one rule (SAFETY S2):
a mark may go only in the very step that raises the store's floor to its token, so that nobody whom
the mark refused can install again.

    purge         Resources come and go ("orders:42"), and their marks stay. Clears those that nobody
                  has installed for a long time, and raises the floor to the highest of them.
    raise_floor   The storage was restored from a backup. Its marks are too low: a holder of a time
                  between the backup and now equals the restored mark, or is above it. To be called
                  before anybody writes again, with a token that the cluster has issued just now.
                  Every mark at or under it goes: each holder must acquire anew.
    adopt         The storage has moved to another lockd cluster, whose tokens have nothing in common
                  with the old ones. Its marks, and its floor, go; the floor takes the new cluster's
                  name and a token that it has issued just now. No lease of the old cluster installs
                  or writes again, nor one that the new cluster granted at an earlier time. It is also
                  right, and does at least as much as `raise_floor`, when the cluster has stayed.
    marks, floor  To look. Nothing may be decided by what they tell, for it can change at once.

When lockd itself was restored nothing has to be done here: tokens go on upwards (SAFETY G2).

What a holder sees whose mark went: NotInstalled from its next write, StaleToken (WrongCluster after
a move) if it installs again. A write under way ends before the verb returns, or is ended by it.
A mark that stays, at or under a floor that `purge` has raised, is as good as before: its holder
writes on, and only what it refuses anyway, an older token, is refused twice.

A floor can't be lowered. One above all tokens that the cluster will ever issue shuts out everybody
for ever: take the token from lockd, as the command `lockd fences` does, and don't make one up.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from lockd.ids import TOKEN_MAX, Fence, FencingToken
from lockd_storage.fencing import Floor, Mark

# Shorter than an install waits: while a verb waits, installs do too, and theirs end whoever blocks them.
UPKEEP_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class KeptMark:
    """A mark, and when it was installed (UTC; None where the store does not keep that)."""

    mark: Mark
    installed_at: datetime | None


@dataclass(frozen=True, slots=True)
class FloorChange:
    """What a verb has done: the floor before it and after it, and how many marks it removed."""

    before: Floor
    after: Floor
    removed: int


class UpkeepPort(Protocol):
    """An operator's verbs on one store. Each that changes something is one committed step.

    They raise Unavailable when the store can't be reached or somebody does not let go of a mark in
    time (nothing was changed: call again), OutcomeUnknown when the reply was lost (call again: each
    may be repeated), and NotInstalled where there is no fence store.
    """

    def marks(self, prefix: str = "") -> list[KeptMark]:
        """The marks of all resources whose names begin with `prefix`, sorted by resource."""
        ...

    def floor(self) -> Floor:
        """The floor as it is now."""
        ...

    def raise_floor(self, token: int, *, timeout: float = UPKEEP_SECONDS) -> FloorChange:
        """Let no token at or under `token` install or write any more.

        On return the floor is at least `token`, every mark at or under `token` is gone, and no write
        under one of them becomes visible any more. Writes under way get `timeout` seconds to end.
        Raises ValueError for what can't be a token.
        """
        ...

    def purge(
        self, older_than: timedelta, *, prefix: str = "", timeout: float = UPKEEP_SECONDS
    ) -> FloorChange:
        """Remove the marks that were installed longer ago, and raise the floor to the highest of them.

        One under which somebody is writing at this moment stays. A lease can be renewed for longer
        than `older_than`: its holder then has to acquire anew. Raises WrongCluster if the marks are
        of several clusters: the floor is one number, and would shut out the cluster with the lower
        tokens.
        """
        ...

    def adopt(self, fence: str, *, timeout: float = UPKEEP_SECONDS) -> FloorChange:
        """Make the store that of the fence's cluster, for leases granted after that fence.

        `fence` is that of a lease acquired just now: only then is nothing let in that came before.
        On return the floor names its cluster and is at least its token, and every mark of another
        cluster or at or under the token is gone; writes under way get `timeout` seconds to end.
        Raises ValueError for what is not a fence.
        """
        ...


def floor_token(token: int) -> FencingToken:
    """The token, if a floor may be raised to it. Raises ValueError."""
    if not 1 <= token < TOKEN_MAX:
        raise ValueError(f"a floor is between 1 and 2**53-2, so that tokens above it exist: not {token}")
    return FencingToken(token)


def raised(floor: Floor, token: int) -> Floor:
    """The floor after `raise_floor(token)`: it never goes down."""
    return Floor(max(floor.token, token), floor.cluster)


def adopted(floor: Floor, fence: Fence, *, has_own_marks: bool) -> Floor:
    """The floor after `adopt(fence)`.

    A number is compared with the old floor's only if both are of one cluster. Of a floor that names
    none this is known when there are marks of the fence's cluster (`has_own_marks`); else the fence,
    being of now, is above all that must be shut out.
    """
    is_same = floor.cluster == fence.cluster or (floor.cluster is None and has_own_marks)
    return Floor(max(floor.token, fence.token) if is_same else fence.token, fence.cluster)
