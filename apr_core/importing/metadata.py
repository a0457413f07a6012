"""The metadata of an imported file: the standard APR v2 keys, and apr's own under `apr.`."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

from apr_core.format import tensor_nbytes
from apr_core.importing.choosing import Assignment, main_format

if TYPE_CHECKING:
    from apr_core.importing.importer import ImportPlan

SCHEMA = 1
NUMBERS = (  # keys of the file, and fields of the configuration
    "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "vocab_size",
    "intermediate_size", "max_position_embeddings", "rope_theta", "rms_norm_eps",
    "tied_embeddings",
)  # fmt: skip


def build_metadata(plan: ImportPlan) -> dict[str, Any]:
    """Everything but the tensors: identity, configuration, tokenizer, provenance."""
    metadata = identity(plan) | configuration(plan) | provenance(plan)
    metadata |= quantization(plan.assignments)
    extra = getattr(plan.family, "metadata", None)
    if extra is not None:
        metadata |= extra(plan.config)
    return {**metadata, **plan.tokenizer}


def identity(plan: ImportPlan) -> dict[str, Any]:
    """What the model is called, where it comes from, how large it is."""
    origin = plan.source.origin
    name = origin.rpartition("://")[2].partition("@")[0].rstrip("/").rpartition("/")[2]
    return {
        "model_type": plan.config.family,
        "name": name or plan.source.directory.name,
        "source": origin,
        "original_format": "safetensors",
        "created_at": _timestamp(),
        "total_size": sum(tensor_nbytes(a.spec, a.rule.shape) for a in plan.assignments),
        "param_count": sum(prod(a.rule.shape) for a in plan.assignments),
    }


def configuration(plan: ImportPlan) -> dict[str, Any]:
    """The numbers of the model by their standard names, and config.json as it was."""
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
    """What apr needs to open the file again without guessing, and to find the source."""
    from apr_core import __version__

    notes: dict[str, Any] = {
        "apr.schema": SCHEMA,
        "apr.writer": f"apr-core {__version__}",
        "apr.family": plan.config.family,
        "apr.family_distribution": plan.family_distribution,
        "apr.contract_version": plan.contract.version,
        "apr.recipe": plan.recipe,
        "apr.source_path": str(plan.source.directory),
    }
    if plan.generation is not None:
        notes["apr.generation_config"] = dict(plan.generation)
    if plan.checkpoint.metadata:
        notes["source_metadata"] = dict(plan.checkpoint.metadata)
    return notes


def quantization(assignments: Sequence[Assignment]) -> dict[str, Mapping[str, Any]]:
    """The `quantization` object for the block format that dominates; nothing without one."""
    main = main_format(assignments)
    if main is None:
        return {}
    return {
        "quantization": {
            "quant_type": main.name,
            "bits": main.bytes_per_block * 8 // main.block,
            "block_size": main.block,
            "symmetric": False,  # required by other readers; no format of ours promises symmetry
        }
    }


def _timestamp() -> str:
    """Now in UTC; SOURCE_DATE_EPOCH makes two imports the same to the byte."""
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH") or time.time())
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))
