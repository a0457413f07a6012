"""Llama 2 and 3, Mistral, and models like them: config reader, contract, layer plan.

Attention is `full_attention` of apr-qwen2, without biases.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_core.plugin import Block, ConfigReader, Contract, FamilyPlugin, ModelConfig, Plan


class Llama(FamilyPlugin):
    """The family of Llama, SmolLM2, TinyLlama and Mistral."""

    def contract(self) -> Contract:
        """Return the tensor contract of Llama."""
        return Contract.of_package("apr_llama")

    def config(
        self, hf: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read config.json. Raises ContractError for what is missing or not supported.

        Defaults are those of transformers' LlamaConfig, or MistralConfig.
        """
        c = ConfigReader(hf)
        mistral = hf.get("model_type") == "mistral"
        architecture = c.architecture("MistralForCausalLM" if mistral else "LlamaForCausalLM")
        extra, own = {"window": 0}, {}
        if mistral or architecture == "MistralForCausalLM":
            extra["window"] = _window(c)
            own["num_kv_heads"] = c.integer("num_key_value_heads", 8)
        c.refuse("hidden_act", ["silu"], "the feed-forward is gated by silu")
        c.refuse("attention_bias", [False], "this family has no biases")
        c.refuse("mlp_bias", [False], "this family has no biases")
        c.refuse("quantization_config", [], "import the unquantized checkpoint")
        return c.model(
            "llama",
            ("sliding_attention" if extra["window"] else "full_attention",) * c.layers(),
            generation,
            architecture=architecture,
            rope_theta=c.rope("rope_theta", 10_000.0),
            rope_scaling=c.rope_scaling(linear="linear", yarn="yarn", llama3="wavelength"),
            rms_norm_eps=c.number("rms_norm_eps", 1e-6),
            extra=extra,
            **own,
        )

    def plan(self, config: ModelConfig) -> Plan:
        """Return the plan: the same attention in every layer, plain norms."""
        options = config.attention(bias=False, window=config.extra["window"])
        blocks = (Block("full_attention", options),) * config.num_layers
        return Plan(blocks, config.rms_norm_eps, self.contract().norm_offset)

    def metadata(self, config: ModelConfig) -> dict[str, Any]:
        """Return keys for other readers; rope_type 2 pairs i with i + head_dim / 2."""
        return {"rope_type": 2}

    def tiny_config(self) -> dict[str, Any]:
        """Return the config.json of a model small enough for tests."""
        return {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 96,
            "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 3,
            "num_key_value_heads": 1, "vocab_size": 320, "max_position_embeddings": 1024,
            "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "hidden_act": "silu",
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 256,
            },
            "tie_word_embeddings": True, "eos_token_id": 258, "dtype": "bfloat16",
        }  # fmt: skip


def _window(c: ConfigReader) -> int:
    """Return the positions that a query looks at, 0 for all: `sliding_window` is null then."""
    if "sliding_window" in c.block and c.block["sliding_window"] is None:
        return 0
    return c.integer("sliding_window", 4096)
