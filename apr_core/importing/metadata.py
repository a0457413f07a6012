"""Builds an import's metadata (standard keys and `apr.`) and its summary."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_core.family.contract import Resolution
from apr_core.format import tensor_nbytes
from apr_core.importing.choosing import Assignment, main_format
from apr_core.importing.encoding import ErrorTally

if TYPE_CHECKING:
    from apr_core.importing.importer import ImportPlan

SCHEMA = 1
NUMBERS = (  # keys of the file, and fields of the configuration
    "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size",
    "intermediate_size", "max_position_embeddings", "rope_theta", "rms_norm_eps",
    "tied_embeddings",
)  # fmt: skip


def build_metadata(plan: ImportPlan) -> dict[str, Any]:
    """Return the file's metadata: identity, configuration, tokenizer, provenance."""
    metadata = identity(plan) | configuration(plan) | provenance(plan)
    metadata |= quantization(plan.assignments)
    return {**metadata, **plan.family.metadata(plan.config), **plan.tokenizer}


def identity(plan: ImportPlan) -> dict[str, Any]:
    """Return the model's name, origin and size."""
    # SOURCE_DATE_EPOCH makes two imports equal byte for byte
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    origin = plan.source.origin
    name = origin.rpartition("://")[2].partition("@")[0].rstrip("/").rpartition("/")[2]
    return {
        "model_type": plan.config.family,
        "name": name or plan.source.directory.name,
        "source": origin,
        "original_format": plan.checkpoint.file_format,
        "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)),
        "total_size": sum(tensor_nbytes(a.spec, a.rule.shape) for a in plan.assignments),
        "param_count": sum(prod(a.rule.shape) for a in plan.assignments),
    }


def configuration(plan: ImportPlan) -> dict[str, Any]:
    """Return the model's numbers under their standard names, and config.json unchanged."""
    c = plan.config
    return {
        "architecture": c.family,
        **{name: getattr(c, name) for name in NUMBERS},
        "layer_types": list(c.layer_types),
        "hf_architecture": c.architecture,
        "hf_model_type": plan.hf_config.get("model_type"),
        "hf_config": dict(plan.hf_config),
    }


def provenance(plan: ImportPlan) -> dict[str, Any]:
    """Return what apr needs to reopen the file without guessing, and to find its source."""
    from apr_core import __version__

    notes: dict[str, Any] = {
        "apr.schema": SCHEMA,
        "apr.writer": f"apr-core {__version__}",
        "apr.family": plan.config.family,
        "apr.family_distribution": plan.family_distribution,
        "apr.contract_version": plan.contract.version,
        "apr.recipe": plan.recipe,
    }
    if plan.source.checkpoint is None:  # else the directory goes with the process
        notes["apr.source_path"] = str(plan.source.directory)
    if plan.generation is not None:
        notes["apr.generation_config"] = dict(plan.generation)
    if plan.checkpoint.metadata:
        notes["source_metadata"] = dict(plan.checkpoint.metadata)
    return notes


def quantization(assignments: Sequence[Assignment]) -> dict[str, Mapping[str, Any]]:
    """Return the `quantization` object for the dominant block format; empty without one."""
    main = main_format(assignments)
    if main is None:
        return {}
    return {
        "quantization": {
            "quant_type": main.name,
            "bits": main.bytes_per_block * 8 // main.block,
            "block_size": main.block,
            "symmetric": False,  # required by other readers; none of our formats promises symmetry
        }
    }


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
    fallbacks: dict[str, int]  # reason -> tensors without the recipe's first choice
    skipped: dict[str, dict[str, int]]  # reason -> {tensors, bytes}
    carried: int  # tensors the model's plan does not use
    absent: tuple[str, ...]  # carried tensors the configuration promises and the checkpoint lacks
    notes: tuple[str, ...]  # what reading the checkpoint changed
    seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return the summary as a JSON object."""
        return asdict(self) | {"paths": [str(path) for path in self.paths]}


def role_rows(
    assignments: Sequence[Assignment], tallies: Mapping[str, ErrorTally]
) -> tuple[RoleRow, ...]:
    """Return one row per role in the contract's order; a carry group counts as one role."""
    roles: dict[str, list[Assignment]] = {}
    for a in assignments:
        role = a.rule.role if a.rule.group == "model" else a.rule.group
        roles.setdefault(role, []).append(a)
    return tuple(_row(role, members, tallies) for role, members in roles.items())


def _row(role: str, members: Sequence[Assignment], tallies: Mapping[str, ErrorTally]) -> RoleRow:
    lossy = [tallies[a.rule.name] for a in members if a.rule.name in tallies]
    total = ErrorTally(sum(t.errors for t in lossy), sum(t.values for t in lossy))
    return RoleRow(
        role,
        len(members),
        sum(prod(a.rule.shape) for a in members),
        dict(Counter(a.spec.name for a in members)),
        sum(tensor_nbytes(a.spec, a.rule.shape) for a in members),
        total.relative if lossy else None,
    )


def skipped_rows(resolution: Resolution, sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Return {reason: tensors and bytes} of what is not imported."""
    rows: dict[str, dict[str, int]] = {}
    for name, reason in resolution.skipped.items():
        row = rows.setdefault(reason, {"tensors": 0, "bytes": 0})
        row["tensors"] += 1
        row["bytes"] += sizes[name]
    return rows
