"""Checkpoints of real sizes with random weights, streamed to disk: what speed is measured on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.tiny_checkpoints import write_tokenizer

PREFIX = "model.language_model."
BLOCK = 1 << 22  # values made at once


@dataclass(frozen=True)
class Size:
    """The numbers of a published Qwen3.5, dense."""

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    value_heads: int
    tied: bool = True
    key_heads: int = 16
    head_dim: int = 256
    linear_dim: int = 128
    vocab: int = 248320


SIZES = {
    "0.8b": Size(1024, 24, 3584, 8, 2, 16),
    "2b": Size(2048, 24, 6144, 8, 2, 16),
    "4b": Size(2560, 32, 9216, 16, 4, 32),
    "9b": Size(4096, 32, 12288, 16, 4, 32, tied=False),
}


def shapes(s: Size) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the text model, by its published name."""
    yield f"{PREFIX}embed_tokens.weight", (s.vocab, s.hidden)
    yield f"{PREFIX}norm.weight", (s.hidden,)
    if not s.tied:
        yield "lm_head.weight", (s.vocab, s.hidden)
    for n in range(s.layers):
        for name, shape in _layer(s, n % 4 == 3):
            yield f"{PREFIX}layers.{n}.{name}", shape


def _layer(s: Size, is_full: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    h, f = s.hidden, s.intermediate
    yield from (("input_layernorm.weight", (h,)), ("post_attention_layernorm.weight", (h,)))
    yield from (("mlp.gate_proj.weight", (f, h)), ("mlp.up_proj.weight", (f, h)))
    yield "mlp.down_proj.weight", (h, f)
    if is_full:
        width, kv = s.heads * s.head_dim, s.kv_heads * s.head_dim
        yield "self_attn.q_proj.weight", (2 * width, h)
        yield from (("self_attn.k_proj.weight", (kv, h)), ("self_attn.v_proj.weight", (kv, h)))
        yield "self_attn.o_proj.weight", (h, width)
        yield from ((f"self_attn.{n}_norm.weight", (s.head_dim,)) for n in "qk")
        return
    keys, values = s.key_heads * s.linear_dim, s.value_heads * s.linear_dim
    yield "linear_attn.in_proj_qkv.weight", (2 * keys + values, h)
    yield "linear_attn.in_proj_z.weight", (values, h)
    yield from ((f"linear_attn.in_proj_{n}.weight", (s.value_heads, h)) for n in "ab")
    yield "linear_attn.conv1d.weight", (2 * keys + values, 1, 4)
    yield from ((f"linear_attn.{n}", (s.value_heads,)) for n in ("A_log", "dt_bias"))
    yield from (("linear_attn.norm.weight", (s.linear_dim,)),
                ("linear_attn.out_proj.weight", (h, values)))  # fmt: skip


def config(s: Size) -> dict[str, Any]:
    """config.json as published."""
    kinds = ["full_attention" if n % 4 == 3 else "linear_attention" for n in range(s.layers)]
    rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
            "mrope_section": [11, 11, 10], "mrope_interleaved": True}  # fmt: skip
    text = {
        "model_type": "qwen3_5_text", "dtype": "bfloat16", "hidden_size": s.hidden,
        "intermediate_size": s.intermediate, "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads, "head_dim": s.head_dim,
        "vocab_size": s.vocab, "max_position_embeddings": 262144, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "attention_bias": False, "attn_output_gate": True,
        "full_attention_interval": 4, "layer_types": kinds, "linear_conv_kernel_dim": 4,
        "linear_num_key_heads": s.key_heads, "linear_num_value_heads": s.value_heads,
        "linear_key_head_dim": s.linear_dim, "linear_value_head_dim": s.linear_dim,
        "eos_token_id": 256, "tie_word_embeddings": s.tied, "rope_parameters": rope,
    }  # fmt: skip
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
        "text_config": text, "tie_word_embeddings": s.tied,
        "vision_config": {"model_type": "qwen3_5", "depth": 1},
    }  # fmt: skip


def _values(name: str, count: int, rng: np.random.Generator) -> Iterator[NDArray[np.float32]]:
    for start in range(0, count, BLOCK):
        values = rng.standard_normal(min(BLOCK, count - start), np.float32) * np.float32(0.02)
        if name.endswith("linear_attn.norm.weight"):
            values += np.float32(1)  # the one norm that is not stored zero-centred
        yield values


def write(size: str, out: Path) -> Path:
    """The checkpoint in `out`, unless it is there already."""
    s = SIZES[size]
    if (out / "config.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in shapes(s):
        count = int(np.prod(shape))
        wide = name.endswith(("A_log", "linear_attn.norm.weight"))
        nbytes = count * (4 if wide else 2)
        dtype = "F32" if wide else "BF16"
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    raw = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with (out / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name, shape in shapes(s):
            for values in _values(name, int(np.prod(shape)), rng):
                bits = values.view(np.uint32)
                wide = header[name]["dtype"] == "F32"
                file.write(values.tobytes() if wide else (bits >> 16).astype(np.uint16).tobytes())
    write_tokenizer(out)
    (out / "config.json").write_text(json.dumps(config(s)))
    return out
