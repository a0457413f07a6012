"""Exports an .apr file as GGUF; memory is bounded by the largest tensor that changes."""

from __future__ import annotations

import os
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGUFWriter

from apr_core.plugin import AprError, AprFile
from apr_core.runtime import get_registry
from apr_gguf.architectures import OF_FAMILY, Architecture
from apr_gguf.config import config_of, keys_of, notes_on
from apr_gguf.reader import described
from apr_gguf.tensors import Target, TensorMap
from apr_gguf.vocabulary import write_tokenizer

FILE_TYPES = {  # recipes, and llama.cpp's numbers of mixes
    "f32": 0, "f16": 1, "q8_0": 7, "q4k": 14, "q4_k_m": 15, "q6k": 18, "bf16": 32,
}  # fmt: skip


def export(file: AprFile, out: Path, *, progress: Any = None) -> dict[str, Any]:
    """Write `file` to `out`, beside it first and then renamed.

    Returns what was written: tensors, bytes, warnings and the names left out. Raises AprError for
    a family, number format or tokenizer that GGUF lacks, and OSError.
    """
    family = str(file.metadata.get("apr.family") or file.metadata.get("architecture"))
    if family not in OF_FAMILY:
        raise AprError(
            f"this exporter does not know model family {family!r}",
            f"It writes {', '.join(OF_FAMILY)}.",
        )
    arch, config = OF_FAMILY[family], config_of(file.metadata)
    tensors = TensorMap(file, arch, config, partial(get_registry().make, "quantizer"))
    targets = list(tensors.targets())
    keys, notes = keys_of(arch, config, tensors.next_layers), notes_on(arch, config)
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        notes += _write(part, arch, keys, file, targets, progress)
        part.replace(out)
    finally:
        part.unlink(missing_ok=True)
    return {
        "path": str(out), "tensors": len(targets), "bytes": out.stat().st_size,
        "skipped": tensors.skipped, "warnings": [*notes, *(t.note for t in targets if t.note)],
    }  # fmt: skip


def _write(
    part: Path,
    arch: Architecture,
    keys: dict[str, Any],
    file: AprFile,
    targets: list[Target],
    progress: Any,
) -> list[str]:
    """Write the whole file; return warnings about its tokenizer."""
    writer = GGUFWriter(part, arch.name)
    try:
        name = str(file.metadata.get("name") or "model")
        texts = {"general.name": name} | described(file.metadata.get("source_metadata") or {})
        for key, text in texts.items():
            writer.add_string(key, text)
        writer.add_quantization_version(2)
        if (mix := FILE_TYPES.get(str(file.metadata.get("apr.recipe")))) is not None:
            writer.add_file_type(mix)
        for key, value in keys.items():
            _add(writer, f"{arch.name}.{key}", value)
        notes = write_tokenizer(writer, file.metadata)
        for t in targets:
            packed = t.type.name not in ("F32", "F16")
            rows = t.shape[:-1]
            shape = (*rows, t.nbytes // prod(rows)) if packed else t.shape
            dtype = np.dtype(np.uint8 if packed else f"f{4 if t.type.name == 'F32' else 2}")
            writer.add_tensor_info(t.name, shape, dtype, t.nbytes, t.type if packed else None)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for t in targets:
            if progress is not None:
                progress.describe(t.name)
            writer.write_tensor_data(t.make())
            if t.source:
                file.drop_pages(t.source)
            if progress is not None:
                progress.advance(t.nbytes)
        return notes
    finally:
        writer.close()


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    """Add a key in the type that llama.cpp reads it in."""
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_uint32(key, value)
