"""ioredis and node-redis, in a Node process that takes a command a line and answers with a line."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.processes import PATIENCE_S
from tests.redis_clients.scenario import Connection, Refused

_BRIDGE = Path(__file__).with_name("node") / "bridge.cjs"


class NodeConnection(Connection):
    """One process, one client."""

    def __init__(self, node_modules: Path, library: str, port: int, resp: int) -> None:
        self._process = subprocess.Popen(
            ["node", str(_BRIDGE), library, str(port), str(resp)],
            env=os.environ | {"NODE_PATH": str(node_modules)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def ask(self, words: Sequence[str]) -> Any:
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the Node process has ended"
        answer = json.loads(line)
        if "refused" in answer:
            raise Refused(answer["refused"])
        return answer["reply"]

    def push(self) -> Any:
        raise NotImplementedError("these libraries drop pushes that are not of PUBLISH")

    def close(self) -> None:
        with self._process as process:
            assert process.stdin
            process.stdin.close()
            assert process.wait(PATIENCE_S) == 0
