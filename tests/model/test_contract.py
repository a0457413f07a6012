"""Contracts: the schema, shape expressions, and what a contract says about found tensors."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import yaml

from apr_core.errors import ContractError
from apr_core.family.contract import LISTED, Contract, evaluate_shape
from apr_core.family.modelspec import ModelConfig

CONTENT = yaml.safe_load("""
family: toy
display_name: Toy
vendor: nobody
contract_version: 3
hf_pattern: "toy/*"
size_variants:
  small: {parameters: 1K, hidden_dim: 8, num_layers: 2, num_heads: 2, intermediate_dim: 16,
          vocab_size: 32, experts: 4}
constraints: {attention_type: mha, activation: silu, norm_type: rmsnorm, has_bias: "false",
              tied_embeddings: "true", positional_encoding: rope, mlp_type: swiglu,
              qk_norm: false, norm_offset: 1.0}
layouts:
  long: {prefix: "model.text.", head: "lm_head.weight"}
  short: {prefix: "model.", head: "lm_head.weight"}
layer_type_aliases: {attention: full}
layer_types: {full: [q], linear: [conv]}
tensor_template:
  embedding: "{prefix}embed.weight"
  lm_head: "{head}"
  final_norm: "{prefix}norm.weight"
  per_layer:
    norm: "{prefix}layers.{n}.norm.weight"
    q: "{prefix}layers.{n}.q.weight"
    conv: "{prefix}layers.{n}.conv.weight"
    unused: null
shape_template:
  embedding: "[vocab_size, hidden_dim]"
  lm_head: "[vocab_size, hidden_dim]"
  final_norm: "[hidden_dim]"
  norm: "[hidden_dim]"
  q: "[num_heads * head_dim, hidden_dim]"
  conv: "[2 * (hidden_dim + 1), 1, conv_width]"
quantization_policy:
  {embedding: embedding, lm_head: head, final_norm: keep, norm: keep, q: matrix, conv: keep}
carry:
  draft:
    when: draft_layers
    tensors: {draft.a.weight: "[hidden_dim, hidden_dim]", draft.b.weight: "[hidden_dim]"}
    policy: {draft.a.weight: matrix}
