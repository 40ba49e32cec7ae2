"""Reading docs/*.md in tests: their tables, and the tests that they name."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)::(\w+)`")


class Document:
    """One file of docs/."""

    def __init__(self, name: str) -> None:
        self.text = (ROOT / "docs" / name).read_text(encoding="utf-8")
        self.named_tests: list[tuple[str, str]] = NAMED_TEST.findall(self.text)

    def rows(self, heading: str) -> list[list[str]]:
        """The cells of the first table under a heading, without its head."""
        section = self.text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
        table = re.split(r"\n(?!\|)", section[section.index("\n|") + 1 :], maxsplit=1)[0]
        return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]

    def missing_tests(self) -> list[str]:
        """The tests that it names and that are not there."""
        return [f"{path}::{name}" for path, name in self.named_tests if name not in _functions_of(path)]

    def misspelt_tests(self) -> int:
        """How much of it looks like a test's name in a form that would be held to nothing."""
        return len(re.findall(r"::test_|test_\w+\.py", self.text)) - 2 * len(self.named_tests)


@cache
def _functions_of(path: str) -> frozenset[str]:
    """The functions of a file of tests, without importing it."""
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    return frozenset(node.name for node in tree.body if isinstance(node, functions))
