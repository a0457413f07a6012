"""A family that mixes both kinds of layers: Qwen2's tensors with `use_sliding_window`.

`layer_types` in config.json says which layers have the window. `full_attention` is a mixer of
apr-qwen2: a plan names what it needs, and the registry says who has it.
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

CONTRACT = Contract.of_package("apr_attention_sliding")
SLIDING, FULL = "sliding_attention", "full_attention"


class SlidingDemo(FamilyPlugin):
    """A family that mixes sliding-window and full attention."""

    def contract(self) -> Contract:
        """Return the tensor contract, which is Qwen2's."""
        return CONTRACT

    def config(
        self, hf: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read config.json. Raises ContractError for what is missing or not supported."""
        c = ConfigReader(hf)
        c.refuse("hidden_act", ["silu"], "the feed-forward is gated by silu")
        c.refuse("use_sliding_window", [True], "apr-qwen2 is the family without windows")
        types, window = _layer_types(c, c.layers()), c.integer("sliding_window")
        return c.model(
            "sliding_demo",
            types,
            generation,
            extra={"window": window},
            architecture=c.architecture("SlidingDemoForCausalLM"),
        )

    def plan(self, config: ModelConfig) -> Plan:
        """Return the plan: sliding windows where the layer types say so."""
        common = {
            "num_kv_heads": config.num_kv_heads,
            "head_dim": config.head_dim,
            "rope_theta": config.rope_theta,
            "bias": True,
        }
        of = {
            SLIDING: Block(SLIDING, {**common, "window": config.extra["window"]}),
            FULL: Block(
                FULL, {**common, "num_heads": config.num_heads, "rotary_dim": config.head_dim}
            ),
        }
        blocks = tuple(of[kind] for kind in config.layer_types)
        return Plan(blocks, config.rms_norm_eps, norm_offset=0.0)

    def tiny_config(self) -> dict[str, Any]:
        """Return the config.json of a small test model, its window shorter than the prompts."""
        return {
            "architectures": ["SlidingDemoForCausalLM"], "model_type": "sliding_demo",
            "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 4,
            "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 320,
            "max_position_embeddings": 1024, "rope_theta": 1e6, "rms_norm_eps": 1e-6,
            "use_sliding_window": True, "sliding_window": 24, "max_window_layers": 0,
            "layer_types": [SLIDING] * 3 + [FULL], "tie_word_embeddings": True,
        }  # fmt: skip


def _layer_types(c: ConfigReader, layers: int) -> tuple[str, ...]:
    listed = c.block.get("layer_types")
    if not isinstance(listed, list) or len(listed) != layers:
        raise ContractError(f"config.json: layer_types must list {layers} layers")
    return tuple(CONTRACT.layer_type(str(name)) for name in listed)
