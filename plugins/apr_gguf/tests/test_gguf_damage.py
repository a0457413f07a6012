"""Damaged GGUF files, and those that nobody reads: each gets its error, and no memory."""

from __future__ import annotations

import os
import random
import re
import resource
import struct

import numpy as np
import pytest

gguf = pytest.importorskip("gguf", reason="the package that writes what is damaged here")

from apr_core.errors import AprError, ContractError, FormatError, NotFound
from apr_core.format import AprFile
from apr_core.importing.importer import plan_import
from apr_core.importing.source import find_source
from apr_core.registry import get_registry
from apr_devkit.tiny import tiny_apr
from apr_gguf.checkpoint import open_checkpoint
from apr_gguf.export import export
from apr_gguf.reader import Keys, read_header
from apr_gguf.tokenizer import PRE, tokenizer_files

pytestmark = pytest.mark.needs_plugins

MUTATIONS = int(os.environ.get("APR_MUTATIONS", "800"))
SHAPES = {
    "token_embd": (4, 8), "output_norm": (8,), "blk.0.attn_norm": (8,), "blk.0.ffn_norm": (8,),
    "blk.0.attn_q": (8, 8), "blk.0.attn_k": (4, 8), "blk.0.attn_v": (4, 8),
    "blk.0.attn_output": (8, 8), "blk.0.ffn_gate": (8, 8), "blk.0.ffn_up": (8, 8),
    "blk.0.ffn_down": (8, 8),
}  # fmt: skip


def write(path, architecture="llama", **changed):
    """A Llama of one layer and four tokens, 3 KB; `changed` are shapes, None for no such tensor."""
    w = gguf.GGUFWriter(path, architecture)
    for key, value in {
        "block_count": 1, "context_length": 64, "embedding_length": 8, "feed_forward_length": 8,
        "attention.head_count": 2, "attention.head_count_kv": 1,
    }.items():  # fmt: skip
        w.add_uint32(f"{architecture}.{key}", value)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("smollm")
    w.add_token_list(["a", "b", "ab", "<s>"])
    w.add_token_types([1, 1, 1, 3])
    w.add_token_merges(["a b"])
    w.add_eos_token_id(3)
    for name, shape in (SHAPES | changed).items():
        if shape is not None:
            w.add_tensor(f"{name}.weight", np.ones(shape, np.float32))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return path


