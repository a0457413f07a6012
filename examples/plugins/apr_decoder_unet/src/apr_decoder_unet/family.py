"""Reads config.json and makes the plan: blocks of apr-qwen2's attention, its own decoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_core.plugin import (
    Block,
    ConfigReader,
    Contract,
    ContractError,
    FamilyPlugin,
    ModelConfig,
    Plan,
)


class UNetDemo(FamilyPlugin):
    """A family with skip connections between its halves."""

    def contract(self) -> Contract:
        """Return the tensor contract, with an embedding norm and skip norms in the second half."""
        return Contract.of_package("apr_decoder_unet")

    def config(
        self, hf: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read config.json. Raises ContractError for what is missing or not supported."""
        c = ConfigReader(hf)
        c.refuse("hidden_act", ["silu"], "the feed-forward is gated by silu")
        layers = c.layers()
        if layers % 2:
            raise ContractError(f"config.json: {layers} layers cannot be halved")
        types = ("first_half",) * (layers // 2) + ("second_half",) * (layers // 2)
        return c.model("unet_demo", types, generation)

    def plan(self, config: ModelConfig) -> Plan:
        """Return the plan: the same block in every layer; the decoder connects them."""
        return Plan(
            (Block("full_attention", config.attention(bias=False)),) * config.num_layers,
            config.rms_norm_eps,
            self.contract().norm_offset,
            decoder="apr_decoder_unet.decoder:UNetDecoder",
        )

    def tiny_config(self) -> dict[str, Any]:
        """Return the config.json of a model small enough for tests."""
        return {
            "architectures": ["UNetDemoForCausalLM"], "model_type": "unet_demo", "hidden_size": 64,
            "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 320, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 512, "rope_theta": 1e4, "tie_word_embeddings": True,
        }  # fmt: skip
