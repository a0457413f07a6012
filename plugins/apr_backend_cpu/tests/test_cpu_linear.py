"""Products with packed and float weights against plain NumPy."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from kernel_calls import float_weight, quantized, weight

from apr_backend_cpu.backend import Cpu
from apr_backend_cpu.constants import (
    AT_D,
    AT_GROUP_D,
    AT_SHIFT32,
    AT_STEP,
    AT_STEP32,
    AT_STEP_PAIR,
    AT_SUM16,
    AT_SUM32,
    SUPERBLOCK,
)
from apr_backend_cpu.ops import linear
from apr_core.registry import get_registry

BLOCKS = {"q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210), "q8_0": (32, 34)}


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def packed_weight(rng, name, rows, cols):
    """Random valid bytes of a format, their decoded values, and a weight on the CPU backend."""
    pytest.importorskip("apr_quant_q4k", reason="encodes the weights")
    codec = get_registry().make("quantizer", name)
    raw = codec.encode(rng.standard_normal((rows, cols)).astype(np.float32))
    matrix = SimpleNamespace(raw=raw, format=name)
    data = Cpu(2).upload_packed(matrix)
    return weight(name, rows, cols, data), codec.decode(raw, cols)


def rounded(x):
    """What the kernels make of activations: int8 codes times one scale a 32 values."""
    records = quantized(x)
    codes = records.view(np.int8)[..., :SUPERBLOCK].reshape(*records.shape[:2], 8, 32)
    scales = records.view(np.float32)[..., AT_GROUP_D // 4 :][..., :8]
    return (codes * scales[..., None]).reshape(x.shape[0], -1)[:, : x.shape[1]]


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("cols", [256, 1024, 896, 96])
def test_packed_product_is_exact_but_for_the_rounding_of_activations(rng, name, rows, cols):
    w, values = packed_weight(rng, name, rows, cols)
    x = rng.standard_normal((11, cols)).astype(np.float32)
    got = linear.linear(x, w)
    expected = rounded(x).astype(np.float64) @ values.T.astype(np.float64)
    assert np.abs(got - expected).max() < 2e-5 * np.sqrt(cols)


@pytest.mark.parametrize("name", [*BLOCKS, "f32", "f16", "bf16"])
def test_a_row_gives_the_same_bits_in_any_batch(rng, name):
    w = any_weight(rng, name, 67, 512)
    x = rng.standard_normal((21, 512)).astype(np.float32)
    run = linear.linear
    together = run(x, w)
    alone = np.concatenate([run(x[i : i + 1], w) for i in range(21)])
    np.testing.assert_array_equal(together, alone)


def any_weight(rng, name, rows, cols):
    if name in BLOCKS:
        return packed_weight(rng, name, rows, cols)[0]
    return float_weight(rng, name, rows, cols)[0]


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("rows", [1, 3, 4, 66])
@pytest.mark.parametrize("cols", [16, 200, 1024])
def test_float_product(rng, name, rows, cols):
    w, values = float_weight(rng, name, rows, cols)
    x = rng.standard_normal((7, cols)).astype(np.float32)
    expected = x.astype(np.float64) @ values.T.astype(np.float64)
    got = linear.linear(x, w)
    assert np.abs(got - expected).max() < 1e-5 * np.sqrt(cols)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_not_hidden(rng, bad):
    w, _ = packed_weight(rng, "q4_k", 8, 512)
    x = rng.standard_normal((3, 512)).astype(np.float32)
    x[1, 300] = bad
    got = linear.linear(x, w)
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


def test_zero_and_subnormal_activations_give_zero(rng):
    w, _ = packed_weight(rng, "q6_k", 8, 256)
    x = np.zeros((2, 256), np.float32)
    x[1] = 1e-42
    np.testing.assert_array_equal(linear.linear(x, w), 0)


def test_products_with_one_input_share_its_rounding(rng):
    weights = [packed_weight(rng, "q4_k", n, 256)[0] for n in (8, 16)]
    for w in weights:
        w.linear = linear.linear
    x = rng.standard_normal((2, 256)).astype(np.float32)
    for got, w in zip(linear.linears(x, tuple(weights)), weights, strict=True):
        np.testing.assert_array_equal(got, linear.linear(x, w))


def test_activations_are_rounded_by_less_than_a_step_of_their_32(rng):
    x = rng.standard_normal((3, 600)).astype(np.float32)
    x[:, 100] = 40.0  # an outlier coarsens its own 32 values, and the rest by a sixteenth of it
    error = np.abs(rounded(x) - x)
    groups = np.pad(x, ((0, 0), (0, 168))).reshape(3, 3, 8, 32)
    step = (np.abs(groups).max(-1) / 127 + np.abs(groups).max((-1, -2))[..., None] / 127 / 16) / 2
    assert (error <= np.repeat(step, 32, -1).reshape(3, -1)[:, :600] * 1.0001).all()


def test_the_records_sums_are_those_of_their_codes(rng):
    records = quantized(rng.standard_normal((2, 512)).astype(np.float32))
    codes = records.view(np.int8)[..., :SUPERBLOCK].astype(int)
    ints, shorts, floats = (records.view(t) for t in (np.int32, np.int16, np.float32))
    steps = ints[..., AT_STEP32 // 4 :][..., :8]
    np.testing.assert_array_equal(shorts[..., AT_STEP // 2 :][..., :8], steps)
    pairs = shorts[..., AT_STEP_PAIR // 2 :][..., :16]
    np.testing.assert_array_equal(pairs, np.repeat(steps, 2, axis=-1))
    sums = np.repeat(steps, 2, axis=-1) * codes.reshape(2, 2, 16, 16).sum(-1)
    np.testing.assert_array_equal(shorts[..., AT_SUM16 // 2 :][..., :16], sums)
    totals = codes.reshape(2, 2, 8, 32).sum(-1)
    np.testing.assert_array_equal(shorts[..., AT_SUM32 // 2 :][..., :8], steps * totals)
    np.testing.assert_array_equal(floats[..., AT_SHIFT32 // 4 :][..., :8], -128 * totals)
    d, scaled = floats[..., AT_D // 4], floats[..., AT_GROUP_D // 4 :][..., :8]
    np.testing.assert_allclose(scaled, d[..., None] * steps, rtol=1e-6)
