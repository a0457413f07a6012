"""The 8-bit cache's rows and inner products against NumPy."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numba import njit

from apr_backend_cpu import attention_q8 as tiles
from apr_backend_cpu.attention_q8_rows import append_q8, round_q8
from apr_backend_cpu.vector_ir import DOT_MODE, ISAS

U = np.uint64
compiled = njit(error_model="numpy")  # not kept on disk, where another process would find it
DIMS = [32, 64, 96, 128, 192, 256, 512]
scores_4, scores_1 = tiles.scores_q8_4, tiles.scores_q8_1
weigh_4, weigh_1 = tiles.weigh_q8_4, tiles.weigh_q8_1
mix_44, mix_41, mix_14, mix_11 = (
    tiles.mix_q8_44, tiles.mix_q8_41, tiles.mix_q8_14, tiles.mix_q8_11,
)  # fmt: skip


@compiled
def _append(x, rows):
    for i in range(x.shape[0]):
        append_q8(U(x[i].ctypes.data), U(rows[i].ctypes.data), U(x.shape[1] // 16))


@compiled
def _round(q, rows):
    for i in range(q.shape[0]):
        round_q8(U(q[i].ctypes.data), U(rows[i].ctypes.data), U(q.shape[1] // 16))


@compiled
def _scores(four, q, stride, rows, dims, scale, out):
    kp, ks, n = U(rows.ctypes.data), U(rows.shape[1]), U(dims // 16)
    op, os_, step = U(out.ctypes.data), U(4 * out.shape[1]), U(4 if four else 1)
    for i in range(U(0), U(out.shape[0]), step):
        query, to = U(q.ctypes.data) + i * stride, op + i * os_
        for j in range(U(0), U(rows.shape[0]), U(4)):
            key, at = kp + j * ks, to + j * U(4)
            if four:
                scores_4(query, stride, key, ks, at, os_, scale, n, key)
            else:
                scores_1(query, stride, key, ks, at, os_, scale, n, key)


@compiled
def _mix(four, wide, weights, rows, block, scratch, out):
    """out [queries, dims] += weights [queries, positions] times rows of blocks of `block` dims.

    The scratch is an argument, because Numba would free one of its own after its last mention.
    """
    queries, count, dims = U(weights.shape[0]), U(weights.shape[1]), U(out.shape[1])
    vp, vs, os_, ps = U(rows.ctypes.data), U(rows.shape[1]), U(4) * dims, U(4) * count
    size = U(64) * count  # of a query's weights for one block
    tp, ts = U(scratch.ctypes.data), size * (dims // U(block))
    for i in range(U(0), queries, U(4 if four else 1)):
        pp, op = U(weights.ctypes.data) + i * ps, U(out.ctypes.data) + i * os_
        if four:
            weigh_4(pp, ps, vp + dims, vs, tp, ts, count, dims // U(16))
        else:
            weigh_1(pp, ps, vp + dims, vs, tp, ts, count, dims // U(16))
        for d in range(U(0), dims, U(64 if wide else 16)):
            p, v, to = tp + d // U(block) * size, vp + d, op + U(4) * d
            if four and wide:
                mix_44(p, ts, v, vs, to, os_, count, v)
            elif four:
                mix_41(p, ts, v, vs, to, os_, count, v)
            elif wide:
                mix_14(p, ts, v, vs, to, os_, count, v)
            else:
                mix_11(p, ts, v, vs, to, os_, count, v)


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
    _append(x, rows)
    return rows


def rounded(q):
    rows = np.zeros((len(q), 2 * q.shape[1] + 64), np.uint8)
    _round(q, rows)
    return rows


def scores(q, rows, dims, *, four, scale=0.25):
    q = rounded(q)
    out = np.full((len(q), len(rows)), np.nan, np.float32)
    _scores(four, q, U(q.strides[0]), rows, dims, np.float32(scale), out)
    return out


def mix(weights, rows, out, *, four, wide):
    out, block = out.copy(), 32 * groups_of(out.shape[1])
    scratch = np.full((len(out), out.shape[1] // block, len(rows), 16), np.nan, np.float32)
    _mix(four, wide, weights, rows, block, scratch, out)
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
    out = mix(np.full((4, 8), 0.125, np.float32), rows, np.zeros((4, dims), np.float32),
              four=True, wide=dims == 256)  # fmt: skip
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
    assert (np.abs(got - 0.25 * (q @ keys.T)) <= 0.25 * tolerance * norms).all()
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


PROGRAM = """
import hashlib, sys
sys.path.insert(0, {folder!r})
import numpy as np
import {module} as t
rng = np.random.default_rng(3)
digest = hashlib.sha256()
for dims in (96, 256):
    rows, q = t.append(t.normal(rng, 12, dims) * 1e-3), t.normal(rng, 4, dims)
    out = t.scores(q, rows, dims, four=True)
    mixed = t.mix(out, rows, q, four=True, wide=dims == 256)
    for part in (rows, out, mixed):
        digest.update(np.ascontiguousarray(part).tobytes())
print(digest.hexdigest())
"""


def test_every_instruction_set_gives_the_same_bits():
    """Run in other processes, because the choice is made when the kernels are made."""
    here = Path(__file__)
    seen = set()
    for isa in ISAS[ISAS.index(DOT_MODE) :]:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(folder=str(here.parent), module=here.stem)],
            env={**os.environ, "APR_CPU_ISA": isa}, capture_output=True, text=True, check=True,
        )  # fmt: skip
        seen.add(done.stdout)
    assert len(seen) == 1
