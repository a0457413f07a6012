"""What an import did, as data: sizes, formats and errors by role, what was carried or left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from apr_core.family.contract import Resolution
from apr_core.format import tensor_nbytes
from apr_core.importing.choosing import Assignment
from apr_core.importing.encoding import ErrorTally


@dataclass(frozen=True, slots=True)
class RoleRow:
    """All tensors of one role. `relative_error` is None where the values are exact."""

    role: str
    tensors: int
    parameters: int
    formats: dict[str, int]  # format -> tensors
    nbytes: int
    relative_error: float | None


@dataclass(frozen=True, slots=True)
class ImportSummary:
    """The result of an import. Sizes in bytes, time in seconds."""

    paths: tuple[Path, ...]
    source: str
    family: str
    variant: str | None
    layout: str
    recipe: str
    parameters: int
    source_bytes: int
    file_bytes: int
    bits_per_weight: float
    roles: tuple[RoleRow, ...]
    left_out: dict[str, dict[str, int]]  # reason -> {tensors, bytes}
    carried: int  # tensors the model's plan does not use
    absent: tuple[str, ...]  # carried tensors the configuration promises and the checkpoint lacks
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"paths": [str(path) for path in self.paths]}


def role_rows(
    assignments: Sequence[Assignment], tallies: Mapping[str, ErrorTally]
) -> tuple[RoleRow, ...]:
    """One row a role, in the contract's order; carried tensors are one role by their group."""
    roles: dict[str, list[Assignment]] = {}
    for a in assignments:
        role = a.rule.role if a.rule.group == "model" else a.rule.group
        roles.setdefault(role, []).append(a)
    return tuple(_row(role, members, tallies) for role, members in roles.items())


def _row(role: str, members: Sequence[Assignment], tallies: Mapping[str, ErrorTally]) -> RoleRow:
    total = ErrorTally()
    for a in members:
        if a.rule.name in tallies:
            total.add(tallies[a.rule.name].errors, tallies[a.rule.name].values)
    exact = not any(a.rule.name in tallies for a in members)
    return RoleRow(
        role, len(members), sum(prod(a.rule.shape) for a in members),
        dict(Counter(a.spec.name for a in members)),
        sum(tensor_nbytes(a.spec, a.rule.shape) for a in members),
        None if exact else total.relative,
    )  # fmt: skip


def left_out_rows(resolution: Resolution, sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Tensors and bytes by the reason they stay behind."""
    rows: dict[str, dict[str, int]] = {}
    for name, reason in resolution.left_out.items():
        row = rows.setdefault(reason, {"tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += sizes[name]
    return rows
