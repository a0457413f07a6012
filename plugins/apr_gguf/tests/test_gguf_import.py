"""GGUF files as checkpoints: what was exported comes back bit for bit, damage is named."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from apr_core import load
from apr_core.cli.import_ import run_import
from apr_core.errors import AprError, FormatError, NotFound, UsageError
from apr_core.format import AprFile
from apr_core.importing import find_source
from apr_core.registry import get_registry
from apr_core.validation.quality import open_source
from apr_gguf.architectures import ARCHITECTURES, Keys
from apr_gguf.checkpoint import open_checkpoint
from apr_gguf.export import export
from apr_gguf.reader import read_header
from apr_gguf.tokenizer import PRE, tokenizer_files
from tests import tiny_checkpoints

pytestmark = pytest.mark.needs_plugins


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """{recipe: (the .apr file, its GGUF)} of tiny Qwen2 models."""
    folder, models = tmp_path_factory.mktemp("gguf"), {}
    options = {"family": "qwen2", "layout": "flat", "mtp": False, "vision": False}
    source = tiny_checkpoints.write(folder / "checkpoint", **options)
    for recipe in ("q4_k_m", "q8_0", "f16", "bf16"):
        path = folder / f"{recipe}.apr"
        run_import(str(source), path, recipe)
        with AprFile.open(path) as file:
            export(file, folder / f"{recipe}.gguf")
        models[recipe] = path, folder / f"{recipe}.gguf"
    return models


@pytest.mark.parametrize("recipe", ["q4_k_m", "q8_0", "f16", "bf16"])
def test_what_was_exported_comes_back_bit_for_bit(exported, tmp_path, recipe):
    original, gguf = exported[recipe]
    run_import(str(gguf), tmp_path / "again.apr")
    with AprFile.open(original) as a, AprFile.open(tmp_path / "again.apr") as b:
        assert set(a.tensors) == set(b.tensors)
        for name, entry in a.tensors.items():
            if len(entry.shape) == 2:
                assert b.tensors[name].format == entry.format
                np.testing.assert_array_equal(a.raw(name), b.raw(name))
        assert a.metadata["tokenizer.vocabulary"] == b.metadata["tokenizer.vocabulary"]
        assert b.metadata["original_format"] == "gguf"
    with load(original) as ours, load(tmp_path / "again.apr") as theirs:
        ids = list(range(3, 40))
        np.testing.assert_array_equal(ours.logits(ids), theirs.logits(ids))
    export_again = tmp_path / "again.gguf"
    with AprFile.open(tmp_path / "again.apr") as file:
        export(file, export_again)
    first, second = read_header(gguf), read_header(export_again)
    assert set(first.tensors) == set(second.tensors)
    for name, t in first.tensors.items():
        other = second.tensors[name]
        assert (t.shape, t.type) == (other.shape, other.type)
        assert _bytes(first, t) == _bytes(second, other)


def _bytes(file, tensor):
    with file.path.open("rb") as stream:
        stream.seek(tensor.offset)
        return stream.read(tensor.nbytes)


def test_a_directory_of_a_gguf_file_is_opened_too(exported):
    _, gguf = exported["q8_0"]
    folder = gguf.parent
    source = find_source(str(folder), get_registry())
    assert source.checkpoint is not None and source.checkpoint.file_format == "gguf"


def test_a_scheme_of_that_name_is_no_place_to_fetch_from():
    with pytest.raises(UsageError, match="gguf is no place to fetch from, but a kind of file"):
        find_source("gguf://model", get_registry())


def test_what_was_imported_is_compared_with_the_file_it_came_from(exported, tmp_path):
    _, gguf = exported["f16"]
    run_import(str(gguf), tmp_path / "m.apr", "q8_0")
    with AprFile.open(tmp_path / "m.apr") as file:
        assert "apr.source_path" not in file.metadata
        checkpoint, why = open_source(file, str(gguf), get_registry())
    assert checkpoint is not None and not why
    assert checkpoint.read_rows("model.norm.weight").dtype == np.float32


def test_it_may_be_encoded_anew(exported, tmp_path):
    _, gguf = exported["f16"]
    run_import(str(gguf), tmp_path / "m.apr", "q4_k_m")
    with AprFile.open(tmp_path / "m.apr") as file:
        assert {t.format for t in file.tensors.values()} >= {"q4_k", "q6_k"}


def test_rows_that_were_turned_are_turned_back(exported):
    """Llama's q and k: pairs that GGUF has side by side are half a head apart."""
    _, gguf = exported["f16"]
    checkpoint = open_checkpoint(str(gguf))
    name = "model.layers.0.self_attn.q_proj.weight"
    plain = checkpoint.read_raw(name).reshape(checkpoint.tensors[name].shape[0], -1)
    checkpoint.arch = ARCHITECTURES["llama"]
    turned = checkpoint.read_raw(name).reshape(plain.shape)
    heads = checkpoint.keys.own("attention.head_count")
    size = len(plain) // heads
    for h in range(heads):
        for i in range(size // 2):
            for j in (0, 1):
                np.testing.assert_array_equal(
                    turned[h * size + j * size // 2 + i], plain[h * size + 2 * i + j]
                )
    np.testing.assert_array_equal(checkpoint.read_raw(name, 5, 40), turned[5:40].reshape(-1))


def test_parts_of_a_split_file_belong_together(exported, tmp_path):
    _, gguf = exported["q8_0"]
    (tmp_path / "m-00002-of-00003.gguf").write_bytes(gguf.read_bytes())
    with pytest.raises(
        NotFound, match=r"2 of 3 parts are missing: m-00001-of-00003\.gguf, m-00003"
    ):
        open_checkpoint(str(tmp_path / "m-00002-of-00003.gguf"))


def damaged(gguf, tmp_path, change):
    raw = bytearray(gguf.read_bytes())
    change(raw)
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.__setitem__(slice(0, 4), b"GGML"), "begins with b'GGML'"),
        (lambda raw: struct.pack_into("<I", raw, 4, 9), "is GGUF version 9"),
        (lambda raw: struct.pack_into("<Q", raw, 8, 2**40), "names 1099511627776 tensors"),
        (lambda raw: struct.pack_into("<Q", raw, 16, 2**62), "and 4611686018427387904 keys"),
        (lambda raw: raw.__delitem__(slice(len(raw) - 100, None)), "ends at byte"),
        (lambda raw: raw.__delitem__(slice(10, None)), "are left of the file"),
        (lambda raw: struct.pack_into("<Q", raw, 24, 2**50), "the name of a key takes"),
    ],
)
def test_damage_is_named(exported, tmp_path, change, words):
    with pytest.raises(FormatError, match=words):
        open_checkpoint(str(damaged(exported["q8_0"][1], tmp_path, change)))


