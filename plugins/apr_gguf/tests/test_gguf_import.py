"""GGUF files as checkpoints: what was exported comes back bit for bit, damage is named."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from apr_core import load
from apr_core.cli.import_ import run_import
from apr_core.errors import UsageError
from apr_core.format import AprFile, decode_tensor
from apr_core.importing.metadata import NUMBERS
from apr_core.importing.source import find_source
from apr_core.registry import get_registry
from apr_core.validation.quality import open_source
from apr_devkit.tiny import tiny_checkpoint
from apr_gguf.changes import Heads, value_heads
from apr_gguf.checkpoint import open_checkpoint
from apr_gguf.export import export
from apr_gguf.reader import read_header

pytestmark = pytest.mark.needs_plugins


WIDE = {"hidden_size": 256, "intermediate_size": 512}  # rows of whole blocks of 256
SIZES = {  # families, and what their tiny models have otherwise
    "llama": {"num_attention_heads": 4, "num_key_value_heads": 2},
    "qwen2": {},
    "qwen3": {"num_hidden_layers": 1},
    "gemma3": {"query_pre_attn_scalar": 32},
    "qwen3_5": {"linear_num_value_heads": 8},  # four for each key head
    "qwen3_5_moe": {"shared_expert_intermediate_size": 256},
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A function of family and recipe, by default a Qwen2: (the .apr file, its GGUF)."""
    folder, models = tmp_path_factory.mktemp("gguf"), {}

    def make(recipe, family="qwen2"):
        if family not in {o.declaration.name for o in get_registry().declarations("family")}:
            pytest.skip(f"no family {family} is installed")
        source, path = folder / family, folder / f"{family}-{recipe}.apr"
        if not source.exists():
            config = get_registry().make("family", family).tiny_config() | WIDE | SIZES[family]
            tiny_checkpoint(family, source, config=config)
        if path not in models:
            run_import(str(source), path, recipe)
            with AprFile.open(path) as file:
                models[path] = export(file, path.with_suffix(".gguf"))
        return path, path.with_suffix(".gguf")

    return make


@pytest.mark.parametrize(
    ("family", "recipe"),
    [(f, r) for f in SIZES for r in ("q4_k_m", "q6k", "q8_0", "f16")]
    + [("llama", "bf16"), ("llama", "f32")],
)
def test_what_was_exported_comes_back_bit_for_bit(exported, tmp_path, family, recipe):
    original, gguf = exported(recipe, family)
    summary = run_import(str(gguf), tmp_path / "again.apr")
    assert summary.recipe == "source"
    with AprFile.open(original) as a, AprFile.open(tmp_path / "again.apr") as b:
        assert set(a.tensors) == set(b.tensors)
        cut = 0
        for name, entry in a.tensors.items():
            if len(entry.shape) == 2 and b.tensors[name].format == entry.format:
                np.testing.assert_array_equal(a.raw(name), b.raw(name))
            cut += len(entry.shape) == 2 and b.tensors[name].format != entry.format
        assert cut == 0 or family not in ("llama", "qwen2")
        for key in (*NUMBERS, "layer_types", "tokenizer.vocabulary", "tokenizer.merges",
                    "tokenizer.token_type", "special_tokens", "apr.family", "apr.stop_ids",
                    "chat_template"):  # fmt: skip
            assert a.metadata[key] == b.metadata[key], key
        assert b.metadata["original_format"] == "gguf"
        export(b, tmp_path / "again.gguf")
    if recipe == "q8_0":
        with load(original) as ours, load(tmp_path / "again.apr") as theirs:
            ids = list(range(3, 40))
            np.testing.assert_allclose(ours.logits(ids), theirs.logits(ids), atol=1e-5)
    first, second = read_header(gguf), read_header(tmp_path / "again.gguf")
    assert set(first.tensors) == set(second.tensors)
    for name, t in first.tensors.items():
        other = second.tensors[name]
        assert (t.shape, t.type) == (other.shape, other.type)
        assert _bytes(first, t) == _bytes(second, other), name


def _bytes(file, tensor):
    with file.path.open("rb") as stream:
        stream.seek(tensor.offset)
        return stream.read(tensor.nbytes)


