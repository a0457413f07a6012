"""Recipes: a format for each class of tensor.

Measurements behind them (docs/explanation/quantization.md): `out_proj` of linear attention and the
head suffer most from few bits; the small tensors that make decays are never quantized. Rows that
blocks of 256 do not divide get blocks of 32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from apr_core.plugin import TensorClass

Choice = tuple[str, ...]  # formats: the first whose blocks divide the rows
Formats = tuple[tuple[str, Choice], ...]  # (class of tensors, its choice)
Q4, Q5, Q6 = ("q4_k", "q5_0"), ("q5_k", "q5_1"), ("q6_k", "q8_0")
HEAD = ("q6_k", "q5_0")  # with q8_0 a head would be a third of a small model


def gets_more_bits(layer: int, layers: int) -> bool:
    """Return llama.cpp's `use_more_bits`: first and last eighth, every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


@dataclass(frozen=True, slots=True)
class ByClass:
    """The format of each class; `default` for classes not named.

    `on_some_layers` applies to the layers that `gets_more_bits` picks.
    """

    default: Choice
    by_class: Formats = ()
    on_some_layers: Formats = ()

    def format_for(self, tensor: TensorClass) -> Choice:
        """Return names of formats, the preferred one first."""
        special = dict(self.on_some_layers).get(tensor.quant_class)
        if special and tensor.layer is not None and gets_more_bits(tensor.layer, tensor.num_layers):
            return special
        return dict(self.by_class).get(tensor.quant_class, self.default)


def _recipe(
    default: Choice, by_class: Formats = (), on_some_layers: Formats = ()
) -> Callable[[], ByClass]:
    return lambda: ByClass(default, by_class, on_some_layers)


q4k = _recipe(Q4, (("sensitive", Q6), ("head", HEAD)))
q4_k_m = _recipe(
    Q4, (("sensitive", Q5), ("fused_input", Q5), ("head", HEAD)), (("value", Q6), ("down", Q6))
)
q6k = _recipe(Q6, (("sensitive", ("q8_0",)),))
q8_0 = _recipe(("q8_0",))
f16 = _recipe(("f16",))
bf16 = _recipe(("bf16",))
f32 = _recipe(("f32",))
