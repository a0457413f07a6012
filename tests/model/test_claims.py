"""Every value of every claim that a contract can make: it is run as claimed, or refused by name."""

from __future__ import annotations

import copy
import re
import sys
from typing import ClassVar

import numpy as np
import pytest

from apr_core import load
from apr_core.declarations import Attention, Backend, Family, Mlp
from apr_core.errors import BackendError, ContractError, PluginError
from apr_core.family.contract import Contract
from apr_core.family.schema import schema
from apr_core.model.trial import ReferenceBackend
from apr_core.plugin import Block, Decoder, FeedForward, ModelConfig, Plan, RecurrentState, op
from apr_core.registry import Registry

pytest.importorskip("apr_qwen2")
pytest.importorskip("apr_devkit")
from apr_devkit.tiny import tiny_apr
from apr_qwen2.family import Qwen2
from apr_qwen2.mixers import FullAttention

HERE = sys.modules[__name__]
CLAIMS = {
    path.split(".")[1]: re.sub(r"\bbool\b", "true, false", re.sub(r"enum\[|\]", "", kind))
    .replace("|", ", ")
    .split(", ")
    for path, kind in schema().items()
    if path.startswith("constraints.") and not path.endswith("norm_offset")
}
VALUES = [(name, value) for name, values in CLAIMS.items() for value in values]
# what holds for the model that the tests load: Qwen2, four heads, two of keys and values
TRUE = {
    "attention_type": {"gqa"}, "activation": {"silu"}, "norm_type": {"rmsnorm"},
    "has_bias": {"true"}, "tied_embeddings": {"true"}, "positional_encoding": {"rope"},
    "mlp_type": {"swiglu", "gated_mlp"}, "qk_norm": {"false"},
}  # fmt: skip
# how a model has to differ for the other values; what no plugin can do yet has no way
OTHER = {
    ("attention_type", "mha"): {"num_key_value_heads": 4},
    ("attention_type", "mqa"): {"num_key_value_heads": 1},
    ("attention_type", "ssm"): {"mixers": ["Folds", "Folds"]},
    ("attention_type", "linear"): {"mixers": ["Folds", "Folds"]},
    ("attention_type", "hybrid"): {"mixers": ["Folds", "FullAttention"]},
    ("activation", "gelu"): {"mlp": "Gelu", "mlp_type": "gated_mlp"},
    ("activation", "relu"): {"mlp": "Relu", "mlp_type": "gated_mlp"},
    ("mlp_type", "gelu_mlp"): {"mlp": "GeluMlp", "activation": "gelu"},
    ("mlp_type", "relu_mlp"): {"mlp": "ReluMlp", "activation": "relu"},
    ("norm_type", "layernorm"): {"decoder": "Centred"},
    ("has_bias", "false"): {"mixers": ["Unbiased", "Unbiased"]},
    ("tied_embeddings", "false"): {"tie_word_embeddings": False},
    ("positional_encoding", "none"): {"mixers": ["Unplaced", "Unplaced"], "has_bias": False},
    ("positional_encoding", "alibi"): {"mixers": ["Alibi", "Alibi"], "has_bias": False},
    ("positional_encoding", "absolute"): {"mixers": ["Absolute", "Absolute"], "has_bias": False},
    ("positional_encoding", "relative"): {"mixers": ["Relative", "Relative"], "has_bias": False},
    ("qk_norm", "true"): {"mixers": ["Normed", "Normed"]},
}


class Unbiased(FullAttention):
    def __init__(self, **options):
        super().__init__(**options | {"bias": False})


class Unplaced(Unbiased):
    """Attention without positions, but for those that `place` adds."""

    def place(self, o, x):
        return x

    def __call__(self, o, w, x, step, state):
        q, k, v = o.linears(self.place(o, x), (w.q_proj, w.k_proj, w.v_proj))
        q, k, v = (y.reshape(len(x), -1, self.head_dim) for y in (q, k, v))
        return o.linear(o.attention(q, k, v, state, step, 0.1).reshape(len(x), -1), w.o_proj)


