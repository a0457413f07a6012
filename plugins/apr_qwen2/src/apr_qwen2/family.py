"""Qwen2 and Qwen2.5: config reader, contract, layer plan. Knows no device and no number format."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any

from apr_core.plugin import (
    Block,
    ConfigReader,
    Contract,
    FamilyPlugin,
    ModelConfig,
    Plan,
    sampling_defaults,
)


@cache
def _contract() -> Contract:
    text = files("apr_qwen2").joinpath("contract.yaml").read_text("utf-8")
    return Contract.load(text, "apr_qwen2/contract.yaml")


class Qwen2(FamilyPlugin):
    """The family object."""

    def contract(self) -> Contract:
        """The tensors of Qwen2."""
        return _contract()

    def config(
        self, hf: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read config.json. Raises ContractError for what is missing or not supported."""
        c = ConfigReader(hf)
        c.refuse("hidden_act", ["silu"], "the feed-forward is gated by silu")
        c.refuse("use_sliding_window", [False], "attention is over the whole context")
        c.refuse("quantization_config", [], "import the unquantized checkpoint")
        c.refuse_rope_scaling()
        layers, heads = c.layers(), c.integer("num_attention_heads")
        hidden = c.integer("hidden_size")
        head_dim = c.integer("head_dim", hidden // heads)
        return ModelConfig(
            family="qwen2",
            architecture=c.architecture("Qwen2ForCausalLM"),
            hidden_size=hidden,
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=c.integer("num_key_value_heads", heads),
            head_dim=head_dim,
            intermediate_size=c.integer("intermediate_size"),
            vocab_size=c.integer("vocab_size"),
            max_position_embeddings=c.integer("max_position_embeddings"),
            rope_theta=c.rope("rope_theta"),
            rms_norm_eps=c.number("rms_norm_eps"),
            tied_embeddings=c.flag("tie_word_embeddings", False),
            layer_types=("full_attention",) * layers,
            stop_ids=c.stop_ids(generation),
            sampling=sampling_defaults(generation),
            extra={"rotary_dim": head_dim},
        )

    def plan(self, config: ModelConfig) -> Plan:
        """Full attention in every layer; plain norms."""
        options = {
            "num_heads": config.num_heads,
            "num_kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "rope_theta": config.rope_theta,
            "rotary_dim": config.extra["rotary_dim"],
            "bias": True,
        }
        blocks = (Block("full_attention", options),) * config.num_layers
        return Plan(blocks, config.rms_norm_eps, self.contract().norm_offset)

    def metadata(self, config: ModelConfig) -> dict[str, Any]:
        """What other readers of the format look for; rope_type 2 pairs i with i + head_dim / 2."""
        return {"rope_type": 2}

    def tiny_config(self) -> dict[str, Any]:
        """config.json of a model small enough for tests."""
        return {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": 128,
            "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 4,
            "num_key_value_heads": 2, "vocab_size": 320, "max_position_embeddings": 1024,
            "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "tie_word_embeddings": True, "eos_token_id": 258, "dtype": "bfloat16",
        }  # fmt: skip
