"""Declarations of this distribution. Imports nothing but apr_core's declarations."""

from __future__ import annotations

from apr_core.plugin import Layout, Numbers, Quantizer, Recipe, hookimpl

# Quantiles of a normal distribution, with an exact zero: QLoRA, appendix E.
LEVELS = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
BLOCK, GROUP, NBYTES = 256, 64, 134
LAYOUT = Layout(
    group=GROUP,
    scale=(Numbers(0, "i8"), Numbers(4, "bf16", per_block=True)),  # 4 signed bytes, 1 bfloat16
    codes=6,  # 128 bytes
    bits=4,
    codebook=LEVELS,
)


@hookimpl
def apr_quantizers() -> list[Quantizer]:
    """Declare nf4. Its layout is all that backends need to run it at speed."""
    return [
        Quantizer(
            "nf4", "apr_quant_nf4.codec:NF4", summary="4.2 bits: levels of a bell curve",
            block=BLOCK, bytes_per_block=NBYTES, layout=LAYOUT,
        )
    ]  # fmt: skip


@hookimpl
def apr_recipes() -> list[Recipe]:
    """Declare a recipe of one format for all matrices."""
    target, summary = "apr_quant_nf4.codec:EveryMatrix", "nf4 for all matrices"
    return [Recipe("nf4", target, summary=summary, formats=("nf4",))]