@op
def alibi_bias(xp, x):
    return x


@op
def relative_bias(xp, x):
    return x


@op
def absolute_positions(xp, x):
    return x


@op
def layer_norm(xp, x):
    return x - xp.mean(x, axis=-1, keepdims=True)


class Alibi(Unplaced):
    def place(self, o, x):
        return o.alibi_bias(x)


class Relative(Unplaced):
    def place(self, o, x):
        return o.relative_bias(x)


class Absolute(Unplaced):
    def place(self, o, x):
        return o.absolute_positions(x)


class Centred(Decoder):
    def slices(self, ids, step, states):
        o, h = self.ops, self.embedded(ids)
        for layer, state in zip(self.layers, states, strict=True):
            h = o.add(h, layer.mixer(o, layer.weights, o.layer_norm(h), step, state))
            yield
        return o.layer_norm(h)


class Normed(FullAttention):
    def __init__(self, **options):
        super().__init__(**options)
        self.vectors = (*self.vectors, "q_norm", "k_norm")


class Folds(FullAttention):
    def new_state(self, states):
        return states.recurrent(memory=(1,))

    def __call__(self, o, w, x, step, state):
        assert isinstance(state, RecurrentState)
        (y,) = o.linears(x, (w.q_proj,), (w.q_bias,))
        return o.linear(
            o.rope(y.reshape(len(x), -1, self.head_dim), step.positions, w.inv_freq).reshape(
                len(x), -1
            ),
            w.o_proj,
        )


class Gelu(FeedForward):
    matrices = ("gate_proj", "up_proj", "down_proj")
    activation = "gelu"

    def __call__(self, o, w, x):
        return o.linear(o.linear(x, w.up_proj), w.down_proj)


class Relu(Gelu):
    activation = "relu"


class GeluMlp(Gelu):
    gated = False


class ReluMlp(Relu):
    gated = False


class Claiming(Qwen2):
    """Qwen2 whose contract claims something, and whose plan may be another."""

    claims: ClassVar[dict[str, object]] = {}
    mixers: tuple[str, ...] = ()
    mlp = "swiglu"
    decoder = ""
    unread = False  # the contract has biases that no mixer reads

    def contract(self) -> Contract:
        content = copy.deepcopy(dict(super().contract().content))
        content["constraints"].update(self.claims)
        unbiased = any(issubclass(getattr(HERE, name), Unbiased) for name in self.mixers)
        if unbiased and not self.unread:
            for part in ("shape_template", "quantization_policy"):
                content[part] = {k: v for k, v in content[part].items() if "_bias" not in k}
            names = content["tensor_template"]["per_layer"]
            content["tensor_template"]["per_layer"] = {
                k: v for k, v in names.items() if "_bias" not in k
            }
        if "Normed" in self.mixers:
            for role in ("q_norm", "k_norm"):
                where = f"{{prefix}}layers.{{n}}.self_attn.{role}.weight"
                content["tensor_template"]["per_layer"][role] = where
                content["shape_template"][role] = "[head_dim]"
                content["quantization_policy"][role] = "keep"
        return Contract(content, "claiming")

    def plan(self, config: ModelConfig) -> Plan:
        plan = super().plan(config)
        names = self.mixers or ["FullAttention"] * config.num_layers
        options = plan.blocks[0].options
        blocks = tuple(Block(name, options, mlp=self.mlp) for name in names)
        decoder = self.decoder and f"{__name__}:{self.decoder}"
        return Plan(blocks, plan.norm_eps, norm_offset=0.0, decoder=decoder)


