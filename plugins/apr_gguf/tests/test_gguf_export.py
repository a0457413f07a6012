"""GGUF files: read back by gguf, and run by llama.cpp where it is installed."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="the package that reads what is written")

from apr_core import load
from apr_core.cli.import_ import run_import
from apr_core.errors import AprError
from apr_core.format import AprFile, decode_tensor
from apr_core.registry import get_registry
from apr_devkit.tiny import tiny_apr
from apr_gguf.changes import Heads, value_heads
from apr_gguf.export import export
from tests import tiny_checkpoints

LAYER = "model.language_model.layers.0."
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
CASES = {  # name -> family, and what its tiny model has otherwise
    "qwen35-r1": ("qwen3_5", {"linear_num_value_heads": 2}),
    "qwen35-r2": ("qwen3_5", {"tie_word_embeddings": False}),
    "qwen35-r3": ("qwen3_5", {"linear_num_value_heads": 6}),
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "gemma3": ("gemma3", {"query_pre_attn_scalar": 32}),
    "qwen35moe": ("qwen3_5_moe", {}),
    "llama": ("llama", {}),
    "mistral": ("llama", {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}),
    "llama-yarn": ("llama", {"rope_scaling": YARN}),
    "llama-linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
}


def gguf_export(tmp_path, recipe, **options):
    """(open .apr, gguf reader, summary)."""
    checkpoint = tiny_checkpoints.write(tmp_path / "checkpoint", **options)
    path, out = tmp_path / f"{recipe}.apr", tmp_path / f"{recipe}.gguf"
    run_import(str(checkpoint), path, recipe)
    file = AprFile.open(path)
    summary = export(file, out)
    return file, gguf.GGUFReader(out), summary


def tensor(reader, name):
    entry = next(t for t in reader.tensors if t.name == name)
    return entry.data


def values(file, name):
    entry = file.tensors[name]
    return decode_tensor(entry, file.raw(name), partial(get_registry().make, "quantizer"))


@pytest.mark.parametrize("recipe", ["q4k", "q6k", "q8_0", "q4_k_m", "f32", "bf16"])
def test_bytes_of_matrices_pass_through(tmp_path, recipe):
    file, reader, summary = gguf_export(tmp_path, recipe, ratio=1)
    for role, name in (("mlp.gate_proj", "ffn_gate"), ("linear_attn.in_proj_qkv", "attn_qkv"),
                       ("mlp.down_proj", "ffn_down")):  # fmt: skip
        source = f"{LAYER}{role}.weight"
        matrix = tensor(reader, f"blk.0.{name}.weight")
        assert matrix.tobytes() == file.raw(source).tobytes(), source
    assert summary["tensors"] == len(reader.tensors)
    assert all("visual" in name for name in summary["skipped"])
    np.testing.assert_array_equal(
        tensor(reader, "blk.4.nextn.enorm.weight"),
        values(file, "mtp.pre_fc_norm_embedding.weight") + np.float32(1),
    )


def test_the_transforms(tmp_path):
    file, reader, _ = gguf_export(tmp_path, "f32", ratio=1)
    norm = values(file, f"{LAYER}input_layernorm.weight")
    np.testing.assert_array_equal(tensor(reader, "blk.0.attn_norm.weight"), norm + np.float32(1))
    plain = values(file, f"{LAYER}linear_attn.norm.weight")
    np.testing.assert_array_equal(tensor(reader, "blk.0.ssm_norm.weight"), plain)
    decay = values(file, f"{LAYER}linear_attn.A_log")
    np.testing.assert_array_equal(
        tensor(reader, "blk.0.ssm_a"), -np.exp(decay.astype(np.float64)).astype(np.float32)
    )
    conv = values(file, f"{LAYER}linear_attn.conv1d.weight")
    np.testing.assert_array_equal(tensor(reader, "blk.0.ssm_conv1d.weight"), conv[:, 0])


def heads(keys, values, key_size=4, value_size=2):
    return Heads(1, 1, 2, keys, values, key_size, value_size)


def test_the_order_of_value_heads():
    assert value_heads(heads(2, 6), 1).tolist() == [0, 3, 1, 4, 2, 5]
    assert value_heads(heads(2, 6), 2)[:4].tolist() == [0, 1, 6, 7]
    assert value_heads(heads(2, 2), 1).tolist() == [0, 1]


def test_reordered_rows_and_columns_are_the_same_weights(tmp_path):
    file, reader, summary = gguf_export(tmp_path, "q8_0", ratio=2)
    order = value_heads(heads(2, 4), 32)
    z = file.raw(f"{LAYER}linear_attn.in_proj_z.weight").reshape(128, -1)
    assert tensor(reader, "blk.0.attn_gate.weight").tobytes() == z[order].tobytes()
    out = values(file, f"{LAYER}linear_attn.out_proj.weight")
    back = gguf.dequantize(tensor(reader, "blk.0.ssm_out.weight"), gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(back, out[:, order])
    assert not summary["warnings"]


def test_blocks_that_span_heads_are_decoded_and_it_is_said(tmp_path):
    _, reader, summary = gguf_export(tmp_path, "q4k", ratio=4, hidden=256)
    entry = next(t for t in reader.tensors if t.name == "blk.0.ssm_out.weight")
    assert entry.tensor_type.name == "F16"
    assert any("out_proj" in warning and "F16" in warning for warning in summary["warnings"])


@pytest.mark.parametrize("case", CASES)
def test_llama_cpp_computes_the_same_logits(tmp_path, case):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    family, own = CASES[case]
    if family not in {o.declaration.name for o in get_registry().declarations("family")}:
        pytest.skip(f"no family {family} is installed")
    config = get_registry().make("family", family).tiny_config() | own
    path, out = tiny_apr(family, tmp_path, "f32", config=config), tmp_path / "m.gguf"
    with AprFile.open(path) as file:
        export(file, out)
    ids = np.random.default_rng(1).integers(0, 261, 40).tolist()
    with load(path) as model:
        ours = model.logits(ids)
    theirs = llama_cpp.Llama(str(out), n_ctx=64, logits_all=True, verbose=False)
    theirs.eval(ids)
    scores = np.array(theirs.scores[: len(ids)])
    assert np.corrcoef(ours.ravel(), scores.ravel())[0, 1] > 0.9999
    assert np.mean(ours.argmax(-1) == scores.argmax(-1)) >= 0.98


def test_a_family_without_a_place_is_refused(tmp_path):
    file, _, _ = gguf_export(tmp_path, "f32", ratio=1)
    file.metadata["apr.family"] = "mamba"
    with pytest.raises(AprError, match="does not know model family 'mamba'"):
        export(file, tmp_path / "no.gguf")
    assert not (tmp_path / "no.gguf").exists()


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    file, _, _ = gguf_export(tmp_path, "f32", ratio=1)
    before = sorted(p.name for p in tmp_path.iterdir())

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    with pytest.raises(OSError, match="No space"):
        export(file, tmp_path / "no.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == before
