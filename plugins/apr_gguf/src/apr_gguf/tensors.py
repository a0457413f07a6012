"""Maps each tensor to its name and bytes in GGUF.

Sources: gguf's own tensor names, llama.cpp's convert_hf_to_gguf.py (classes Qwen2Model and
Qwen3_5TextModel), and its pull request 19468 for the order of value heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from apr_core.plugin import AprError, AprFile, TensorEntry, decode_tensor
from apr_gguf.architectures import GLOBAL, HEAD, LAYER

BLOCKS = {  # format -> values in a block; GGUF's names are in capitals
    "q4_k": 256, "q5_k": 256, "q6_k": 256, "q8_0": 32, "q4_0": 32, "q4_1": 32, "q5_0": 32,
    "q5_1": 32, "iq4_nl": 32,
}  # fmt: skip
PACKED = {name: name.upper() for name in BLOCKS}
FLOATS = {"f32": "F32", "f16": "F16", "bf16": "BF16"}
PREFIXES = ("model.language_model.", "language_model.model.", "model.")

IN_LAYER = LAYER | {
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
}
POST_NORM = {"qwen35": "post_attention_norm.weight", "qwen2": "ffn_norm.weight"}


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads of Qwen3.5's linear attention: key heads, value heads, and their sizes."""

    keys: int
    values: int
    key_dim: int
    value_dim: int

    def order(self) -> NDArray[np.int64]:
        """Return the checkpoint's value heads in GGUF's order: ggml pairs j with key j mod keys."""
        ratio, j = self.values // self.keys, np.arange(self.values)
        return (j % self.keys) * ratio + j // self.keys

    def positions(self, size: int) -> NDArray[np.int64]:
        """Return `order` for rows or columns, of which each head has `size`."""
        return (self.order()[:, None] * size + np.arange(size)).ravel()

    @property
    def moved(self) -> bool:
        """True if GGUF's order differs from the checkpoint's."""
        return self.values != self.keys


@dataclass(frozen=True, slots=True)
class Target:
    """A tensor to write: shape [rows, cols] or [n], bytes made on demand."""

    name: str
    source: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    nbytes: int
    make: Callable[[], NDArray[Any]]
    note: str = ""  # what was changed beyond moving values


