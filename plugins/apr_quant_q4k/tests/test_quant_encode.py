"""Encoding: fixed bytes, any chunks and threads, padding, and values at the edge of float16."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np
import pytest

from apr_core.errors import QuantizationError

NAMES = ("q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")


@pytest.fixture
def two_threads():
    before = numba.get_num_threads()
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    yield
    numba.set_num_threads(before)


@pytest.mark.parametrize("name", NAMES)
def test_the_recorded_bytes(golden, name):
    recorded = json.loads(golden.PATH.read_text())
    codec = golden.CODECS[name]
    raw = codec.encode(golden.exact_sample())
    assert raw[0, : codec.nbytes].tobytes().hex() == recorded["our_first_block"][name]
    assert golden.digest(raw) == recorded["our_bytes"][name]


def test_the_recorded_bytes_on_a_processor_without_wide_vectors(golden, tmp_path):
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import quant_golden as g\n"
        "x = g.exact_sample(2)\n"
        "print(*(g.digest(c.encode(x)) for c in g.CODECS.values()))\n"
    )
    plain = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": tmp_path}
    done = subprocess.run(
        [sys.executable, "-c", code, str(golden.PATH.parent.parent)],
        env=os.environ | {k: str(v) for k, v in plain.items()}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    x = golden.exact_sample(2)
    assert done.stdout.split() == [golden.digest(c.encode(x)) for c in golden.CODECS.values()]


@pytest.mark.parametrize("name", NAMES)
def test_the_same_bytes_in_any_chunks_and_on_any_threads(golden, name, two_threads):
    codec = golden.CODECS[name]
    x = np.concatenate([golden.sample("gaussian")] * 4)  # enough for two threads
    whole = codec.encode(x)
    for step in (1, 7, 100):
        parts = [codec.encode(x[i : i + step]) for i in range(0, len(x), step)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    decoded = codec.decode(whole, golden.COLS)
    numba.set_num_threads(1)
    np.testing.assert_array_equal(codec.encode(x), whole)
    np.testing.assert_array_equal(codec.decode(whole, golden.COLS), decoded)


def test_a_thread_of_a_pool_starts_no_threads(golden, two_threads):
    codec, x = golden.CODECS["q8_0"], np.ones((1024, 1024), np.float32)
    expected, most = codec.encode(x), []

    def encode():
        raw = codec.encode(x)
        most.append(sum(t.name.startswith("codec") for t in threading.enumerate()))
        return raw

    with ThreadPoolExecutor(3) as pool:
        jobs = [pool.submit(encode) for _ in range(6)]
    for job in jobs:
        np.testing.assert_array_equal(job.result(), expected)
    assert most == [0] * 6


def test_threads_encode_side_by_side_under_every_threading_layer(golden):
    """Numba's workqueue layer ends the process when two threads run its parallel loops."""
    code = (
        "import threading, numpy as np; from apr_quant_q4k.codecs import Q4K\n"
        "x = np.ones((512, 1024), np.float32)\n"
        "Q4K().encode(x)\n"
        "run = lambda: [Q4K().encode(x) for _ in range(3)]\n"
        "threads = [threading.Thread(target=run) for _ in range(3)]\n"
        "[t.start() for t in threads]; [t.join() for t in threads]; print('done')\n"
    )
    env = os.environ | {"NUMBA_THREADING_LAYER": "workqueue"}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout.strip() == "done", done.stderr