def test_what_a_file_says_of_its_origin_is_kept(exported, tmp_path):
    told = {"general.name": "Tiny", "general.license": "mit", "general.author": "Ann"}
    original, _ = exported("f16")
    with AprFile.open(original) as file:
        file.metadata["source_metadata"] = told
        export(file, tmp_path / "told.gguf")
    run_import(str(tmp_path / "told.gguf"), tmp_path / "told.apr")
    with AprFile.open(tmp_path / "told.apr") as file:
        assert file.metadata["source_metadata"] == told


def test_a_directory_of_a_gguf_file_is_opened_too(exported):
    _, gguf = exported("q8_0")
    folder = gguf.parent
    source = find_source(str(folder), get_registry())
    assert source.checkpoint is not None and source.checkpoint.file_format == "gguf"


def test_a_scheme_of_that_name_is_no_place_to_fetch_from():
    with pytest.raises(UsageError, match="gguf is no place to fetch from, but a kind of file"):
        find_source("gguf://model", get_registry())


def test_what_was_imported_is_compared_with_the_file_it_came_from(exported, tmp_path):
    _, gguf = exported("f16")
    run_import(str(gguf), tmp_path / "m.apr", "q8_0")
    with AprFile.open(tmp_path / "m.apr") as file:
        assert "apr.source_path" not in file.metadata
        checkpoint, why = open_source(file, str(gguf), get_registry())
    assert checkpoint is not None and not why
    assert checkpoint.read_rows("model.norm.weight").dtype == np.float32


def test_it_may_be_encoded_anew(exported, tmp_path):
    _, gguf = exported("f16")
    run_import(str(gguf), tmp_path / "m.apr", "q4_k_m")
    with AprFile.open(tmp_path / "m.apr") as file:
        assert {t.format for t in file.tensors.values()} >= {"q4_k", "q6_k"}


def test_rows_that_were_turned_are_turned_back(exported):
    """Llama's q and k: pairs that GGUF has side by side are half a head apart."""
    path, gguf = exported("f16", "llama")
    checkpoint = open_checkpoint(str(gguf))
    name, stored = "model.layers.0.self_attn.q_proj.weight", read_header(gguf)
    with AprFile.open(path) as file:
        plain = file.raw(name).reshape(file.tensors[name].shape[0], -1).copy()
    turned = np.frombuffer(_bytes(stored, stored.tensors["blk.0.attn_q.weight"]), np.uint8)
    size = len(plain) // 4
    for h in range(4):
        for i in range(size // 2):
            for j in (0, 1):
                np.testing.assert_array_equal(
                    turned.reshape(plain.shape)[h * size + 2 * i + j],
                    plain[h * size + j * size // 2 + i],
                )
    np.testing.assert_array_equal(checkpoint.read_raw(name, 5, 40), plain[5:40].reshape(-1))


def test_blocks_that_a_change_of_columns_cuts_are_decoded_and_it_is_said(
    exported, tmp_path, monkeypatch
):
    path, _ = exported("q4_k_m", "qwen3_5")
    gguf, name = tmp_path / "packed.gguf", "model.layers.0.linear_attn.out_proj.weight"
    with monkeypatch.context() as patch, AprFile.open(path) as file:
        patch.setattr("apr_gguf.tensors.cuts", lambda order, block: False)
        export(file, gguf)  # one block a row: it stays where it is
        entry = file.tensors[name]
        values = decode_tensor(entry, file.raw(name), partial(get_registry().make, "quantizer"))
    back = np.argsort(value_heads(Heads(1, 1, 2, 2, 8, 32, 32), 32))
    for recipe, format in ((None, "f16"), ("q8_0", "q8_0")):
        summary = run_import(str(gguf), tmp_path / "m.apr", recipe, force=True)
        with AprFile.open(tmp_path / "m.apr") as file:
            found = file.tensors[name]
            assert (entry.format, found.format) == ("q5_k", format)
            if recipe is None:
                halves = file.raw(name).view(np.float16).reshape(values.shape)
                np.testing.assert_array_equal(halves, values[:, back].astype(np.float16))
        assert len(summary.notes) == 1 and summary.notes[0].startswith(f"3 matrices like {name}")
        assert "blocks of q5_k: as f16 they take 0.4 instead of 0.1 MiB" in summary.notes[0]
    assert not open_checkpoint(str(exported("q8_0", "qwen3_5")[1])).notes
