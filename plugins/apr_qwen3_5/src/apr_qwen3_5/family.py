"""Qwen3.5, dense: config reader, contract, layer plan. Knows no device and no number format."""

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

LINEAR_INTEGERS = (
    "linear_num_key_heads", "linear_num_value_heads", "linear_key_head_dim",
    "linear_value_head_dim", "linear_conv_kernel_dim",
)  # fmt: skip


class Qwen35(FamilyPlugin):
    """The family of dense Qwen3.5."""

    def contract(self) -> Contract:
        """Return the tensor contract of Qwen3.5."""
        return Contract.of_package("apr_qwen3_5")

    def config(
        self, hf: Mapping[str, Any], generation: Mapping[str, Any] | None = None
    ) -> ModelConfig:
        """Read config.json, nested or flat. Raises ContractError."""
        c = ConfigReader(hf, "text_config")
        c.refuse("hidden_act", ["silu"], "the feed-forward is gated by silu")
        c.refuse("attention_bias", [False], "this family has no biases")
        c.refuse("attn_output_gate", [True], "q_proj is read as query and gate")
        c.refuse("quantization_config", [], "import the unquantized checkpoint")
        c.refuse("num_experts", [0], "mixture of experts is another family")
        head_dim = c.integer("head_dim")
        layers = c.layers()
        extra: dict[str, Any] = {key: c.integer(key) for key in LINEAR_INTEGERS}
        _check_heads(extra)
        extra["rotary_dim"] = _rotary_dim(head_dim, c.rope("partial_rotary_factor"))
        extra["mrope_section"] = (c.block.get("rope_parameters") or {}).get("mrope_section")
        extra["mtp_num_hidden_layers"] = c.integer("mtp_num_hidden_layers", 0, minimum=0)
        types = self._layer_types(c, layers)
        kv_heads = c.integer("num_key_value_heads")
        return c.model(
            "qwen3_5",
            types,
            generation,
            head_dim=head_dim,
            num_kv_heads=kv_heads,
            extra=extra,
            architecture=c.architecture("Qwen3_5ForCausalLM"),
            rope_scaling=c.rope_scaling(linear="linear", yarn="yarn", llama3="wavelength"),
        )

    def _layer_types(self, c: ConfigReader, layers: int) -> tuple[str, ...]:
        """Return the listed layer types, spelled as today, or those the interval gives."""
        listed = c.block.get("layer_types")
        if listed is None:
            interval = c.integer("full_attention_interval")
            return tuple(
                "linear_attention" if (n + 1) % interval else "full_attention"
                for n in range(layers)
            )
        if not isinstance(listed, list) or len(listed) != layers:
            raise ContractError(f"config.json: layer_types must list {layers} layers")
        return tuple(self.contract().layer_type(str(name)) for name in listed)

    def plan(self, config: ModelConfig) -> Plan:
        """Return the plan: delta net or gated attention per layer type; zero-centred norms."""
        x = config.extra
        full = Block(
            "gated_attention",
            config.attention(
                rotary_dim=x["rotary_dim"],
                norm_eps=config.rms_norm_eps,
                norm_offset=self.contract().norm_offset,
            ),
        )
        linear = Block(
            "gated_delta_net",
            {
                "num_k_heads": x["linear_num_key_heads"],
                "num_v_heads": x["linear_num_value_heads"],
                "k_head_dim": x["linear_key_head_dim"],
                "v_head_dim": x["linear_value_head_dim"],
                "conv_kernel": x["linear_conv_kernel_dim"],
                "norm_eps": config.rms_norm_eps,
            },
        )
        blocks = tuple(full if t == "full_attention" else linear for t in config.layer_types)
        return Plan(blocks, config.rms_norm_eps, self.contract().norm_offset)

    def metadata(self, config: ModelConfig) -> dict[str, Any]:
        """Return keys for other readers; rope_type 2 pairs i with i + rotary / 2."""
        hparams = {key: config.extra[key] for key in LINEAR_INTEGERS}
        hparams["partial_rotary_factor"] = config.extra["rotary_dim"] / config.head_dim
        kinds = list(config.layer_types)
        if "full_attention" in kinds:
            hparams["full_attention_interval"] = kinds.index("full_attention") + 1
        if config.extra["mrope_section"]:
            hparams["mrope_section"] = config.extra["mrope_section"]
        return {"linear_attn_hparams": hparams, "rope_type": 2}

    def tiny_config(self) -> dict[str, Any]:
        """Return the config.json of a small test model: both layer types, uneven head counts."""
        return {
            "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text",
            "hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 4,
            "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "vocab_size": 320,
            "layer_types": ["linear_attention"] * 3 + ["full_attention"],
            "full_attention_interval": 4, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 32, "linear_value_head_dim": 32, "linear_conv_kernel_dim": 4,
            "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "hidden_act": "silu",
            "attention_bias": False, "attn_output_gate": True, "mtp_num_hidden_layers": 1,
            "tie_word_embeddings": True, "eos_token_id": 258, "dtype": "bfloat16",
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25,
                "mrope_section": [4, 2, 2], "mrope_interleaved": True,
            },
        }  # fmt: skip


def _rotary_dim(head_dim: int, factor: float) -> int:
    rotary = int(head_dim * factor)
    if rotary % 2 or not 0 < rotary <= head_dim:
        raise ContractError(
            f"config.json: partial_rotary_factor {factor} of head_dim {head_dim} gives {rotary} "
            "dimensions, expected an even number of them"
        )
    return rotary


def _check_heads(extra: Mapping[str, Any]) -> None:
    values, keys = extra["linear_num_value_heads"], extra["linear_num_key_heads"]
    if values % keys:
        raise ContractError(
            f"config.json: {values} linear value heads are no multiple of {keys} key heads"
        )
