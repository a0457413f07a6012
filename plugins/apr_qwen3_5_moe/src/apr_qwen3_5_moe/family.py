"""Qwen3.5 with experts: what differs from the dense family, which reads all the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apr_core.plugin import Checkpoint, ConfigReader, Contract, FamilyPlugin, ModelConfig, Plan
from apr_core.runtime import get_registry
from apr_qwen3_5_moe.stacking import stacked

INTEGERS = (
    "num_experts", "num_experts_per_tok", "moe_intermediate_size",
    "shared_expert_intermediate_size",
)  # fmt: skip


class Qwen35Moe(FamilyPlugin):
    """The family of Qwen3.5 with experts. Mixers and their options are those of `qwen3_5`."""

    def contract(self) -> Contract:
        """Return the tensor contract."""
        return Contract.of_package("apr_qwen3_5_moe")

    def config(
        self, hf: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read config.json, nested or flat. Raises ContractError."""
        c = ConfigReader(hf, "text_config")
        c.refuse("norm_topk_prob", [True], "weights of experts are normalized")
        c.refuse("decoder_sparse_step", [1], "every layer has experts")
        c.refuse("mlp_only_layers", [[]], "every layer has experts")
        extra = {key: c.integer(key) for key in INTEGERS}
        c.integer("num_experts_per_tok", maximum=extra["num_experts"])
        size = extra["moe_intermediate_size"]
        dense = _dense().config(_without_experts(hf, size), generation)
        return replace(
            dense,
            family="qwen3_5_moe",
            architecture=c.architecture("Qwen3_5MoeForCausalLM"),
            extra={**dense.extra, **extra},
        )

    def checkpoint(self, config: ModelConfig, checkpoint: Checkpoint) -> Checkpoint:
        """Return the checkpoint with all experts of a layer in one tensor. Raises ContractError."""
        return stacked(checkpoint, config.extra["num_experts"])

    def plan(self, config: ModelConfig) -> Plan:
        """Return the dense family's plan, with experts as feed-forward."""
        plan = _dense().plan(config)
        name, options = "shared_and_routed_experts", {"top_k": config.extra["num_experts_per_tok"]}
        blocks = (replace(block, mlp=name, mlp_options=options) for block in plan.blocks)
        return replace(plan, blocks=tuple(blocks))

    def metadata(self, config: ModelConfig) -> Mapping[str, Any]:
        """Return the dense family's keys for other readers, and those of the experts."""
        experts = {key: config.extra[key] for key in INTEGERS}
        return {**_dense().metadata(config), "moe_hparams": experts}

    def tiny_config(self) -> dict[str, Any]:
        """Return the config.json of a small test model: both layer types, rows of whole blocks.

        Rounding that changes the last of 4 experts changes little; the last of 2 would.
        """
        hf = {k: v for k, v in _dense().tiny_config().items() if k != "intermediate_size"}
        return hf | {
            "architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text",
            "hidden_size": 256, "num_hidden_layers": 2, "num_experts": 6, "num_experts_per_tok": 4,
            "moe_intermediate_size": 512, "shared_expert_intermediate_size": 160,
            "layer_types": ["linear_attention", "full_attention"],
        }  # fmt: skip


def _dense() -> FamilyPlugin:
    """Return the family of Qwen3.5 without experts. Raises PluginNotFound."""
    family: FamilyPlugin = get_registry().make("family", "qwen3_5")
    return family


def _without_experts(hf: Mapping[str, Any], size: int) -> dict[str, Any]:
    """Return a config.json as of a dense model whose feed-forward has `size` rows."""
    plain = {k: v for k, v in hf.items() if k not in INTEGERS} | {"intermediate_size": size}
    if isinstance(plain.get("text_config"), Mapping):
        plain["text_config"] = _without_experts(plain["text_config"], size)
    return plain
