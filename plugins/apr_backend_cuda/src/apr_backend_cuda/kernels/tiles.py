"""Tiles of weights in registers, decoded from planes (`planes.py`), and products with them.

A tile is half a superblock of some rows: [rows, 128]. The value of a code:

    q4_k, q5_k         d * scale[g] * code - dmin * min[g]   u8 scales and minima, f16 d and dmin
    q6_k               d * scale[g] * (code - 32)            i8 scales, f16 d
    nibbles, fives, bytes
                       scale[g] * (code - zero) + min[g]     f32 scales and minima
    codebook           scale[g] * level[code] + min[g]
    f32, f16, bf16     the value itself
"""

from __future__ import annotations

import triton
import triton.language as tl

from apr_backend_cuda.probe import interpreted

HALF = tl.constexpr(128)
# three products of bf16 parts have nearly float32's precision, at the matrix units' speed
NEARLY_F32 = tl.constexpr("ieee" if interpreted() else "bf16x3")
SHRINK = tl.constexpr(16.0)  # divisor of inputs multiplied in f16: allows inputs of up to a million
LARGEST = tl.constexpr(65504.0)  # in f16


@triton.jit
def product(w, x, acc, KIND: tl.constexpr):
    """Return acc + w x in f32; `unshrunk` undoes the scaling of inputs.

    Codes and weights of f16 are multiplied by inputs in f16, eight times as precise as bf16 and as
    fast. bf16 needs its range: such weights are exact in tf32. float32 stays nearly exact.
    """
    if KIND == "f32":
        total = tl.dot(w, x, acc, input_precision=NEARLY_F32)
    elif KIND == "bf16":
        total = tl.dot(w, x, acc, input_precision="tf32")
    else:
        total = tl.dot(w.to(tl.float16), shrunk(x), acc)
    return total


@triton.jit
def shrunk(x):
    """Return f32 as f16, scaled down; larger values are clipped to f16's largest."""
    small = x * (1.0 / SHRINK)
    small = tl.where(tl.abs(small) > LARGEST, tl.where(small > 0, LARGEST, -LARGEST), small)
    return small.to(tl.float16)


@triton.jit
def unshrunk(acc, KIND: tl.constexpr):
    """Undo the scaling of a sum of products with shrunk inputs."""
    if KIND == "f32" or KIND == "bf16":
        total = acc
    else:
        total = acc * SHRINK
    return total


@triton.jit
def codes_of(codes, rows, inside, stride, block, half: tl.constexpr, KIND: tl.constexpr):
    """Load codes of half a superblock without their upper bits: i32 [rows, 128]."""
    k = tl.arange(0, HALF)
    if KIND == "bytes":
        at = codes + rows[:, None] * stride + block * 256 + half * HALF + k[None, :]
        return tl.load(at, mask=inside[:, None], other=0).to(tl.int32)
    at = codes + rows[:, None] * stride + block * HALF + k[None, :]
    return (tl.load(at, mask=inside[:, None], other=0).to(tl.int32) >> 4 * half) & 15


