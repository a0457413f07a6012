"""An .apr file as a checkpoint directory: safetensors, config.json, tokenizer.

Tensors keep their names and bytes. Quantized ones are decoded, to the dtype that was asked for;
without one they are refused.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import UsageError
from apr_core.format import NATIVE, AprFile, TensorEntry, decode_rows, from_float32
from apr_core.format.writer import TensorSpec, split
from apr_core.registry import get_registry
from apr_core.text.tokenizer_files import unpack

DTYPES = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
SHARD = 5 << 30  # bytes
PIECE = 1 << 22  # values decoded at a time
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")


def export(
    file: AprFile,
    out: Path,
    *,
    progress: Any = None,
    dtype: str | None = None,
    shard_bytes: int = SHARD,
) -> dict[str, Any]:
    """Write the directory `out`, beside it first and then renamed.

    `dtype` (f32, f16, bf16) is what quantized tensors are decoded to. Raises UsageError if there
    are any and no dtype, and OSError.
    """
    specs = [
        TensorSpec(name, NATIVE[_kind(entry, dtype)], entry.shape)
        for name, entry in file.tensors.items()
    ]
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        _write_all(file, specs, part, progress, shard_bytes)
        _write_rest(file.metadata, part)
        if out.exists():
            shutil.rmtree(out) if out.is_dir() else out.unlink()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    decoded = sorted({e.format for e in file.tensors.values() if e.format not in DTYPES})
    warnings = [f"{name} tensors were decoded to {dtype}" for name in decoded]
    size = sum(path.stat().st_size for path in out.iterdir())
    return {
        "path": str(out), "tensors": len(specs), "bytes": size, "skipped": [],
        "warnings": warnings,
    }  # fmt: skip


def _kind(entry: TensorEntry, dtype: str | None) -> str:
    """Return the number format a tensor is written in."""
    if entry.format in DTYPES:
        return entry.format
    if dtype is None:
        raise UsageError(
            f"tensor {entry.name!r} is {entry.format}, which safetensors cannot hold",
            "Give `dtype` bf16 (or f16, f32) to decode quantized tensors.",
        )
    return dtype


def _write_all(
    file: AprFile, specs: Sequence[TensorSpec], out: Path, progress: Any, limit: int
) -> None:
    shards = split(specs, limit)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = "model.safetensors"
        if len(shards) > 1:
            name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weight_map |= {spec.name: name for spec in shard}
        _write_shard(file, shard, out / name, progress)
    if len(shards) > 1:
        total = sum(spec.nbytes for spec in specs)
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        _write_json(out / "model.safetensors.index.json", index)


def _write_shard(file: AprFile, shard: Sequence[TensorSpec], path: Path, progress: Any) -> None:
    """Write a safetensors file: 8 bytes of header length, the JSON header, then the tensors."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for spec in shard:
        header[spec.name] = {
            "dtype": DTYPES[spec.format.name],
            "shape": list(spec.shape),
            "data_offsets": [at, at + spec.nbytes],
        }
        at += spec.nbytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # readers map the data: keep it aligned
    find = partial(get_registry().make, "quantizer")
    with path.open("wb") as target:
        target.write(len(raw).to_bytes(8, "little") + raw)
        for spec in shard:
            if progress is not None:
                progress.describe(spec.name)
            entry = file.tensors[spec.name]
            for piece in _pieces(entry, file.raw(spec.name), spec.format.name, find):
                target.write(piece.data)
            file.drop_pages(spec.name)
            if progress is not None:
                progress.advance(entry.nbytes)


def _pieces(
    entry: TensorEntry, raw: NDArray[np.uint8], kind: str, find: Any
) -> Iterator[NDArray[np.uint8]]:
    """Yield a tensor's bytes in a float type, some rows at a time."""
    if entry.format == kind:
        yield np.ascontiguousarray(raw).reshape(-1)
        return
    rows, step = (entry.shape or (1,))[0], max(1, PIECE // max(prod(entry.shape[1:]), 1))
    for start in range(0, rows, step):
        values = decode_rows(entry, raw, start, min(start + step, rows), find)
        yield from_float32(values, kind)


def _write_rest(metadata: Mapping[str, Any], out: Path) -> None:
    """Write config.json, generation_config.json, tokenizer and chat template, where present."""
    for key, name in (("hf_config", "config"), ("apr.generation_config", "generation_config")):
        if isinstance(metadata.get(key), dict):
            _write_json(out / f"{name}.json", metadata[key])
    content = unpack(metadata)
    if content is not None:
        _write_json(out / "tokenizer.json", content)
    special = metadata.get("special_tokens") or {}
    config = metadata.get("apr.tokenizer_config")
    if not isinstance(config, dict):
        config = {key: special.get(key) for key in SPECIAL}
    _write_json(out / "tokenizer_config.json", config)
    if isinstance(metadata.get("chat_template"), str):
        (out / "chat_template.jinja").write_text(metadata["chat_template"], "utf-8")


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), "utf-8")
