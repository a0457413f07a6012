"""A model's configuration and layer plan, as its family reads them. Plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from apr_core.errors import ContractError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from apr_core.family.contract import Contract
    from apr_core.importing.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers of one model, as the family read them from config.json.

    `extra` holds what only this family has; integers in it are variables of the contract's shape
    expressions. `sampling` are the model's own defaults (temperature, top_k, top_p, min_p,
    presence_penalty, repetition_penalty), empty if it has none. `rope_scaling` is what
    `rope_frequencies` takes.
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
    rope_scaling: Mapping[str, Any] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def dims(self) -> dict[str, int]:
        """Return the variables of shape expressions, by their names in the contract vocabulary."""
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

    def attention(self, **own: Any) -> dict[str, Any]:
        """Return options of a mixer of rotary attention over the whole head; `own` come on top."""
        names = ("num_heads", "num_kv_heads", "head_dim", "rope_theta", "rope_scaling")
        options = {name: getattr(self, name) for name in names}
        return {**options, "rotary_dim": self.head_dim, **own}


# where a block has norms, and the roles of their weights: before the mixer, after it, before the
# mlp, after it
NORMS: dict[str, tuple[str | None, str | None, str | None, str | None]] = {
    "pre": ("input_norm", None, "post_attention_norm", None),
    "post": (None, "post_attention_norm", None, "post_feedforward_norm"),
    "sandwich": (
        "input_norm", "post_attention_norm", "pre_feedforward_norm", "post_feedforward_norm",
    ),
    "parallel": ("input_norm", None, None, None),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Block:
    """One layer: a mixer, a feed-forward, and norms beside them. Both add to the residual stream.

    `mixer` names an attention variant of the registry and `mlp` a feed-forward variant; `options`
    and `mlp_options` are what their constructors get. `norm` is one of

    - "pre": `h += mixer(norm(h)); h += mlp(norm(h))`
    - "post": `h += norm(mixer(h)); h += norm(mlp(h))`
    - "sandwich": `h += norm(mixer(norm(h))); h += norm(mlp(norm(h)))`
    - "parallel": `x = norm(h); h += mixer(x) + mlp(x)`

    NORMS has the roles of the norms' weights. Raises ContractError for any other placement.
    """

    mixer: str
    options: Mapping[str, Any]
    mlp: str = "swiglu"
    mlp_options: Mapping[str, Any] = field(default_factory=dict)
    norm: str = "pre"

    def __post_init__(self) -> None:
        if self.norm not in NORMS:
            raise ContractError(
                f"a block's norm is {self.norm!r}, expected one of {', '.join(NORMS)}",
                "A family with another topology gives its plan a decoder of its own.",
            )


@dataclass(frozen=True, slots=True)
class Plan:
    """The whole decoder: embedding, blocks, final norm and head.

    The embedding is multiplied by `embedding_scale`, and logits become `cap * tanh(logits / cap)`
    where there is a `logit_softcap`. `decoder` is the target, "module:Class", of a subclass of
    apr_core.plugin.Decoder, for families with a topology of their own.
    """

    blocks: tuple[Block, ...]
    norm_eps: float
    norm_offset: float  # 1.0 where the weight is stored zero-centred: y = x * (offset + w)
    embedding_scale: float = 1.0
    logit_softcap: float | None = None
    decoder: str = ""


@dataclass(frozen=True, slots=True)
class MixerExample:
    """A small case of a mixer or mlp for its kit: options, and weight shapes by role."""

    options: Mapping[str, Any]
    hidden_size: int
    shapes: Mapping[str, tuple[int, ...]]


class FamilyPlugin:
    """Base class of a family: a `Family` declaration's target, called without arguments.

    `contract`, `config` and `plan` are required.
    """

    def contract(self) -> Contract:
        """Return the family's contract, read from its package data."""
        raise NotImplementedError

    def config(
        self, hf: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read config.json (and generation_config.json). Raises ContractError."""
        raise NotImplementedError

    def checkpoint(self, config: ModelConfig, checkpoint: Checkpoint) -> Checkpoint:
        """Return a checkpoint whose tensors are those of the contract, where others exist.

        A family stacks, splits or renames tensors here. Raises ContractError naming what is wrong.
        """
        return checkpoint

    def plan(self, config: ModelConfig) -> Plan:
        """Return the layer plan of a model with this configuration."""
        raise NotImplementedError

    def metadata(self, config: ModelConfig) -> Mapping[str, Any]:
        """Return further metadata keys of a file, which other readers of the format look for."""
        return {}

    def tiny_config(self) -> dict[str, Any]:
        """Return the config.json of a model of a few layers and 64 to 256 features.

        Conformance kits make random weights for it.
        """
        raise NotImplementedError


FEEDBACK = 128  # columns that take over each other's errors


@dataclass(frozen=True, slots=True)
class Inputs:
    """What a matrix [R, C] is multiplied with: each column's mean square, float32 [C].

    `feedback`, float32 [ceil(C / 128), 128, 128]: after column j of a run of 128 was rounded, its
    value less what it became, times `feedback[run, j, k]`, is added to each later column k of the
    run (GPTQ, arXiv 2210.17323: the Cholesky factor of the inverse of X^T X, over its diagonal).
    """

    mean_square: NDArray[np.float32]
    feedback: NDArray[np.float32] | None = None


class QuantizerPlugin:
    """A number format's codec: base of what a `Quantizer` names, called without arguments.

    Rows are padded with zeros to a whole number of blocks: row bytes = ceil(C / block) * bytes.
    The format promises, and its conformance kit holds it to, a relative RMSE of at most `max_error`
    (for all values, or for each of apr_devkit.kits.quantizer.KINDS; None: what its bytes allow) and
    a mean size of values that is off by at most `gain_tolerance` (None: any).
    """

    max_error: float | Mapping[str, float] | None = None
    gain_tolerance: float | None = 0.01

    def encode(self, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Encode f32 [R, C] to u8 [R, row bytes]. Raises QuantizationError on NaN or Inf."""
        raise NotImplementedError

    def encode_for(self, rows: NDArray[np.float32], inputs: Inputs) -> NDArray[np.uint8]:
        """Encode as `encode`, so that products with such inputs are near; by default the same."""
        return self.encode(rows)

    def decode(self, raw: NDArray[np.uint8], cols: int) -> NDArray[np.float32]:
        """Decode u8 [R, row bytes] to f32 [R, cols]. Raises FormatError if they do not fit."""
        raise NotImplementedError


@dataclass(frozen=True, slots=True)
class TensorClass:
    """The tensor facts by which a recipe picks a format.

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
    """A choice of formats: a `Recipe` declaration's target, called without arguments."""

    def format_for(self, tensor: TensorClass) -> str | tuple[str, ...]:
        """Return a quantizer's name, `f32`, `f16`, `bf16`, or `source` for the stored precision.

        Of several the first is taken whose blocks divide the tensor's rows, else the last.
        Tensors of class `keep` are never asked about: they always keep their precision.
        """
