"""Qwen3.5 with experts: the published size, both layouts of checkpoints, and what is refused."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from apr_core.errors import ContractError, FormatError
from apr_core.format import AprFile
from apr_core.registry import get_registry
from apr_core.runtime import find_source, plan_import, write_import
from apr_devkit.tiny import random_weights, safetensors_bytes, tiny_checkpoint
from apr_qwen3_5_moe.family import Qwen35Moe

HF = Qwen35Moe().tiny_config()
PUBLISHED = {
    "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16,
    "num_key_value_heads": 2, "head_dim": 256, "vocab_size": 248320, "num_experts": 256,
    "num_experts_per_tok": 8, "moe_intermediate_size": 512, "layer_types": None,
    "shared_expert_intermediate_size": 512, "linear_num_key_heads": 16,
    "linear_num_value_heads": 32, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
    "tie_word_embeddings": False, "max_position_embeddings": 262144,
}  # fmt: skip
EXPERTS = "model.layers.0.mlp.experts."


def test_the_contract_has_the_published_size():
    family = Qwen35Moe()
    config = family.config(HF | PUBLISHED)
    rules = family.contract().rules(config, "published")
    assert family.contract().variant_of(config) == "35b-a3b"
    assert round(sum(math.prod(r.shape) for r in rules) / 1e9, 2) == 34.66
    policy = {r.role: r.quant_class for r in rules}
    assert (policy["router"], policy["shared_gate"]) == ("keep", "keep")
    assert (policy["experts_gate_up"], policy["experts_down"]) == ("matrix", "down")
    assert {block.mlp for block in family.plan(config).blocks} == {"shared_and_routed_experts"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm_topk_prob": False}, "norm_topk_prob = False is not supported"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step = 2 is not supported"),
        ({"mlp_only_layers": [3]}, "mlp_only_layers = 'given' is not supported"),
        ({"num_experts_per_tok": 7}, "num_experts_per_tok is 7, expected a whole number from 1 to"),
        ({"moe_intermediate_size": None}, "lacks 'moe_intermediate_size'"),
        ({"attention_bias": True}, "attention_bias = True is not supported"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(change, words):
    with pytest.raises(ContractError, match=words):
        Qwen35Moe().config(HF | change)


def one_by_one(tensors):
    """The tensors of a checkpoint with a tensor for each expert."""
    others = {name: values for name, values in tensors.items() if ".experts." not in name}
    for name in tensors.keys() - others.keys():
        prefix, _, stack = name.rpartition(".")
        for e, matrix in enumerate(tensors[name]):
            roles = ("gate_proj", "up_proj") if stack == "gate_up_proj" else ("down_proj",)
            for role, part in zip(roles, np.split(matrix, len(roles)), strict=True):
                others[f"{prefix}.{e}.{role}.weight"] = part
    return others


def plan(folder, change=lambda tensors: None, recipe="f16", **config):
    """The plan of an import of a tiny checkpoint with a tensor for each expert, changed."""
    checkpoint = tiny_checkpoint("qwen3_5_moe", folder)
    family = Qwen35Moe()
    tensors = one_by_one(random_weights(family.contract(), family.config(HF)))
    change(tensors)
    (checkpoint / "model.safetensors").write_bytes(safetensors_bytes(tensors))
    (checkpoint / "config.json").write_text(json.dumps(HF | config))
    registry = get_registry()
    return plan_import(
        find_source(str(checkpoint), registry), recipe=recipe, arch=None, registry=registry
    )


def test_both_layouts_become_the_same_file(tmp_path):
    registry, files = get_registry(), []
    whole = find_source(str(tiny_checkpoint("qwen3_5_moe", tmp_path / "whole")), registry)
    first = plan_import(whole, recipe="f16", arch=None, registry=registry)
    for name, each in (("a.apr", first), ("b.apr", plan(tmp_path / "single"))):
        write_import(each, tmp_path / name)
        files.append(AprFile.open(tmp_path / name))
    a, b = files
    assert list(a.tensors) == list(b.tensors)
    for name in a.tensors:
        np.testing.assert_array_equal(a.raw(name), b.raw(name), name)
    for file in files:
        file.close()


@pytest.mark.parametrize(
    ("change", "config", "words"),
    [
        (lambda t: t.pop(f"{EXPERTS}3.up_proj.weight"), {},
         r"tensor 'model.layers.0.mlp.experts.3.up_proj.weight' is missing"),
        (lambda t: None, {"num_experts": 7}, r"experts.6.gate_proj.weight' is missing"),
        (lambda t: None, {"num_experts": 5}, r"(?s)unexpected.*experts.5.down_proj.weight"),
        (lambda t: t.update({f"{EXPERTS}2.down_proj.weight": np.ones((256, 256), np.float32)}), {},
         r"experts.2.down_proj.weight' has \[256, 256\] BF16 for an expert, and .*\[256, 512\]"),
        (lambda t: t.update({"model.layers.0.mlp.gate.weight": np.ones((5, 256), np.float32)}), {},
         r"mlp.gate.weight has shape \[5, 256\], expected \[6, 256\]"),
    ],
)  # fmt: skip
def test_experts_that_do_not_fit_are_named(tmp_path, change, config, words):
    with pytest.raises(ContractError, match=words):
        plan(tmp_path, change, **config)


def test_rows_that_end_inside_a_block_are_refused(tmp_path):
    config = HF | {"moe_intermediate_size": 96}
    checkpoint = tiny_checkpoint("qwen3_5_moe", tmp_path, config=config)
    source, registry = find_source(str(checkpoint), get_registry()), get_registry()
    with pytest.raises(FormatError, match=r"experts.down_proj': its rows of 96 values end inside"):
        plan_import(source, recipe="q4k", arch=None, registry=registry)
