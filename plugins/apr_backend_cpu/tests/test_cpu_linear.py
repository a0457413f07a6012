"""Products with packed and float weights against plain NumPy."""

from __future__ import annotations

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from apr_backend_cpu import linear
from apr_backend_cpu.activations import Activations
from apr_backend_cpu.backend import Cpu

BLOCKS = {"q4_k": (256, 144), "q5_k": (256, 176), "q6_k": (256, 210), "q8_0": (32, 34)}


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def packed_weight(rng, name, rows, cols):
    """Random valid bytes of a format, their decoded values, and a weight on the CPU backend."""
    quantizers = pytest.importorskip(f"apr_quant_q4k.{name}")
    codec = next(c for c in vars(quantizers).values() if getattr(c, "name", "") == name)()
    raw = codec.encode(rng.standard_normal((rows, cols)).astype(np.float32))
    matrix = SimpleNamespace(raw=raw, format=name)
    data = Cpu(2).upload_packed(matrix)
    return SimpleNamespace(format=name, rows=rows, cols=cols, data=data), codec.decode(raw, cols)


def rounded(x):
    """What the kernels make of activations: int8 codes times one scale a 64 values."""
    a = Activations(x)
    a.quantize()
    values = a.q.reshape(*a.scales.shape, 64) * a.scales[..., None]
    return values.reshape(x.shape[0], -1)[:, : x.shape[1]]


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("rows", [1, 5, 64])
@pytest.mark.parametrize("cols", [256, 1024, 896, 96])
def test_packed_product_is_exact_but_for_the_rounding_of_activations(rng, name, rows, cols):
    w, values = packed_weight(rng, name, rows, cols)
    x = rng.standard_normal((11, cols)).astype(np.float32)
    got = getattr(linear, f"linear_{name}")(x, w)
    expected = rounded(x).astype(np.float64) @ values.T.astype(np.float64)
    assert np.abs(got - expected).max() < 2e-5 * np.sqrt(cols)


@pytest.mark.parametrize("name", [*BLOCKS, "f32", "f16", "bf16"])
def test_a_row_gives_the_same_bits_in_any_batch(rng, name):
    w = any_weight(rng, name, 67, 512)
    x = rng.standard_normal((21, 512)).astype(np.float32)
    run = getattr(linear, f"linear_{name}")
    together = run(x, w)
    alone = np.concatenate([run(x[i : i + 1], w) for i in range(21)])
    np.testing.assert_array_equal(together, alone)


def any_weight(rng, name, rows, cols):
    if name in BLOCKS:
        return packed_weight(rng, name, rows, cols)[0]
    return float_weight(rng, name, rows, cols)[0]


def float_weight(rng, name, rows, cols):
    values = rng.standard_normal((rows, cols)).astype(np.float32)
    if name == "f32":
        return SimpleNamespace(
            format="f32", rows=rows, cols=cols, data=Cpu(2).upload_matrix(values)
        ), values
    if name == "f16":
        raw = values.astype(np.float16)
        values = raw.astype(np.float32)
    else:
        raw = (values.view(np.uint32) >> 16).astype(np.uint16)
        values = (raw.astype(np.uint32) << 16).view(np.float32)
    raw = raw.view(np.uint8).reshape(rows, -1)
    data = Cpu(2).upload_packed(SimpleNamespace(raw=raw, format=name))
    return SimpleNamespace(format=name, rows=rows, cols=cols, data=data), values


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("rows", [1, 3, 4, 66])
@pytest.mark.parametrize("cols", [16, 200, 1024])
def test_float_product(rng, name, rows, cols):
    w, values = float_weight(rng, name, rows, cols)
    x = rng.standard_normal((7, cols)).astype(np.float32)
    expected = x.astype(np.float64) @ values.T.astype(np.float64)
    got = getattr(linear, f"linear_{name}")(x, w)
    assert np.abs(got - expected).max() < 1e-5 * np.sqrt(cols)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_is_not_finite_is_not_hidden(rng, bad):
    w, _ = packed_weight(rng, "q4_k", 8, 512)
    x = rng.standard_normal((3, 512)).astype(np.float32)
    x[1, 300] = bad
    got = linear.linear_q4_k(x, w)
    assert np.isnan(got[1]).all()
    assert np.isfinite(got[[0, 2]]).all()


def test_zero_and_subnormal_activations_give_zero(rng):
    w, _ = packed_weight(rng, "q6_k", 8, 256)
    x = np.zeros((2, 256), np.float32)
    x[1] = 1e-42
    np.testing.assert_array_equal(linear.linear_q6_k(x, w), 0)


def test_products_with_one_input_share_its_rounding(rng):
    weights = [packed_weight(rng, "q4_k", n, 256)[0] for n in (8, 16)]
    for w in weights:
        w.linear = linear.linear_q4_k
    x = rng.standard_normal((2, 256)).astype(np.float32)
    for got, w in zip(linear.linears(x, tuple(weights)), weights, strict=True):
        np.testing.assert_array_equal(got, linear.linear_q4_k(x, w))


def test_the_portable_path_gives_the_same_bits():
    """Run in another process, because the choice is made when the kernels are made."""
    code = (
        "import hashlib, numpy as np\n"
        "from types import SimpleNamespace as N\n"
        "from apr_backend_cpu import linear, vector_ir\n"
        "from apr_backend_cpu.unpack import READERS\n"
        "rng, digest = np.random.default_rng(1), hashlib.sha256()\n"
        "x = rng.standard_normal((9, 512)).astype(np.float32)\n"
        "for name, (_, n) in READERS.items():\n"
        "    raw = rng.integers(0, 60, (33, 2 * n), dtype=np.uint8)\n"
        "    w = N(format=name, rows=33, cols=512, data=raw)\n"
        "    digest.update(getattr(linear, 'linear_' + name)(x, w).tobytes())\n"
        "print(vector_ir.DOT_MODE, digest.hexdigest())\n"
    )
    found = {}
    for isa in ("", "generic"):
        done = subprocess.run(
            [sys.executable, "-c", code], env=os.environ | {"APR_CPU_ISA": isa},
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        mode, digest = done.stdout.split()
        found[isa] = digest
        assert not isa or mode == isa
    assert found[""] == found["generic"]