class TensorMap:
    """Makes targets of a file's tensors. `find` is quantizer name -> quantizer."""

    def __init__(
        self, file: AprFile, arch: str, heads: Heads | None, find: Callable[[str], Any]
    ) -> None:
        self.file, self.arch, self.heads, self.find = file, arch, heads, find
        self.skipped: list[str] = []

    def targets(self) -> Iterator[Target]:
        """Yield a target for each tensor GGUF has a place for; others go into `skipped`."""
        for entry in self.file.tensors.values():
            name = self._name(entry.name)
            if name is None:
                self.skipped.append(entry.name)
            else:
                yield self._target(name, entry)

    def _name(self, name: str) -> str | None:
        if name in HEAD:
            return HEAD[name]
        prefix = next((p for p in PREFIXES if name.startswith(p)), None)
        if prefix is None:
            return None
        rest = name[len(prefix) :]
        if rest in GLOBAL:
            return GLOBAL[rest]
        kind, _, rest = rest.partition(".")
        layer, _, rest = rest.partition(".")
        if kind != "layers" or not layer.isdigit():
            return None
        table = {**IN_LAYER, "post_attention_layernorm.weight": POST_NORM[self.arch]}
        return f"blk.{layer}.{table[rest]}" if rest in table else None

    def _target(self, name: str, entry: TensorEntry) -> Target:
        part = name.split(".", 2)[-1] if name.startswith("blk.") else name
        if len(entry.shape) != 2:
            return self._vector(name, part, entry)
        rows = self._row_order(part)
        if part == "ssm_out.weight" and self.heads and self.heads.moved:
            return self._moved_columns(name, entry)
        return self._matrix(name, entry, rows)

    def _row_order(self, part: str) -> NDArray[np.int64] | None:
        h = self.heads
        if h is None or not h.moved:
            return None
        if part == "attn_qkv.weight":
            before = 2 * h.keys * h.key_dim
            return np.concatenate([np.arange(before), before + h.positions(h.value_dim)])
        if part == "attn_gate.weight":
            return h.positions(h.value_dim)
        return h.order() if part in ("ssm_alpha.weight", "ssm_beta.weight") else None

    def _matrix(self, name: str, entry: TensorEntry, rows: NDArray[np.int64] | None) -> Target:
        kind = PACKED.get(entry.format) or FLOATS.get(entry.format)
        if kind is None:
            raise AprError(
                f"tensor {entry.name!r} has format {entry.format!r}, which GGUF does not know",
                f"Import again with one of: {', '.join([*PACKED, *FLOATS])}.",
            )

        def make() -> NDArray[np.uint8]:
            raw = self.file.raw(entry.name).reshape(entry.shape[0], -1)
            return raw if rows is None else raw[rows]

        if entry.format in PACKED and entry.shape[1] % BLOCKS[entry.format]:
            return self._decoded(name, entry, lambda x: x, "F16", "its rows end inside a block")
        nbytes = self.file.raw(entry.name).nbytes
        return Target(name, entry.name, entry.shape, GGMLQuantizationType[kind], nbytes, make)

    def _moved_columns(self, name: str, entry: TensorEntry) -> Target:
        assert self.heads is not None
        columns = self.heads.positions(self.heads.value_dim)
        unit = 1 if entry.format in FLOATS else BLOCKS.get(entry.format, 0)
        if unit and self.heads.value_dim % unit == 0:
            order = columns[::unit] // unit
            plain = self._matrix(name, entry, None)

            def make() -> NDArray[np.uint8]:
                raw = plain.make()
                blocks = raw.reshape(raw.shape[0], order.size, -1)
                return np.ascontiguousarray(blocks[:, order]).reshape(raw.shape)

            return Target(name, entry.name, plain.shape, plain.type, plain.nbytes, make)
        reason = f"value heads are reordered across blocks of {entry.format}"
        return self._decoded(name, entry, lambda x: x[:, columns], "F16", reason)

    def _decoded(
        self,
        name: str,
        entry: TensorEntry,
        change: Callable[[NDArray[np.float32]], NDArray[np.float32]],
        kind: str,
        note: str = "",
    ) -> Target:
        dtype = np.float16 if kind == "F16" else np.float32

        def make() -> NDArray[Any]:
            values = decode_tensor(entry, self.file.raw(entry.name), self.find)
            return np.ascontiguousarray(change(values).astype(dtype))

        shape = tuple(n for i, n in enumerate(entry.shape) if n != 1 or i != 1)
        nbytes = int(np.prod(shape)) * np.dtype(dtype).itemsize
        remark = f"{entry.name}: stored as {kind}, because {note}" if note else ""
        return Target(name, entry.name, shape, GGMLQuantizationType[kind], nbytes, make, remark)

    def _vector(self, name: str, part: str, entry: TensorEntry) -> Target:
        """Return the target of a vector or the convolution: always float32."""
        changes: dict[str, Callable[[NDArray[np.float32]], NDArray[np.float32]]] = {}
        if self.heads is not None:
            changes = dict.fromkeys(
                (
                    "attn_norm.weight",
                    "post_attention_norm.weight",
                    "attn_q_norm.weight",
                    "attn_k_norm.weight",
                    "output_norm.weight",
                ),
                _plus_one,
            )
            changes["ssm_a"] = lambda x: -np.exp(x[self._heads()])
            changes["ssm_dt.bias"] = lambda x: x[self._heads()]
            changes["ssm_conv1d.weight"] = partial(_channels, self.heads)
        return self._decoded(name, entry, changes.get(part, lambda x: x), "F32")

    def _heads(self) -> NDArray[np.int64]:
        assert self.heads is not None
        return self.heads.order()


def _plus_one(x: NDArray[np.float32]) -> NDArray[np.float32]:
    return x + np.float32(1)


def _channels(heads: Heads, x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return conv1d [C, 1, K] as [C, K], value channels in GGUF's order."""
    before = 2 * heads.keys * heads.key_dim
    order = np.concatenate([np.arange(before), before + heads.positions(heads.value_dim)])
    taps: NDArray[np.float32] = x[order, 0]
    return taps
