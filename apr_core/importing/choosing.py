"""Which number format each tensor gets: the recipe asked, the answers looked up and checked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from apr_core.errors import PluginBroken
from apr_core.family.contract import Resolution, TensorRule
from apr_core.family.modelspec import QuantizerPlugin, RecipePlugin, TensorClass
from apr_core.format import NATIVE, FormatSpec
from apr_core.importing.checkpoint import Checkpoint, SourceTensor, float_format
from apr_core.registry import Registry

SOURCE = "source"  # the stored precision, bit for bit
KEEP = "keep"  # the class of tensors that no recipe is asked about


class KeepPrecision:
    """The recipe that is used when none is named: every tensor as the checkpoint has it."""

    def format_for(self, tensor: TensorClass) -> str:
        """Always `source`."""
        return SOURCE


@dataclass(frozen=True, slots=True)
class Assignment:
    """A tensor, where it comes from, what it becomes. `encoder` is None for native formats."""

    rule: TensorRule
    source: SourceTensor
    spec: FormatSpec
    encoder: QuantizerPlugin | None

    @property
    def is_exact(self) -> bool:
        """Whether the bytes are copied as they are."""
        return self.encoder is None and self.spec.name == float_format(self.source)


def load_recipe(name: str, registry: Registry) -> RecipePlugin:
    """The named recipe; `source` is core's own. Raises PluginError."""
    if name == SOURCE:
        return KeepPrecision()
    recipe: RecipePlugin = registry.make("recipe", name)
    return recipe


class FormatChooser:
    """Asks a recipe about every tensor and finds the quantizers it names."""

    def __init__(self, recipe_name: str, num_layers: int, registry: Registry) -> None:
        self.recipe_name, self.num_layers = recipe_name, num_layers
        self.recipe = load_recipe(recipe_name, registry)
        self.registry = registry
        self._known: dict[str, tuple[FormatSpec, QuantizerPlugin | None]] = {
            name: (NATIVE[name], None) for name in ("f32", "f16", "bf16", "f64")
        }

    def choose(self, resolution: Resolution, checkpoint: Checkpoint) -> list[Assignment]:
        """An assignment a tensor. Raises PluginError, or FormatError for a dtype of no floats."""
        return [self._assign(r, checkpoint.tensors[r.name]) for r in resolution.rules.values()]

    def _assign(self, rule: TensorRule, source: SourceTensor) -> Assignment:
        precision = float_format(source)
        name = SOURCE
        if rule.quant_class != KEEP:
            asked = TensorClass(
                rule.name, rule.role, rule.quant_class, rule.shape, rule.layer, self.num_layers
            )
            name = self.recipe.format_for(asked)
        spec, encoder = self._format(precision if name == SOURCE else name, rule)
        return Assignment(rule, source, spec, encoder)

    def _format(self, name: Any, rule: TensorRule) -> tuple[FormatSpec, QuantizerPlugin | None]:
        if not isinstance(name, str):
            raise PluginBroken(
                f"recipe {self.recipe_name!r} answered {name!r} for {rule.name}, expected the "
                "name of a format"
            )
        if name not in self._known:
            owned = self.registry.get("quantizer", name)
            d = owned.declaration
            spec = FormatSpec(
                d.name, d.dtype_id, d.block, d.bytes_per_block, owned.distribution
            )  # fmt: skip
            self._known[name] = spec, self.registry.make("quantizer", name)
        return self._known[name]


def main_format(assignments: Iterable[Assignment]) -> FormatSpec | None:
    """The block format that most bytes of the source get, if any tensor has one."""
    totals: Counter[FormatSpec] = Counter()
    for a in assignments:
        if a.encoder is not None:
            totals[a.spec] += a.source.nbytes
    return max(totals, key=lambda spec: (totals[spec], spec.name), default=None)
