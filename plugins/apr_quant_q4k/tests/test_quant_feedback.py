"""Encoding for known inputs: error feedback equals a plain loop over columns, and it pays off."""

from __future__ import annotations

import os
import subprocess
import sys

import numba
import numpy as np
import pytest

from apr_core.errors import QuantizationError
from apr_core.plugin import FEEDBACK, Inputs
from apr_quant_q4k.hooks import IQ4_NL
from apr_quant_q4k.reference import _half, _scales_and_minimums

f32 = np.float32
LEVELS = {
    "q4_k": range(16), "q5_k": range(32), "q6_k": range(-32, 32), "q4_0": range(-8, 8),
    "q4_1": range(16), "q5_0": range(-16, 16), "q5_1": range(32), "iq4_nl": IQ4_NL,
}  # fmt: skip
NAMES = tuple(LEVELS)
COLS = 640


def weights(rows=16, cols=COLS, seed=1):
    x = np.random.default_rng(seed).standard_t(5, (rows, cols))
    return (0.02 * x).astype(f32)


def correlated(cols=COLS, seed=2):
    """X^T X [cols, cols] of inputs that depend on one another, some columns far larger."""
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((cols // 8, cols)) + 3 * rng.standard_normal((1, cols))
    inputs = rng.standard_normal((2048, cols // 8)) @ mix
    inputs += 2 * rng.standard_normal(inputs.shape)
    inputs *= np.exp(rng.standard_normal(cols) * 0.7)
    return inputs.T @ inputs / len(inputs)


def inputs_of(gram):
    """What encoders are told, by the formula in the docstring of `Inputs`."""
    cols = len(gram)
    feedback = np.zeros((-(-cols // FEEDBACK), FEEDBACK, FEEDBACK), f32)
    for run, start in enumerate(range(0, cols, FEEDBACK)):
        part = gram[start : start + FEEDBACK, start : start + FEEDBACK]
        part = part + 0.01 * np.diag(part).mean() * np.eye(len(part))
        upper = np.linalg.cholesky(np.linalg.inv(part)).T
        size = len(part)
        feedback[run, :size, :size] = -np.triu(upper, 1) / np.diag(upper)[:, None]
    return Inputs(np.diag(gram).astype(f32), feedback)


def any_feedback(cols, seed=3):
    """Random feedback. What must not be read is NaN: earlier columns, and those of no value."""
    rng = np.random.default_rng(seed)
    feedback = (0.1 * rng.standard_normal((-(-cols // FEEDBACK), FEEDBACK, FEEDBACK))).astype(f32)
    feedback[:, np.tri(FEEDBACK, dtype=bool)] = np.nan
    if cols % FEEDBACK:
        feedback[-1, cols % FEEDBACK :] = feedback[-1, :, cols % FEEDBACK :] = np.nan
    return feedback


def steps_and_offsets(codec, raw, cols):
    """The scales in the bytes, for each value f32 [R, cols]."""
    blocks = raw.reshape(-1, codec.nbytes)
    if codec.name == "q6_k":
        steps = _half(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(f32)
        offsets = np.zeros_like(steps)
    elif codec.block == 256:
        scales, minimums = _scales_and_minimums(blocks[:, 4:16])
        steps, offsets = _half(blocks[:, :2]) * scales, _half(blocks[:, 2:4]) * minimums
    else:
        steps = _half(blocks[:, :2])
        offsets = -_half(blocks[:, 2:4]) if codec.name.endswith("_1") else np.zeros_like(steps)
    width = codec.block // steps.shape[1]
    return tuple(a.reshape(len(raw), -1).repeat(width, 1)[:, :cols] for a in (steps, offsets))


def nearest(scaled, levels):
    """The level nearest to each value; of two the even number, of uneven ones the lower."""
    if isinstance(levels, range):
        return np.clip(np.rint(scaled), f32(levels[0]), f32(levels[-1]))
    levels = np.array(levels, f32)
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, scaled)]


def encoded_in_turn(codec, x, feedback):
    """What the values become: scales by blocks, then column after column, in float32.

    Blocks of 256 get the scales of the values that are given, blocks of 32 those of values with the
    errors of the blocks before.
    """
    x, out = x.copy(), np.empty_like(x)
    for j in range(x.shape[1]):
        if j % codec.block == 0:
            values = x[:, j : j + codec.block].copy()
            parts = steps_and_offsets(codec, codec.encode(values), values.shape[1])
        step, offset = (part[:, j % codec.block] for part in parts)
        inverse = np.where(step == 0, f32(0), f32(1) / np.where(step == 0, f32(1), step))
        code = nearest((x[:, j] + offset) * inverse, LEVELS[codec.name])
        out[:, j] = step * code - offset
        error, run = x[:, j] - out[:, j], j // FEEDBACK
        for k in range(j + 1, min(FEEDBACK * (run + 1), x.shape[1])):
            x[:, k] += error * feedback[run, j % FEEDBACK, k % FEEDBACK]
    return out


@pytest.mark.parametrize("cols", [1, 31, 33, 100, 128, 300, 512, 640])
@pytest.mark.parametrize("name", NAMES)
def test_columns_are_rounded_in_turn(golden, name, cols):
    codec, x, feedback = golden.CODECS[name], weights(19, cols), any_feedback(cols)
    raw = codec.encode_for(x, Inputs(np.ones(cols, f32), feedback))
    feedback = np.nan_to_num(feedback)
    np.testing.assert_array_equal(codec.decode(raw, cols), encoded_in_turn(codec, x, feedback))


@pytest.mark.parametrize("name", NAMES)
def test_products_with_correlated_inputs_are_nearer(golden, name):
    codec, x, gram = golden.CODECS[name], weights(64), correlated()
    inputs = inputs_of(gram)

    def error(raw):
        miss = codec.decode(raw, COLS).astype(np.float64) - x
        return np.sum(miss @ gram * miss)

    assert error(codec.encode_for(x, inputs)) < 0.75 * error(codec.encode(x))


@pytest.mark.parametrize("cols", [40, 300, 512])
@pytest.mark.parametrize("name", NAMES)
def test_columns_with_large_inputs_are_nearer(golden, name, cols):
    codec, x = golden.CODECS[name], weights(64, cols)
    mean_square = np.exp(2 * np.random.default_rng(4).standard_normal(cols)).astype(f32)

    def error(raw):
        return np.sum(mean_square * (codec.decode(raw, cols) - x) ** 2)

    assert error(codec.encode_for(x, Inputs(mean_square))) < 0.85 * error(codec.encode(x))


@pytest.mark.parametrize("cols", [96, 300, 512])
@pytest.mark.parametrize("name", NAMES)
def test_inputs_that_do_not_depend_on_one_another_change_nothing(golden, name, cols):
    codec, x, alike = golden.CODECS[name], weights(cols=cols), np.full(cols, 0.3, f32)
    none = np.zeros_like(any_feedback(cols))
    for inputs in (Inputs(alike, none), Inputs(alike), Inputs(np.zeros(cols, f32))):
        np.testing.assert_array_equal(codec.encode_for(x, inputs), codec.encode(x))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bytes_in_any_chunks_and_on_any_threads(golden, name):
    codec, x, inputs = golden.CODECS[name], weights(256), inputs_of(correlated())
    before = numba.get_num_threads()
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    whole = codec.encode_for(x, inputs)
    numba.set_num_threads(1)
    np.testing.assert_array_equal(codec.encode_for(x, inputs), whole)
    numba.set_num_threads(before)
    for step in (1, 7):
        parts = [codec.encode_for(x[i : i + step], inputs) for i in range(0, 32, step)]
        np.testing.assert_array_equal(np.concatenate(parts)[:32], whole[:32])


@pytest.mark.parametrize("name", NAMES)
def test_inputs_of_other_columns_are_refused(golden, name):
    encode, x, squares = golden.CODECS[name].encode_for, weights(cols=300), np.ones(300, f32)
    with pytest.raises(QuantizationError, match=r"rows of 300 values.*\[3, 128, 128\]"):
        encode(x, Inputs(squares, np.zeros((2, FEEDBACK, FEEDBACK), f32)))
    with pytest.raises(QuantizationError, match=r"rows of 300 values.*\[300\]"):
        encode(x, Inputs(squares[:299], np.zeros((3, FEEDBACK, FEEDBACK), f32)))


def test_the_same_bytes_on_a_processor_without_wide_vectors(golden, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import quant_golden as g, numpy as np; from apr_core.plugin import Inputs\n"
        "inputs = Inputs(*np.load(sys.argv[2]).values())\n"
        "print(*(g.digest(g.CODECS[n].encode_for(g.exact_sample(9), inputs))"
        " for n in sys.argv[3:]))\n"
    )
    inputs = inputs_of(correlated(768))
    np.savez(tmp_path / "inputs.npz", inputs.mean_square, inputs.feedback)
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": tmp_path}
    arguments = [golden.PATH.parent.parent, tmp_path / "inputs.npz", *NAMES]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {k: str(v) for k, v in plain.items()}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    x = golden.exact_sample(9)
    here = [golden.digest(golden.CODECS[name].encode_for(x, inputs)) for name in NAMES]
    assert done.stdout.split() == here


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_and_no_columns(golden, name):
    codec = golden.CODECS[name]
    assert codec.encode_for(np.zeros((0, 256), f32), Inputs(np.ones(256, f32))).shape[0] == 0
    none = np.zeros((0, FEEDBACK, FEEDBACK), f32)
    assert codec.encode_for(np.zeros((3, 0), f32), Inputs(none[:, 0, 0], none)).shape == (3, 0)


def test_q8_0_is_encoded_as_ever(golden):
    codec, x = golden.CODECS["q8_0"], weights()
    np.testing.assert_array_equal(codec.encode_for(x, inputs_of(correlated())), codec.encode(x))
