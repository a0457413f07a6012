"""Contracts that say a shape wrongly are refused at load, with the tensor and both shapes."""

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
from apr_devkit.kits.rig import with_reference
from apr_devkit.tiny import tiny_apr
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


@pytest.fixture
def refusal(tmp_path):
    """What a load says of a family's contract."""

    def message(family, mixer=FullAttention, registry=None):
        registry = registry or registry_of(family, mixer)
        file = tiny_apr(
            registry.declarations("family")[0].declaration.name, tmp_path, registry=registry
        )
        with pytest.raises(ContractError) as caught:
            load(file, "reference", registry=registry)
        return caught.value.message

    return message


MLP, MIXER = "mlp.{}.weight", "self_attn.{}.weight"
WRONG = [  # role, its tensor, a wrong expression, what fits
    ("gate_proj", MLP, "[hidden_dim, intermediate_dim]", [HIDDEN, HIDDEN]),
    ("up_proj", MLP, "[hidden_dim, intermediate_dim]", [HIDDEN, HIDDEN]),
    ("down_proj", MLP, "[intermediate_dim, hidden_dim]", [INNER, INNER]),
    ("post_attention_norm", "post_attention_layernorm.weight", "[intermediate_dim]", [HIDDEN]),
    ("final_norm", "norm.weight", "[1]", [HIDDEN]),
    ("lm_head", "lm_head.weight", "[vocab_size, intermediate_dim]", [VOCABULARY, HIDDEN]),
    ("k_proj", MIXER, "[hidden_dim, num_kv_heads * head_dim]", [HIDDEN, HIDDEN]),
    ("k_proj", MIXER, "[num_heads * head_dim, hidden_dim]", [KV_HEADS * DIM, HIDDEN]),
    ("v_proj", MIXER, "[head_dim, hidden_dim]", [KV_HEADS * DIM, HIDDEN]),
    ("q_proj", MIXER, "[3 * num_heads * head_dim, hidden_dim]", [HEADS * DIM, HIDDEN]),
    ("o_proj", MIXER, "[hidden_dim, head_dim]", [HIDDEN, HEADS * DIM]),
]


@pytest.mark.parametrize(("role", "name", "expression", "expected"), WRONG)
def test_a_shape_that_does_not_fit_is_named_with_what_does(
    refusal, role, name, expression, expected
):
    bias = {role.replace("proj", "bias"): f"{expression.split(',')[0]}]"} if name == MIXER else {}
    family = saying(**{role: expression}, **(bias if role != "o_proj" else {}))
    instance = family()
    shape = list(evaluate_shape(expression, instance.config(instance.tiny_config()).dims()))
    error = refusal(family)
    assert f"{name.format(role)} has shape {shape}, expected {expected}" in error


OUTPUT = "the output of model.layers.1."
REFUSED = [  # role, a wrong expression, what is said of the op
    ("up_proj", "[2 * intermediate_dim, hidden_dim]",
     f"swiglu of {OUTPUT}mlp.gate_proj.weight [3, 256], {OUTPUT}mlp.up_proj.weight [3, 512] fails"),
    ("q_bias", "[intermediate_dim]",
     f"add of {OUTPUT}self_attn.q_proj.weight [3, 128], model.layers.1.self_attn.q_proj.bias"),
    ("o_proj", "[intermediate_dim, num_heads * head_dim]",
     f"{OUTPUT}self_attn.o_proj.weight [3, 256] fails"),
    ("embedding", "[hidden_dim, vocab_size]",
     "rms_norm of the output of model.embed_tokens.weight [3, 320]"),
]  # fmt: skip


@pytest.mark.parametrize(("role", "expression", "expected"), REFUSED)
def test_an_op_that_fails_is_told_with_what_it_was_given(refusal, role, expression, expected):
    assert expected in refusal(saying(**{role: expression}))


def test_a_plan_that_means_other_heads_is_refused(refusal):
    class Other(Qwen2):
        def plan(self, config):
            return super().plan(replace(config, num_heads=8))

    error = refusal(Other)
    assert "q_proj.weight has shape [128, 128], expected [256, 128]: its rows are read as" in error


def test_heads_that_are_counted_from_the_rows_are_checked_where_they_end(refusal):
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


def test_a_vector_in_the_place_of_a_matrix_is_refused(refusal):
    error = refusal(saying(k_proj="[hidden_dim]"))
    assert "k_proj.weight has shape [128], expected two dimensions" in error


@pytest.mark.parametrize(
    ("role", "words"),
    [
        ("in_proj_qkv", "causal_conv1d of the output of model.layers.2.linear_attn.in_proj_qkv"),
        ("in_proj_z", "in_proj_z.weight has shape"),
        ("in_proj_a", "model.layers.2.linear_attn.A_log [4]"),
        ("conv1d", "model.layers.2.linear_attn.conv1d.weight [512, 1, 4] fails"),
        ("out_proj", "the output of model.layers.2.linear_attn.out_proj.weight [3, 192] fails"),
        ("q_proj", "layers.3.self_attn.q_proj.weight has shape"),
    ],
)
def test_every_kind_of_layer_is_tried(refusal, role, words):
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
    assert words in refusal(Changed, registry=registry)


def test_every_installed_family_fits_itself(tmp_path):
    registry = with_reference(get_registry())
    for owned in registry.declarations("family"):
        name = owned.declaration.name
        file = tiny_apr(name, tmp_path / name, registry=registry)
        with load(file, "reference", registry=registry) as model:
            assert np.isfinite(model.logits([1, 2, 3])).all()
