"""Qwen3, dense: config reader, contract, layer plan. Knows no device and no number format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_core.plugin import Block, ConfigReader, Contract, FamilyPlugin, ModelConfig, Plan


class Qwen3(FamilyPlugin):
    """The family of dense Qwen3."""

    def contract(self) -> Contract:
        """Return the tensor contract of Qwen3."""
        return Contract.of_package("apr_qwen3")

    def config(
        self, hf: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read config.json. Raises ContractError for what is missing or not supported."""
        c = ConfigReader(hf)
        c.refuse("hidden_act", ["silu"], "the feed-forward is gated by silu")
        c.refuse("attention_bias", [False], "this family has no biases")
        c.refuse("use_sliding_window", [False], "attention is over the whole context")
        c.refuse("quantization_config", [], "import the unquantized checkpoint")
        return c.model(
            "qwen3",
            ("full_attention",) * c.layers(),
            generation,
            architecture=c.architecture("Qwen3ForCausalLM"),
            head_dim=c.integer("head_dim", 128),
            rope_scaling=c.rope_scaling(linear="linear", yarn="yarn", llama3="wavelength"),
        )

    def plan(self, config: ModelConfig) -> Plan:
        """Return the plan: the same attention in every layer, plain norms."""
        offset = self.contract().norm_offset
        options = config.attention(bias=False, qk_norm=(config.rms_norm_eps, offset))
        blocks = (Block("full_attention", options),) * config.num_layers
        return Plan(blocks, config.rms_norm_eps, offset)

    def metadata(self, config: ModelConfig) -> dict[str, Any]:
        """Return keys for other readers; rope_type 2 pairs i with i + head_dim / 2."""
        return {"rope_type": 2}

    def tiny_config(self) -> dict[str, Any]:
        """Return the config.json of a small test model, whose heads are wider than its rows."""
        return {
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 64,
            "intermediate_size": 160, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 320, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 512, "rope_theta": 1e6, "tie_word_embeddings": True,
            "eos_token_id": 258,
        }  # fmt: skip
