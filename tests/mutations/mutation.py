"""What a mutation is."""

from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
"""The tree at hand."""


@dataclass(frozen=True, slots=True)
class Mutation:
    """One deliberate bug. `old` occurs exactly once in `file`, or the mutation is stale."""

    name: str
    """What the mutated code does."""
    rule: str
    """The rule of SAFETY.md that it breaks."""
    file: str
    """The path from the root of the tree."""
    old: str
    new: str
    tests: tuple[str, ...]
    """What pytest is given; at least one of these has to fail."""
    hangs: bool = False
    """The bug shows itself by a test that does not end."""

    def staleness(self, root: Path) -> str | None:
        """Why it can't be put into this tree; None when it can."""
        path = root / self.file
        if not path.is_file():
            return f"{self.name}: there is no {self.file}"
        count = path.read_text(encoding="utf-8").count(self.old)
        if count == 1:
            return None
        return f"{self.name}: its text occurs {count} times in {self.file}, not once: {self.old!r}"
