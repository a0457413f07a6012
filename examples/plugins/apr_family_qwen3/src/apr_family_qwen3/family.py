"""Qwen3: reads its config.json, contract and layer plan."""

from collections.abc import Mapping
from typing import Any

from apr_core.plugin import Block, ConfigReader, Contract, FamilyPlugin, ModelConfig, Plan

CONTRACT = Contract.of_package("apr_family_qwen3")


class Qwen3(FamilyPlugin):
    """The family of dense Qwen3."""

    def contract(self) -> Contract:
        """Return the tensor contract of Qwen3."""
        return CONTRACT

    def config(self, hf: Mapping[str, Any], generation: Any = None) -> ModelConfig:
        """Read config.json. Raises ContractError for what is missing or not supported."""
        c = ConfigReader(hf)
        c.refuse("hidden_act", ["silu"], "the feed-forward is gated by silu")
        c.refuse("attention_bias", [False], "this family has no biases")
        c.refuse("use_sliding_window", [False], "attention is over the whole context")
        c.refuse_rope_scaling()
        return c.model(
            "qwen3",
            ("full_attention",) * c.layers(),
            generation,
            architecture=c.architecture("Qwen3ForCausalLM"),
        )

    def plan(self, config: ModelConfig) -> Plan:
        """Return the plan: the same attention in every layer."""
        names = ("num_kv_heads", "head_dim", "rope_theta", "rms_norm_eps")
        block = Block("qk_norm_attention", {name: getattr(config, name) for name in names})
        return Plan((block,) * config.num_layers, config.rms_norm_eps, norm_offset=0.0)

    def tiny_config(self) -> dict[str, Any]:
        """Return the config.json of a small test model, whose heads are wider than its rows."""
        return {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64,
            "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 320, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 512, "rope_theta": 1e6, "tie_word_embeddings": True,
        }  # fmt: skip
