"""Whether the tensors outside the mixers fit together, whatever their contract says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NoReturn

from apr_core.errors import ContractError
from apr_core.family.contract import Resolution
from apr_core.family.modelspec import ModelConfig

Shape = tuple[int, ...]
HINT = "The shape_template of the family's contract, or the options of its plan, are wrong."


@dataclass(frozen=True, slots=True)
class Tensors:
    """The tensors of a file by role: names and shapes."""

    resolution: Resolution
    shapes: Mapping[str, Shape]

    def name(self, role: str, layer: int | None = None) -> str:
        """The tensor's name. Raises ContractError if the contract has none."""
        return self.resolution.name_of(role, layer)

    def shape(self, role: str, layer: int | None = None) -> Shape:
        """The tensor's shape."""
        return self.shapes[self.name(role, layer)]

    def expect(self, expected: Shape, role: str, layer: int | None = None) -> None:
        """Raise ContractError unless the tensor has that shape."""
        if tuple(self.shape(role, layer)) != expected:
            refuse(self.name(role, layer), self.shape(role, layer), list(expected))


def refuse(name: str, found: Shape, expected: object, why: str = "") -> NoReturn:
    """Raise the error for a tensor that does not fit what is around it."""
    raise ContractError(
        f"{name} has shape {list(found)}, expected {expected}{why and f': {why}'}", HINT
    )


def check_outside(tensors: Tensors, config: ModelConfig, norms: Iterable[str]) -> None:
    """Raise ContractError unless embedding, head, norms and feed-forwards fit together.

    `norms` are the roles of a layer's norms.
    """
    hidden, norms = config.hidden_size, tuple(norms)
    for role in ("embedding",) if config.tied_embeddings else ("embedding", "lm_head"):
        tensors.expect((config.vocab_size, hidden), role)
    tensors.expect((hidden,), "final_norm")
    for layer in range(config.num_layers):
        for role in norms:
            tensors.expect((hidden,), role, layer)
        gate = tensors.shape("gate_proj", layer)
        inner = gate[0] if gate[1:] == (hidden,) else config.intermediate_size
        for role in ("gate_proj", "up_proj"):
            tensors.expect((inner, hidden), role, layer)
        tensors.expect((hidden, inner), "down_proj", layer)
