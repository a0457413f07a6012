"""What GGUF calls models and their tensors: one table, read from both sides.

Sources: llama.cpp's conversion/*.py and gguf-py's tensor_mapping.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Names = Mapping[str, str]  # the checkpoint's name, and GGUF's

GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}  # fmt: skip
ATTENTION = {
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
}
BIASES = {f"self_attn.{x}_proj.bias": f"attn_{x}.bias" for x in "qkv"}
NORMS = {f"self_attn.{x}_norm.weight": f"attn_{x}_norm.weight" for x in "qk"}
MLP = {f"mlp.{x}_proj.weight": f"ffn_{x}.weight" for x in ("gate", "up", "down")}
PRE = {"post_attention_layernorm.weight": "ffn_norm.weight"}
SANDWICH = {
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "pre_feedforward_layernorm.weight": "ffn_norm.weight",
    "post_feedforward_layernorm.weight": "post_ffw_norm.weight",
}
DELTA_NET = {
    "post_attention_layernorm.weight": "post_attention_norm.weight",
    "linear_attn.in_proj_qkv.weight": "attn_qkv.weight",
    "linear_attn.in_proj_z.weight": "attn_gate.weight",
    "linear_attn.in_proj_a.weight": "ssm_alpha.weight",
    "linear_attn.in_proj_b.weight": "ssm_beta.weight",
    "linear_attn.conv1d.weight": "ssm_conv1d.weight",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm.weight": "ssm_norm.weight",
    "linear_attn.out_proj.weight": "ssm_out.weight",
}
GATE_UP, HALVES = "mlp.experts.gate_up_proj", ("gate_proj.weight", "up_proj.weight")
EXPERTS = {  # GGUF has the halves of gate_up_proj in two tensors
    "mlp.gate.weight": "ffn_gate_inp.weight",
    "mlp.experts.gate_proj.weight": "ffn_gate_exps.weight",
    "mlp.experts.up_proj.weight": "ffn_up_exps.weight",
    "mlp.experts.down_proj": "ffn_down_exps.weight",
    "mlp.shared_expert_gate.weight": "ffn_gate_inp_shexp.weight",
    **{
        f"mlp.shared_expert.{x}_proj.weight": f"ffn_{x}_shexp.weight"
        for x in ("gate", "up", "down")
    },
}
NEXT = {  # the layer that predicts one token more stands behind the others
    "mtp.fc.weight": "nextn.eh_proj.weight",
    "mtp.pre_fc_norm_embedding.weight": "nextn.enorm.weight",
    "mtp.pre_fc_norm_hidden.weight": "nextn.hnorm.weight",
    "mtp.norm.weight": "nextn.shared_head_norm.weight",
}
PREFIXES = ("model.language_model.", "language_model.model.", "model.")
HEAD = "language_model.lm_head.weight"  # where the first of these has its like


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model that GGUF has: how it and its tensors are called there and in checkpoints."""

    name: str
    family: str  # the name of the plugin's family
    model_type: str  # of config.json
    class_name: str
    layer: Names

    @property
    def is_hybrid(self) -> bool:
        """True if it is a Qwen3.5, with or without experts."""
        return "ssm_a" in self.layer.values()

    def names(self, layers: int, extra: int = 0) -> dict[str, str]:
        """Return GGUF's name of every tensor that a checkpoint can have.

        `extra` is the number of layers behind the others, which is 0 or 1.
        """
        names = dict(GLOBAL)
        for n in range(layers):
            names |= {f"model.layers.{n}.{a}": f"blk.{n}.{b}" for a, b in self.layer.items()}
        if extra:
            names |= {a: f"blk.{layers}.{b}" for a, b in NEXT.items()}
            names |= {f"mtp.layers.0.{a}": f"blk.{layers}.{b}" for a, b in self.layer.items()}
        return names


def plain(name: str) -> str:
    """Return a checkpoint's tensor name with the plain prefix, as `Architecture.names` has it."""
    prefix = next((p for p in PREFIXES if name.startswith(p)), None)
    if prefix is not None:
        return "model." + name.removeprefix(prefix)
    return "lm_head.weight" if name == HEAD else name


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("llama", "llama", "llama", "LlamaForCausalLM", ATTENTION | PRE | MLP),
        Architecture("qwen2", "qwen2", "qwen2", "Qwen2ForCausalLM", ATTENTION | BIASES | PRE | MLP),
        Architecture("qwen3", "qwen3", "qwen3", "Qwen3ForCausalLM", ATTENTION | NORMS | PRE | MLP),
        Architecture(
            "gemma3", "gemma3", "gemma3_text", "Gemma3ForCausalLM",
            ATTENTION | NORMS | SANDWICH | MLP,
        ),
        Architecture(
            "qwen35", "qwen3_5", "qwen3_5_text", "Qwen3_5ForCausalLM",
            ATTENTION | NORMS | DELTA_NET | MLP,
        ),
        Architecture(
            "qwen35moe", "qwen3_5_moe", "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM",
            ATTENTION | NORMS | DELTA_NET | EXPERTS,
        ),
    )
}  # fmt: skip
OF_FAMILY = {a.family: a for a in ARCHITECTURES.values()}
