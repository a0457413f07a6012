"""Recipes: a format for each class of tensor.

Measurements behind them (docs/explanation/quantization.md): `out_proj` of linear attention and the
head suffer most from few bits; the small tensors that make decays are never quantized.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from apr_core.plugin import TensorClass

Formats = tuple[tuple[str, str], ...]  # (class of tensors, format)


def gets_more_bits(layer: int, layers: int) -> bool:
    """Return llama.cpp's `use_more_bits`: first and last eighth, every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


@dataclass(frozen=True, slots=True)
class ByClass:
    """The format of each class; `default` for classes not named.

    `on_some_layers` applies to the layers that `gets_more_bits` picks.
    """

    default: str
    by_class: Formats = ()
    on_some_layers: Formats = ()

    def format_for(self, tensor: TensorClass) -> str:
        """Return a format's name."""
        special = dict(self.on_some_layers).get(tensor.quant_class)
        if special and tensor.layer is not None and gets_more_bits(tensor.layer, tensor.num_layers):
            return special
        return dict(self.by_class).get(tensor.quant_class, self.default)


def _recipe(
    default: str, by_class: Formats = (), on_some_layers: Formats = ()
) -> Callable[[], ByClass]:
    return lambda: ByClass(default, by_class, on_some_layers)


q4k = _recipe("q4_k", (("sensitive", "q6_k"), ("head", "q6_k")))
q4_k_m = _recipe(
    "q4_k",
    (("sensitive", "q5_k"), ("fused_input", "q5_k"), ("head", "q6_k")),
    (("value", "q6_k"), ("down", "q6_k")),
)
q6k = _recipe("q6_k", (("sensitive", "q8_0"),))
q8_0 = _recipe("q8_0")
f16 = _recipe("f16")
bf16 = _recipe("bf16")
f32 = _recipe("f32")