def test_mutated_headers_give_documented_errors_only(exported, tmp_path):
    raw = exported["q4_k_m"][1].read_bytes()
    rng, path = random.Random(1), tmp_path / "mutated.gguf"
    for _ in range(300):
        changed = bytearray(raw)
        for _ in range(rng.randint(1, 4)):
            changed[rng.randrange(0, min(len(raw), 9000))] = rng.randrange(256)
        path.write_bytes(changed[: rng.choice([len(raw), len(raw), rng.randrange(len(raw))])])
        try:
            run_import(str(path), tmp_path / "m.apr", force=True)
        except AprError as error:
            assert error.message


def test_what_nobody_provides_is_named(exported):
    keys = dict(read_header(exported["q8_0"][1]).keys)
    with pytest.raises(FormatError, match="pre-tokenizer 'tekken' is not supported"):
        tokenizer_files(Keys("m.gguf", keys | {"tokenizer.ggml.pre": "tekken"}))
    with pytest.raises(FormatError, match="tokenizer 'llama' is not supported"):
        tokenizer_files(Keys("m.gguf", keys | {"tokenizer.ggml.model": "llama"}))
    with pytest.raises(FormatError, match=r"the key 'tokenizer\.ggml\.tokens' is missing"):
        tokenizer_files(Keys("m.gguf", {k: v for k, v in keys.items() if "tokens" not in k}))
    with pytest.raises(FormatError, match=r"'tokenizer.ggml.merges' is 3, of another type"):
        tokenizer_files(Keys("m.gguf", keys | {"tokenizer.ggml.merges": 3}))
    assert set(PRE) >= {"qwen2", "smollm", "llama-bpe"}
