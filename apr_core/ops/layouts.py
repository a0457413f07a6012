"""Blocks of numbers times levels, which a quantizer may declare instead of bringing kernels.

    value = scale * level(code) + minimum

A Layout says what these are. A backend's generic kernel reads such blocks in place; `decode` is
what it has to agree with, and may serve a quantizer as its own.
"""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from apr_core.declarations import RUN as RUN
from apr_core.declarations import WIDTH as WIDTH
from apr_core.declarations import Layout, Numbers


def levels(layout: Layout) -> NDArray[np.float32]:
    """Return the level of each code, before scaling: float32 [16], [32] or [256]."""
    if layout.codebook:
        return np.array(layout.codebook, np.float32)
    codes = np.arange(1 << layout.bits + (layout.high is not None))
    if layout.signed:
        codes = codes.astype(np.uint8).view(np.int8).astype(int)
    return (codes - layout.zero).astype(np.float32)


def codes(layout: Layout, raw: NDArray[np.uint8], block: int) -> NDArray[np.uint8]:
    """Return the codes of raw u8 [R, blocks, bytes], in order: u8 [R, blocks * block]."""
    packed = raw[:, :, layout.codes : layout.codes + block * layout.bits // 8]
    if layout.bits == 8:
        return np.ascontiguousarray(packed).reshape(raw.shape[0], -1)
    low, high = packed & 15, packed >> 4
    if layout.order == "pairs":
        both = np.stack([low, high], axis=-1)  # [R, blocks, bytes, 2]
    else:
        halves = (*packed.shape[:2], -1, 1, RUN // 2)
        both = np.concatenate([low.reshape(halves), high.reshape(halves)], axis=-2)
    whole = np.ascontiguousarray(both).reshape(raw.shape[0], -1)
    if layout.high is not None:
        fifth = raw[:, :, layout.high : layout.high + block // 8].reshape(raw.shape[0], -1)
        whole |= np.unpackbits(fifth, axis=1, bitorder="little") << 4
    return whole


def products(
    parts: tuple[Numbers, ...], layout: Layout, raw: NDArray[np.uint8], block: int
) -> NDArray[np.float32]:
    """Return the product of numbers of raw u8 [R, blocks, bytes], a group: f32 [R, groups]."""
    groups = block // layout.group
    factors = [_numbers(n, raw, 1 if n.per_block else groups) for n in parts]
    shape = (*raw.shape[:2], groups)
    return prod(np.broadcast_to(f, shape) for f in factors).reshape(raw.shape[0], -1)  # type: ignore


def _numbers(n: Numbers, raw: NDArray[np.uint8], count: int) -> NDArray[np.float32]:
    part = np.ascontiguousarray(raw[:, :, n.offset : n.offset + count * WIDTH[n.dtype]])
    if n.dtype == "bf16":
        wide = part.view("<u2").astype(np.uint32) << 16
        return wide.view(np.float32)
    kinds = {"f32": "<f4", "f16": "<f2", "u8": "u1", "i8": "i1"}
    return part.view(kinds[n.dtype]).astype(np.float32)


def decode(
    layout: Layout, block: int, nbytes: int, raw: NDArray[np.uint8], cols: int
) -> NDArray[np.float32]:
    """Decode u8 [R, row bytes] to f32 [R, cols]: the meaning of a layout."""
    blocks = raw.reshape(raw.shape[0], -1, nbytes)
    values = levels(layout)[codes(layout, blocks, block)]
    scale = np.repeat(products(layout.scale, layout, blocks, block), layout.group, axis=1)
    values = values * scale
    if layout.minimum:
        low = products(layout.minimum, layout, blocks, block)
        values = values + np.repeat(low, layout.group, axis=1)
    return np.ascontiguousarray(values[:, :cols], np.float32)
