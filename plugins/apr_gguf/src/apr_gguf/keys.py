"""Writes the key-value part of a GGUF file: facts of the model, and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter, LlamaFileType

from apr_core.plugin import FormatError

FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32, "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16, "q4k": LlamaFileType.MOSTLY_Q4_K_S,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M, "q6k": LlamaFileType.MOSTLY_Q6_K,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
}  # fmt: skip
SAMPLING = {"temperature": "temp", "top_k": "top_k", "top_p": "top_p"}


def text_config(metadata: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return config.json's part about the language model."""
    hf = metadata.get("hf_config")
    if not isinstance(hf, dict):
        raise FormatError(
            "metadata has no `hf_config` object, which says what the model is",
            "Import the checkpoint again with this version.",
        )
    nested = hf.get("text_config")
    return nested if isinstance(nested, dict) else hf


def write_keys(w: GGUFWriter, arch: str, metadata: Mapping[str, Any]) -> None:
    """Write all keys. `metadata` is the .apr file's."""
    c = text_config(metadata)
    w.add_name(str(metadata.get("name") or "model"))
    w.add_quantization_version(2)
    recipe = str(metadata.get("apr.recipe") or "")
    if recipe in FILE_TYPES:
        w.add_file_type(FILE_TYPES[recipe])
    w.add_block_count(metadata["num_layers"])
    w.add_context_length(metadata["max_position_embeddings"])
    w.add_embedding_length(metadata["hidden_size"])
    w.add_feed_forward_length(metadata["intermediate_size"])
    w.add_head_count(metadata["num_heads"])
    w.add_head_count_kv(metadata["num_kv_heads"])
    w.add_layer_norm_rms_eps(metadata["rms_norm_eps"])
    w.add_rope_freq_base(metadata["rope_theta"])
    w.add_vocab_size(metadata["vocab_size"])
    if arch == "qwen35":
        _hybrid(w, metadata, c)
    _tokenizer(w, metadata)


def _hybrid(w: GGUFWriter, metadata: Mapping[str, Any], c: Mapping[str, Any]) -> None:
    linear = metadata["linear_attn_hparams"]
    w.add_key_length(metadata["head_dim"])
    w.add_value_length(metadata["head_dim"])
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    rotary = int(metadata["head_dim"] * linear["partial_rotary_factor"])
    w.add_rope_dimension_count(rotary)
    sections = rope.get("mrope_section") or [rotary // 2, 0, 0]
    w.add_rope_dimension_sections([*sections, 0][:4])
    w.add_full_attention_interval(linear["full_attention_interval"])
    w.add_ssm_conv_kernel(linear["linear_conv_kernel_dim"])
    w.add_ssm_state_size(linear["linear_key_head_dim"])
    w.add_ssm_group_count(linear["linear_num_key_heads"])
    w.add_ssm_time_step_rank(linear["linear_num_value_heads"])
    w.add_ssm_inner_size(linear["linear_num_value_heads"] * linear["linear_value_head_dim"])


def _tokenizer(w: GGUFWriter, metadata: Mapping[str, Any]) -> None:
    tokens = metadata.get("tokenizer.vocabulary")
    if not tokens:
        raise FormatError("the file carries no tokenizer, which a GGUF file needs")
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(str(metadata.get("tokenizer.pre_type") or "qwen2"))
    w.add_token_list(tokens)
    types = metadata.get("tokenizer.token_type")
    w.add_token_types(types if types else _types(metadata, len(tokens)))
    # llama.cpp wants the key even without merges; an empty pair never matches
    w.add_token_merges(metadata["tokenizer.merges"] or [""])
    if "tokenizer.eos_token_id" in metadata:
        w.add_eos_token_id(metadata["tokenizer.eos_token_id"])
    if "tokenizer.padding_token_id" in metadata:
        w.add_pad_token_id(metadata["tokenizer.padding_token_id"])
    if "tokenizer.bos_token_id" in metadata:
        w.add_bos_token_id(metadata["tokenizer.bos_token_id"])
    w.add_add_bos_token(bool(metadata.get("tokenizer.add_bos_token")))
    if isinstance(metadata.get("chat_template"), str):
        w.add_chat_template(metadata["chat_template"])


def _types(metadata: Mapping[str, Any], count: int) -> list[int]:
    """Return token types for a file without them: added tokens are control, fillers unused."""
    from apr_core.plugin import unpack

    content = unpack(metadata) or {}
    types = [1] * count
    for i, token in enumerate(metadata["tokenizer.vocabulary"]):
        if token.startswith("[PAD"):
            types[i] = 5
    for token in content.get("added_tokens", ()):
        types[token["id"]] = 3 if token.get("special") else 4
    return types
