"""What a family says about one model: its configuration and its layer plan. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apr_core.family.contract import Contract


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers of one model, as the family read them from config.json.

    `extra` holds what only this family has; integers in it are variables of the contract's shape
    expressions. `sampling` are the model's own defaults (temperature, top_k, top_p, min_p,
    presence_penalty, repetition_penalty), empty if it has none.
    """

    family: str
    architecture: str
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    tied_embeddings: bool
    layer_types: tuple[str, ...]
    stop_ids: tuple[int, ...] = ()
    sampling: Mapping[str, float] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def dims(self) -> dict[str, int]:
        """The variables of shape expressions, by their names in the contract vocabulary."""
        dims = {
            "hidden_dim": self.hidden_size,
            "num_layers": self.num_layers,
            "num_heads": self.num_heads,
            "num_kv_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_dim": self.intermediate_size,
            "vocab_size": self.vocab_size,
        }
        integers = {k: v for k, v in self.extra.items() if type(v) is int}
        return dims | integers


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: `h += mixer(norm(h)); h += mlp(norm(h))`.

    `mixer` names an attention variant of the registry, `options` is what its constructor gets.
    """

    mixer: str
    options: Mapping[str, Any]
    mlp: str = "swiglu"


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole decoder: the blocks, and how its RMS norms are meant."""

    blocks: tuple[Block, ...]
    norm_eps: float
    norm_offset: float  # 1.0 where the weight is stored zero-centred: y = x * (offset + w)


@dataclass(frozen=True, slots=True)
class MixerExample:
    """A small case of a mixer: its options, and its weights' shapes by role. For its kit."""

    options: Mapping[str, Any]
    hidden_size: int
    shapes: Mapping[str, tuple[int, ...]]


class FamilyPlugin(Protocol):
    """What the target of a `Family` declaration makes when it is called without arguments.

    It should also have `tiny_config() -> dict`: the config.json of a model of a few layers and 64
    to 256 features, for which conformance kits make random weights.
    """

    def contract(self) -> Contract:
        """The family's contract, read from its package data."""

    def config(
        self, hf: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read config.json (and generation_config.json). Raises ContractError."""

    def plan(self, config: ModelConfig) -> Plan:
        """The layer plan of a model with this configuration."""


class QuantizerPlugin(Protocol):
    """What the target of a `Quantizer` declaration makes when it is called without arguments.

    Rows are padded with zeros to a whole number of blocks: row bytes = ceil(C / block) * bytes. It
    may have an attribute `max_error`, the relative RMSE its conformance kit allows: a number, or
    one for each of apr_devkit.kits.samples.KINDS.
    """

    def encode(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """f32 [R, C] -> u8 [R, row bytes]. Raises QuantizationError on NaN or Inf."""

    def decode(self, raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
        """u8 [R, row bytes] -> f32 [R, cols]."""


@dataclass(frozen=True, slots=True)
class TensorClass:
    """What a recipe may look at when it picks a format.

    `quant_class` is one of the contract's classes: keep, matrix, value, down, fused_input,
    sensitive, embedding, head. `shape` is [out, in]; `layer` is None outside the layers.
    """

    name: str
    role: str
    quant_class: str
    shape: tuple[int, ...]
    layer: int | None
    num_layers: int


class RecipePlugin(Protocol):
    """What the target of a `Recipe` declaration makes when it is called without arguments."""

    def format_for(self, tensor: TensorClass) -> str:
        """A quantizer's name, `f32`, `f16`, `bf16`, or `source` to keep the stored precision.

        Tensors of class `keep` are never asked about: they always keep their precision.
        """
