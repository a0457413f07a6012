"""Qwen2 and Qwen2.5: config reader, contract, layer plan. Knows no device and no number format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_core.plugin import Block, ConfigReader, Contract, FamilyPlugin, ModelConfig, Plan


class Qwen2(FamilyPlugin):
    """The family of Qwen2 and Qwen2.5."""

    def contract(self) -> Contract:
        """Return the tensor contract of Qwen2."""
        return Contract.of_package("apr_qwen2")

    def config(
        self, hf: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read config.json. Raises ContractError for what is missing or not supported."""
        c = ConfigReader(hf)
        c.refuse("hidden_act", ["silu"], "the feed-forward is gated by silu")
        c.refuse("use_sliding_window", [False], "attention is over the whole context")
        c.refuse("quantization_config", [], "import the unquantized checkpoint")
        return c.model(
            "qwen2",
            ("full_attention",) * c.layers(),
            generation,
            architecture=c.architecture("Qwen2ForCausalLM"),
            rope_scaling=c.rope_scaling(linear="linear", yarn="yarn", llama3="wavelength"),
        )

    def plan(self, config: ModelConfig) -> Plan:
        """Return the plan: full attention in every layer, plain norms."""
        blocks = (Block("full_attention", config.attention(bias=True)),) * config.num_layers
        return Plan(blocks, config.rms_norm_eps, self.contract().norm_offset)

    def metadata(self, config: ModelConfig) -> dict[str, Any]:
        """Return keys for other readers; rope_type 2 pairs i with i + head_dim / 2."""
        return {"rope_type": 2}

    def tiny_config(self) -> dict[str, Any]:
        """Return the config.json of a model small enough for tests."""
        return {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 128,
            "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 1024,
            "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "tie_word_embeddings": True, "eos_token_id": 258, "dtype": "bfloat16",
        }  # fmt: skip