def loaded(tmp_path, claim, mixers=(), mlp="swiglu", decoder="", unread=False, **other):
    """Load a tiny model of that claim, plan and configuration, and say whether logits are finite.

    `other` are further claims, and keys of config.json.
    """
    claims = dict([claim]) | {name: value for name, value in other.items() if name in CLAIMS}
    what = {"claims": claims, "mixers": mixers, "mlp": mlp, "decoder": decoder, "unread": unread}
    HERE.Family_ = type("Family_", (Claiming,), what)
    classes = (FullAttention, Unbiased, Unplaced, Alibi, Relative, Absolute, Normed, Folds)
    ops = ("alibi_bias", "relative_bias", "absolute_positions", "layer_norm")
    brings = tuple((name, f"{__name__}:{name}") for name in ops)
    registry = Registry.from_declarations(
        {
            "apr-claims": [
                Family("qwen2", f"{__name__}:Family_", architectures=("Qwen2ForCausalLM",)),
                *(
                    Attention(c.__name__, f"{__name__}:{c.__name__}", brings=brings)
                    for c in classes
                ),
                *(Mlp(c.__name__, f"{__name__}:{c.__name__}") for c in (Gelu, Relu)),
                *(Mlp(c.__name__, f"{__name__}:{c.__name__}") for c in (GeluMlp, ReluMlp)),
                Mlp("Rootless", f"{__name__}:Rootless"),
                Backend("nowhere", f"{__name__}:device"),
            ]
        }
    )
    hf = Qwen2().tiny_config() | {k: v for k, v in other.items() if k not in CLAIMS}
    path = tiny_apr("qwen2", tmp_path, config=hf, registry=registry)
    with load(path, "nowhere", registry=registry) as model:
        return np.isfinite(model.logits([1, 2, 3])).all()


class Rootless:
    """A feed-forward that derives from nothing."""


def device(threads=None):
    return ReferenceBackend()


@pytest.mark.parametrize(("name", "value"), VALUES)
def test_a_value_is_run_or_refused(tmp_path, name, value):
    if value == "per_size" or value in TRUE[name]:
        assert loaded(tmp_path, (name, value))
        return
    with pytest.raises(ContractError, match=f"claims {name} {value}, and runs"):
        loaded(tmp_path, (name, value))


@pytest.mark.parametrize(("claim", "different"), OTHER.items(), ids=map("-".join, OTHER))
def test_a_model_that_does_what_is_claimed_runs(tmp_path, claim, different):
    assert loaded(tmp_path, claim, **different)
    (true,) = TRUE[claim[0]] - {"gated_mlp"}
    if claim[1] in ("mha", "mqa"):
        return  # they are groups, too
    with pytest.raises(ContractError, match=f"claims {claim[0]} {true}, and runs"):
        loaded(tmp_path, (claim[0], true), **different)


def test_every_value_can_be_met():
    ways = {(name, value) for name, values in TRUE.items() for value in values} | set(OTHER)
    assert ways | {("tied_embeddings", "per_size")} == set(VALUES)


def test_an_offset_that_the_plan_does_not_have_is_refused(tmp_path):
    with pytest.raises(ContractError, match=r"claims norm_offset 1\.0, and runs 0\.0"):
        loaded(tmp_path, ("norm_offset", 1.0))


def test_a_state_off_the_grid_of_prompts_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Folds, "new_state", lambda self, states: states.recurrent(48, memory=(1,)))
    with pytest.raises(BackendError, match="folds in 48 tokens at once"):
        loaded(tmp_path, ("attention_type", "linear"), mixers=["Folds", "Folds"])


def test_a_part_that_derives_from_nothing_is_refused(tmp_path):
    with pytest.raises(PluginError, match=r"makes a Rootless, expected .*\.FeedForward"):
        loaded(tmp_path, ("activation", "silu"), mlp="Rootless")


def test_tensors_that_nothing_reads_are_refused(tmp_path):
    with pytest.raises(ContractError, match=r"nothing reads .*q_proj.bias, role 'q_bias'"):
        loaded(tmp_path, ("has_bias", "true"), mixers=["Unbiased", "Unbiased"], unread=True)


def test_an_op_that_nobody_brings_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(Alibi, "place", lambda self, o, x: o.unheard_of(x))
    with pytest.raises(BackendError, match="op 'unheard_of' has no definition"):
        loaded(tmp_path, ("has_bias", False), mixers=["Alibi", "Alibi"])
