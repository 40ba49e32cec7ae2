"""A usage line taken apart: what redis-cli makes of the parts is the line again."""

import pytest

from lockd.protocol.usage import Argument, arguments_of
from lockd.protocol.verbs import VERBS


def shown(argument: Argument) -> str:
    """As redis-cli writes an argument of COMMAND DOCS in its hints."""
    if argument.kind == "oneof":
        text = "|".join(map(shown, argument.arguments))
    elif argument.kind == "block":
        text = " ".join(map(shown, argument.arguments))
    else:
        text = argument.token if argument.kind == "pure-token" else argument.name
    if argument.token and argument.kind != "pure-token":
        text = f"{argument.token} {text}"
    if argument.multiple:
        text = f"{text} ..."
    return f"[{text}]" if argument.optional else text


@pytest.mark.parametrize("usage", sorted({verb.usage for verb in VERBS.values()}))
def test_the_parts_make_the_line_again(usage: str) -> None:
    again = " ".join(map(shown, arguments_of(usage)))
    assert again.replace("|", " | ").split() == usage.replace("|", " | ").replace("...", " ...").split()


def test_one_of_several_values() -> None:
    (wait,) = arguments_of("[WAIT ms|FOREVER]")
    assert (wait.token, wait.kind, wait.optional) == ("WAIT", "oneof", True)
    assert [(way.kind, way.token) for way in wait.arguments] == [("integer", ""), ("pure-token", "FOREVER")]


def test_one_of_several_options() -> None:
    (either,) = arguments_of("SESSION s | TTL ms")
    assert (either.kind, [way.token for way in either.arguments]) == ("oneof", ["SESSION", "TTL"])


def test_words_that_are_sent_as_they_stand() -> None:
    (mode,) = arguments_of("[MODE exclusive|shared]")
    assert [(way.kind, way.token) for way in mode.arguments] == [
        ("pure-token", "exclusive"),
        ("pure-token", "shared"),
    ]
