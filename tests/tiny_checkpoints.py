"""Tiny checkpoints of both families, written byte by byte: seeded random weights, real names.

Needs numpy and tokenizers only. Names and shapes are spelled out here, not taken from a contract,
so that a contract that is wrong disagrees with them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

NUMPY = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "I64": "<i8"}
PREFIX = {"published": "model.language_model.", "flat": "model.", "nested": "language_model.model."}
HEAD = {
    "published": "lm_head.weight",
    "flat": "lm_head.weight",
    "nested": "language_model.lm_head.weight",
}


@dataclass(frozen=True)
class Tiny:
    """What to write. `ratio` is V heads to K heads; `shards` 0 means one plain file."""

    family: str = "qwen3_5"
    layout: str = "published"
    ratio: int = 2
    tied: bool = True
    mtp: bool = True
    vision: bool = True
    shards: int = 2
    dtype: str = "BF16"
    hidden: int = 256
    intermediate: int = 512
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    vocab: int = 512
    seed: int = 0
    config: Mapping[str, Any] = field(default_factory=dict)  # replaces text fields; None removes


def encode(values: np.ndarray, dtype: str) -> bytes:
    """Little-endian bytes; BF16 by truncation, which is exact for what `random` makes."""
    if dtype == "BF16":
        return (np.ascontiguousarray(values, "<f4").view("<u4") >> 16).astype("<u2").tobytes()
    return values.astype(NUMPY[dtype]).tobytes()


def write_safetensors(
    path: Path, tensors: Mapping[str, tuple[str, np.ndarray]], metadata: Mapping[str, str] = {}
) -> None:
    """{name: (dtype, values)} in safetensors layout."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    parts, at = [], 0
    for name, (dtype, values) in tensors.items():
        raw = encode(values, dtype)
        span = [at, at + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": span}
        parts.append(raw)
        at += len(raw)
    write_raw_safetensors(path, header, b"".join(parts))


def write_raw_safetensors(path: Path, header: Any, data: bytes) -> None:
    """A header of any kind before the data: for files that should not be believed."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def shapes(tiny: Tiny) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every tensor of the text model, with its published shape."""
    t, p = tiny, PREFIX[tiny.layout]
    yield f"{p}embed_tokens.weight", (t.vocab, t.hidden)
    yield f"{p}norm.weight", (t.hidden,)
    if not t.tied:
        yield HEAD[t.layout], (t.vocab, t.hidden)
    for n in range(t.layers):
        layer = f"{p}layers.{n}."
        is_full = t.family == "qwen2" or n % 4 == 3
        yield from _block(t, layer, is_full)
    if t.family == "qwen3_5" and t.mtp:
        yield "mtp.fc.weight", (t.hidden, 2 * t.hidden)
        for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
            yield f"mtp.{name}.weight", (t.hidden,)
        yield from _block(t, "mtp.layers.0.", True)
    if t.family == "qwen3_5" and t.vision:
        yield "model.visual.patch_embed.proj.weight", (8, 3, 2, 4, 4)
        yield "model.visual.patch_embed.proj.bias", (8,)


def _block(t: Tiny, layer: str, is_full: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{layer}input_layernorm.weight", (t.hidden,)
    yield f"{layer}post_attention_layernorm.weight", (t.hidden,)
    yield f"{layer}mlp.gate_proj.weight", (t.intermediate, t.hidden)
    yield f"{layer}mlp.up_proj.weight", (t.intermediate, t.hidden)
    yield f"{layer}mlp.down_proj.weight", (t.hidden, t.intermediate)
    parts = _full(t) if is_full else _linear(t)
    for name, shape in parts.items():
        yield f"{layer}{name}", shape


def _full(t: Tiny) -> dict[str, tuple[int, ...]]:
    q, kv = t.heads * t.head_dim, t.kv_heads * t.head_dim
    rows = 2 * q if t.family == "qwen3_5" else q
    tensors: dict[str, tuple[int, ...]] = {
        "self_attn.q_proj.weight": (rows, t.hidden),
        "self_attn.k_proj.weight": (kv, t.hidden),
        "self_attn.v_proj.weight": (kv, t.hidden),
        "self_attn.o_proj.weight": (t.hidden, q),
    }
    if t.family == "qwen2":
        biases = {"q": q, "k": kv, "v": kv}
        return tensors | {f"self_attn.{n}_proj.bias": (size,) for n, size in biases.items()}
    return tensors | {f"self_attn.{n}_norm.weight": (t.head_dim,) for n in "qk"}


def _linear(t: Tiny) -> dict[str, tuple[int, ...]]:
    k, v_heads = 2 * 32, 2 * t.ratio
    v = v_heads * 32
    return {
        "linear_attn.in_proj_qkv.weight": (2 * k + v, t.hidden),
        "linear_attn.in_proj_z.weight": (v, t.hidden),
        "linear_attn.in_proj_a.weight": (v_heads, t.hidden),
        "linear_attn.in_proj_b.weight": (v_heads, t.hidden),
        "linear_attn.conv1d.weight": (2 * k + v, 1, 4),
        "linear_attn.A_log": (v_heads,),
        "linear_attn.dt_bias": (v_heads,),
        "linear_attn.norm.weight": (32,),
        "linear_attn.out_proj.weight": (t.hidden, v),
    }


def random(tiny: Tiny) -> dict[str, tuple[str, np.ndarray]]:
    """{name: (dtype, values)}: weights of 0.05, norms and biases that are not trivial."""
    rng = np.random.default_rng(tiny.seed)
    tensors = {}
    for name, shape in shapes(tiny):
        values = rng.standard_normal(shape, np.float32)
        is_norm = name.endswith("norm.weight") or "layernorm" in name
        plain = is_norm and (tiny.family == "qwen2" or "linear_attn.norm" in name)
        if "A_log" in name:
            values = np.log(rng.uniform(0.5, 8, shape)).astype(np.float32)
        else:
            values = values * np.float32(0.1 if is_norm or len(shape) == 1 else 0.05)
        if plain:
            values = values + np.float32(1)
        keeps_f32 = tiny.layout == "published" and name.endswith(
            ("A_log", "linear_attn.norm.weight")
        )
        bits = np.ascontiguousarray(values, "<f4").view("<u4") & np.uint32(0xFFFF0000)
        tensors[name] = ("F32" if keeps_f32 else tiny.dtype), bits.view("<f4").reshape(shape)
    return tensors


def config(tiny: Tiny) -> dict[str, Any]:
    """config.json as the hub has it for that layout."""
    text = _text_config(tiny)
    for key, value in tiny.config.items():
        text[key] = value
        if value is None:
            del text[key]
    if tiny.family == "qwen2":
        return {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"} | text
    if tiny.layout == "flat":
        head = {"architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text"}
        return head | {"tie_word_embeddings": tiny.tied} | text
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"],
        "model_type": "qwen3_5",
        "text_config": {"model_type": "qwen3_5_text"} | text,
        "tie_word_embeddings": tiny.tied,
        "vision_config": {"depth": 1},
    }


def _text_config(t: Tiny) -> dict[str, Any]:
    common = {
        "hidden_size": t.hidden, "intermediate_size": t.intermediate, "num_hidden_layers": t.layers,
        "num_attention_heads": t.heads, "num_key_value_heads": t.kv_heads, "vocab_size": t.vocab,
        "max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "hidden_act": "silu",
        "eos_token_id": 256, "dtype": "bfloat16",
    }  # fmt: skip
    if t.family == "qwen2":
        return common | {"rope_theta": 1000000.0, "tie_word_embeddings": t.tied}
    return common | {
        "head_dim": t.head_dim, "attention_bias": False, "attn_output_gate": True,
        "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
        "layer_types": [
            "full_attention" if n % 4 == 3 else "linear_attention" for n in range(t.layers)
        ],
        "linear_num_key_heads": 2, "linear_num_value_heads": 2 * t.ratio,
        "linear_key_head_dim": 32, "linear_value_head_dim": 32,
        "mtp_num_hidden_layers": 1 if t.mtp else 0,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 10000000, "partial_rotary_factor": 0.25,
            "mrope_section": [4, 2, 2], "mrope_interleaved": True,
        },
    }  # fmt: skip


def write_tokenizer(out: Path) -> None:
    """One id a byte, then the chat and thinking tokens: 261 ids."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(x, special=True) for x in specials])
    tokenizer.add_tokens([AddedToken(x, special=False) for x in ("<think>", "</think>")])
    tokenizer.save(str(out / "tokenizer.json"))
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None}
    (out / "tokenizer_config.json").write_text(json.dumps(names | {"chat_template": TEMPLATE}))


TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write(out: Path, tiny: Tiny | None = None, **options: Any) -> Path:
    """The whole directory; options are fields of `Tiny`."""
    tiny = tiny or Tiny(**options)
    out.mkdir(parents=True, exist_ok=True)
    write_weights(out, random(tiny), tiny.shards)
    (out / "config.json").write_text(json.dumps(config(tiny)))
    write_tokenizer(out)
    return out


def write_weights(
    out: Path, tensors: Mapping[str, tuple[str, np.ndarray]], shards: int = 0
) -> None:
    """One plain file, or that many numbered shards with an index; tensors dealt in turn."""
    if not shards:
        write_safetensors(out / "model.safetensors", tensors, {"format": "pt"})
        return
    names, weight_map = sorted(tensors), {}
    for i in range(shards):
        file = f"model.safetensors-{i + 1:05d}-of-{shards:05d}.safetensors"
        part = names[i::shards]
        write_safetensors(out / file, {n: tensors[n] for n in part}, {"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
