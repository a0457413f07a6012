"""A GGUF file as a checkpoint: configuration and tokenizer from its keys, tensors in HF's form."""

from __future__ import annotations

import json
import re
import tempfile
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from numpy.typing import NDArray

from apr_core.plugin import (
    Checkpoint,
    FormatError,
    NotFound,
    SourceTensor,
    from_float32,
    to_float32,
)
from apr_core.runtime import get_registry
from apr_gguf.architectures import ARCHITECTURES, Architecture
from apr_gguf.changes import Change, Heads, changes, cuts, move_columns
from apr_gguf.config import config_from, layers_of
from apr_gguf.reader import GgufFile, Keys, described, read_header
from apr_gguf.rope import FACTORS, llama3_of
from apr_gguf.tokenizer import tokenizer_files

FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
PACKED = {
    t: t.lower() for t in ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL")
}
PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MAX_LAYERS = 4096
UNPACKED = "f16"  # of a matrix whose blocks a change of columns cuts
IDENTITY = Change()


def open_checkpoint(path: str) -> GgufCheckpoint:
    """Open a GGUF file, or all files of a split one by any of its parts.

    Raises NotFound if a part is missing, InputOutputError, or FormatError for damaged files and for
    what no plugin here reads.
    """
    files = [read_header(part) for part in _parts(Path(path))]
    keys = Keys(path, files[0].keys)
    arch = ARCHITECTURES.get(keys.architecture)
    if arch is None:
        raise FormatError(
            f"{path}: is of architecture {keys.architecture!r}, known are "
            f"{', '.join(sorted(ARCHITECTURES))}",
            "Import the original checkpoint, if a family for it is installed: apr plugins list.",
        )
    return GgufCheckpoint(arch, keys, files)


def _parts(path: Path) -> list[Path]:
    match = PART.fullmatch(path.name)
    if match is None:
        return [path]
    count = int(match["count"])
    parts = [
        path.with_name(f"{match['stem']}-{i:05}-of-{count:05}.gguf") for i in range(1, count + 1)
    ]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        raise NotFound(
            f"{path}: {len(missing)} of {count} parts are missing: {', '.join(missing[:5])}",
            "Complete the download: all parts belong into one folder.",
        )
    return parts


