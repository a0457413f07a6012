"""Import: what is kept is exact, what is damaged is named, and nothing is left behind."""

from __future__ import annotations

import json

import numpy as np
import pytest

from apr_core.cli import run
from apr_core.format import AprFile
from tests import tiny_checkpoints as tiny

pytestmark = pytest.mark.needs_plugins


def import_(source, out, *options):
    return run(["import", str(source), "-o", str(out), *options])


def fails(capsys, code, words, *args):
    assert import_(*args) == code
    error = capsys.readouterr().err
    assert words in error and "bug in apr" not in error, error
    assert not args[1].exists()


@pytest.mark.parametrize("layout", ["published", "flat", "nested"])
def test_without_a_recipe_every_byte_is_kept(tmp_path, layout):
    options = tiny.Tiny(layout=layout, tied=False)
    source = tiny.write(tmp_path / "c", options)
    assert import_(source, tmp_path / "m.apr") == 0
    tensors = tiny.random(options)
    with AprFile.open(tmp_path / "m.apr") as file:
        kept = {n for n in tensors if not n.startswith("model.visual")}
        assert set(file.tensors) == kept  # MTP is carried, vision is left out
        for name in kept:
            dtype, values = tensors[name]
            assert file.tensors[name].format == dtype.lower()
            assert file.raw(name).tobytes() == tiny.encode(values, dtype)
        assert file.metadata["hf_config"] == tiny.config(options)


def test_small_linear_attention_tensors_keep_their_precision(tmp_path):
    source = tiny.write(tmp_path / "c")
    assert import_(source, tmp_path / "m.apr", "--quantize", "q4k") == 0
    with AprFile.open(tmp_path / "m.apr") as file:
        formats = {name: entry.format for name, entry in file.tensors.items()}
    for name, format_ in formats.items():
        if name.endswith(("in_proj_a.weight", "in_proj_b.weight", "conv1d.weight", "dt_bias")):
            assert format_ == "bf16", name
        elif name.endswith(("A_log", "linear_attn.norm.weight")):
            assert format_ == "f32", name
        elif name.endswith("out_proj.weight"):  # its rows have 128 values
            assert format_ == "q8_0", name
        elif name.endswith("embed_tokens.weight"):
            assert format_ == "q6_k", name
        elif name.endswith(("gate_proj.weight", "in_proj_qkv.weight")):
            assert format_ == "q4_k", name


def test_shards_hold_the_same_tensors(tmp_path):
    source = tiny.write(tmp_path / "c")
    assert import_(source, tmp_path / "one.apr", "--quantize", "q8_0") == 0
    (tmp_path / "many").mkdir()
    assert (
        import_(source, tmp_path / "many" / "m.apr", "--quantize", "q8_0", "--shard-size", "1MiB")
        == 0
    )
    parts = sorted((tmp_path / "many").iterdir())
    assert len(parts) > 1
    with AprFile.open(tmp_path / "one.apr") as one, AprFile.open(parts[-1]) as many:
        assert list(one.tensors) == list(many.tensors)
        for name in one.tensors:
            np.testing.assert_array_equal(one.raw(name), many.raw(name))


@pytest.mark.parametrize("recipe", [(), ("--quantize", "q4k")])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_name_their_tensor(tmp_path, capsys, recipe, bad):
    options = tiny.Tiny()
    source = tiny.write(tmp_path / "c", options)
    tensors = tiny.random(options)
    name = "model.language_model.layers.2.mlp.up_proj.weight"
    tensors[name][1][3, 5] = bad
    tiny.write_weights(source, tensors, options.shards)
    fails(capsys, 4, name, source, tmp_path / "m.apr", *recipe)


def one_file(tmp_path):
    source = tiny.write(tmp_path / "c", shards=0)
    path = source / "model.safetensors"
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    return source, path, json.loads(raw[8 : 8 + size]), raw[8 + size :]


NAME = "model.language_model.norm.weight"


@pytest.mark.parametrize(
    "change",
    [
        {"data_offsets": [0, 10**15]},
        {"data_offsets": [-4, 4]},
        {"data_offsets": [100, 50]},
        {"data_offsets": "x"},
        {"shape": [10**9, 10**9]},
        {"shape": [-1]},
        {"dtype": "F99"},
        {"dtype": None},
    ],
)
def test_headers_that_lie(tmp_path, capsys, change):
    source, path, header, data = one_file(tmp_path)
    header[NAME] |= change
    tiny.write_raw_safetensors(path, header, data)
    fails(capsys, 4, "model.safetensors", source, tmp_path / "m.apr")


@pytest.mark.parametrize(
    "raw", [b"", b"\xff" * 8, b"\x10\0\0\0\0\0\0\0{}", b"\x02\0\0\0\0\0\0\0[]"]
)
def test_files_that_are_no_safetensors(tmp_path, capsys, raw):
    source, path, _, _ = one_file(tmp_path)
    path.write_bytes(raw)
    fails(capsys, 4, "model.safetensors", source, tmp_path / "m.apr")


def test_a_missing_shard_is_named(tmp_path, capsys):
    source = tiny.write(tmp_path / "c")
    shard = next(source.glob("model*00002-of*.safetensors"))
    shard.unlink()
    fails(capsys, 3, shard.name, source, tmp_path / "m.apr")


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("rope_parameters", {"rope_type": "yarn", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
         "yarn"),
        ("hidden_act", "gelu", "hidden_act"),
        ("hidden_size", None, "hidden_size"),
        ("hidden_size", "256", "hidden_size"),
        ("layer_types", ["linear_attention"], "layer_types"),
        ("layer_types", ["strange"] * 4, "strange"),
        ("num_attention_heads", 0, "num_attention_heads"),
    ],
)  # fmt: skip
def test_configurations_it_cannot_mean(tmp_path, capsys, key, value, words):
    source = tiny.write(tmp_path / "c", config={key: value})
    fails(capsys, 4, words, source, tmp_path / "m.apr")


def test_older_spellings_of_layer_types(tmp_path):
    old = ["linear", "linear", "linear", "attention"]
    source = tiny.write(tmp_path / "c", config={"layer_types": old})
    assert import_(source, tmp_path / "m.apr") == 0
    with AprFile.open(tmp_path / "m.apr") as file:
        assert file.metadata["layer_types"][-2:] == ["linear_attention", "full_attention"]
