"""What all phases share: options, the device, the report, and the model, built when first asked."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apr_core import Model
from apr_core.registry import Registry
from benchmarks.gpu.machine import GIB, Machine, is_out_of_memory
from benchmarks.gpu.shapes import Amounts
from benchmarks.gpu.table import Report, Table
from benchmarks.gpu.weights import Built, build

ROOM = 64  # tokens beyond the longest measured sequence
RESERVE = GIB  # bytes that a step's own arrays may take


class DoesNotFit(Exception):
    """Something is larger than the memory that is free."""


@dataclass(slots=True)
class Bench:
    """A run of the benchmark."""

    shape: str
    recipe: str
    file: Path | None
    checks: str
    debug: bool
    amounts: Amounts
    registry: Registry
    machine: Machine
    report: Report
    _built: Built | None = field(default=None)

    def built(self) -> Built:
        """The model with random weights."""
        if self._built is None:
            longest = max(*self.amounts.contexts, *self.amounts.prompts, *self.amounts.own_prompts)
            took = self.machine.seconds(
                lambda: self._build(longest + self.amounts.own_tokens + ROOM)
            )
            assert self._built is not None
            self.report.note(f"{self.shape} in {self.recipe} was made in {took:.1f} s.")
            for line in self._built.model.report.fallbacks:
                self.report.note(f"! {line}")
        return self._built

    def _build(self, max_len: int) -> None:
        self._built = build(self.shape, self.recipe, self.registry, max_len)

    def drop_model(self) -> None:
        """Give its memory back."""
        self._built = None
        self.machine.clean()

    def attempt(
        self, table: Table, keys: Mapping[str, Any], measure: Callable[[], Mapping[str, Any]]
    ) -> Mapping[str, Any] | None:
        """A row of `keys` and what `measure` finds; of what went wrong, where something did."""
        self.machine.begin_peak()
        row: dict[str, Any] = dict(keys)
        figures: Mapping[str, Any] | None = None
        try:
            figures = measure()
            row |= figures
            row["peak_gib"] = self.machine.peak_gib()
        except DoesNotFit as error:
            row["note"] = str(error)
        except Exception as error:
            row["note"] = self._words(error)
            if not is_out_of_memory(error):
                self.report.fail(f"{table.title}: {dict(keys)}: {row['note']}")
                if self.debug:
                    traceback.print_exc()
        if figures is None:
            self.machine.clean()
        table.add(row)
        return figures

    def _words(self, error: Exception) -> str:
        """An error in a cell of a table."""
        if is_out_of_memory(error):
            return "out of memory"
        first = next(iter(str(error).splitlines()), "")
        return f"{type(error).__name__}: {first[:120]}".replace("|", "/")

    def check_fits(self, model: Model, batch: int, length: int) -> None:
        """Raise DoesNotFit unless states of `batch` sequences of that length fit."""
        free, needed = self.machine.free_bytes(), batch * model.sequence_bytes(length)
        if free is not None and needed > free - RESERVE:
            raise DoesNotFit(
                f"does not fit: {needed / GIB:.1f} GiB of states, {free / GIB:.1f} GiB free"
            )
