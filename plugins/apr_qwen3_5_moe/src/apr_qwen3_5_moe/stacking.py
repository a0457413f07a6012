"""Checkpoints with a tensor for each expert, seen as those with one tensor for all of a layer."""

from __future__ import annotations

import re

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import Checkpoint, ContractError, SourceTensor

STACKS = {"gate_up_proj": ("gate_proj", "up_proj"), "down_proj": ("down_proj",)}
PART = re.compile(r"(?P<prefix>.*\.mlp\.experts\.)(\d+\.)?(gate|up|down)_proj\.weight")
Part = tuple[str, int | None]  # a tensor of one expert; of all experts: its name and the expert
HINT = "Is the checkpoint complete, and is its config.json the one it came with?"


def stacked(checkpoint: Checkpoint, experts: int) -> Checkpoint:
    """Return a checkpoint with `experts.gate_up_proj` and `experts.down_proj` in every layer.

    That is the checkpoint itself if it has no other tensors of experts. Raises ContractError naming
    a tensor that is missing, or that differs from the others in shape or number format.
    """
    matches = (PART.fullmatch(name) for name in checkpoint.tensors)
    prefixes = dict.fromkeys(match["prefix"] for match in matches if match)
    return StackedCheckpoint(checkpoint, list(prefixes), experts) if prefixes else checkpoint


class StackedCheckpoint(Checkpoint):
    """A checkpoint whose experts are read one after the other, as rows of one tensor."""

    def __init__(self, inner: Checkpoint, prefixes: list[str], experts: int) -> None:
        self._inner, self.file_format = inner, inner.file_format
        self._parts: dict[str, list[list[Part]]] = {}  # of each expert, in order
        stacks, used = {}, set()
        for prefix in prefixes:
            for suffix, roles in STACKS.items():
                if (name := prefix + suffix) in inner.tensors:
                    continue
                parts = [[self._part(prefix, e, role) for role in roles] for e in range(experts)]
                stacks[name], self._parts[name] = self._stack(name, parts), parts
                used |= {part for pair in parts for part, _ in pair}
        others = {name: t for name, t in inner.tensors.items() if name not in used}
        super().__init__(inner.directory, others | stacks, inner.metadata)

    def _part(self, prefix: str, expert: int, role: str) -> Part:
        """Return the tensor of an expert. Raises ContractError if there is none."""
        whole, own = f"{prefix}{role}.weight", f"{prefix}{expert}.{role}.weight"
        if whole in self._inner.tensors:
            if expert >= (count := self._inner.tensors[whole].shape[0]):
                raise ContractError(f"tensor {whole!r} has {count} experts, expected more", HINT)
            return whole, expert
        if own not in self._inner.tensors:
            raise ContractError(f"tensor {own!r} is missing: other experts have theirs", HINT)
        return own, None

    def _stack(self, name: str, parts: list[list[Part]]) -> SourceTensor:
        """Return a stack's entry. Raises ContractError if parts differ."""
        (first, *_), *_ = parts
        shape, dtype, nbytes = self._facts(first)
        for part in (part for pair in parts for part in pair):
            if self._facts(part) != (shape, dtype, nbytes):
                other, kind, _ = self._facts(part)
                raise ContractError(
                    f"tensor {part[0]!r} has {list(other)} {kind} for an expert, and {first[0]!r} "
                    f"{list(shape)} {dtype}"
                )
        rows = shape[0] * len(parts[0])
        file, count = self._inner.tensors[first[0]].file, len(parts) * len(parts[0])
        return SourceTensor(name, dtype, (len(parts), rows, *shape[1:]), file, 0, count * nbytes)

    def _facts(self, part: Part) -> tuple[tuple[int, ...], str, int]:
        """Return the shape, the dtype and the bytes of one expert."""
        name, expert = part
        t = self._inner.tensors[name]
        if expert is None:
            return t.shape, t.dtype, t.nbytes
        return t.shape[1:], t.dtype, t.nbytes // t.shape[0]

    def format_of(self, name: str) -> str:
        """Return the name of a tensor's number format. Raises FormatError."""
        return self._inner.format_of(self._parts[name][0][0][0] if name in self._parts else name)

    def read_raw(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.uint8]:
        """Return the bytes of rows [start, stop); a row of a stack is an expert."""
        if name not in self._parts:
            return self._inner.read_raw(name, start, stop)
        parts = (part for pair in self._parts[name][start:stop] for part in pair)
        return np.concatenate([
            self._inner.read_raw(n) if e is None else self._inner.read_raw(n, e, e + 1)
            for n, e in parts
        ])  # fmt: skip

    def decode(self, name: str, raw: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
        """Return `count` rows of a tensor, as `read_raw` gave them, as float32 [count, values]."""
        if name not in self._parts:
            return self._inner.decode(name, raw, count)
        parts = self._parts[name][0]
        (first, expert), *_ = parts
        rows = 1 if expert is not None else self._inner.rows(first)[0]
        return self._inner.decode(first, raw, count * len(parts) * rows).reshape(count, -1)
