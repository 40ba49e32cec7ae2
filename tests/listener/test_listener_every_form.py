"""Every verb in every form that its usage line allows, at random: all are answered, nothing breaks (P6)."""

import asyncio
import random
from collections import Counter
from collections.abc import Iterator

import hiredis
import pytest

from lockd.protocol.usage import Argument
from lockd.protocol.verbs import VERBS
from tests.listener.harness import Failure, serving

COMMANDS = 400
LEFT_OUT = {"QUIT", "HELLO", "AUTH", "CLUSTER.REMOVE", "SESSION.CLOSE"}
"""They end the connection, or change what it speaks; or after them there is nothing left to ask."""
OFTEN = {"LOCK.ACQUIRE": 40, "LOCK.ACQUIREALL": 10}
"""How often, where others are drawn once or three times."""


class Drawing:
    """Commands drawn from one seed, about few locks, with sessions and tokens that may be real."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.sessions = ["0" * 32]
        self.tokens = [1]
        self.requests = 0
        self.uuids = [f"{number:032x}" for number in range(3)]

    def command(self) -> list[str]:
        verbs = [verb for verb in VERBS.values() if verb.name not in LEFT_OUT]
        weights = [OFTEN.get(verb.name, 3 if verb.group == "lock" else 1) for verb in verbs]
        (verb,) = self.random.choices(verbs, weights)
        words = verb.name.split()
        for argument in verb.arguments:
            words += self._words(argument)
        if "WAIT" in words and "NOTIFY" not in words:
            words.insert(words.index("WAIT"), "NOTIFY")  # a blocking one would hold up all that follows
        return words

    def _words(self, argument: Argument) -> Iterator[str]:
        if argument.optional and self.random.random() < 0.7:
            return
        if argument.kind == "pure-token":
            yield argument.token
            return
        if argument.token:
            yield argument.token
        for _ in range(self.random.randint(1, 3) if argument.multiple else 1):
            if argument.kind == "oneof":
                yield from self._words(self.random.choice(argument.arguments))
            elif argument.kind == "block":
                for inner in argument.arguments:
                    yield from self._words(inner)
            else:
                yield self._value(argument)

    def _value(self, argument: Argument) -> str:
        draw = self.random
        name = argument.name
        if name in {"s", "session"}:
            return draw.choice(self.sessions)
        if name == "id" and argument.token == "REQUEST":
            self.requests += draw.choice([0, 1, 1])
            return draw.choice([str(self.requests), str(self.requests), draw.choice(self.uuids)])
        if name in {"name", "prefix", "p"}:
            return draw.choice("abc")
        if name == "json":
            return draw.choice(["{}", '{"a": "é"}', "7", "{"])
        if name in {"ms", "ttl_ms"}:
            return str(draw.choice([1, 1_000, 5_000, 60_000]))
        if name == "token":
            return str(draw.choice(self.tokens))
        if name in {"n", "w", "id", "revision", "count", "offset", "0"}:
            return str(draw.choice([0, 1, 1, 2, 2, 3, 5, 20]))
        if name == "peer_addr":
            return draw.choice(["d:7421", "nowhere"])
        return draw.choice(["x", "y"])


@pytest.mark.parametrize("seed", range(6))
def test_p6_every_form_of_every_verb_is_answered(seed: int) -> None:
    """The machine checks its invariants after each."""

    async def main() -> None:
        async with serving() as served:
            drawing = Drawing(seed)
            client = await served.client(resp=3)
            verdicts: Counter[str] = Counter()
            for number in range(COMMANDS):
                client.send(*drawing.command())
                while isinstance(reply := await client.reply(), hiredis.PushNotification):
                    verdicts[reply[0]] += 1
                verdicts[str(reply).split()[0] if isinstance(reply, Failure) else "done"] += 1
                if isinstance(reply, dict) and "session" in reply:
                    drawing.sessions = [*drawing.sessions[-3:], reply["session"]]
                if isinstance(reply, dict) and "token" in reply:
                    drawing.tokens = [*drawing.tokens[-3:], reply["token"]]
                if number % 40 == 0:
                    served.node.advance(drawing.random.choice([10, 5_000, 100_000]))
            assert verdicts["done"] > COMMANDS / 5, verdicts
            assert verdicts["ERR"] < COMMANDS / 2, verdicts
            assert verdicts["BUSY"], verdicts

    asyncio.run(main())
