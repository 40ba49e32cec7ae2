"""What the demo shows: rich on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table


class Screen:
    """Tells the story as it goes, each line with the seconds since the start."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._is_terminal = sys.stdout.isatty()
        self._start = time.monotonic()

    def act(self, title: str) -> None:
        """A new part of the story."""
        if self._is_terminal:
            self._console.rule(f"[bold]{escape(title)}", align="left")
        else:
            self._console.print(f"\n== {escape(title)}")

    def say(self, text: str) -> None:
        self._line("", text)

    def fact(self, text: str) -> None:
        """Something that was measured or read."""
        self._line("cyan", text)

    def refusal(self, text: str) -> None:
        """Something that was refused, as it should be."""
        self._line("yellow", text)

    def verdict(self, *, held: bool, promise: str, evidence: str) -> None:
        mark = "held  " if held else "BROKEN"
        colour = "green" if held else "bold red"
        self._console.print(f"  [{colour}]{mark}[/]  {escape(promise)}")
        self._console.print(f"          {escape(evidence)}", style="dim" if held else "red")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        if not self._is_terminal:
            self.say(f"{title}: {', '.join(columns)}")
            for row in rows:
                self._console.print(f"          {escape(', '.join(map(str, row)))}")
            return
        table = Table(title=title, title_justify="left")
        for column in columns:
            table.add_column(column)
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        self._console.print(table)

    def end(self, text: str, *, well: bool) -> None:
        self._console.print(f"\n[{'bold green' if well else 'bold red'}]{escape(text)}[/]")

    def _line(self, style: str, text: str) -> None:
        seconds = time.monotonic() - self._start
        self._console.print(f"[dim]{seconds:6.2f} s[/]  {escape(text)}", style=style or None)
