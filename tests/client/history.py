"""Events that several scripted nodes serve to watches, and what they may do wrong meanwhile."""

from typing import Any

from lockd.protocol.resp import Reply
from tests.client.peer import Answer, Error, Followed, Peer, option


class History:
    """What happened to all locks of one scripted cluster; every node of it tells the same."""

    def __init__(self, *peers: Peer) -> None:
        self.peers = peers
        self.events: list[dict[str, Reply]] = []
        self.forgotten: dict[Peer, int] = {}
        """Up to which revision a node has forgotten what happened."""
        for peer in peers:
            self.serve(peer)

    @property
    def revision(self) -> int:
        return len(self.events)

    def serve(self, peer: Peer) -> None:
        """Have a node answer watches as it should."""
        peer.always("LOCK.WATCH", lambda words: self._watch(peer, words))
        peer.always("LOCK.LIST", lambda _: {"locks": [], "revision": self.revision, "next": None})

    def happen(self, lock: str, kind: str = "acquired", *, meta: str = "", token: int = 0) -> int:
        """Something happens, and every node tells whoever watches. Returns the event's revision."""
        event = event_of(self.revision + 1, lock, kind, meta=meta, token=token)
        self.events.append(event)
        for peer in self.peers:
            peer.push("lock.event", event)
        return self.revision

    def after(self, revision: int, prefix: str = "") -> list[dict[str, Reply]]:
        return [event for event in self.events[revision:] if str(event["lock"]).startswith(prefix)]

    def _watch(self, peer: Peer, words: list[str]) -> Answer:
        prefix, start = words[1], int(option(words, "FROM") or self.revision)
        if start < self.forgotten.get(peer, 0):
            return Error(f"GONE events before {self.forgotten[peer]} are forgotten")
        missed = [("lock.event", event) for event in self.after(start, prefix)]
        return Followed({"prefix": prefix, "revision": start}, missed)


def event_of(
    revision: int, lock: str, kind: str = "acquired", *, meta: str = "", token: int = 0
) -> dict[str, Any]:
    """A lock.event push."""
    return {
        "revision": revision,
        "event": kind,
        "lock": lock,
        "token": token or revision,
        "mode": "exclusive",
        "session": 7,
        "name": "host",
        "owner": "",
        "meta": meta,
        "reason": "",
    }
