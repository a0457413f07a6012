"""Contracts that say a shape wrongly are refused by the kit, with the tensor and both shapes."""

from __future__ import annotations

import copy
import sys
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("apr_qwen2", reason="the family that is changed here")
pytest.importorskip("apr_qwen3_5", reason="a family with two kinds of layers")

from apr_core import load
from apr_core.family.contract import evaluate_shape
from apr_core.plugin import Attention, Contract, ContractError, Family
from apr_core.registry import Registry, get_registry
from apr_devkit.kits.rig import tiny_apr, with_reference
from apr_devkit.kits.widths import check_fit
from apr_qwen2.family import Qwen2
from apr_qwen2.mixers import FullAttention
from apr_qwen3_5.family import Qwen35

pytestmark = pytest.mark.needs_plugins

HIDDEN, INNER, HEADS, KV_HEADS, DIM, VOCABULARY = 128, 256, 4, 2, 32, 320  # of Qwen2's tiny_config


def registry_of(family, mixer=FullAttention):
    """A family and its mixer, with nothing else installed."""
    here = sys.modules[__name__]
    here.Made, here.MadeMixer = family, mixer
    declarations = [
        Family(
            "qwen2", f"{__name__}:Made", architectures=("Qwen2ForCausalLM",), model_types=("qwen2",)
        ),
        Attention("full_attention", f"{__name__}:MadeMixer"),
    ]
    return with_reference(Registry.from_declarations({"apr-mine": declarations}))


def saying(**shapes):
    """Qwen2 with these expressions in its shape_template."""
    content = copy.deepcopy(dict(Qwen2().contract().content))
    content["shape_template"].update(shapes)

    class Changed(Qwen2):
        def contract(self):
            return Contract(content, "changed")

        def tiny_config(self):
            return super().tiny_config() | {"tie_word_embeddings": False}

    return Changed


def refusal(family, mixer=FullAttention, registry=None):
    """What the kit says of a family's contract."""
    registry, made = registry or registry_of(family, mixer), family()
    config = made.config(made.tiny_config())
    with pytest.raises(ContractError) as caught:
        check_fit(made.contract(), config, made.plan(config), registry)
    assert "shape_template" in caught.value.hint
    return caught.value.message


MLP, MIXER = "mlp.{}.weight", "self_attn.{}.weight"
WRONG = [  # role, its tensor, a wrong expression, what fits
    ("gate_proj", MLP, "[hidden_dim, intermediate_dim]", [HIDDEN, HIDDEN]),
    ("up_proj", MLP, "[hidden_dim, intermediate_dim]", [HIDDEN, HIDDEN]),
    ("down_proj", MLP, "[intermediate_dim, hidden_dim]", [INNER, INNER]),
    ("post_attention_norm", "post_attention_layernorm.weight", "[intermediate_dim]", [HIDDEN]),
    ("final_norm", "norm.weight", "[1]", [HIDDEN]),
    ("embedding", "embed_tokens.weight", "[hidden_dim, vocab_size]", [VOCABULARY, HIDDEN]),
    ("lm_head", "lm_head.weight", "[vocab_size, intermediate_dim]", [VOCABULARY, HIDDEN]),
    ("k_proj", MIXER, "[hidden_dim, num_kv_heads * head_dim]", [HIDDEN, HIDDEN]),
    ("k_proj", MIXER, "[num_heads * head_dim, hidden_dim]", [KV_HEADS * DIM, HIDDEN]),
    ("v_proj", MIXER, "[head_dim, hidden_dim]", [KV_HEADS * DIM, HIDDEN]),
    ("q_proj", MIXER, "[3 * num_heads * head_dim, hidden_dim]", [HEADS * DIM, HIDDEN]),
    ("o_proj", MIXER, "[hidden_dim, head_dim]", [HIDDEN, HEADS * DIM]),
    ("o_proj", MIXER, "[intermediate_dim, num_heads * head_dim]", [HIDDEN, HEADS * DIM]),
]


@pytest.mark.parametrize(("role", "name", "expression", "expected"), WRONG)
def test_a_shape_that_does_not_fit_is_named_with_what_does(role, name, expression, expected):
    bias = {role.replace("proj", "bias"): f"{expression.split(',')[0]}]"} if name == MIXER else {}
    family = saying(**{role: expression}, **(bias if role != "o_proj" else {}))
    made = family()
    found = list(evaluate_shape(expression, made.config(made.tiny_config()).dims()))
    said = refusal(family)
    assert f"{name.format(role)} has shape {found}, expected {expected}" in said