@triton.jit
def upper_of(
    upper, rows, inside, stride, block, half: tl.constexpr, KIND: tl.constexpr, ROWS: tl.constexpr
):
    """Load the bits above the lower four, shifted into place: i32 [rows, 128]."""
    WIDTH: tl.constexpr = 2 if KIND == "q6_k" else 1
    BYTES: tl.constexpr = 32 * WIDTH
    j, part = tl.arange(0, BYTES), tl.arange(0, 4 // WIDTH)
    at = upper + rows[:, None] * stride + block * BYTES + j[None, :]
    packed = tl.load(at, mask=inside[:, None], other=0).to(tl.int32)
    shift = 4 * half + part * WIDTH
    bits = (packed[:, None, :] >> shift[None, :, None]) & ((1 << WIDTH) - 1)
    return tl.reshape(bits, (ROWS, HALF)) << 4


@triton.jit
def numbers_of(
    numbers, rows, inside, stride, block, half: tl.constexpr, GROUP: tl.constexpr, RUN: tl.constexpr
):
    """Load a number for each run of values of half a superblock: [rows, 128 / RUN]."""
    run = block * (256 // RUN) + half * (HALF // RUN) + tl.arange(0, HALF // RUN)
    at = numbers + rows[:, None] * stride + (run * RUN // GROUP)[None, :]
    return tl.load(at, mask=inside[:, None], other=0)


@triton.jit
def tile(
    codes,
    upper,
    scales,
    minima,
    supers,
    codebook,
    rows,
    inside,
    blocks,
    cols,
    groups,
    block,
    half: tl.constexpr,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    MINIMA: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Decode weights of half a superblock: f32 [rows, 128]; zeros outside the matrix."""
    if KIND == "f32" or KIND == "f16" or KIND == "bf16":
        k = block * 256 + half * HALF + tl.arange(0, HALF)
        at = codes + rows[:, None] * cols + k[None, :]
        mask = inside[:, None] & (k < cols)[None, :]
        return tl.load(at, mask=mask, other=0.0).to(tl.float32)
    RUN: tl.constexpr = 16 if GROUP == 16 else 32
    width: tl.constexpr = 256 if KIND == "bytes" else 128
    code = codes_of(codes, rows, inside, blocks * width, block, half, KIND)
    if KIND == "q5_k" or KIND == "fives":
        code += upper_of(upper, rows, inside, blocks * 32, block, half, KIND, ROWS)
    if KIND == "q6_k":
        code += upper_of(upper, rows, inside, blocks * 64, block, half, KIND, ROWS)
    scale = numbers_of(scales, rows, inside, groups, block, half, GROUP, RUN).to(tl.float32)
    if KIND == "q4_k" or KIND == "q5_k":
        d = tl.load(supers + rows * (2 * blocks) + 2 * block, mask=inside, other=0.0)
        scale *= d.to(tl.float32)[:, None]
    if KIND == "q6_k":
        d = tl.load(supers + rows * blocks + block, mask=inside, other=0.0)
        scale *= d.to(tl.float32)[:, None]
    if KIND == "codebook":
        level = tl.load(codebook + code)
    else:
        level = (code - ZERO).to(tl.float32)
    value = tl.reshape(level, (ROWS, HALF // RUN, RUN)) * scale[:, :, None]
    if MINIMA:
        low = numbers_of(minima, rows, inside, groups, block, half, GROUP, RUN).to(tl.float32)
        if KIND == "q4_k" or KIND == "q5_k":
            m = tl.load(supers + rows * (2 * blocks) + 2 * block + 1, mask=inside, other=0.0)
            low *= -m.to(tl.float32)[:, None]
        value += low[:, :, None]
    return tl.reshape(value, (ROWS, HALF))


@triton.jit
def products(
    x,
    x_stride,
    token,
    tokens,
    start,
    stop,
    codes,
    upper,
    scales,
    minima,
    supers,
    codebook,
    rows,
    inside,
    blocks,
    cols,
    groups,
    KIND: tl.constexpr,
    GROUP: tl.constexpr,
    ZERO: tl.constexpr,
    MINIMA: tl.constexpr,
    ROWS: tl.constexpr,
    TOKENS: tl.constexpr,
):
    """Multiply weights by tokens of x over superblocks [start, stop): f32 [ROWS, TOKENS]."""
    acc = tl.zeros((ROWS, TOKENS), tl.float32)
    for block in range(start, stop):
        for half in tl.static_range(2):
            k = block * 256 + half * HALF + tl.arange(0, HALF)
            mask = (k < cols)[:, None] & (token < tokens)[None, :]
            inputs = tl.load(x + token[None, :] * x_stride + k[:, None], mask=mask, other=0.0)
            w = tile(
                codes,
                upper,
                scales,
                minima,
                supers,
                codebook,
                rows,
                inside,
                blocks,
                cols,
                groups,
                block,
                half,
                KIND,
                GROUP,
                ZERO,
                MINIMA,
                ROWS,
            )
            acc = product(w, inputs, acc, KIND)
    return unshrunk(acc, KIND)


@triton.jit
def pointer(address, TYPE: tl.constexpr):
    """Convert an address from a table to a pointer aligned to 16 bytes."""
    return tl.multiple_of(address.to(tl.pointer_type(TYPE)), 16)
