"""What GGUF calls models: architectures, the keys of their configuration, and their tensors.

Sources: llama.cpp's convert_hf_to_gguf.py and gguf-py's tensor_mapping.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from apr_core.plugin import FormatError

GLOBAL = {
    "embed_tokens.weight": "token_embd.weight", "norm.weight": "output_norm.weight",
}  # fmt: skip
HEAD = {"lm_head.weight": "output.weight"}
LAYER = {  # of a layer: the checkpoint's name, and GGUF's
    "input_layernorm.weight": "attn_norm.weight",
    "self_attn.q_proj.weight": "attn_q.weight",
    "self_attn.k_proj.weight": "attn_k.weight",
    "self_attn.v_proj.weight": "attn_v.weight",
    "self_attn.o_proj.weight": "attn_output.weight",
    "self_attn.q_proj.bias": "attn_q.bias",
    "self_attn.k_proj.bias": "attn_k.bias",
    "self_attn.v_proj.bias": "attn_v.bias",
    "self_attn.q_norm.weight": "attn_q_norm.weight",
    "self_attn.k_norm.weight": "attn_k_norm.weight",
    "mlp.gate_proj.weight": "ffn_gate.weight",
    "mlp.up_proj.weight": "ffn_up.weight",
    "mlp.down_proj.weight": "ffn_down.weight",
}
AFTER = "post_attention_layernorm.weight"  # the norm before the feed-forward


class Keys:
    """The keys of a GGUF file, read with their types; those of the architecture without prefix."""

    def __init__(self, path: object, values: Mapping[str, Any]) -> None:
        self.path, self.values = path, values
        self.architecture = str(self.get("general.architecture", str))

    def get(self, name: str, kind: type | tuple[type, ...], default: Any = ...) -> Any:
        """Return a value. Raises FormatError if it is missing or of another type."""
        value = self.values.get(name, default)
        if value is ...:
            raise FormatError(f"{self.path}: the key {name!r} is missing")
        if value is not default and not isinstance(value, kind):
            raise FormatError(f"{self.path}: the key {name!r} is {value!r:.60}, of another type")
        return value

    def own(self, name: str, kind: type | tuple[type, ...] = int, default: Any = ...) -> Any:
        """Return the value of a key of the architecture."""
        return self.get(f"{self.architecture}.{name}", kind, default)


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model that GGUF has: how its configuration and tensors are called there."""

    name: str
    model_type: str  # of config.json
    class_name: str
    after_attention: str = "ffn_norm.weight"
    rotated_pairs: bool = False  # rows of q and k are permuted: pairs stand side by side
    config: Callable[[Keys], dict[str, Any]] = lambda keys: {}
    layer: Mapping[str, str] = field(default_factory=lambda: LAYER)

    def tensor(self, name: str) -> str | None:
        """Return the checkpoint's name of a GGUF tensor, without prefix; None if it has none."""
        if name in self._heads:
            return self._heads[name]
        if name in self._global:
            return f"model.{self._global[name]}"
        kind, _, rest = name.partition(".")
        number, _, rest = rest.partition(".")
        if kind != "blk" or not number.isdigit() or rest not in self._layer:
            return None
        return f"model.layers.{number}.{self._layer[rest]}"

    @property
    def _heads(self) -> dict[str, str]:
        return {v: k for k, v in HEAD.items()}

    @property
    def _global(self) -> dict[str, str]:
        return {v: k for k, v in GLOBAL.items()}

    @property
    def _layer(self) -> dict[str, str]:
        return {v: k for k, v in self.layer.items()} | {self.after_attention: AFTER}


def common_config(keys: Keys, arch: Architecture, tied: bool, vocabulary: int) -> dict[str, Any]:
    """Return the config.json of a decoder by the keys that all architectures have."""
    heads, hidden = keys.own("attention.head_count"), keys.own("embedding_length")
    config = {
        "architectures": [arch.class_name],
        "model_type": arch.model_type,
        "hidden_size": hidden,
        "num_hidden_layers": keys.own("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": keys.own("attention.head_count_kv", int, heads),
        "intermediate_size": keys.own("feed_forward_length"),
        "vocab_size": vocabulary,
        "max_position_embeddings": keys.own("context_length"),
        "rms_norm_eps": keys.own("attention.layer_norm_rms_epsilon", float),
        "rope_theta": keys.own("rope.freq_base", float, 10_000.0),
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
    }
    if (size := keys.own("attention.key_length", int, None)) is not None:
        config["head_dim"] = size
    return config | arch.config(keys)


def _llama(keys: Keys) -> dict[str, Any]:
    kind = keys.own("rope.scaling.type", str, "none")
    if kind == "none":
        return {}
    if kind != "linear":
        raise FormatError(f"{keys.path}: rope scaling {kind!r} of llama is not supported")
    return {
        "rope_scaling": {"rope_type": "linear", "factor": keys.own("rope.scaling.factor", float)}
    }


ARCHITECTURES = {
    a.name: a
    for a in (
        Architecture("llama", "llama", "LlamaForCausalLM", rotated_pairs=True, config=_llama),
        Architecture("qwen2", "qwen2", "Qwen2ForCausalLM"),
    )
}
