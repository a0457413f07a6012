"""The 8-bit cache's rows and inner products against NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import call

from apr_backend_cpu.run.arrays import address

DIMS = [32, 64, 96, 128, 192, 256, 512]


def groups_of(dims):
    """Scales of a block."""
    return np.gcd(dims // 32, 8)


def grouped(x):
    """[rows, dims] -> [rows, blocks, vectors, groups, lanes]."""
    groups = groups_of(x.shape[1])
    return x.reshape(len(x), -1, 2 * groups, groups, 16 // groups)


def scales_of(rows, dims):
    scales = np.ascontiguousarray(rows[:, dims:]).view(np.float16).astype(np.float32)
    return scales.reshape(len(rows), -1, 1, groups_of(dims), 1)


def decode(rows, dims):
    codes = rows[:, :dims].view(np.int8).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return (grouped(codes) * scales_of(rows, dims)).reshape(len(rows), dims)


def append(x):
    rows = np.full((len(x), x.shape[1] + x.shape[1] // 16), 0x5A, np.uint8)
    for source, target in zip(np.ascontiguousarray(x), rows, strict=True):
        call("append_q8", source, target, x.shape[1] // 16)
    return rows


def rounded(q):
    rows = np.zeros((len(q), 2 * q.shape[1] + 64), np.uint8)
    for source, target in zip(np.ascontiguousarray(q), rows, strict=True):
        call("round_q8", source, target, q.shape[1] // 16)
    return rows


def scores(q, rows, dims, *, four):
    """Of all queries with all keys, four keys a call, and four queries a call or one."""
    q, (q_bytes, key_bytes), step = rounded(q), (2 * dims + 64, rows.strides[0]), 4 if four else 1
    out = np.full((len(q), len(rows)), np.nan, np.float32)
    for i in range(0, len(q), step):
        for j in range(0, len(rows), 4):
            at = address(out) + i * out.strides[0] + 4 * j
            call(
                f"scores_q8_{step}",
                q[i],
                q_bytes,
                rows[j],
                key_bytes,
                at,
                out.strides[0],
                min(step, len(q) - i),
                dims // 16,
                rows[j],
            )
    return out


def mix(weights, rows, out, *, four, wide):
    """out [queries, dims] += weights [queries, positions] times rows."""
    weights, out, dims = np.ascontiguousarray(weights), out.copy(), out.shape[1]
    count, block, step, vectors = (
        len(rows),
        32 * groups_of(dims),
        4 if four else 1,
        4 if wide else 1,
    )
    scaled = np.full((step, dims // block, count, 16), np.nan, np.float32)
    each, row_bytes = scaled.strides[0], rows.strides[0]
    for i in range(0, len(out), step):
        call(
            f"weigh_q8_{step}",
            weights[i],
            weights.strides[0],
            address(rows) + dims,
            row_bytes,
            scaled,
            each,
            min(step, len(out) - i),
            count,
            dims // 16,
        )
        for d in range(0, dims, 16 * vectors):
            values = address(rows) + d
            call(
                f"mix_q8_{step}{vectors}",
                scaled[0, d // block],
                each,
                values,
                row_bytes,
                address(out[i]) + 4 * d,
                out.strides[0],
                min(step, len(out) - i),
                count,
                values,
            )
    return out


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


@pytest.mark.parametrize("dims", DIMS)
def test_a_row_is_off_by_half_a_step_at_most(rng, dims):
    x = normal(rng, 64, dims) * 10.0 ** rng.uniform(-9, 6, (64, 1)).astype(np.float32)
    x[5:8] *= 1e-30  # float32 subnormals, nothing to a float16 scale
    x[8, ::3] = 0
    rows = append(x)
    error = np.abs(grouped(x).astype(np.float64) - grouped(decode(rows, dims)))
    scales = scales_of(rows, dims)
    assert (error <= np.maximum(scales, 2.0**-24) * 0.50001).all()
    tops = np.abs(grouped(x)).max(axis=(2, 4), keepdims=True)
    expected = (tops / np.float32(127)).astype(np.float16).astype(np.float32)
    np.testing.assert_array_equal(scales[scales > 1e-4], expected[scales > 1e-4])
    assert (np.abs(rows[:, :dims].view(np.int8).astype(int)) <= 127).all()


def test_zeros_and_values_beyond_a_scale(rng):
    x = normal(rng, 5, 256)
    x[0] = 0
    x[1, 3], x[2, 7], x[3, 9], x[4, 0] = 1e30, -np.inf, np.inf, 8319008.0
    rows = append(x)
    got = decode(rows, 256)
    assert not rows[0].any()
    assert np.isfinite(got).all()
    largest = np.float32(127 * 65504)
    assert (got[1, 3], got[2, 7], got[3, 9], got[4, 0]) == (largest, -largest, largest, largest)
    others = grouped(np.isfinite(x) & (np.abs(x) < 100)).all(axis=(2, 4))
    assert (scales_of(rows, 256)[1:, :, 0, :, 0][others[1:]] < 0.1).all()


@pytest.mark.parametrize("dims", [32, 64, 96, 128, 256])
@pytest.mark.parametrize("at", [0, 17, 31])
def test_nan_stays_visible(rng, dims, at):
    x = normal(rng, 8, dims)
    x[2, at] = np.nan
    x[3, at], x[3, (at + 16) % dims] = np.inf, np.nan
    rows = append(x)
    touched = grouped(np.isnan(x)).any(axis=(2, 4))
    np.testing.assert_array_equal(np.isnan(scales_of(rows, dims)[:, :, 0, :, 0]), touched)
    q = normal(rng, 4, dims)
    got = scores(q, rows, dims, four=True)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(x).any(axis=1) & np.full((4, 8), True))
    out = mix(
        np.full((4, 8), 0.125, np.float32),
        rows,
        np.zeros((4, dims), np.float32),
        four=True,
        wide=dims == 256,
    )
    np.testing.assert_array_equal(
        grouped(np.isnan(out)).any(axis=(2, 4)), touched.any(axis=0) & np.full((4, 1, 1), True)
    )


def test_nan_and_infinity_of_a_query_stay_visible(rng):
    q = normal(rng, 4, 64)
    q[1, 5], q[2, 6], q[3] = np.nan, np.inf, 0
    got = scores(q, append(normal(rng, 4, 64)), 64, four=True)
    np.testing.assert_array_equal(np.isfinite(got).all(axis=1), [True, False, False, True])
    assert not got[3].any()


@pytest.mark.parametrize("dims", DIMS)
def test_scores_equal_those_of_decoded_rows(rng, dims):
    q, rows = normal(rng, 8, dims), append(normal(rng, 20, dims))
    keys = decode(rows, dims)
    norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(keys, axis=1)
    got = scores(q, rows, dims, four=True)
    tolerance = 1e-4 / dims**0.5  # a query has steps of a 32767th of its largest value
    assert (np.abs(got - q @ keys.T) <= tolerance * norms).all()
    np.testing.assert_array_equal(got, scores(q, rows, dims, four=False))
    for i in range(0, 8, 4):
        some = scores(q[i : i + 4], rows[4:8], dims, four=True)
        np.testing.assert_array_equal(some, got[i : i + 4, 4:8])


@pytest.mark.parametrize("dims", DIMS)
def test_mix_equals_that_of_decoded_rows(rng, dims):
    weights, rows = rng.random((8, 37)).astype(np.float32), append(normal(rng, 37, dims))
    values, before = decode(rows, dims), normal(rng, 8, dims)
    expected = before + weights @ values
    got = mix(weights, rows, before, four=True, wide=False)
    norms = np.linalg.norm(weights, axis=1)[:, None] * np.linalg.norm(values, axis=0)
    assert (np.abs(got - expected) <= 1e-5 * (norms + np.abs(before))).all()
    np.testing.assert_array_equal(got, mix(weights, rows, before, four=False, wide=False))
    if groups_of(dims) > 1:
        for four in (True, False):
            np.testing.assert_array_equal(got, mix(weights, rows, before, four=four, wide=True))
    begun = mix(weights[:, :5].copy(), rows[:5], before, four=True, wide=False)
    rest = mix(weights[:, 5:].copy(), rows[5:], begun, four=False, wide=False)
    np.testing.assert_array_equal(rest, got)
