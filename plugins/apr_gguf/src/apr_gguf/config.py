"""Between config.json and the keys of a GGUF file, in both directions.

Sources: llama.cpp's conversion/*.py, and what its src/models/*.cpp read.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from apr_core.plugin import FormatError
from apr_gguf.architectures import Architecture
from apr_gguf.reader import Keys
from apr_gguf.rope import rope_keys, rope_of
from apr_gguf.tokenizer import stop_ids

Config = Mapping[str, Any]
Pairs = tuple[tuple[str, str, type], ...]  # GGUF's key, config.json's, and its type

SIZES: Pairs = (
    ("context_length", "max_position_embeddings", int),
    ("embedding_length", "hidden_size", int),
    ("feed_forward_length", "intermediate_size", int),
    ("attention.head_count", "num_attention_heads", int),
    ("attention.layer_norm_rms_epsilon", "rms_norm_eps", float),
)
DELTA_NET: Pairs = (
    ("ssm.conv_kernel", "linear_conv_kernel_dim", int),
    ("ssm.state_size", "linear_key_head_dim", int),
    ("ssm.group_count", "linear_num_key_heads", int),
    ("ssm.time_step_rank", "linear_num_value_heads", int),
)
EXPERTS: Pairs = (
    ("expert_count", "num_experts", int),
    ("expert_used_count", "num_experts_per_tok", int),
    ("expert_feed_forward_length", "moe_intermediate_size", int),
    ("expert_shared_feed_forward_length", "shared_expert_intermediate_size", int),
)
METADATA = {  # keys of an .apr file, and config.json's
    "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads", "hidden_size": "hidden_size", "head_dim": "head_dim",
    "intermediate_size": "intermediate_size", "vocab_size": "vocab_size",
    "rope_theta": "rope_theta", "rms_norm_eps": "rms_norm_eps", "layer_types": "layer_types",
}  # fmt: skip
FULL, SLIDING, LINEAR = "full_attention", "sliding_attention", "linear_attention"
INTERVAL = 4  # every fourth layer of Qwen3.5 is full attention
PATTERN = 6  # every sixth layer of Gemma 3 attends to everything
GEMMA_27B = 62  # layers of the one Gemma 3 that llama.cpp scales queries of by another rule


def config_of(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the language model's config.json of an .apr file, defaults filled in."""
    hf = metadata.get("hf_config")
    if not isinstance(hf, dict):
        raise FormatError(
            "metadata has no `hf_config` object, which says what the model is",
            "Import the checkpoint again with this version.",
        )
    nested = hf.get("text_config")
    c = {"max_position_embeddings": metadata.get("max_position_embeddings")}
    c |= nested if isinstance(nested, dict) else hf
    return c | {ours: metadata[key] for key, ours in METADATA.items() if key in metadata}


def keys_of(arch: Architecture, c: Config, next_layers: int = 0) -> dict[str, Any]:
    """Return the keys of a model's architecture, without its name before them."""
    values = {key: kind(c[ours]) for key, ours, kind in SIZES}
    values |= {
        "block_count": c["num_hidden_layers"] + next_layers,
        "attention.head_count_kv": c["num_key_value_heads"],
        "attention.key_length": c["head_dim"],
        "attention.value_length": c["head_dim"],
        "vocab_size": c["vocab_size"],
        **rope_keys(c),
    }
    if window := _llama_window(arch, c):
        values["attention.sliding_window"] = window
    if arch.name == "gemma3":
        values |= _gemma3_keys(c)
    if arch.is_hybrid:
        values |= _qwen35_keys(c, next_layers)
    return values | ({key: c[ours] for key, ours, _ in EXPERTS} if arch.name == "qwen35moe" else {})


