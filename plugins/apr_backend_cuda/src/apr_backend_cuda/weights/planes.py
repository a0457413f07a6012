"""Packed weights laid out for kernels: codes apart from scales, each in its own plane.

Blocks of a file interleave codes and scales, so that neighbouring threads read far apart. A plane
has one kind of number, row after row. Nothing is rounded: bits move, and a few small integers are
widened to bytes. 256 values are a superblock; its half h has values 128 h to 128 h + 127:

    nibbles  u8 [rows, K/2]   byte j of a superblock: value j low, value 128 + j high
    bytes    u8 [rows, K]     codes of 8 bits, in order; signed ones less 128
    bits     u8 [rows, K/8]   bit b of byte j: the fifth bit of value 32 b + j
    pairs    u8 [rows, K/4]   bits 2 b and 2 b + 1 of byte j: the upper bits of value 64 b + j

The bytes of a file are repacked on the device where they are used, some rows at a time, into
existing planes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch

SUPERBLOCK = 256
ALIGNMENT = 512  # of torch's allocator: it allocates multiples of this
Tensors = Mapping[str, torch.Tensor]
Widths = Mapping[str, tuple[int, torch.dtype]]
Fill = Callable[[torch.Tensor, Tensors], None]  # (some rows' bytes [R, row bytes], their planes)


@dataclass(frozen=True, slots=True)
class Form:
    """How rows of `cols` values lie in planes. `kind` names the arithmetic, see `tiles.py`.

    `group` values share a scale. `zero` is subtracted from codes; `codebook` has their levels.
    `widths` says for each plane how many numbers a row has in it, and of which type.
    """

    kind: str
    cols: int
    group: int
    widths: Widths
    fill: Fill
    zero: int = 0
    codebook: tuple[float, ...] = ()

    def empty(self, rows: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Return uninitialized planes for `rows` rows."""
        return {
            name: torch.empty((rows, width), dtype=dtype, device=device)
            for name, (width, dtype) in self.widths.items()
        }

    def nbytes(self, rows: int) -> int:
        """Return the bytes that `rows` rows take on a device."""
        sizes = [rows * width * dtype.itemsize for width, dtype in self.widths.values()]
        return sum(map(allocated, [*sizes, 4 * len(self.codebook)]))