leave_out: {"model.vision.*": "pictures"}
""")


def contract(**changes):
    return Contract.load(yaml.safe_dump(CONTENT | changes), "toy.yaml")


def config(**changes):
    values = {
        "family": "toy", "architecture": "ToyForCausalLM", "hidden_size": 8, "num_layers": 2,
        "num_heads": 2, "num_kv_heads": 2, "head_dim": 4, "intermediate_size": 16,
        "vocab_size": 32, "max_position_embeddings": 64, "rope_theta": 1e4, "rms_norm_eps": 1e-6,
        "tied_embeddings": True, "layer_types": ("full", "linear"),
        "extra": {"conv_width": 4, "draft_layers": 1},
    }  # fmt: skip
    return ModelConfig(**(values | changes))


def complete(prefix="model.", **more):
    return {
        f"{prefix}embed.weight": (32, 8), f"{prefix}norm.weight": (8,),
        f"{prefix}layers.0.norm.weight": (8,), f"{prefix}layers.0.q.weight": (8, 8),
        f"{prefix}layers.1.norm.weight": (8,), f"{prefix}layers.1.conv.weight": (18, 1, 4),
        "draft.a.weight": (8, 8), "draft.b.weight": (8,),
    } | more  # fmt: skip


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("[a, b]", (6, 4)),
        ("[a * b + 1, a // b, b - 1]", (25, 1, 3)),
        ("[2 * (a + b)]", (20,)),
        ("[]", ()),
    ],
)
def test_shape_expressions(text, shape):
    assert evaluate_shape(text, {"a": 6, "b": 4}) == shape


@pytest.mark.parametrize(
    "text",
    [
        "a", "[a", "[c]", "[a // 0]", "[a ** 9]", "[a / 2]", "[1.5]", "[True]", "[-a]", "['x']",
        "[f(a)]", "[a.b]", "[__import__('os')]", "[[a]]", "[*a]", "[a if a else b]", "(a,)", "",
        "[" + "(" * 300 + "a" + ")" * 300 + "]", "[" + "a+" * 400 + "a]", "[a\0]", "[9" + "9" * 600,
    ],
)  # fmt: skip
def test_expressions_hold_nothing_else(text):
    with pytest.raises(ContractError):
        evaluate_shape(text, {"a": 6, "b": 4})


def test_schema_accepts_quoted_booleans_null_roles_and_other_integers():
    toy = contract()
    assert toy.family == "toy" and toy.version == 3 and toy.norm_offset == 1.0
    assert toy.variants["small"]["experts"] == 4


def test_all_problems_at_once_with_file_and_key_path():
    broken = copy.deepcopy(CONTENT)
    del broken["vendor"]
    del broken["size_variants"]["small"]["hidden_dim"]
    broken["constraints"]["activation"] = "swish"
    broken["layouts"]["long"]["prefix"] = 7
    broken["surprise"] = 1
    with pytest.raises(ContractError) as error:
        Contract.load(yaml.safe_dump(broken), "toy.yaml")
    for part in (
        "toy.yaml", "missing required field: vendor", "size_variants.small.hidden_dim",
        "constraints.activation", "'swish'", "layouts.long.prefix", "unknown field: surprise",
    ):  # fmt: skip
        assert part in error.value.message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape_template": {**CONTENT["shape_template"], "gate": "[1]"}}, "'gate'"),
        ({"quantization_policy": {"q": "matrix"}}, "'conv'"),
        ({"layer_types": {"full": ["q", "zap"]}}, "'zap'"),
        ({"layer_type_aliases": {"attention": "none"}}, "'none'"),
        ({"carry": {"d": {"tensors": {"x": "[1]"}, "policy": {"y": "keep"}}}}, "'y'"),
    ],
)
def test_parts_that_disagree(change, words):
    with pytest.raises(ContractError, match=words):
        contract(**change)


@pytest.mark.parametrize("text", ["[1, 2]", "", "a: [", "just words", "\0"])
def test_not_a_contract(text):
    with pytest.raises(ContractError, match=r"toy\.yaml"):
        Contract.load(text, "toy.yaml")


def test_resolution_of_a_complete_checkpoint():
    extra = {"model.vision.patch.weight": (3, 3), "lm_head.weight": (32, 8)}
    resolution = contract().check(config(), complete(**extra))
    assert resolution.layout == "short"
    assert resolution.name_of("embedding") == "model.embed.weight"
    assert resolution.name_of("conv", 1) == "model.layers.1.conv.weight"
    assert resolution.name_of("q", 0) == "model.layers.0.q.weight"
    with pytest.raises(ContractError, match="no tensor for role 'conv' of layer 0"):
        resolution.name_of("conv", 0)
    assert resolution.rules["model.embed.weight"].quant_class == "head"  # tied
    assert resolution.rules["model.layers.0.q.weight"].layer == 0
    assert resolution.rules["draft.a.weight"].group == "draft"
    assert resolution.rules["draft.a.weight"].quant_class == "matrix"
    assert resolution.rules["draft.b.weight"].quant_class == "keep"
    assert set(resolution.skipped) == set(extra)
    assert resolution.skipped["model.vision.patch.weight"] == "pictures"
    assert "tied" in resolution.skipped["lm_head.weight"]
    with pytest.raises(ContractError, match="no tensor for role 'conv' of layer 0"):
        resolution.name_of("conv", 0)


def test_layout_is_told_by_the_embedding_alone():
    result = contract().check(config(), complete("model.text."))
    assert result.layout == "long" and result.name_of("final_norm") == "model.text.norm.weight"
    with pytest.raises(ContractError, match="no embedding"):
        contract().check(config(), {"something.else": (1,)})


def test_untied_needs_its_head():
    untied = config(tied_embeddings=False)
    with pytest.raises(ContractError, match=r"lm_head\.weight"):
        contract().check(untied, complete())
    resolution = contract().check(untied, complete(**{"lm_head.weight": (32, 8)}))
    assert resolution.rules["model.embed.weight"].quant_class == "embedding"
    assert resolution.rules["lm_head.weight"].quant_class == "head"


def test_missing_unexpected_and_misshapen_in_one_error():
    shapes = complete(**{"model.layers.0.q.weight": (8, 9), "model.layers.7.q.weight": (8, 8)})
    del shapes["model.layers.1.conv.weight"]
    with pytest.raises(ContractError) as error:
        contract().check(config(), shapes)
    message = error.value.message
    assert "missing (1):\n    model.layers.1.conv.weight" in message
    assert "unexpected (1):\n    model.layers.7.q.weight" in message
    assert "model.layers.0.q.weight has shape [8, 9], expected [8, 8]" in message
    assert "toy/3" in message


def test_long_lists_are_counted_not_shown():
    shapes = complete(**{f"extra.{i}": (1,) for i in range(1000)})
    with pytest.raises(ContractError) as error:
        contract().check(config(), shapes)
    assert "unexpected (1000)" in error.value.message
    assert f"and {1000 - LISTED} more" in error.value.message
    assert error.value.message.count("\n") < LISTED + 6


def test_carried_tensors_may_be_absent_and_are_not_wanted_without_their_number():
    shapes = complete()
    del shapes["draft.b.weight"]
    assert contract().check(config(), shapes).absent == ("draft.b.weight",)
    without = config(extra={"conv_width": 4, "draft_layers": 0})
    with pytest.raises(ContractError, match="unexpected"):
        contract().check(without, complete())


def test_layer_types_by_both_spellings():
    toy = contract()
    assert toy.layer_type("attention") == toy.layer_type("full") == "full"
    with pytest.raises(ContractError, match="'mamba'"):
        toy.layer_type("mamba")


def test_variant_by_size():
    assert contract().variant_of(config()) == "small"
    assert contract().variant_of(config(hidden_size=9)) is None


def test_links_point_at_the_packaged_contracts():
    folder = Path(__file__).parents[2] / "contracts"
    for link in (folder / "_schema.yaml", *sorted((folder / "model-families").iterdir())):
        assert link.is_symlink() and not Path(link.readlink()).is_absolute() and link.exists(), link
