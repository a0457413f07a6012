"""Kernels for few rows and for many against the one for one row, row by row and bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import call, largest_bytes, quantized, random_bytes, weight

from apr_backend_cpu.constants import GROUP, METHOD_COLUMNS, ONE, ROW_WORKSPACE, SUPERBLOCK
from apr_backend_cpu.kernels.linear.formats import FORMATS
from apr_backend_cpu.ops.formats import PACKED_BLOCKS, methods
from apr_backend_cpu.ops.linear import group
from apr_backend_cpu.run.program import instructions
from apr_core.registry import get_registry

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
    out, runs = np.full((len(x) + 1, ROWS), 7, np.float32), -(-x.shape[1] // GROUP)
    workspace = np.empty(-(-x.shape[1] // SUPERBLOCK) * ROW_WORKSPACE, np.uint8)
    for record, target in zip(quantized(x), out, strict=False):
        call(f"one_row_{name}", w, w.strides[0], record, target, runs, workspace)
    return out


@pytest.mark.parametrize("name", PACKED_BLOCKS)
@pytest.mark.parametrize("tokens", [*range(1, 10), 12, 15, 17, 23, 31])
@pytest.mark.parametrize("width", [32, 96, 256, 432, 576, 896, 1024, 2048])
def test_a_row_gives_the_same_bits_in_any_batch(name, tokens, width):
    """Also where a row ends within a superblock, whose other codes may be anything."""
    rng = np.random.default_rng(tokens)
    w = random_bytes(rng, name, ROWS, width)
    x = rng.standard_normal((tokens, width)).astype(np.float32)
    got, expected = together(name, w, x), one_by_one(name, w, x)
    assert np.isfinite(got).all()
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", PACKED_BLOCKS)
@pytest.mark.parametrize("tokens", [1, 8, 23])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_integers_fit(name, tokens, sign):
    """Every weight byte and every activation the largest there is."""
    w = largest_bytes(np.random.default_rng(0), name, ROWS, 2 * SUPERBLOCK)
    x = np.full((tokens, 2 * SUPERBLOCK), 3.0 * sign, np.float32)
    got, expected = together(name, w, x), one_by_one(name, w, x)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))
    codec = get_registry().make("quantizer", name)
    x, values = x.astype(np.float64), codec.decode(w, x.shape[1]).T.astype(np.float64)
    assert (np.abs(got[:-1] - x @ values) <= 1e-6 * (np.abs(x) @ np.abs(values))).all()


def test_every_packed_format_has_kernels_of_its_own():
    for name, (_, nbytes) in PACKED_BLOCKS.items():
        assert FORMATS[name].nbytes == nbytes
    addresses = [int(a) for name in PACKED_BLOCKS for a in methods(name)[ONE:METHOD_COLUMNS]]
    assert all(addresses) and len(set(addresses)) == len(addresses)