def plan(path):
    registry = get_registry()
    return plan_import(find_source(str(path), registry), recipe=None, arch=None, registry=registry)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bytes of a file that can be imported."""
    path = write(tmp_path_factory.mktemp("whole") / "m.gguf")
    assert plan(path).config.hidden_size == 8
    return path.read_bytes()


def put(pattern, code, value, after=0):
    """A change: a number behind a name in the file."""

    def change(raw):
        struct.pack_into(f"<{code}", raw, raw.index(pattern) + len(pattern) + after, value)

    return change


DAMAGE = {
    "magic": (lambda raw: raw.__setitem__(slice(0, 4), b"GGML"), "begins with b'GGML'"),
    "version": (lambda raw: struct.pack_into("<I", raw, 4, 9), "is GGUF version 9, known are"),
    "tensors": (lambda raw: struct.pack_into("<Q", raw, 8, 2**40), "names 1099511627776 tensors"),
    "keys": (lambda raw: struct.pack_into("<Q", raw, 16, 2**62), "and 4611686018427387904 keys"),
    "end": (lambda raw: raw.__delitem__(slice(len(raw) - 100, None)), "ends at byte"),
    "beginning": (lambda raw: raw.__delitem__(slice(10, None)), "are left of the file"),
    "name": (lambda raw: struct.pack_into("<Q", raw, 24, 2**50), "the name of a key takes"),
    "key type": (put(b"llama.block_count", "I", 77), "has a value of unknown type 77"),
    "missing": (lambda raw: raw.__setitem__(raw.index(b"block_count"), 99),
                r"the key 'llama\.block_count' is missing"),
    "layers": (put(b"llama.block_count", "I", 2**31, 4), "has 2147483648 layers, expected 1 to"),
    "heads": (put(b"llama.attention.head_count", "I", 2**31, 4), "numbers of heads fit none"),
    "offset": (put(b"blk.0.ffn_down.weight", "Q", 2**40, 24), "ends at byte 1099511"),
    "dims": (put(b"blk.0.ffn_down.weight", "I", 9), "has 9 dimensions, at most 4"),
    "shape": (put(b"blk.0.ffn_down.weight", "Q", 2**62, 4), "is no whole number of F32 blocks"),
    "tensor type": (put(b"blk.0.ffn_down.weight", "I", 99, 20), "is of type 99, which this"),
    "unread type": (put(b"blk.0.ffn_down.weight", "I", 24, 20), "is I8, known are F32, F16"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_named(whole, tmp_path, damage):
    change, words = DAMAGE[damage]
    raw = bytearray(whole)
    change(raw)
    (tmp_path / "bad.gguf").write_bytes(raw)
    with pytest.raises(FormatError, match=words):
        plan(tmp_path / "bad.gguf")


def test_mutated_headers_give_documented_errors_only(whole, tmp_path):
    """APR_MUTATIONS=10000 makes more of them."""
    rng, path, fine = random.Random(1), tmp_path / "mutated.gguf", 0
    end = whole.rindex(b"blk.0.ffn_down.weight") + 60
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(MUTATIONS):
        raw = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(end)] = rng.choice([0, 1, 255, rng.randrange(256)])
        path.write_bytes(raw[: rng.choice([len(raw)] * 3 + [rng.randrange(len(raw))])])
        try:
            planned = plan(path)
            for a in planned.assignments:
                planned.checkpoint.read_rows(a.rule.name)
            fine += 1
        except AprError as error:
            assert error.message
    assert 0 < fine < MUTATIONS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_tensors_that_do_not_fit_are_listed(tmp_path):
    path = write(tmp_path / "m.gguf", **{"blk.0.ffn_up": (8, 9), "blk.0.ffn_norm": None})
    with pytest.raises(ContractError, match=r"missing \(1\)(.|\n)*wrong shape \(1\)"):
        plan(path)


def test_experts_that_do_not_match_the_router_are_named(tmp_path):
    if "qwen3_5_moe" not in {o.declaration.name for o in get_registry().declarations("family")}:
        pytest.skip("no family with experts is installed")
    with AprFile.open(tiny_apr("qwen3_5_moe", tmp_path, "f16")) as file:
        export(file, tmp_path / "m.gguf")
    raw = bytearray((tmp_path / "m.gguf").read_bytes())
    put(b"blk.0.ffn_gate_inp.weight", "Q", 5, 12)(raw)
    (tmp_path / "bad.gguf").write_bytes(raw)
    with pytest.raises(
        ContractError, match=r"mlp\.gate\.weight has shape \[5, 256\], expected \[6,"
    ):
        plan(tmp_path / "bad.gguf")


def test_an_architecture_that_nobody_provides_is_named(tmp_path):
    with pytest.raises(FormatError, match="is of architecture 'mamba', known are gemma3, llama"):
        open_checkpoint(str(write(tmp_path / "m.gguf", "mamba")))


def test_what_no_plugin_reads_names_the_package(tmp_path, monkeypatch):
    registry = get_registry()
    path = write(tmp_path / "m.gguf")
    monkeypatch.setattr(type(registry), "declarations", _without_families(registry))
    with pytest.raises(AprError, match="no installed plugin reads architecture LlamaFor") as error:
        plan(path)
    assert "pip install apr-llama" in error.value.hint


def _without_families(registry):
    declared = type(registry).declarations
    return lambda self, kind: [] if kind == "family" else declared(self, kind)


def test_parts_of_a_split_file_belong_together(whole, tmp_path):
    (tmp_path / "m-00002-of-00003.gguf").write_bytes(whole)
    with pytest.raises(
        NotFound, match=r"2 of 3 parts are missing: m-00001-of-00003\.gguf, m-00003"
    ):
        open_checkpoint(str(tmp_path / "m-00002-of-00003.gguf"))


def test_what_tokenizer_is_not_read_is_named(whole, tmp_path):
    (tmp_path / "m.gguf").write_bytes(whole)
    keys = dict(read_header(tmp_path / "m.gguf").keys)
    for key, value, words in (
        ("pre", "bloom", "pre-tokenizer 'bloom' is not supported"),
        ("model", "t5", "tokenizer is of unigrams ('t5'), read are"),
        ("model", "bert", "tokenizer is WordPiece ('bert'), read are"),
        ("merges", 3, "'tokenizer.ggml.merges' is 3, of another type"),
        ("tokens", ["a", "a"], "has tokens that are empty, very long, or there twice"),
        ("token_type", np.zeros(7, "i4"), "has 4 tokens and 7 types of them"),
    ):
        with pytest.raises(FormatError, match=re.escape(words)) as error:
            tokenizer_files(Keys("m.gguf", keys | {f"tokenizer.ggml.{key}": value}))
        assert key != "model" or "Import the original checkpoint" in error.value.hint
    with pytest.raises(FormatError, match=r"the key 'tokenizer\.ggml\.tokens' is missing"):
        tokenizer_files(Keys("m.gguf", {k: v for k, v in keys.items() if "tokens" not in k}))
    assert set(PRE) >= {"qwen2", "smollm", "llama-bpe"}