def config_from(keys: Keys, arch: Architecture, tied: bool, vocabulary: int) -> dict[str, Any]:
    """Return config.json by a file's keys. Raises FormatError for what is missing or unknown."""
    experts = EXPERTS if arch.name == "qwen35moe" else ()
    sizes = [s for s in SIZES if not experts or s[0] != "feed_forward_length"]
    c: dict[str, Any] = {ours: keys.own(key, kind) for key, ours, kind in (*sizes, *experts)}
    heads = c["num_attention_heads"]
    size = keys.own("attention.key_length", int, c["hidden_size"] // max(heads, 1))
    if keys.own("attention.value_length", int, size) != size:
        raise FormatError(f"{keys.path}: heads of keys and of values differ in size")
    c |= {
        "architectures": [arch.class_name],
        "model_type": arch.model_type,
        "num_hidden_layers": layers_of(keys)[0],
        "num_key_value_heads": keys.own("attention.head_count_kv", int, heads),
        "head_dim": size,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
        "eos_token_id": stop_ids(keys),
        "bos_token_id": keys.get("tokenizer.ggml.bos_token_id", int, None),
    }
    c |= rope_of(keys)
    if arch.name == "gemma3":
        return c | _gemma3(keys, c)
    c["hidden_act"] = "silu"
    if arch.name == "llama" and keys.own("rope.dimension_count", int, size) != size:
        raise FormatError(f"{keys.path}: only a part of each head is rotated, in Llama all is")
    if arch.name == "llama" and (window := keys.own("attention.sliding_window", int, None)):
        c |= {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
        c["sliding_window"] = window
    return c | _qwen35(keys, c) if arch.is_hybrid else c


def layers_of(keys: Keys) -> tuple[int, int]:
    """Return the numbers of layers, and of those behind them that predict one token more."""
    extra = keys.own("nextn_predict_layers", int, 0)
    if extra not in (0, 1):
        raise FormatError(f"{keys.path}: {extra} layers that predict more tokens, known is one")
    return keys.own("block_count") - extra, extra


def notes_on(arch: Architecture, c: Config) -> list[str]:
    """Return what llama.cpp will compute otherwise with this file."""
    notes = []
    if window := _llama_window(arch, c):
        notes.append(
            f"llama.cpp attends to all positions, this model to the last {window}: longer texts "
            "differ"
        )
    if arch.name == "gemma3" and "attention.scale" in _gemma3_keys(c):
        notes.append(
            f"llama.cpp scales queries by another number than query_pre_attn_scalar = "
            f"{c['query_pre_attn_scalar']}: its answers differ"
        )
    return notes


def _llama_window(arch: Architecture, c: Config) -> int:
    """Return the window of a Mistral, by default as transformers' MistralConfig has it, or 0."""
    named = {c.get("model_type"), *(c.get("architectures") or ())}
    mistral = arch.name == "llama" and named & {"mistral", "MistralForCausalLM"}
    return int(c.get("sliding_window", 4096) or 0) if mistral else 0


def _interval(types: list[str], interval: int, other: str) -> bool:
    return all(t == (other if (n + 1) % interval else FULL) for n, t in enumerate(types))


def _gemma3_keys(c: Config) -> dict[str, Any]:
    types = list(c["layer_types"])
    values: dict[str, Any] = {"rope.freq_base_swa": _local_base(c)}
    if SLIDING in types:
        values["attention.sliding_window"] = int(c.get("sliding_window") or 4096)
        if not _interval(types, PATTERN, SLIDING):
            values["attention.sliding_window_pattern"] = [t == SLIDING for t in types]
    if c.get("final_logit_softcapping"):
        values["final_logit_softcapping"] = float(c["final_logit_softcapping"])
    scalar = float(c.get("query_pre_attn_scalar") or 256)
    if scalar != _gemma3_scalar(c):
        values["attention.scale"] = scalar**-0.5
    return values


def _local_base(c: Config) -> float:
    nested = c.get("rope_parameters") or {}
    local = nested.get(SLIDING) or {}
    return float(local.get("rope_theta") or c.get("rope_local_base_freq") or 10_000.0)


def _gemma3_scalar(c: Config) -> float:
    large = c["num_hidden_layers"] == GEMMA_27B
    return float(c["hidden_size"] // c["num_attention_heads"] if large else c["head_dim"])


def _gemma3(keys: Keys, c: Config) -> dict[str, Any]:
    layers = c["num_hidden_layers"]
    window = keys.own("attention.sliding_window", int, 0)
    pattern = keys.own("attention.sliding_window_pattern", object, PATTERN)
    if isinstance(pattern, int):
        types = [SLIDING if (n + 1) % max(pattern, 1) else FULL for n in range(layers)]
    else:
        types = [SLIDING if slides else FULL for slides in keys.listed(pattern, layers)]
    scale = keys.own("attention.scale", float, None)
    values = {
        "hidden_activation": "gelu_pytorch_tanh",
        "layer_types": types if window else [FULL] * layers,
        "rope_local_base_freq": keys.own("rope.freq_base_swa", float, 10_000.0),
        "query_pre_attn_scalar": round(scale**-2, 4) if scale else _gemma3_scalar(c),
        "final_logit_softcapping": keys.own("final_logit_softcapping", float, None),
    }
    return values | ({"sliding_window": window} if window else {})


def _qwen35_keys(c: Config, next_layers: int) -> dict[str, Any]:
    types = list(c["layer_types"])
    rope = c.get("rope_parameters") or {}
    factor = rope.get("partial_rotary_factor", c.get("partial_rotary_factor"))
    rotary = int(c["head_dim"] * factor)
    sections = rope.get("mrope_section") or [rotary // 2, 0, 0]
    values: dict[str, Any] = {key: kind(c[ours]) for key, ours, kind in DELTA_NET}
    values |= {
        "ssm.inner_size": c["linear_num_value_heads"] * c["linear_value_head_dim"],
        "rope.dimension_count": rotary,
        "rope.dimension_sections": [*sections, 0][:4],
        "full_attention_interval": types.index(FULL) + 1 if FULL in types else len(types) + 1,
    }
    if next_layers:
        values["nextn_predict_layers"] = next_layers
    if not _interval(types, values["full_attention_interval"], LINEAR):
        values["attention.recurrent_layers"] = [t == LINEAR for t in types] + [False] * next_layers
    return values


def _qwen35(keys: Keys, c: Config) -> dict[str, Any]:
    layers, extra = layers_of(keys)
    heads, inner = keys.own("ssm.time_step_rank"), keys.own("ssm.inner_size")
    interval = keys.own("full_attention_interval", int, INTERVAL)
    recurrent = keys.own("attention.recurrent_layers", object, None)
    if recurrent is None:
        types = [LINEAR if (n + 1) % max(interval, 1) else FULL for n in range(layers)]
    else:
        listed = keys.listed(recurrent, layers + extra)[:layers]
        types = [LINEAR if is_recurrent else FULL for is_recurrent in listed]
    sections = keys.listed(keys.own("rope.dimension_sections", object, [0] * 4), 4)
    values = {ours: keys.own(key, kind) for key, ours, kind in DELTA_NET}
    return values | {
        "linear_value_head_dim": inner // max(heads, 1),
        "layer_types": types,
        "full_attention_interval": interval,
        "attn_output_gate": True,
        "mtp_num_hidden_layers": extra,
        "rope_parameters": {
            "rope_type": "default",
            **c.get("rope_scaling", {}),
            "rope_theta": c["rope_theta"],
            "partial_rotary_factor": keys.own("rope.dimension_count") / max(c["head_dim"], 1),
            "mrope_section": sections[:3],
            "mrope_interleaved": True,
        },
    }