@pytest.mark.parametrize("cols", [1, 31, 33, 255, 257, 896])
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_padded_to_whole_blocks(golden, name, cols):
    codec = golden.CODECS[name]
    x = np.random.default_rng(1).standard_normal((3, cols)).astype(np.float32)
    raw = codec.encode(x)
    assert raw.shape == (3, -(-cols // codec.block) * codec.nbytes)
    decoded = codec.decode(raw, cols)
    assert decoded.shape == x.shape
    assert golden.relative_rmse(decoded, x) < 0.12
    np.testing.assert_array_equal(golden.decoded(name, raw, cols), decoded)


@pytest.mark.parametrize("cols", [16, 40, 100, 200])
@pytest.mark.parametrize("name", NAMES)
def test_padding_does_not_worsen_the_last_block(golden, name, cols):
    """A short block is no worse than one that goes on with more of the same values."""
    codec = golden.CODECS[name]
    x = (3 + np.random.default_rng(2).standard_normal((50, cols))).astype(np.float32)
    short = codec.decode(codec.encode(x), cols)
    full = np.tile(x, -(-codec.block // cols) + 1)[:, : -(-cols // codec.block) * codec.block]
    long = codec.decode(codec.encode(full), full.shape[1])[:, :cols]
    assert golden.relative_rmse(short, x) <= 1.02 * golden.relative_rmse(long, x)


@pytest.mark.parametrize("name", NAMES)
def test_no_rows_and_no_columns(golden, name):
    codec = golden.CODECS[name]
    assert codec.encode(np.zeros((0, 256), np.float32)).shape[0] == 0
    assert codec.decode(codec.encode(np.zeros((3, 0), np.float32)), 0).shape == (3, 0)


@pytest.mark.parametrize("name", NAMES)
def test_zero_and_constant_blocks(golden, name):
    codec = golden.CODECS[name]
    zero = codec.decode(codec.encode(np.zeros((2, 256), np.float32)), 256)
    np.testing.assert_array_equal(zero, 0)
    for value in (1.0, -3.5, 1e-3, min(codec.largest, 1e6), max(codec.smallest, -1e6)):
        x = np.full((1, 256), value, np.float32)
        assert golden.relative_rmse(codec.decode(codec.encode(x), 256), x) < 0.003, value


@pytest.mark.parametrize("size", [1e-45, 1e-38, 1e-20, 1e-8, 1e-7, 3e-7, 1e-6, 3e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("name", NAMES)
def test_tiny_values_are_never_worse_than_zeros(golden, name, size):
    codec = golden.CODECS[name]
    bell = np.random.default_rng(5).standard_normal((4, 256))
    x = (size * bell).astype(np.float32)
    decoded = codec.decode(codec.encode(x), 256)
    miss = np.square(decoded.astype(np.float64) - x).sum()
    assert miss <= np.square(x.astype(np.float64)).sum() * (1 + 1e-6)
    if size >= 1e-5:  # float16 has steps for these
        assert golden.relative_rmse(decoded, x) < 0.16


@pytest.mark.parametrize("name", NAMES)
def test_values_up_to_what_float16_scales_hold(golden, name):
    codec = golden.CODECS[name]
    rng = np.random.default_rng(6)
    spread = rng.uniform(codec.smallest, codec.largest, (4, 256))
    edges = [np.full((1, 256), codec.smallest), np.full((1, 256), codec.largest), spread]
    for values in edges:
        x = np.clip(values.astype(np.float32), codec.smallest, codec.largest)
        decoded = codec.decode(codec.encode(x), 256)
        assert np.isfinite(decoded).all()
        assert golden.relative_rmse(decoded, x) < 0.07


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_values_that_are_not_finite(golden, name, value):
    x = np.ones((4, 300), np.float32)
    x[2, 17] = x[3, 299] = value
    with pytest.raises(QuantizationError) as caught:
        golden.CODECS[name].encode(x)
    assert "2 values are NaN or infinite" in caught.value.message
    assert "row 2, column 17" in caught.value.message


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("name", NAMES)
def test_values_out_of_range(golden, name, sign):
    codec = golden.CODECS[name]
    beyond = 1.001 * (codec.largest if sign > 0 else codec.smallest)
    x = np.ones((2, 256), np.float32)
    x[1, 3] = beyond
    with pytest.raises(QuantizationError, match=f"out of range for {name}: its float16 scales"):
        codec.encode(x)
    x[1, 3] = sign * 1e38
    with pytest.raises(QuantizationError):
        codec.encode(x)


@pytest.mark.parametrize("name", NAMES)
def test_other_dtypes_and_strides_encode_like_float32(golden, name):
    codec, x = golden.CODECS[name], golden.sample("gaussian")[:8]
    expected = codec.encode(x[::2].copy())
    np.testing.assert_array_equal(codec.encode(x[::2]), expected)
    np.testing.assert_array_equal(codec.encode(x[::2].astype(np.float64)), expected)
