"""What a fence was made with; the same for both faces."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, get_args

from lockd_storage.fencing import Mark
from lockd_storage.redis import core
from lockd_storage.redis.core import Confirm, Grant, Steps
from lockd_storage.redis.keys import FLOOR_KEY, cluster_floor_keys, slot_of
from lockd_storage.redis.verbs import Value


@dataclass(frozen=True)
class Setup:
    """The settings of a `RedisFence` or an `AsyncRedisFence`. Raises ValueError for unusable ones."""

    client: Any
    cluster: str | None
    replicas: int | None
    confirm: Confirm
    sharded: bool
    """Whether the server is a cluster, whose scripts see one slot."""
    encode: Callable[[Value], bytes] = field(init=False)

    def __post_init__(self) -> None:
        if self.replicas is not None and self.replicas < 0:
            raise ValueError(f"replicas is how many must confirm an install, not {self.replicas}")
        if self.confirm not in get_args(Confirm):
            raise ValueError(f'confirm is "memory" or "disk", not {self.confirm!r}')
        object.__setattr__(self, "encode", self.client.get_encoder().encode)

    def floor_key(self, mark: bytes) -> bytes:
        """Where the floor is that holds for a mark's key."""
        return cluster_floor_keys()[slot_of(mark)] if self.sharded else FLOOR_KEY

    def install(self, grant: Grant, *, timeout: float) -> Steps[Mark]:
        """The steps of an install."""
        return core.install(
            grant,
            floor_key=self.floor_key(grant.mark_key),
            replicas=self.replicas,
            confirm=self.confirm,
            timeout=timeout,
        )