def test_a_shape_that_numpy_refuses_is_told_with_all_that_may_be_it():
    said = refusal(saying(up_proj="[2 * intermediate_dim, hidden_dim]"))
    assert "SwiGLU does not fit the tensors of layer 0" in said
    assert "mlp.up_proj.weight [512, 128]" in said and "mlp.gate_proj.weight [256, 128]" in said
    said = refusal(saying(q_bias="[intermediate_dim]"))
    assert "FullAttention does not fit the tensors of layer 0" in said
    assert "self_attn.q_proj.bias [256]" in said and "self_attn.q_proj.weight [128, 128]" in said


def test_a_plan_that_means_other_heads_is_refused():
    class Other(Qwen2):
        def plan(self, config):
            return super().plan(replace(config, num_heads=8))

    said = refusal(Other)
    assert "q_proj.weight has shape [128, 128], expected [256, 128]: its rows are read as" in said


def test_heads_that_are_counted_from_the_rows_are_checked_where_they_end():
    class Counting(FullAttention):
        def __call__(self, o, w, x, step, state):
            q, k, v = (
                y.reshape(len(x), -1, self.head_dim)
                for y in o.linears(x, (w.q_proj, w.k_proj, w.v_proj))
            )
            return o.linear(o.attention(q, k, v, state, step, 1.0).reshape(len(x), -1), w.o_proj)

    twice = saying(q_proj="[2 * num_heads * head_dim, hidden_dim]")
    assert "o_proj.weight has shape [128, 128], expected [128, 256]" in refusal(twice, Counting)
    odd = saying(q_proj="[num_heads * head_dim + 1, hidden_dim]")
    assert "q_proj.weight has shape [129, 128], expected [a multiple of 32, 128]" in refusal(
        odd, Counting
    )


def test_a_vector_in_the_place_of_a_matrix_is_refused():
    said = refusal(saying(k_proj="[hidden_dim]"))
    assert "k_proj.weight has shape [128], expected two dimensions" in said


@pytest.mark.parametrize(
    ("role", "said"),
    [
        ("in_proj_qkv", "GatedDeltaNet does not fit the tensors of layer 0"),
        ("in_proj_z", "in_proj_z.weight has shape"),
        ("in_proj_a", "GatedDeltaNet does not fit the tensors of layer 0"),
        ("conv1d", "GatedDeltaNet does not fit the tensors of layer 0"),
        ("out_proj", "out_proj.weight has shape"),
        ("q_proj", "layers.3.self_attn.q_proj.weight has shape"),
    ],
)
def test_every_kind_of_layer_is_tried(role, said):
    content = copy.deepcopy(dict(Qwen35().contract().content))
    first, *rest = content["shape_template"][role].strip("[]").split(", ")
    content["shape_template"][role] = f"[{', '.join([f'2 * ({first})', *rest])}]"

    class Changed(Qwen35):
        def contract(self):
            return Contract(content, "changed")

    sys.modules[__name__].Made = Changed
    family = Family(
        "qwen3_5",
        f"{__name__}:Made",
        architectures=("Qwen3_5ForCausalLM",),
        model_types=("qwen3_5",),
    )
    mixers = [owned.declaration for owned in get_registry().declarations("attention")]
    registry = with_reference(Registry.from_declarations({"apr-mine": [family, *mixers]}))
    assert said in refusal(Changed, registry=registry)


@pytest.mark.parametrize(
    ("role", "shape", "said"),
    [
        ("up_proj", "[2 * intermediate_dim, hidden_dim]", r"a step on zeros fails: .*\(2,512\)"),
        ("down_proj", "[intermediate_dim, hidden_dim]", r"down_proj.weight \[256, 128\] is mult"),
        ("final_norm", "[1 + hidden_dim]", r"a step on zeros fails: .*\(129,\)"),
    ],
)
def test_a_load_refuses_what_does_not_fit(tmp_path, role, shape, said):
    registry = registry_of(saying(**{role: shape}))
    file = tiny_apr("qwen2", tmp_path, registry=registry)
    with pytest.raises(ContractError, match=said):
        load(file, "reference", registry=registry)


def test_every_installed_family_fits_itself(tmp_path):
    registry = with_reference(get_registry())
    for owned in registry.declarations("family"):
        name = owned.declaration.name
        file = tiny_apr(name, tmp_path / name, registry=registry)
        with load(file, "reference", registry=registry) as model:
            assert np.isfinite(model.logits([1, 2, 3])).all()
