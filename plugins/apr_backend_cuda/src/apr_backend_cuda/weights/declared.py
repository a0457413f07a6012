"""Declared layouts in planes: the layouts of `apr_core.ops.layouts`, read on the device.

Scales are multiplied out in float32, one for each group; so are minima.
"""

from __future__ import annotations

from functools import partial, reduce

import torch

from apr_backend_cuda.weights.planes import SUPERBLOCK, Form, Tensors, Widths
from apr_core.plugin import BlockLayout, Layout, Numbers, layouts

DTYPES = {"f32": torch.float32, "f16": torch.float16, "u8": torch.uint8, "i8": torch.int8,
          "bf16": torch.bfloat16}  # fmt: skip


def declared_form(spec: BlockLayout, cols: int) -> Form:
    """Return the planes of rows whose blocks have a declared layout."""
    layout = spec.layout
    padded = -(-cols // SUPERBLOCK) * SUPERBLOCK
    groups = -(-padded // layout.group)
    widths: Widths = {
        "codes": (padded if layout.bits == 8 else padded // 2, torch.uint8),
        **({"upper": (padded // 8, torch.uint8)} if layout.high is not None else {}),
        **{name: (groups, torch.float32) for name, parts in _numbers_of(layout) if parts},
    }
    kind = "bytes" if layout.bits == 8 else "codebook" if layout.codebook else "nibbles"
    kind = kind if layout.high is None else "fives"
    zero = layout.zero + (128 if _signed(layout) else 0)
    codebook = tuple(layout.codebook or ())
    return Form(kind, cols, layout.group, widths, partial(_fill, spec), zero, codebook)


def _signed(layout: Layout) -> bool:
    """Return whether codes are int8; 4-bit codes never are."""
    return layout.signed and layout.bits == 8


def _numbers_of(layout: Layout) -> tuple[tuple[str, tuple[Numbers, ...]], ...]:
    return ("scales", layout.scale), ("minima", layout.minimum)


def _fill(spec: BlockLayout, raw: torch.Tensor, into: Tensors) -> None:
    """Fill planes from rows [R, row bytes]."""
    rows, layout = raw.shape[0], spec.layout
    count = raw.shape[1] // spec.nbytes
    blocks = raw[:, : count * spec.nbytes].view(rows, count, spec.nbytes)
    _fill_codes(layout, blocks[..., layout.codes :], spec.block, into["codes"])
    if layout.high is not None:
        _fill_fifth(blocks[..., layout.high : layout.high + spec.block // 8], into["upper"])
    for name, parts in _numbers_of(layout):
        if parts:
            _fill_columns(_products(parts, blocks, spec.block // layout.group), into[name])


def _fill_codes(layout: Layout, blocks: torch.Tensor, block: int, plane: torch.Tensor) -> None:
    """Write the codes of blocks [R, n, bytes] to a plane."""
    packed = blocks[..., : block * layout.bits // 8]
    if layout.bits == 8:
        codes = packed ^ 128 if _signed(layout) else packed
        _fill_columns(codes.reshape(len(codes), -1), plane)
        return
    codes = torch.empty((len(packed), 2 * plane.shape[1]), dtype=torch.uint8, device=plane.device)
    _fill_columns(_unpacked(layout, packed), codes)
    first, second = codes.view(len(codes), -1, 2, SUPERBLOCK // 2).unbind(2)
    plane.view(first.shape).copy_(first | second << 4)


def _fill_fifth(packed: torch.Tensor, plane: torch.Tensor) -> None:
    """Write 32 bits for each 32 values, of blocks [R, n, bytes], to a plane of bits."""
    words = torch.empty((len(packed), plane.shape[1]), dtype=torch.uint8, device=plane.device)
    _fill_columns(packed.reshape(len(packed), -1), words)
    count = torch.arange(8, dtype=torch.uint8, device=plane.device)
    bits = words.view(len(words), -1, 8, 4, 1) >> count & 1  # [R, superblocks, 8 runs, 4 bytes, 8]
    ones = (bits.flatten(3) << count[:, None]).sum(2, dtype=torch.uint8)
    plane.view(ones.shape).copy_(ones)


def _unpacked(layout: Layout, packed: torch.Tensor) -> torch.Tensor:
    """Unpack 4-bit codes of bytes [R, n, bytes], in order: u8 [R, 2 n bytes]."""
    run = 1 if layout.order == "pairs" else layouts.RUN // 2
    low, high = (half.reshape(len(packed), -1, run) for half in (packed & 15, packed >> 4))
    return torch.stack([low, high], dim=2).view(len(packed), -1)


def _products(parts: tuple[Numbers, ...], blocks: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the product of some numbers of blocks [R, n, bytes]: f32 [R, n groups]."""
    shape = (*blocks.shape[:2], groups)
    factors = [_numbers(each, blocks, 1 if each.per_block else groups) for each in parts]
    return reduce(torch.mul, [f.expand(shape) for f in factors]).reshape(len(blocks), -1)


def _numbers(part: Numbers, blocks: torch.Tensor, count: int) -> torch.Tensor:
    stored = blocks[..., part.offset : part.offset + count * layouts.WIDTH[part.dtype]]
    return stored.contiguous().view(DTYPES[part.dtype]).to(torch.float32)


def _fill_columns(columns: torch.Tensor, plane: torch.Tensor) -> None:
    """Write columns [R, n] to a plane of another width, padding with zeros."""
    width = min(columns.shape[1], plane.shape[1])
    plane[:, :width] = columns[:, :width]
    plane[:, width:] = 0
