"""Gemma 3, text: config reader, contract, layer plan. Knows no device and no number format.

Published configurations omit values that are defaults of the architecture; defaults here are those
of transformers' Gemma3TextConfig.
"""

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

FULL, SLIDING = "full_attention", "sliding_attention"
THETA = {FULL: ("rope_theta", 1_000_000.0), SLIDING: ("rope_local_base_freq", 10_000.0)}
PATTERN = 6  # every sixth layer attends to everything


class Gemma3(FamilyPlugin):
    """The family of Gemma 3, text only."""

    def contract(self) -> Contract:
        """Return the tensor contract of Gemma 3."""
        return Contract.of_package("apr_gemma3")

    def config(
        self, hf: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read config.json, nested or flat. Raises ContractError."""
        c = ConfigReader(hf, "text_config")
        c.refuse("hidden_activation", ["gelu_pytorch_tanh"], "the feed-forward is gated by gelu")
        c.refuse("attention_bias", [False], "this family has no biases")
        c.refuse("attn_logit_softcapping", [], "that is Gemma 2")
        c.refuse("use_bidirectional_attention", [False], "this family generates text")
        layers = c.layers()
        c.refuse("quantization_config", [], "import the unquantized checkpoint")
        longest = c.integer("max_position_embeddings", 131_072)
        ropes = {kind: _rope(c, kind, longest) for kind in (FULL, SLIDING)}
        cap = c.block.get("final_logit_softcapping")
        return c.model(
            "gemma3",
            _layer_types(c, layers),
            generation,
            num_heads=c.integer("num_attention_heads", 8),
            num_kv_heads=c.integer("num_key_value_heads", 4),
            head_dim=c.integer("head_dim", 256),
            vocab_size=c.integer("vocab_size", *([262_208] if "text_config" in hf else [])),
            max_position_embeddings=longest,
            rope_theta=ropes[FULL][0],
            rope_scaling=ropes[FULL][1],
            rms_norm_eps=c.number("rms_norm_eps", 1e-6),
            tied_embeddings=c.flag("tie_word_embeddings", True),
            architecture=c.architecture("Gemma3ForCausalLM"),
            extra={
                "ropes": ropes,
                "window": c.integer("sliding_window", 4096),
                "query_scale": c.number("query_pre_attn_scalar", 256) ** -0.5,
                "softcap": None if cap is None else c.number("final_logit_softcapping"),
            },
        )

    def plan(self, config: ModelConfig) -> Plan:
        """Return the plan: norms around mixers and mlps, embedding scaled by sqrt(hidden)."""
        offset = self.contract().norm_offset

        def block(kind: str) -> Block:
            theta, scaling = config.extra["ropes"][kind]
            options = config.attention(
                rope_theta=theta,
                rope_scaling=scaling,
                window=config.extra["window"] if kind == SLIDING else 0,
                bias=False,
                qk_norm=(config.rms_norm_eps, offset),
                scale=config.extra["query_scale"],
            )
            return Block("full_attention", options, mlp="geglu", norm="sandwich")

        return Plan(
            tuple(block(kind) for kind in config.layer_types),
            config.rms_norm_eps,
            offset,
            embedding_scale=config.hidden_size**0.5,
            logit_softcap=config.extra["softcap"],
        )

    def tiny_config(self) -> dict[str, Any]:
        """Return the config.json of a small test model, its window shorter than the prompts."""
        return {
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "hidden_size": 64,
            "intermediate_size": 160, "num_hidden_layers": 4, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 32, "vocab_size": 320, "rms_norm_eps": 1e-6,
            "max_position_embeddings": 512, "sliding_window": 24, "query_pre_attn_scalar": 24,
            "layer_types": [SLIDING, SLIDING, FULL, SLIDING], "tie_word_embeddings": True,
            "hidden_activation": "gelu_pytorch_tanh", "eos_token_id": 258,
            "rope_parameters": {
                FULL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                SLIDING: {"rope_type": "default", "rope_theta": 1e4},
            },
        }  # fmt: skip


def _layer_types(c: ConfigReader, layers: int) -> tuple[str, ...]:
    """Return the listed layer types, or those of the pattern where there is no list."""
    listed = c.block.get("layer_types")
    if listed is None:
        pattern = c.integer("sliding_window_pattern", PATTERN)
        return tuple(FULL if (n + 1) % pattern == 0 else SLIDING for n in range(layers))
    if not isinstance(listed, list) or len(listed) != layers:
        raise ContractError(f"config.json: layer_types must list {layers} layers")
    return tuple(Gemma3().contract().layer_type(str(name)) for name in listed)


def _rope(c: ConfigReader, kind: str, longest: int) -> tuple[float, dict[str, Any]]:
    """Return base and scaling of a layer kind, from rope_parameters or the older keys."""
    key, default = THETA[kind]
    nested = c.block.get("rope_parameters") or {}
    scaling = c.block.get("rope_scaling") if kind == FULL else None
    part = nested.get(kind) if isinstance(nested, Mapping) else None
    if not all(isinstance(x or {}, Mapping) for x in (nested, part, scaling)):
        raise ContractError("config.json: rope_parameters must be an object of objects")
    inner = ConfigReader(
        {"rope_parameters": {**(part or {}), **(scaling or {})}, "max_position_embeddings": longest}
    )
    theta = inner.rope("rope_theta", c.number(key, default))
    return theta, inner.rope_scaling(linear="linear", yarn="yarn", llama3="wavelength")
