"""The codecs: the gguf package decodes ours alike, and errors are no larger than llama.cpp's."""

from __future__ import annotations

import numpy as np
import pytest

from apr_core.errors import FormatError, QuantizationError
from apr_quant_q4k.q4_k import Q4K
from apr_quant_q4k.q5_k import Q5K
from apr_quant_q4k.q6_k import Q6K
from apr_quant_q4k.q8_0 import Q8_0

CODECS = [Q4K(), Q5K(), Q6K(), Q8_0()]
GGML_IDS = {"q4_k": 12, "q5_k": 13, "q6_k": 14, "q8_0": 8}
ROWS, COLS = 64, 1024


def sample(kind):
    rng = np.random.default_rng(42)
    x = rng.standard_normal((ROWS, COLS))
    if kind == "laplace":
        x = rng.laplace(size=(ROWS, COLS))
    elif kind == "outliers":
        x[rng.random((ROWS, COLS)) < 0.002] *= 20
    elif kind == "uniform":
        x = rng.uniform(-1, 1, (ROWS, COLS))
    elif kind == "sparse":
        x *= rng.random((ROWS, COLS)) < 0.1
    return (0.02 * x).astype(np.float32)


KINDS = ("gaussian", "laplace", "outliers", "uniform", "sparse")
# relative RMSE of llama.cpp's quantizer (llama-cpp-python 0.3.36) on these samples
LLAMA_CPP: dict[str, dict[str, float]] = {
    "q4_k": {
        "gaussian": 0.071558,
        "laplace": 0.084737,
        "outliers": 0.085063,
        "uniform": 0.054553,
        "sparse": 0.050307,
    },
    "q5_k": {
        "gaussian": 0.036225,
        "laplace": 0.042782,
        "outliers": 0.044121,
        "uniform": 0.027696,
        "sparse": 0.037174,
    },
    "q6_k": {
        "gaussian": 0.017814,
        "laplace": 0.021653,
        "outliers": 0.026801,
        "uniform": 0.013554,
        "sparse": 0.008433,
    },
    "q8_0": {
        "gaussian": 0.005369,
        "laplace": 0.006717,
        "outliers": 0.009131,
        "uniform": 0.003761,
        "sparse": 0.002993,
    },
}


def ids(codec):
    return codec.name


def relative_rmse(actual, expected):
    return float(np.sqrt(np.mean((actual - expected) ** 2) / np.mean(expected**2)))


@pytest.mark.parametrize("codec", CODECS, ids=ids)
def test_decoding_equals_the_gguf_package_on_any_bytes(codec):
    quants = pytest.importorskip("gguf.quants")
    from gguf.constants import GGMLQuantizationType

    raw = np.random.default_rng(0).integers(0, 256, (50, 3 * codec.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(raw, GGMLQuantizationType(GGML_IDS[codec.name]))
    np.testing.assert_array_equal(codec.decode(raw, 3 * codec.block), expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("codec", CODECS, ids=ids)
def test_error_is_no_larger_than_llama_cpps(codec, kind):
    x = sample(kind)
    error = relative_rmse(codec.decode(codec.encode(x), COLS), x)
    assert error <= LLAMA_CPP[codec.name][kind] * 1.0001


@pytest.mark.parametrize("codec", CODECS, ids=ids)
def test_the_same_bytes_in_any_chunks_and_on_any_threads(codec):
    numba = pytest.importorskip("numba")
    x = sample("gaussian")
    whole = codec.encode(x)
    parts = [codec.encode(x[i : i + 7]) for i in range(0, ROWS, 7)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        np.testing.assert_array_equal(codec.encode(x), whole)
    finally:
        numba.set_num_threads(before)


@pytest.mark.parametrize("codec", CODECS, ids=ids)
@pytest.mark.parametrize("cols", [1, 31, 33, 255, 257, 896])
def test_rows_are_padded_to_whole_blocks(codec, cols):
    x = np.random.default_rng(1).standard_normal((3, cols)).astype(np.float32)
    raw = codec.encode(x)
    assert raw.shape == (3, -(-cols // codec.block) * codec.nbytes)
    decoded = codec.decode(raw, cols)
    assert decoded.shape == x.shape
    assert relative_rmse(decoded, x) < 0.12


@pytest.mark.parametrize("codec", CODECS, ids=ids)
def test_zero_constant_tiny_and_large_blocks(codec):
    zero = codec.decode(codec.encode(np.zeros((2, 256), np.float32)), 256)
    np.testing.assert_array_equal(zero, 0)
    for value in (1.0, -3.5, 1e-3, 1e6):
        x = np.full((1, 256), value, np.float32)
        assert relative_rmse(codec.decode(codec.encode(x), 256), x) < 0.01, value
    tiny = codec.decode(codec.encode(np.full((1, 256), 1e-42, np.float32)), 256)
    assert np.isfinite(tiny).all() and np.abs(tiny).max() < 1e-6


@pytest.mark.parametrize("codec", CODECS, ids=ids)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_values_it_cannot_hold(codec, bad):
    x = np.ones((4, 256), np.float32)
    x[2, 17] = bad
    with pytest.raises(QuantizationError) as caught:
        codec.encode(x)
    if bad != 1e30:
        assert "row 2, column 17" in caught.value.message


@pytest.mark.parametrize("codec", CODECS, ids=ids)
def test_bytes_that_do_not_fit(codec):
    with pytest.raises(FormatError):
        codec.decode(np.zeros((2, codec.nbytes + 1), np.uint8), codec.block)


def test_recipes():
    from apr_core.modelspec import TensorClass
    from apr_quant_q4k import recipes

    def chosen(recipe, quant_class, layer=1):
        return recipe().format_for(TensorClass("t", "r", quant_class, (8, 256), layer, 24))

    assert chosen(recipes.q4k, "matrix") == "q4_k"
    assert chosen(recipes.q4k, "sensitive") == chosen(recipes.q4k, "head", None) == "q6_k"
    assert chosen(recipes.q4_k_m, "fused_input") == "q5_k"
    down = [chosen(recipes.q4_k_m, "down", n) == "q6_k" for n in range(24)]
    assert [n for n in range(24) if down[n]] == [0, 1, 2, 5, 8, 11, 14, 17, 20, 21, 22, 23]
    assert chosen(recipes.q6k, "sensitive") == "q8_0"
    assert {chosen(recipes.f16, c) for c in ("matrix", "head", "embedding")} == {"f16"}
