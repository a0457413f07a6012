"""The kernel of small batches against `matvec`, row by row and bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import SCALES_AT, call, quantized, random_bytes, weight

from apr_backend_cpu.constants import ARRANGE, ONE, ROW_ROOM, SUPERBLOCK
from apr_backend_cpu.kernels.linear.formats import FORMATS
from apr_backend_cpu.ops.formats import SUPERBLOCK_BYTES, methods
from apr_backend_cpu.ops.linear import group
from apr_backend_cpu.run.program import instructions

ROWS = 16


def together(name, w, x):
    """[T, 16] of one product, and a row of 16 after the last that must stay as it is."""
    out = np.full((len(x) + 1, ROWS), 7, np.float32)
    matrix = group((weight(name, ROWS, x.shape[1], w),))
    with instructions(x, out, matrix) as p:
        matrix.add(p, x, out)
    return out


def one_by_one(name, w, x):
    """The same, row by row, by the kernel for one row."""
    out, n = np.full((len(x) + 1, ROWS), 7, np.float32), x.shape[1] // SUPERBLOCK
    room = np.empty(n * ROW_ROOM, np.uint8)
    for record, target in zip(quantized(x), out, strict=False):
        call(f"one_row_{name}", w, w.strides[0], record, target, n, room)
    return out


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("tokens", [*range(1, 10), 12, 15])
@pytest.mark.parametrize("n", [1, 4, 8])
def test_a_row_gives_the_same_bits_in_a_small_batch(name, tokens, n):
    rng = np.random.default_rng(tokens)
    w = random_bytes(rng, name, ROWS, n)
    x = rng.standard_normal((tokens, n * SUPERBLOCK)).astype(np.float32)
    got, expected = together(name, w, x), one_by_one(name, w, x)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_integers_fit(name, sign):
    """Every weight byte and every activation the largest there is."""
    n = 2
    w = random_bytes(np.random.default_rng(0), name, ROWS, n)
    full = np.full_like(w, 0x7F if name == "q8_0" else 0xFF).reshape(ROWS, n, -1)
    for start in SCALES_AT[name]:
        full[..., start : start + 2] = w.reshape(ROWS, n, -1)[..., start : start + 2]
    if name == "q6_k":
        full[..., 192:208] = 0x80  # scales of -128
    x, w = np.full((8, n * SUPERBLOCK), 3.0 * sign, np.float32), full.reshape(ROWS, -1)
    got, expected = together(name, w, x), one_by_one(name, w, x)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


def test_every_packed_format_has_kernels_of_its_own():
    assert {name: packed.nbytes for name, packed in FORMATS.items()} == SUPERBLOCK_BYTES
    addresses = [int(a) for name in FORMATS for a in methods(name)[ONE:ARRANGE]]
    assert all(addresses) and len(set(addresses)) == len(addresses)
