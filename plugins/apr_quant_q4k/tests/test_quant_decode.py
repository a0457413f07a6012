"""Decoding: compiled code, the NumPy reference and the gguf package agree bit for bit."""

from __future__ import annotations

import numpy as np
import pytest

from apr_core.errors import FormatError

NAMES = ("q4_k", "q5_k", "q6_k", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl")


def bits(values):
    """The float bits; every NaN is one value, whose payload no two libraries agree on."""
    values = np.ascontiguousarray(values, np.float32)
    return np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))


def any_bytes(codec, rows, blocks):
    return np.random.default_rng(0).integers(0, 256, (rows, blocks * codec.nbytes), np.uint8)


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference_on_any_bytes(golden, name):
    codec = golden.CODECS[name]
    raw = any_bytes(codec, 300, 2)
    with np.errstate(all="ignore"):
        expected = golden.decoded(name, raw, 2 * codec.block)
    np.testing.assert_array_equal(bits(codec.decode(raw, 2 * codec.block)), bits(expected))


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_gguf_package_on_any_bytes(golden, name):
    quants = pytest.importorskip("gguf.quants")
    from gguf.constants import GGMLQuantizationType

    codec = golden.CODECS[name]
    raw = any_bytes(codec, 300, 2)
    with np.errstate(all="ignore"):
        expected = quants.dequantize(raw, GGMLQuantizationType(golden.GGML_IDS[name]))
    np.testing.assert_array_equal(bits(codec.decode(raw, 2 * codec.block)), bits(expected))


@pytest.mark.parametrize("kind", ("gaussian", "outliers", "sparse"))
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_gguf_package_on_encoded_tensors(golden, name, kind):
    quants = pytest.importorskip("gguf.quants")
    from gguf.constants import GGMLQuantizationType

    codec = golden.CODECS[name]
    raw = codec.encode(golden.sample(kind))
    expected = quants.dequantize(raw, GGMLQuantizationType(golden.GGML_IDS[name]))
    np.testing.assert_array_equal(bits(codec.decode(raw, golden.COLS)), bits(expected))
    np.testing.assert_array_equal(bits(golden.decoded(name, raw, golden.COLS)), bits(expected))


@pytest.mark.parametrize("name", NAMES)
def test_every_float16_scale_is_read_exactly(golden, name):
    codec = golden.CODECS[name]
    raw = np.zeros((1 << 16, codec.nbytes), np.uint8)
    at = 208 if name == "q6_k" else 0
    raw[:, at : at + 2] = np.arange(1 << 16, dtype="<u2")[:, None].view(np.uint8)
    raw[:, 4] = raw[:, 20 % codec.nbytes] = raw[:, 192 % codec.nbytes] = 1
    with np.errstate(all="ignore"):
        expected = getattr(golden.reference, name)(raw)
    np.testing.assert_array_equal(bits(codec.decode(raw, codec.block)), bits(expected))


@pytest.mark.parametrize("name", NAMES)
def test_bytes_that_do_not_fit(golden, name):
    codec = golden.CODECS[name]
    with pytest.raises(FormatError, match=f"take {codec.nbytes} bytes"):
        codec.decode(np.zeros((2, codec.nbytes + 1), np.uint8), codec.block)
    with pytest.raises(FormatError):
        codec.decode(np.zeros(codec.nbytes, np.uint8), codec.block)


@pytest.mark.parametrize("name", NAMES)
def test_read_only_and_strided_bytes(golden, name):
    codec = golden.CODECS[name]
    raw = any_bytes(codec, 6, 1)
    raw[:, 1] = raw[:, 3] = raw[:, -1] = 0  # small, finite scales
    expected = codec.decode(raw[::2].copy(), codec.block)
    raw.flags.writeable = False
    np.testing.assert_array_equal(bits(codec.decode(raw[::2], codec.block)), bits(expected))