class GgufCheckpoint(Checkpoint):
    """Reads tensors under the names, in the order and with the values of the HF checkpoint."""

    file_format = "gguf"

    def __init__(self, arch: Architecture, keys: Keys, files: list[GgufFile]) -> None:
        self.arch, self.keys = arch, keys
        layers, extra = layers_of(keys)
        if not 0 < layers <= MAX_LAYERS:
            raise FormatError(f"{keys.path}: has {layers} layers, expected 1 to {MAX_LAYERS}")
        self._back = {b: a for a, b in arch.names(layers, extra).items()}
        self._gguf: dict[str, str] = {}
        self._types: dict[str, GGMLQuantizationType] = {}
        super().__init__(Path(), self._listed(files), described(keys.values))
        files_of = tokenizer_files(keys)
        rows = len(files_of["tokenizer.json"]["model"]["vocab"])
        embedding = self.tensors.get("model.embed_tokens.weight")
        tied = "lm_head.weight" not in self.tensors
        config = config_from(keys, arch, tied, embedding.shape[0] if embedding else rows)
        if FACTORS in self.tensors:
            factors = self._values(FACTORS)
            config |= llama3_of(keys, config, factors)
            del self.tensors[FACTORS]
        self._heads = Heads.of(config)
        self.notes = self._on_cut_blocks()
        self._folder = tempfile.TemporaryDirectory(prefix="apr-gguf-")
        self.directory = Path(self._folder.name)
        for name, content in {"config.json": config, **files_of}.items():
            (self.directory / name).write_text(json.dumps(content, ensure_ascii=False), "utf-8")

    def _listed(self, files: list[GgufFile]) -> dict[str, SourceTensor]:
        tensors: dict[str, SourceTensor] = {}
        for file in files:
            for t in file.tensors.values():
                name = self._back.get(t.name, t.name)
                if name in tensors:
                    raise FormatError(f"{file.path}: tensor {t.name!r} is in two files")
                shape = t.shape
                if t.name.endswith("ssm_conv1d.weight"):
                    shape = (*shape[:1], 1, *shape[1:])
                if t.name.endswith("ffn_gate_inp_shexp.weight"):
                    shape = (1, *shape)
                tensors[name] = SourceTensor(
                    name, t.type.name, shape, file.path, t.offset, t.nbytes
                )
                self._gguf[name], self._types[name] = t.name, t.type
        return tensors

    def format_of(self, name: str) -> str:
        """Return the name of the number format of a tensor. Raises FormatError."""
        change = self._change(name)
        if change.values or change.squeezed:
            return "f64" if self._undone(name).dtype == np.float64 else "f32"
        return UNPACKED if self._is_cut(name) else self._stored(name)

    def _stored(self, name: str) -> str:
        kind = self._types[name].name
        format = FLOATS.get(kind) or PACKED.get(kind)
        if format is None:
            raise FormatError(
                f"{self.tensors[name].file}: tensor {name!r} is {kind}, known are "
                f"{', '.join([*FLOATS, *PACKED])}",
                "Take a file in one of these formats.",
            )
        return format

    def read_raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the bytes of rows [start, stop), in HF's order and with HF's values."""
        change = self._change(name)
        if change.values or change.squeezed:
            return self._undone(name)[start:stop].reshape(-1).view(np.uint8)
        raw = self._rows(name, change, start, stop)
        if change.columns is None:
            return raw
        block, _ = GGML_QUANT_SIZES[self._types[name]]
        packed = raw.reshape(-1, len(raw) // max(self._count(name, start, stop), 1))
        if not cuts(change.columns, block):
            return move_columns(packed, change.columns, block, way_back=True).reshape(-1)
        values = self._decoded(name, raw, len(packed))[:, np.argsort(change.columns)]
        return from_float32(values, UNPACKED)

    def decode(self, name: str, raw: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
        """Return `count` rows of a tensor, as `read_raw` gave them, as float32 [count, values]."""
        if self.format_of(name) in ("f64", *FLOATS.values()):
            return super().decode(name, raw, count)
        return self._decoded(name, raw, count)

    def _decoded(self, name: str, raw: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
        """Return the values of rows as the file stores them."""
        format, (_, cols) = self._stored(name), self.rows(name)
        if format in FLOATS.values():
            return to_float32(raw, format, (count, cols))
        codec = get_registry().make("quantizer", format)
        values: NDArray[np.float32] = codec.decode(raw.reshape(count, -1), cols)
        return values

    def _values(self, name: str) -> NDArray[np.float32]:
        """Return the whole tensor as GGUF has it: [n], or [n, k] of a convolution."""
        rows, cols = self.rows(name)
        values = self._decoded(name, super().read_raw(name), rows)
        return values.reshape(rows) if cols == 1 else values

    def _undone(self, name: str) -> NDArray[Any]:
        return self._change(name).undo(self._values(name))

    def _rows(self, name: str, change: Change, start: int, stop: int | None) -> NDArray[np.uint8]:
        if change.rows is None:
            return super().read_raw(name, start, stop)
        wanted = np.argsort(change.rows)[start:stop]
        first, last = int(wanted.min()), int(wanted.max()) + 1
        raw = super().read_raw(name, first, last).reshape(last - first, -1)
        return np.ascontiguousarray(raw[wanted - first]).reshape(-1)

    def _count(self, name: str, start: int, stop: int | None) -> int:
        return (self.rows(name)[0] if stop is None else stop) - start

    def _is_cut(self, name: str) -> bool:
        block, _ = GGML_QUANT_SIZES[self._types[name]]
        return cuts(self._change(name).columns, block)

    def _on_cut_blocks(self) -> tuple[str, ...]:
        """Return a sentence about the matrices whose blocks cannot stay whole, if there are any."""
        cut = [name for name in self.tensors if self._is_cut(name)]
        if not cut:
            return ()
        before = sum(self.tensors[name].nbytes for name in cut)
        after = sum(2 * prod(self.tensors[name].shape) for name in cut)
        kinds = ", ".join(sorted({self._stored(name) for name in cut}))
        return (
            f"{len(cut)} matrices like {cut[0]} are decoded, because value heads are in another "
            f"order across their blocks of {kinds}: as {UNPACKED} they take "
            f"{after / 2**20:.1f} instead of {before / 2**20:.1f} MiB; a recipe encodes them anew",
        )

    @cached_property
    def _changes(self) -> dict[str, Change]:
        h, most = self._heads, max((t.nbytes for t in self.tensors.values()), default=0)
        rows = max(h.queries * h.size, h.keys * h.size, h.linear_values * h.linear_value_size)
        if not h.usable or max(rows, h.linear_keys * h.linear_key_size) > most:
            raise FormatError(f"{self.keys.path}: its numbers of heads fit none of its tensors")
        return changes(self.arch, h)

    def _change(self, name: str) -> Change:
        gguf = self._gguf[name]
        part = gguf.split(".", 2)[2] if gguf.startswith("blk.") else gguf
        change = self._changes.get(part, IDENTITY)
        for order, size in zip((change.rows, change.columns), self.rows(name), strict=True):
            if order is not None and order.size != size:
                raise FormatError(
                    f"{self.keys.path}: tensor {gguf!r} has {size} rows or columns, its heads "
                    f"{order.size}"
                )
        return change
