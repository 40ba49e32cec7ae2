"""redis-py alone, by the rules of "Writing a client" in docs/PROTOCOL.md; lockd.Client does it all itself."""

import os
import threading
import time
import uuid
from typing import Any

import redis

TTL_MS, MARGIN = 6000, 0.12  # the margin is at least 0.1 s, and 2 % of the TTL
URL = f"redis://{os.environ.get('LOCKD_ENDPOINTS', '127.0.0.1:7420').split(',')[0]}?protocol=3"
asking: Any = redis.Redis.from_url(URL, decode_responses=True, socket_timeout=60)  # above every WAIT
renewing: Any = redis.Redis.from_url(URL, decode_responses=True, socket_timeout=TTL_MS / 4000)


class Lease:
    """Trusted until `deadline`, by a clock that goes on while the machine is suspended."""

    def __init__(self, name: str) -> None:
        request = str(uuid.uuid4())  # redis-py sends again by itself: with this it is the same grant
        words = (name, "TTL", TTL_MS, "WAIT", 30_000, "REQUEST", request)
        self.grant = asking.execute_command("LOCK.ACQUIRE", *words)
        self.renew()  # a grant that was waited for starts no deadline, a renewal does
        self.over = threading.Event()
        threading.Thread(target=self.keep, daemon=True).start()

    def renew(self) -> None:
        asked = time.clock_gettime(time.CLOCK_BOOTTIME)  # before it is sent
        reply = renewing.execute_command("SESSION.KEEPALIVE", self.grant["session"])
        broken = any(token == self.grant["token"] for _, _, token, _ in reply["ended"])
        self.deadline = 0.0 if broken else asked + reply["ttl_ms"] / 1000 - MARGIN

    def keep(self) -> None:
        while not self.over.wait(TTL_MS / 3000) and self.remaining() > 0:
            try:
                self.renew()
            except redis.RedisError as error:  # a lost connection is no lost lease; NOSESSION is
                self.deadline = 0.0 if str(error).startswith("NOSESSION") else self.deadline

    def remaining(self) -> float:
        return self.deadline - time.clock_gettime(time.CLOCK_BOOTTIME)

    def release(self) -> None:
        self.over.set()
        asking.execute_command("SESSION.CLOSE", self.grant["session"])  # frees the lock; can be repeated


if __name__ == "__main__":
    lease = Lease("invoice:42")
    for step in range(3):
        assert lease.remaining() > 2, "stop the work"  # before each step that can't be undone
        print(f"step {step + 1} under token {lease.grant['token']}")
    lease.release()
