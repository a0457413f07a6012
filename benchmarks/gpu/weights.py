"""A model of any shape with random weights that exist on the device only.

The stand-in for a file has names, shapes and formats, and bytes of vectors. Of a matrix the host
makes a few rows: real blocks of its format, encoded as an import does. The backend uploads these
as it uploads any matrix; then its planes are repeated on the device to as many rows as it should
have, and the codes are drawn anew, so that no two rows are alike. Nothing here knows how planes are
laid out, but that the first axis of each is rows and that any byte of codes is valid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apr_backend_cuda.backend import Cuda
from apr_backend_cuda.weights.matrices import Matrix
from apr_core import Model
from apr_core.family.contract import Contract, TensorRule
from apr_core.family.modelspec import ModelConfig, TensorClass
from apr_core.format import NATIVE, FormatSpec
from apr_core.format.dtypes import tensor_nbytes
from apr_core.format.reader import TensorEntry
from apr_core.importing.choosing import KEEP, load_recipe
from apr_core.model.loading import build_decoder
from apr_core.model.state import KVType
from apr_core.ops.binding import Weight
from apr_core.plugin import HostMatrix
from apr_core.registry import Registry
from apr_devkit.tiny import as_bfloat16, random_tensor, text_layout
from benchmarks.gpu.shapes import FAMILY, hf_config

BACKEND = "cuda"
SAMPLE = 64  # rows of a matrix that the host makes
SEED = 0
KV_TYPE: KVType = "f16"
SPREAD = 0.5  # of a row's values, over the root of their number: activations stay near 1


class StandIn:
    """As much of an open file as loading asks for."""

    def __init__(
        self, contract: Contract, config: ModelConfig, recipe: str, registry: Registry
    ) -> None:
        self.path = Path("random weights")
        self.metadata: dict[str, Any] = {}
        self._contract, self._registry = contract, registry
        self._recipe, self._layers = load_recipe(recipe, registry), config.num_layers
        rules = contract.rules(config, text_layout(contract))
        self._rules = {rule.name: rule for rule in rules}
        self.tensors = {rule.name: self._entry(rule) for rule in rules}
        self._rng = np.random.default_rng(SEED)

    def _entry(self, rule: TensorRule) -> TensorEntry:
        spec = self._spec(rule)
        nbytes = tensor_nbytes(spec, rule.shape)
        return TensorEntry(
            rule.name, spec.name, spec.dtype_id or 0, rule.shape, 0, nbytes, spec, self.path
        )

    def _spec(self, rule: TensorRule) -> FormatSpec:
        if len(rule.shape) != 2:
            return NATIVE["f32"]
        if rule.quant_class == KEEP:
            return NATIVE["bf16"]
        answer = self._recipe.format_for(
            TensorClass(
                rule.name, rule.role, rule.quant_class, rule.shape, rule.layer, self._layers
            )
        )
        specs = [self._format(n) for n in ([answer] if isinstance(answer, str) else answer)]
        return next((s for s in specs if not rule.shape[-1] % s.block), specs[-1])

    def _format(self, name: str) -> FormatSpec:
        if name in NATIVE:
            return NATIVE[name]
        owned = self._registry.get("quantizer", name)
        d = owned.declaration
        return FormatSpec(d.name, d.dtype_id, d.block, d.bytes_per_block, owned.distribution)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """Bytes of a vector; of a matrix, zeros that take no memory and that nobody reads."""
        entry = self.tensors[name]
        if len(entry.shape) == 2:
            return np.broadcast_to(np.zeros(1, np.uint8), (entry.nbytes,))
        return (
            random_tensor(self._rules[name], self._contract, self._rng).view(np.uint8).reshape(-1)
        )

    def drop_pages(self, name: str) -> None:
        """There are none."""

    def close(self) -> None:
        """Nothing is open."""


class RandomCuda(Cuda):
    """The backend, but matrices are random."""

    def __init__(self, registry: Registry) -> None:
        super().__init__()
        self._registry = registry
        self._sample = cache(self._encoded)

    def upload_packed(self, matrix: HostMatrix) -> Matrix:
        """A random matrix of that shape and format."""
        rows, cols = matrix.shape
        raw = self._sample(matrix.format, cols)[:rows]
        few = replace(matrix, shape=(raw.shape[0], cols), raw=raw)
        return grown(super().upload_packed(few), rows)

    def _encoded(self, format: str, cols: int) -> NDArray[np.uint8]:
        """A few rows of the format: u8 [SAMPLE, row bytes]."""
        values = np.random.default_rng([SEED, cols]).standard_normal((SAMPLE, cols), np.float32)
        values *= np.float32(SPREAD * cols**-0.5)
        if format == "f16":
            return values.astype(np.float16).view(np.uint8)
        if format == "bf16":
            return (as_bfloat16(values).view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
        encoded: NDArray[np.uint8] = self._registry.make("quantizer", format).encode(values)
        return encoded


def grown(m: Matrix, rows: int) -> Matrix:
    """The matrix with its rows repeated until there are so many, and with codes drawn anew."""
    times = -(-rows // m.rows)

    def repeated(plane: torch.Tensor) -> torch.Tensor:
        return plane.repeat(times, 1)[:rows].contiguous() if plane.dim() == 2 else plane

    codes = repeated(m.codes)
    if codes.dtype == torch.uint8:
        codes.random_(0, 256)
    extra = {name: repeated(plane) for name, plane in m.extra.items()}
    return replace(m, rows=rows, codes=codes, extra=extra)


@dataclass(frozen=True, slots=True)
class Built:
    """A model with random weights, and its embedding, which no product shows."""

    model: Model
    backend: RandomCuda
    embedding: Weight


def build(shape: str, recipe: str, registry: Registry, max_len: int) -> Built:
    """A model for sequences of at most `max_len` tokens. Raises BackendError or PluginError."""
    torch.manual_seed(SEED)
    family = registry.make("family", FAMILY)
    config = family.config(hf_config(shape, registry))
    contract = family.contract()
    file: Any = StandIn(contract, config, recipe, registry)
    backend = RandomCuda(registry)
    decoder, binder, _ = build_decoder(
        file, contract, config, family.plan(config), registry, backend, BACKEND, max_len, KV_TYPE
    )
    model = Model(file, config, decoder, backend, binder.report, max_len, KV_TYPE)
    return Built(model, backend, decoder.weights.embedding)
