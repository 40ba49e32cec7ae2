"""Every mutation still fits the code, and every rule has one; `make mutations` runs them."""

from collections import Counter

import pytest

from tests.mutations.catalogue import MUTATIONS, NOT_MUTATED, RULES
from tests.mutations.mutation import ROOT, Mutation


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_mutation_fits_one_place_and_is_still_a_program(mutation: Mutation) -> None:
    assert mutation.staleness(ROOT) is None
    code = (ROOT / mutation.file).read_text(encoding="utf-8")
    compile(code.replace(mutation.old, mutation.new), mutation.file, "exec")
    for test in mutation.tests:
        assert (ROOT / test.partition("::")[0]).exists()


def test_each_rule_has_a_mutation_or_a_reason() -> None:
    mutated = {mutation.rule for mutation in MUTATIONS}
    assert mutated.isdisjoint(NOT_MUTATED)
    assert mutated | {*NOT_MUTATED} == {*RULES}


def test_names_are_told_apart() -> None:
    assert max(Counter(mutation.name for mutation in MUTATIONS).values()) == 1
