"""Exports an .apr file as GGUF; memory is bounded by the largest tensor that changes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from apr_core.plugin import AprError, AprFile
from apr_core.runtime import get_registry
from apr_gguf.keys import write_keys
from apr_gguf.tensors import Heads, Target, TensorMap

ARCHITECTURES = {"qwen3_5": "qwen35", "qwen2": "qwen2"}


def export(file: AprFile, out: Path, *, progress: Any = None) -> dict[str, Any]:
    """Write `file` to `out`, beside it first and then renamed.

    Returns what was written: tensors, bytes, warnings and the names left out. Raises AprError for
    a family or number format that GGUF lacks, and OSError.
    """
    family = str(file.metadata.get("apr.family") or file.metadata.get("architecture"))
    if family not in ARCHITECTURES:
        raise AprError(
            f"this exporter does not know model family {family!r}",
            f"It writes {', '.join(ARCHITECTURES)}.",
        )
    arch = ARCHITECTURES[family]
    tensors = TensorMap(
        file, arch, _heads(file.metadata), partial(get_registry().make, "quantizer")
    )
    targets = list(tensors.targets())
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        _write(part, arch, file, targets, progress)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return {
        "path": str(out), "tensors": len(targets), "bytes": out.stat().st_size,
        "skipped": tensors.skipped, "warnings": [t.note for t in targets if t.note],
    }  # fmt: skip


def _heads(metadata: Mapping[str, Any]) -> Heads | None:
    linear = metadata.get("linear_attn_hparams")
    if not linear:
        return None
    return Heads(
        linear["linear_num_key_heads"],
        linear["linear_num_value_heads"],
        linear["linear_key_head_dim"],
        linear["linear_value_head_dim"],
    )


def _write(part: Path, arch: str, file: AprFile, targets: list[Target], progress: Any) -> None:
    writer = GGUFWriter(part, arch)
    try:
        write_keys(writer, arch, file.metadata)
        for t in targets:
            packed = t.type.name not in ("F32", "F16")
            shape = (t.shape[0], t.nbytes // t.shape[0]) if packed else t.shape
            dtype = np.dtype(np.uint8 if packed else f"f{4 if t.type.name == 'F32' else 2}")
            writer.add_tensor_info(t.name, shape, dtype, t.nbytes, t.type if packed else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for t in targets:
            if progress is not None:
                progress.describe(t.name)
            writer.write_tensor_data(t.make())
            file.drop_pages(t.source)
            if progress is not None:
                progress.advance(t.nbytes)
    finally:
        writer.close()
