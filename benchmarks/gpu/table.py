"""Markdown tables that are printed row by row, and the same as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MISSING = "-"


@dataclass(frozen=True, slots=True)
class Column:
    """`key` is the value's name in JSON, `form` a format specification for people."""

    key: str
    title: str
    form: str = ""

    def cell(self, row: Mapping[str, Any]) -> str:
        """The value as text; numbers by `form`."""
        value = row.get(self.key)
        if value is None:
            return MISSING
        return format(value, self.form) if isinstance(value, int | float) else str(value)


@dataclass(slots=True)
class Table:
    """One table. Its head is printed with its first row."""

    title: str
    columns: Sequence[Column]
    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, row: Mapping[str, Any]) -> None:
        """Print a row and keep it. What no column shows is for JSON alone."""
        if not self.rows:
            say(f"\n### {self.title}\n")
            say("| " + " | ".join(c.title for c in self.columns) + " |")
            say("|---" * len(self.columns) + "|")
        self.rows.append(dict(row))
        say("| " + " | ".join(c.cell(row) for c in self.columns) + " |")


def say(text: str) -> None:
    """A line, at once: a run may be cut off."""
    print(text, flush=True)


@dataclass(slots=True)
class Report:
    """All that was found. `facts` are about the machine and the model."""

    facts: dict[str, Any]
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def table(self, title: str, columns: Sequence[Column]) -> Table:
        """A new table."""
        self.tables.append(Table(title, columns))
        return self.tables[-1]

    def note(self, text: str) -> None:
        """A line below a table."""
        self.notes.append(text)
        say(f"\n{text}")

    def fail(self, what: str) -> None:
        """Something is wrong: the run ends with an error, after all else was done."""
        self.failures.append(what)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; empty tables are left out."""
        tables = [{"title": t.title, "rows": t.rows} for t in self.tables if t.rows]
        return {
            "facts": self.facts, "tables": tables, "notes": self.notes, "failures": self.failures,
        }  # fmt: skip

    def write(self, path: Path) -> None:
        """As JSON into a file."""
        path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", "utf-8")
