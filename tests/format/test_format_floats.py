"""Native numbers and the legacy encodings, against independent arithmetic; decoding by rows."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from apr_core.declarations import Quantizer
from apr_core.errors import FormatError, PluginNotFound, QuantizationError
from apr_core.format import (
    AprFile,
    FormatSpec,
    TensorEntry,
    check_declared,
    decode_rows,
    decode_tensor,
    from_float32,
    to_float32,
)
from tests.apr_files import build, entry, write

ALL_F16 = np.arange(65536, dtype=np.uint16)


def test_every_bf16_and_f16_there_and_back() -> None:
    for dtype in ("bf16", "f16"):
        values = to_float32(ALL_F16.view(np.uint8), dtype, (65536,))
        again = from_float32(values, dtype).view("<u2")
        nan = np.isnan(values)
        assert (again[~nan] == ALL_F16[~nan]).all()
        assert np.isnan(to_float32(again.view(np.uint8), dtype, (65536,))[nan]).all()


def nearest_bf16(value: float) -> float:
    """Round to nearest even by comparing the two neighbours in exact arithmetic."""
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    low, high = (
        struct.unpack("<f", struct.pack("<I", b & 0xFFFFFFFF))[0]
        for b in (bits & 0xFFFF0000, (bits & 0xFFFF0000) + 0x10000)
    )
    if abs(value - low) == abs(high - value):
        return low if (bits >> 16) % 2 == 0 else high
    return low if abs(value - low) < abs(high - value) else high


@given(st.floats(width=32, allow_nan=False, allow_infinity=False).filter(lambda x: abs(x) < 3e38))
def test_bf16_rounds_to_nearest_even(value: float) -> None:
    out = to_float32(from_float32(np.float32([value]), "bf16"), "bf16", (1,))
    assert float(out[0]) == nearest_bf16(value)


@given(arrays(np.float32, st.integers(0, 40), elements=st.floats(width=32)))
def test_f32_is_exact_and_f64_holds_it(values: np.ndarray) -> None:
    for dtype in ("f32", "f64"):
        again = to_float32(from_float32(values, dtype), dtype, values.shape)
        assert again.dtype == np.float32
        np.testing.assert_array_equal(again, values)


def test_f32_is_a_view() -> None:
    raw = np.arange(16, dtype=np.uint8)
    assert np.shares_memory(to_float32(raw, "f32", (2, 2)), raw)


@pytest.mark.parametrize(
    ("dtype", "numpy"), [("i8", "i1"), ("u8", "u1"), ("i32", "<i4"), ("i64", "<i8")]
)
def test_integers(dtype: str, numpy: str) -> None:
    info = np.iinfo(numpy)
    values = np.array([info.min, 0, 1, info.max], numpy)
    out = to_float32(values.view(np.uint8), dtype, (2, 2))
    np.testing.assert_array_equal(out, values.astype(np.float32).reshape(2, 2))
    with pytest.raises(QuantizationError, match="cannot hold float"):
        from_float32(np.ones(2, np.float32), dtype)


def test_f64_beyond_f32_is_infinite_without_a_warning(recwarn: pytest.WarningsRecorder) -> None:
    assert np.isinf(to_float32(np.array([1e300]).view(np.uint8), "f64", (1,)))[0]
    assert not recwarn.list


@pytest.mark.parametrize(
    ("dtype", "fits", "lost"), [("f16", 65519.0, 65520.0), ("bf16", 3.3895e38, 3.4e38)]
)
def test_finite_values_never_become_infinite(dtype: str, fits: float, lost: float) -> None:
    special = np.array([np.inf, -np.inf, np.nan, -fits], np.float32)
    out = to_float32(from_float32(special, dtype), dtype, (4,))
    assert out[0] == np.inf and out[1] == -np.inf and np.isnan(out[2]) and np.isfinite(out[3])
    with pytest.raises(QuantizationError, match=f"beyond {dtype}"):
        from_float32(np.array([np.inf, np.nan, -lost], np.float32), dtype)


def test_nan_payloads_stay_nan_in_bf16() -> None:
    bits = np.array([0x7F800001, 0x7FFFFFFF, 0xFF80FFFF, 0xFFFFFFFF], np.uint32)
    out = to_float32(from_float32(bits.view(np.float32), "bf16"), "bf16", (4,))
    assert np.isnan(out).all()


class Scaled:
    """A toy quantizer: blocks of 4, an f32 scale and 4 int8."""

    def encode(self, rows: np.ndarray) -> np.ndarray:
        rows = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 4)))
        blocks = rows.reshape(rows.shape[0], rows.shape[1] // 4, 4)
        scale = np.abs(blocks).max(-1, keepdims=True).astype(np.float32) / 127 + 1e-9
        codes = np.rint(blocks / scale).astype(np.int8).view(np.uint8)
        return np.concatenate([scale.view(np.uint8), codes], -1).reshape(
            len(rows), blocks.shape[1] * 8
        )

    def decode(self, raw: np.ndarray, cols: int) -> np.ndarray:
        blocks = raw.reshape(raw.shape[0], -1, 8)
        scale = np.ascontiguousarray(blocks[..., :4]).view(np.float32)
        codes = np.ascontiguousarray(blocks[..., 4:]).view(np.int8)
        return (codes * scale).reshape(raw.shape[0], -1)[:, :cols].astype(np.float32)


TOY = FormatSpec("toy", None, 4, 8, "apr-toy")


def toy(tmp_path: Path, values: np.ndarray) -> tuple[TensorEntry, np.ndarray]:
    rows = values if values.ndim == 2 else values.reshape(1, -1)
    raw = Scaled().encode(rows.astype(np.float32)).tobytes()
    path = write(tmp_path / "t.apr", {}, {"t": (TOY, values.shape, raw)}, force=True)
    with AprFile.open(path) as file:
        return file.tensors["t"], file.raw("t")


@pytest.mark.parametrize(
    "shape", [(6, 10), (6, 8), (6, 3, 5), (7,), (), (3, 1, 2, 3), (0, 5), (5, 0)]
)
def test_rows_equal_the_whole(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.random.default_rng(0).normal(size=shape)
    tensor, raw = toy(tmp_path, values)
    whole = decode_tensor(tensor, raw, lambda name: Scaled())
    assert whole.shape == shape and whole.dtype == np.float32
    np.testing.assert_allclose(whole, values, atol=0.02)
    rows = shape[0] if shape else 1
    for start in range(rows):
        for stop in range(start, rows + 1):
            part = decode_rows(tensor, raw, start, stop, lambda name: Scaled())
            np.testing.assert_array_equal(part, whole.reshape(rows, *shape[1:])[start:stop])


def test_native_rows(tmp_path: Path) -> None:
    values = np.arange(24, dtype=np.float32).reshape(4, 3, 2)
    with AprFile.open(write(tmp_path / "t.apr", {}, {"t": values})) as file:
        part = decode_rows(file.tensors["t"], file.raw("t"), 1, 3, lambda name: None)
    np.testing.assert_array_equal(part, values[1:3])


def test_missing_plugin_names_the_distribution_of_the_file(tmp_path: Path) -> None:
    def none(name: str) -> None:
        raise PluginNotFound("nothing", "generic")

    tensor, raw = toy(tmp_path, np.ones((2, 4)))
    with pytest.raises(PluginNotFound, match="'toy' of tensor 't'") as caught:
        decode_tensor(tensor, raw, none)
    assert "pip install apr-toy" in caught.value.hint


def test_plugin_that_means_other_blocks(tmp_path: Path) -> None:
    class Short(Scaled):
        def decode(self, raw: np.ndarray, cols: int) -> np.ndarray:
            return super().decode(raw, cols)[:, :1]

    tensor, raw = toy(tmp_path, np.ones((2, 4)))
    with pytest.raises(FormatError, match=r"made .2, 1., expected .2, 4."):
        decode_tensor(tensor, raw, lambda name: Short())
    row = {"id": 200, "name": "toy", "distribution": "d", "block": 4, "bytes_per_block": 7}
    path = tmp_path / "odd.apr"
    path.write_bytes(build({"apr.formats": [row]}, (entry("t", 200, (2, 4), 0, 14),), bytes(14)))
    with AprFile.open(path) as file:
        with pytest.raises(FormatError, match="cannot decode it"):
            decode_tensor(file.tensors["t"], file.raw("t"), lambda name: Scaled())
        with pytest.raises(FormatError, match=r"\(4, 7\), the installed plugin says \(4, 8\)"):
            check_declared(file.tensors["t"], Quantizer("toy", "m:T", block=4, bytes_per_block=8))
    check_declared(tensor, Quantizer("toy", "m:T", block=4, bytes_per_block=8))


def test_unexplained_id(tmp_path: Path) -> None:
    path = tmp_path / "t.apr"
    path.write_bytes(build(b"{}", (entry("t", 200, (2, 2), 0, 4),), bytes(4)))
    with AprFile.open(path) as file, pytest.raises(FormatError, match="format id 200"):
        decode_tensor(file.tensors["t"], file.raw("t"), lambda name: Scaled())


def test_legacy_q8(tmp_path: Path) -> None:
    data = struct.pack("<f6b", 0.5, -128, -1, 0, 1, 2, 127)
    path = tmp_path / "t.apr"
    path.write_bytes(build(b"{}", (entry("t", 129, (2, 3), 0, 10),), data))
    with AprFile.open(path) as file:
        tensor, raw = file.tensors["t"], file.raw("t")
        assert tensor.format == "apr_q8"
        whole = decode_tensor(tensor, raw, lambda name: None)
        np.testing.assert_array_equal(whole, np.float32([[-64, -0.5, 0], [0.5, 1, 63.5]]))
        np.testing.assert_array_equal(decode_rows(tensor, raw, 1, 2, lambda n: None), whole[1:])


def test_legacy_q4_is_flat_and_low_nibble_first(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    count, shape = 66, (3, 22)
    codes = rng.integers(0, 16, 96).reshape(3, 32)
    scales = np.float16([0.25, -2, 3e-8])  # the last is subnormal: read as zero
    data = b"".join(
        scales[b].tobytes() + bytes(codes[b, 2 * j] | codes[b, 2 * j + 1] << 4 for j in range(16))
        for b in range(3)
    )
    expected = ((codes - 8) * np.float32([[0.25], [-2], [0]])).reshape(-1)[:count].reshape(shape)
    path = tmp_path / "t.apr"
    path.write_bytes(build(b"{}", (entry("t", 128, shape, 0, 54),), data))
    with AprFile.open(path) as file:
        tensor, raw = file.tensors["t"], file.raw("t")
        np.testing.assert_array_equal(decode_tensor(tensor, raw, lambda n: None), expected)
        for row in range(3):
            part = decode_rows(tensor, raw, row, row + 1, lambda n: None)
            np.testing.assert_array_equal(part, expected[row : row + 1])