def allocated(nbytes: int) -> int:
    """Return the bytes torch allocates for an array of `nbytes`."""
    return -(-nbytes // ALIGNMENT) * ALIGNMENT


def packed_form(format: str, cols: int) -> Form:
    """Return the planes of rows in one of `FORMATS`."""
    known = FORMATS[format]
    count = -(-cols // SUPERBLOCK)
    widths = {name: (count * width, dtype) for name, (width, dtype) in known.widths.items()}
    fill = partial(_fill_blocks, known, count)
    return Form(known.kind, cols, known.group, widths, fill, known.zero)


def float_form(format: str, cols: int) -> Form:
    """Return the form of rows of floats unchanged from the file, in the one plane `codes`."""
    return Form(format, cols, 32, {"codes": (cols, FLOATS[format])}, _fill_floats)


def _fill_floats(raw: torch.Tensor, into: Tensors) -> None:
    into["codes"].view(torch.uint8).copy_(raw)


@dataclass(frozen=True, slots=True)
class Known:
    """A format whose blocks are read here: `block` values in `nbytes` bytes.

    `widths` are those of a superblock; `fill` takes blocks [R, superblocks, blocks in each, bytes].
    """

    kind: str
    block: int
    nbytes: int
    group: int
    widths: Widths
    fill: Fill
    zero: int = 0


def _fill_blocks(known: Known, count: int, raw: torch.Tensor, into: Tensors) -> None:
    """Fill planes from rows [R, row bytes], padding the last superblock with zeros."""
    each = SUPERBLOCK // known.block
    missing = count * each * known.nbytes - raw.shape[1]
    padded = torch.nn.functional.pad(raw, (0, missing)) if missing else raw
    known.fill(padded.view(raw.shape[0], count, each, known.nbytes), into)


def fill_nibbles(packed: torch.Tensor, size: int, plane: torch.Tensor) -> None:
    """Write bytes [R, n, 128] of n superblocks to a plane of nibbles.

    Each `size` bytes hold 2 `size` values, the low nibbles first. A chunk of `size` bytes and that
    of the same place in the other half are combined in 2 `size` bytes.
    """
    rows, count = packed.shape[:2]
    first, second = packed.reshape(rows, count, 2, -1, size).unbind(2)  # [R, n, chunks / 2, size]
    to = plane.view(rows, count, -1, 2, size)
    to[..., 0, :] = first & 15 | second << 4
    to[..., 1, :] = first >> 4 | second & 240


def _fill_bytes(packed: torch.Tensor, plane: torch.Tensor) -> None:
    """Write bytes [R, n, m] to a plane of n m bytes per row, of any type."""
    plane.view(torch.uint8).view(packed.shape).copy_(packed)


def _fill_k_scales(packed: torch.Tensor, into: Tensors) -> None:
    """Unpack 12 bytes of six-bit numbers [R, n, 12]: eight scales and eight minima."""
    a, b, c = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales, minima = (into[name].view(*packed.shape[:2], 8) for name in ("scales", "minima"))
    scales[..., :4], scales[..., 4:] = a & 63, c & 15 | a >> 6 << 4
    minima[..., :4], minima[..., 4:] = b & 63, c >> 4 | b >> 6 << 4


def _fill_q4_k(blocks: torch.Tensor, into: Tensors) -> None:
    block = blocks[:, :, 0]  # [R, n, 144]
    _fill_bytes(block[..., 0:4], into["super"])  # d and dmin, alternating
    _fill_k_scales(block[..., 4:16], into)
    fill_nibbles(block[..., 16:144], 32, into["codes"])


def _fill_q5_k(blocks: torch.Tensor, into: Tensors) -> None:
    block = blocks[:, :, 0]  # [R, n, 176]
    _fill_bytes(block[..., 0:4], into["super"])
    _fill_k_scales(block[..., 4:16], into)
    _fill_bytes(block[..., 16:48], into["upper"])  # same layout in the file and the plane
    fill_nibbles(block[..., 48:176], 32, into["codes"])


def _fill_q6_k(blocks: torch.Tensor, into: Tensors) -> None:
    block = blocks[:, :, 0]  # [R, n, 210]
    fill_nibbles(block[..., 0:128], 64, into["codes"])
    _fill_pairs(block[..., 128:192], into["upper"])
    _fill_bytes(block[..., 192:208], into["scales"])
    _fill_bytes(block[..., 208:210], into["super"])


def _fill_pairs(packed: torch.Tensor, plane: torch.Tensor) -> None:
    """Write bit pairs of bytes [R, n, 64] to a plane of pairs.

    In each half of 32 bytes, pair b of byte j belongs to the half's value 32 b + j. A plane's byte
    has the pairs of every 64th value: every other pair of a byte of each half.
    """
    first, second = packed[..., :32], packed[..., 32:]
    to = plane.view(*packed.shape[:2], 2, 32)
    for odd in range(2):
        a, b = first >> 2 * odd, second >> 2 * odd
        to[..., odd, :] = a & 3 | a >> 2 & 12 | (b & 3) << 4 | b << 2 & 192


def _fill_q8_0(blocks: torch.Tensor, into: Tensors) -> None:
    rows = blocks.shape[0]
    codes = into["codes"].view(rows, *blocks.shape[1:3], 32)
    codes.copy_(blocks[..., 2:34] ^ 128)
    halves = blocks[..., 0:2].contiguous().view(torch.float16)
    into["scales"].copy_(halves.view(rows, -1))


U8, I8, F16, F32 = torch.uint8, torch.int8, torch.float16, torch.float32
FLOATS = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
_K_SCALES: dict[str, tuple[int, torch.dtype]] = {
    "scales": (8, U8),
    "minima": (8, U8),
    "super": (2, F16),
}
FORMATS = {
    "q4_k": Known("q4_k", 256, 144, 32, {"codes": (128, U8)} | _K_SCALES, _fill_q4_k),
    "q5_k": Known(
        "q5_k", 256, 176, 32, {"codes": (128, U8), "upper": (32, U8)} | _K_SCALES, _fill_q5_k
    ),
    "q6_k": Known(
        "q6_k", 256, 210, 16,
        {"codes": (128, U8), "upper": (64, U8), "scales": (16, I8), "super": (1, F16)},
        _fill_q6_k, zero=32,
    ),
    "q8_0": Known("bytes", 32, 34, 32, {"codes": (256, U8), "scales": (8, F32)}, _fill_q8_0, 128),
}  # fmt: skip
