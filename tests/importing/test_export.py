"""`apr export`: checkpoints come back bit for bit, errors leave nothing behind."""

from __future__ import annotations

import json

import numpy as np
import pytest
from safetensors import safe_open

from apr_core.errors import UsageError
from apr_core.exporting import export
from apr_core.format import AprFile
from tests import tiny_checkpoints
from tests.cli.test_journeys import apr, fails

pytestmark = pytest.mark.needs_plugins


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_checkpoints.write(tmp_path_factory.mktemp("source") / "checkpoint")


@pytest.fixture(scope="module")
def kept(checkpoint, tmp_path_factory):
    """Imported without quantizing."""
    out = tmp_path_factory.mktemp("kept") / "kept.apr"
    assert apr("import", checkpoint, "-o", out).returncode == 0
    return out


@pytest.fixture(scope="module")
def packed(checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "packed.apr"
    assert apr("import", checkpoint, "--quantize", "q4k", "-o", out).returncode == 0
    return out


def header(path):
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


def contents(directory):
    """{name: (dtype, shape, bytes)} over all safetensors files."""
    tensors = {}
    for path in directory.glob("*.safetensors"):
        head, data = header(path)
        for name, row in head.items():
            if name != "__metadata__":
                start, stop = row["data_offsets"]
                tensors[name] = row["dtype"], row["shape"], data[start:stop]
    return tensors


def test_safetensors_come_back_bit_for_bit(checkpoint, kept, tmp_path):
    out = tmp_path / "back"
    done = apr("export", kept, "--format", "safetensors", "-o", out, "--json")
    assert done.returncode == 0, done.stderr
    source, back = contents(checkpoint), contents(out)
    carried = {name: row for name, row in source.items() if name in back}
    assert back == carried
    assert not [n for n in set(source) - set(back) if "layers" in n and not n.startswith("mtp")]
    config = json.loads((checkpoint / "config.json").read_text())
    assert json.loads((out / "config.json").read_text()) == config
    tokenizer = json.loads((checkpoint / "tokenizer.json").read_text())
    assert json.loads((out / "tokenizer.json").read_text()) == tokenizer
    with safe_open(out / "model.safetensors", "np") as file:  # the library agrees
        assert set(file.keys()) == set(back)


def test_shards_have_an_index(kept, tmp_path):
    with AprFile.open(kept) as file:
        export(file, tmp_path / "out", shard_bytes=200_000)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    names = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert len(names) > 2 and set(index["weight_map"].values()) == names
    tensors = contents(tmp_path / "out")
    assert set(tensors) == set(index["weight_map"])
    assert index["metadata"]["total_size"] == sum(len(raw) for _, _, raw in tensors.values())


def test_quantized_tensors_are_decoded_only_when_asked(packed, tmp_path):
    fails(2, "--dtype bf16", "export", packed, "--format", "safetensors", "-o", tmp_path / "a")
    assert not list(tmp_path.iterdir())
    done = apr("export", packed, "--format", "safetensors", "--dtype", "f32", "-o", tmp_path / "b")
    assert done.returncode == 0 and "q4_k tensors were decoded to f32" in done.stderr
    name = "model.language_model.layers.0.mlp.gate_proj.weight"
    dtype, shape, raw = contents(tmp_path / "b")[name]
    from functools import partial

    from apr_core.format import decode_tensor
    from apr_core.registry import get_registry

    with AprFile.open(packed) as file:
        find = partial(get_registry().make, "quantizer")
        expected = decode_tensor(file.tensors[name], file.raw(name), find)
    assert dtype == "F32"
    np.testing.assert_array_equal(np.frombuffer(raw, "<f4").reshape(shape), expected)


def test_an_exported_checkpoint_can_be_imported_again(kept, tmp_path):
    assert apr("export", kept, "--format", "safetensors", "-o", tmp_path / "c").returncode == 0
    done = apr("import", tmp_path / "c", "-o", tmp_path / "again.apr")
    assert done.returncode == 0, done.stderr
    with AprFile.open(kept) as a, AprFile.open(tmp_path / "again.apr") as b:
        assert list(a.tensors) == list(b.tensors)
        for name in a.tensors:
            np.testing.assert_array_equal(a.raw(name), b.raw(name))


def test_what_is_wrong_is_said_and_nothing_is_written(kept, tmp_path):
    out = tmp_path / "out"
    fails(3, "nowhere.apr", "export", "nowhere.apr", "--format", "safetensors", "-o", out)
    fails(3, "exporter 'onnx'", "export", kept, "--format", "onnx", "-o", out)
    fails(2, "--dtype goes with", "export", kept, "--format", "gguf", "--dtype", "f32", "-o", out)
    fails(2, "the output would replace", "export", kept, "--format", "gguf", "--force", "-o", kept)
    out.mkdir()
    fails(2, "exists", "export", kept, "--format", "safetensors", "-o", out)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and not list(out.iterdir())


def test_a_failed_write_leaves_nothing(kept, tmp_path, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("apr_core.exporting._write_rest", full)
    with AprFile.open(kept) as file, pytest.raises(OSError, match="No space"):
        export(file, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_dtype_is_needed_before_anything_is_written(packed, tmp_path):
    with AprFile.open(packed) as file, pytest.raises(UsageError, match="safetensors cannot hold"):
        export(file, tmp_path / "out")
    assert not list(tmp_path.iterdir())
