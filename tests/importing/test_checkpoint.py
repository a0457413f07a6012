"""Checkpoint directories: which files belong to one, and headers that are not believed."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from apr_core.errors import AprError, FormatError, NotFound
from apr_core.importing.checkpoint import FLOATS, Checkpoint
from tests import tiny_checkpoints as tiny

INDEX = "model.safetensors.index.json"


def values(seed=0, shape=(6, 5)):
    """Random values that BF16 holds exactly."""
    bits = np.random.default_rng(seed).standard_normal(shape, np.float32).view("<u4")
    return (bits & np.uint32(0xFFFF0000)).view("<f4")


def test_reads_what_the_safetensors_package_writes(tmp_path):
    expected = {
        "b": values(),
        "a": values(1, (3, 2, 2)),
        "s": np.asarray(values(2, (1,))).reshape(()),
        "e": values(3, (0, 4)),
    }
    save_file(expected, tmp_path / "model.safetensors", metadata={"format": "np"})
    checkpoint = Checkpoint.open(tmp_path)
    assert set(checkpoint.tensors) == set(expected) and checkpoint.metadata == {"format": "np"}
    for name, array in expected.items():
        assert checkpoint.tensors[name].shape == array.shape
        rows, cols = checkpoint.rows(name)
        assert checkpoint.read_raw(name).tobytes() == array.tobytes()
        np.testing.assert_array_equal(checkpoint.read_rows(name), array.reshape(rows, cols))


@pytest.mark.parametrize("dtype", FLOATS)
def test_rows_of_every_float_dtype(tmp_path, dtype):
    exact = values() if dtype != "F16" else values().astype("<f2").astype("<f4")
    tiny.write_safetensors(tmp_path / "model.safetensors", {"w": (dtype, exact)})
    checkpoint = Checkpoint.open(tmp_path)
    np.testing.assert_array_equal(checkpoint.read_rows("w", 2, 5), exact[2:5])
    np.testing.assert_array_equal(checkpoint.read_rows("w"), exact)


def test_integers_are_listed_and_not_read_as_floats(tmp_path):
    tiny.write_safetensors(tmp_path / "model.safetensors", {"ids": ("I64", np.arange(4))})
    checkpoint = Checkpoint.open(tmp_path)
    assert checkpoint.tensors["ids"].dtype == "I64"
    with pytest.raises(FormatError, match=r"'ids' has dtype I64"):
        checkpoint.read_rows("ids")


def test_shards_with_and_without_an_index(tmp_path):
    tensors = {f"t{i}": ("F32", values(i)) for i in range(5)}
    tiny.write_weights(tmp_path, tensors, shards=3)
    assert set(Checkpoint.open(tmp_path).tensors) == set(tensors)
    (tmp_path / INDEX).unlink()
    assert set(Checkpoint.open(tmp_path).tensors) == set(tensors)


def test_one_numbered_shard_with_an_index_and_no_plain_file(tmp_path):
    tiny.write_weights(tmp_path, {"w": ("F32", values())}, shards=1)
    assert not (tmp_path / "model.safetensors").exists()
    assert set(Checkpoint.open(tmp_path).tensors) == {"w"}


@pytest.mark.parametrize("index", [True, False])
def test_missing_shards_are_counted(tmp_path, index):
    tiny.write_weights(tmp_path, {f"t{i}": ("F32", values(i)) for i in range(4)}, shards=4)
    (tmp_path / "model.safetensors-00002-of-00004.safetensors").unlink()
    if not index:
        (tmp_path / INDEX).unlink()
    with pytest.raises(NotFound, match="1 of 4 shards are missing") as error:
        Checkpoint.open(tmp_path)
    assert "apr pull" in error.value.hint


def test_index_must_agree_with_the_shards(tmp_path):
    tiny.write_weights(tmp_path, {"a": ("F32", values()), "b": ("F32", values(1))}, shards=2)
    index = json.loads((tmp_path / INDEX).read_text())
    index["weight_map"]["c"] = index["weight_map"]["a"]
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(FormatError, match="'c' should be in"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("file", ["../model.safetensors", "/etc/passwd", "", ".", "..", 7, None])
def test_index_cannot_lead_out_of_the_directory(tmp_path, file):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"w": file}}))
    with pytest.raises(FormatError, match="no file name"):
        Checkpoint.open(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": []}', "\udcff"])
def test_broken_index(tmp_path, text):
    (tmp_path / INDEX).write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(FormatError, match="index"):
        Checkpoint.open(tmp_path)


def test_tensor_in_two_shards(tmp_path):
    for i in (1, 2):
        file = tmp_path / f"model-0000{i}-of-00002.safetensors"
        tiny.write_safetensors(file, {"w": ("F32", values())})
    with pytest.raises(FormatError, match=r"'w' is in .*00001.* and in .*00002"):
        Checkpoint.open(tmp_path)


def test_several_unrelated_files(tmp_path):
    for name in ("a", "b"):
        tiny.write_safetensors(tmp_path / f"{name}.safetensors", {"w": ("F32", values())})
    with pytest.raises(FormatError, match="several"):
        Checkpoint.open(tmp_path)
    (tmp_path / "b.safetensors").unlink()
    assert set(Checkpoint.open(tmp_path).tensors) == {"w"}


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("pytorch_model.bin", FormatError, "pytorch_model.bin and no"),
        ("model.gguf", FormatError, "gguf"),
        ("README.md", NotFound, "no safetensors"),
    ],
)
def test_directories_without_safetensors(tmp_path, name, kind, words):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(kind, match=words):
        Checkpoint.open(tmp_path)


def header(**rows):
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}} | rows


@pytest.mark.parametrize(
    ("rows", "data", "words"),
    [
        ({"b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}, 8, "'b' overlaps"),
        ({"b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 16]}}, 16, "'b' leaves a hole"),
        ({"b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}, 8, "'b' ends at byte"),
        ({}, 12, "4 bytes follow"),
        ({"b": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [8, 12]}}, 12, "'b'"),
        ({"b": {"dtype": "F32", "shape": [True], "data_offsets": [8, 12]}}, 12, "'b' has no"),
        ({"b": {"dtype": "F32", "shape": [1], "data_offsets": [12, 8]}}, 12, "'b' holds -4"),
        ({"b": [1]}, 8, "'b' has no usable"),
        ({"__metadata__": {"x": 1}}, 8, "__metadata__"),
    ],
)
def test_spans_that_do_not_fit(tmp_path, rows, data, words):
    path = tmp_path / "model.safetensors"
    tiny.write_raw_safetensors(path, header(**rows), bytes(data))
    with pytest.raises(FormatError, match=words) as error:
        Checkpoint.open(tmp_path)
    assert str(path) in error.value.message


@pytest.mark.parametrize(
    "raw",
    [b"{", b"\xff\xfe", b"[" * 50_000, b'{"a": 1' + b"0" * 6000 + b"}",
     b'{"a": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}, "a": {}}'],
)  # fmt: skip
def test_headers_that_are_not_usable_json(tmp_path, raw):
    tiny.write_raw_safetensors(tmp_path / "model.safetensors", raw, b"")
    with pytest.raises(FormatError, match="not JSON"):
        Checkpoint.open(tmp_path)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "model.safetensors"
    tiny.write_safetensors(path, {"w": ("F32", values())})
    checkpoint = Checkpoint.open(tmp_path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(FormatError, match="ends inside tensor 'w'"):
        checkpoint.read_rows("w")
    path.unlink()
    with pytest.raises(AprError, match="cannot be read"):
        checkpoint.read_rows("w")


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 500))
def test_mutations_raise_documented_errors_or_stay_inside_the_file(tmp_path, at, byte, cut):
    path = tmp_path / "model.safetensors"
    tiny.write_safetensors(path, {"w": ("F32", values()), "v": ("BF16", values(1))})
    raw = bytearray(path.read_bytes())
    raw[min(at, len(raw) - 1)] = byte
    path.write_bytes(raw[: len(raw) - cut] if at % 3 == 0 else raw)
    try:
        checkpoint = Checkpoint.open(tmp_path)
        for name, tensor in checkpoint.tensors.items():
            assert checkpoint.read_raw(name).nbytes == tensor.nbytes <= len(raw)
    except AprError:
        pass
