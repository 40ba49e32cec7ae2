"""The player itself: our own scripts for the vocabulary, and proof that its comparison is not vacuous."""

import re
from pathlib import Path

import pytest

from tests.conformance import script
from tests.conformance.datadriven import Argument, parse, parse_command
from tests.conformance.faults import FAULTS, fault
from tests.conformance.script import Difference
from tests.conformance.suite import DEFAULT_FOLDER, PARTS

OWN = sorted((Path(__file__).parent / "scripts").glob("*.txt"))
THEIRS = sorted((DEFAULT_FOLDER / "etcd-raft" / "interaction").glob("*.txt"))
needs_data = pytest.mark.skipif(not THEIRS, reason=f"NO CONFORMANCE DATA: {DEFAULT_FOLDER} is not there")

FACTS_MIN = {
    "campaign.txt": 50,
    "campaign_learner_must_vote.txt": 40,
    "checkquorum.txt": 90,
    "confchange_disable_validation.txt": 50,
    "confchange_v1_add_single.txt": 50,
    "confchange_v1_remove_leader.txt": 270,
    "confchange_v2_add_double_auto.txt": 460,
    "confchange_v2_add_double_implicit.txt": 55,
    "confchange_v2_add_single_auto.txt": 50,
    "confchange_v2_replace_leader.txt": 370,
    "lagging_commit.txt": 120,
    "prevote.txt": 120,
    "probe_and_replicate.txt": 400,
    "single_node.txt": 25,
    "slow_follower_after_compaction.txt": 25,
    "snapshot_succeed_via_app_resp.txt": 75,
}
"""How many facts are asked of the core, at least, in each of others' scripts."""

# What the text says, and how to make it say something else. The last such line of a script is
# never overtaken by later news of the same directive.
FALSIFICATIONS = {
    "commit": (r"HardState Term:\d+ (?:Vote:\d+ )?Commit:(\d+)", "99"),
    "term": (r"HardState Term:(\d+)", "99"),
    "leader": (r"^\d+: State\w+ \(.*\) Term:\d+ Lead:(\d+)$", "9"),
    "role": (r"^\d+: State(\w+) \(.*\) Term", "Nothing"),
    "voter": (r"^\d+: State\w+ \((.*)\) Term", "Somebody"),
    "match": (r"^\d+: State\w+ match=(\d+)", "99"),
    "pace": (r"^\d+: State(\w+) match=", "Nothing"),
    "configuration": (r"INFO \d+ switched to configuration voters=\((.*)\)", "7 8 9"),
    "became": (r"INFO \d+ became \S+ at term (\d+)", "99"),
}


@pytest.mark.parametrize("file", OWN, ids=lambda file: file.stem)
def test_our_own_script_plays(file: Path) -> None:
    """Each was written from etcd's rules for a command or argument that the others' scripts lack."""
    played = script.play(file.read_text(), file.name)
    assert played.facts > 5
    assert played.agreeing == played.details


@needs_data
@pytest.mark.parametrize("file", THEIRS, ids=lambda file: file.stem)
def test_enough_is_compared(file: Path) -> None:
    played = script.play(file.read_text(), file.name)
    assert played.facts >= FACTS_MIN[file.name]
    assert played.agreeing == played.details


@needs_data
@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_the_core_is_noticed(name: str) -> None:
    """Negative controls: the data, or a script of ours, object to a core that breaks the rule."""
    with fault(name):
        assert _objections() > 0


@needs_data
def test_without_a_fault_nothing_objects() -> None:
    assert _objections() == 0


@pytest.mark.parametrize("kind", FALSIFICATIONS)
def test_a_false_expectation_is_noticed(kind: str) -> None:
    pattern, lie = FALSIFICATIONS[kind]
    told = 0
    for file in [*THEIRS, *OWN]:
        text = file.read_text()
        found = list(re.finditer(pattern, text, re.MULTILINE))
        if found:
            told += 1
            start, end = found[-1].span(1)
            with pytest.raises(Difference):
                script.play(text[:start] + lie + text[end:], file.name)
    assert told > 0


def test_a_line_of_no_known_kind_is_not_passed_over() -> None:
    with pytest.raises(Difference, match="not understood"):
        script.play("add-nodes 1 voters=(1) index=3\n----\nsomething new\n", "new")


def test_an_unknown_command_is_not_passed_over() -> None:
    with pytest.raises(Difference, match="unknown command"):
        script.play("add-nodes 1 voters=(1) index=3\n----\nok\n\ndance 1\n----\nok\n", "new")


def test_an_error_that_did_not_happen_is_noticed() -> None:
    text = "add-nodes 1 voters=(1) index=3\n----\nok\n\npropose 1 x\n----\n{}\n"
    assert script.play(text.format("raft proposal dropped"), "none").directives == 2
    with pytest.raises(Difference, match="errors"):
        script.play(text.format("ok"), "none")


def test_commands_are_read() -> None:
    command = parse_command("add-nodes 3 voters=(1,2 3) learners=() index=10")
    assert command.name == "add-nodes"
    assert command.arguments[:2] == (Argument("3", ()), Argument("voters", ("1", "2", "3")))
    assert command.value("index") == "10"
    assert command.value("content") is None


def test_directives_are_read() -> None:
    text = (
        "# comment\n\nfirst a=1 \\\n  b=2\nin\nput\n----\nout\n\nsecond\n----\n----\none\n\ntwo\n----\n----\n"
    )
    first, second = parse(text)
    assert (first.line, first.input, first.expected) == (3, "in\nput", "out")
    assert (first.command.value("a"), first.command.value("b")) == ("1", "2")
    assert second.expected == "one\n\ntwo"


def test_a_directive_without_output_is_an_error() -> None:
    with pytest.raises(ValueError, match="line 1"):
        list(parse("first\nand nothing\n"))


def _objections() -> int:
    checks = [check for part in PARTS[:3] for check in part.find(DEFAULT_FOLDER)]
    objections = 0
    for run in [*(check.run for check in checks), *(lambda file=file: _play(file) for file in OWN)]:
        try:
            run()
        except AssertionError:
            objections += 1
    return objections


def _play(file: Path) -> str:
    return str(script.play(file.read_text(), file.name))
