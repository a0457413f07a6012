"""Encoding errors are no larger than llama.cpp's, measured or live."""

from __future__ import annotations

import json

import numpy as np
import pytest

NAMES = ("q4_k", "q5_k", "q6_k", "q8_0")
KINDS = ("gaussian", "laplace", "outliers", "uniform", "sparse")
# What the search reaches against llama.cpp, with a little room: it may not get worse unnoticed.
REACHED = {"q4_k": 0.985, "q5_k": 0.955, "q6_k": 0.975, "q8_0": 1.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_error_is_below_llama_cpps(golden, name, kind):
    theirs = json.loads(golden.PATH.read_text())["llama_cpp_errors"][name][kind]
    x, codec = golden.sample(kind), golden.CODECS[name]
    ours = golden.relative_rmse(codec.decode(codec.encode(x), golden.COLS), x)
    assert ours <= theirs * REACHED[name]


@pytest.mark.parametrize("name", NAMES)
def test_recorded_errors_are_the_installed_llama_cpps(golden, name):
    recorded = json.loads(golden.PATH.read_text())
    llama_cpp = pytest.importorskip("llama_cpp")
    if llama_cpp.__version__ != recorded["llama_cpp"]:
        pytest.skip(f"recorded from llama-cpp-python {recorded['llama_cpp']}")
    errors = recorded["llama_cpp_errors"][name]
    assert golden.llama_cpp_errors(name) == pytest.approx(errors, rel=1e-3)


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", NAMES)
def test_other_seeds_and_scales_against_the_installed_llama_cpp(golden, name, scale):
    pytest.importorskip("llama_cpp")
    rng = np.random.default_rng(11)
    x = (scale * rng.standard_t(4, (32, 512))).astype(np.float32)
    codec = golden.CODECS[name]
    ours = golden.relative_rmse(codec.decode(codec.encode(x), 512), x)
    theirs = golden.relative_rmse(codec.decode(golden.llama_cpp_encode(name, x), 512), x)
    assert ours <= theirs


@pytest.mark.parametrize("shift", [0.05, -0.05, 1.0, -1.0])
@pytest.mark.parametrize("name", NAMES)
def test_blocks_far_from_zero(golden, name, shift):
    """Norm-like rows: all values near one constant."""
    pytest.importorskip("llama_cpp")
    x = (shift + 0.02 * np.random.default_rng(3).standard_normal((32, 512))).astype(np.float32)
    codec = golden.CODECS[name]
    ours = golden.relative_rmse(codec.decode(codec.encode(x), 512), x)
    theirs = golden.relative_rmse(codec.decode(golden.llama_cpp_encode(name, x), 512), x)
    assert ours <= theirs


@pytest.mark.parametrize("name", NAMES)
def test_encoding_decoded_values_again_loses_nearly_nothing(golden, name):
    x, codec = golden.sample("gaussian"), golden.CODECS[name]
    once = codec.decode(codec.encode(x), golden.COLS)
    twice = codec.decode(codec.encode(once), golden.COLS)
    assert golden.relative_rmse(twice, once) < 0.25 * golden.relative_rmse(once, x)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1"])
def test_small_blocks_are_better_than_those_of_the_gguf_package(golden, name, kind):
    quants = pytest.importorskip("gguf.quants")
    from gguf.constants import GGMLQuantizationType

    x, codec, theirs = golden.sample(kind), golden.CODECS[name], golden.GGML_IDS[name]
    raw = quants.quantize(x, GGMLQuantizationType(theirs))
    ours = golden.relative_rmse(codec.decode(codec.encode(x), golden.COLS), x)
    assert ours <= 0.99 * golden.relative_rmse(codec.decode(raw, golden.COLS), x)


@pytest.mark.parametrize("kind", ["gaussian", "laplace", "uniform"])
def test_uneven_levels_are_better_than_even_ones_where_values_are_not(golden, kind):
    def error(name):
        x, codec = golden.sample(kind), golden.CODECS[name]
        return golden.relative_rmse(codec.decode(codec.encode(x), golden.COLS), x)

    assert (error("iq4_nl") < error("q4_0")) == (kind != "uniform")
