"""Chooses each tensor's number format: asks the recipe, looks up and checks its answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from apr_core.errors import PluginBroken
from apr_core.family.contract import Resolution, TensorRule
from apr_core.family.modelspec import QuantizerPlugin, RecipePlugin, TensorClass
from apr_core.format import NATIVE, FormatSpec, check_stack
from apr_core.importing.checkpoint import Checkpoint, SourceTensor
from apr_core.registry import Registry

SOURCE = "source"  # the stored precision, bit for bit
KEEP = "keep"  # the class of tensors that no recipe is asked about


class KeepPrecision:
    """The default recipe: every tensor keeps the checkpoint's precision."""

    def format_for(self, tensor: TensorClass) -> str:
        """Return `source`, whatever the tensor."""
        return SOURCE


@dataclass(frozen=True, slots=True)
class Assignment:
    """A tensor, its source and its new format. `encoder` is None for native formats.

    `wanted` is the recipe's first choice; `is_exact`: the bytes are copied unchanged.
    """

    rule: TensorRule
    source: SourceTensor
    spec: FormatSpec
    encoder: QuantizerPlugin | None
    wanted: str
    is_exact: bool


def load_recipe(name: str, registry: Registry) -> RecipePlugin:
    """Return the named recipe; `source` is the core's own. Raises PluginError."""
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
        """Return one assignment per tensor. Raises PluginError, or FormatError if not floats."""
        return [self._assign(rule, checkpoint) for rule in resolution.rules.values()]

    def _assign(self, rule: TensorRule, checkpoint: Checkpoint) -> Assignment:
        precision = checkpoint.format_of(rule.name)
        answer: str | tuple[str, ...] = SOURCE
        if rule.quant_class != KEEP:
            asked = TensorClass(
                rule.name, rule.role, rule.quant_class, rule.shape, rule.layer, self.num_layers
            )
            answer = self.recipe.format_for(asked)
        names = answer if isinstance(answer, tuple) else (answer,)
        wanted, *others = [precision if n == SOURCE else n for n in names] or [""]
        spec, encoder = self._format(wanted, rule)
        while others and rule.shape[-1] % spec.block:
            spec, encoder = self._format(others.pop(0), rule)
        check_stack(rule.name, rule.shape, spec.name, spec.block)
        source = checkpoint.tensors[rule.name]
        return Assignment(rule, source, spec, encoder, wanted, spec.name == precision)

    def _format(self, name: Any, rule: TensorRule) -> tuple[FormatSpec, QuantizerPlugin | None]:
        if not isinstance(name, str):
            raise PluginBroken(
                f"recipe {self.recipe_name!r} answered {name!r} for {rule.name}, expected the "
                "name of a format"
            )
        if name not in self._known:
            owned = self.registry.get("quantizer", name)
            d = owned.declaration
            spec = FormatSpec(d.name, d.dtype_id, d.block, d.bytes_per_block, owned.distribution)
            self._known[name] = spec, self.registry.make("quantizer", name)
        return self._known[name]


def fallback_rows(assignments: Iterable[Assignment]) -> dict[str, int]:
    """Return {reason: tensors} of those that did not get the recipe's first choice."""
    reason = "{} instead of {}, whose blocks do not divide rows of {} values"
    others = (a for a in assignments if a.spec.name != a.wanted)
    return Counter(reason.format(a.spec.name, a.wanted, a.rule.shape[-1]) for a in others)


def main_format(assignments: Iterable[Assignment]) -> FormatSpec | None:
    """Return the block format that most source bytes get, or None if no tensor has one."""
    totals: Counter[FormatSpec] = Counter()
    for a in assignments:
        if a.encoder is not None:
            totals[a.spec] += a.source.nbytes
    return max(totals, key=lambda spec: (totals[spec], spec.name), default=None)
