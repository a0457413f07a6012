"""Checkpoints of real sizes with random weights, streamed to disk: what speed is measured on."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from tests.tiny_checkpoints import write_tokenizer

BLOCK = 1 << 22  # values made at once
Shapes = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True)
class Size:
    """The numbers of a published model, as far as all families have them."""

    prefix: ClassVar[str]  # of all names but the head's
    norms: ClassVar[str]  # how names of norms end that are stored as they multiply
    wide: ClassVar[tuple[str, ...]] = ()  # how names of tensors end that are float32

    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = True

    def shapes(self) -> Shapes:
        """Every tensor of the text model, by its published name."""
        yield f"{self.prefix}embed_tokens.weight", (self.vocab, self.hidden)
        yield f"{self.prefix}norm.weight", (self.hidden,)
        if not self.tied:
            yield "lm_head.weight", (self.vocab, self.hidden)
        for n in range(self.layers):
            for name, shape in (*self._mlp(), *self._mixer(n)):
                yield f"{self.prefix}layers.{n}.{name}", shape

    def config(self) -> dict[str, Any]:
        """config.json as published."""
        raise NotImplementedError

    def _mlp(self) -> Shapes:
        h, f = self.hidden, self.intermediate
        yield from (("input_layernorm.weight", (h,)), ("post_attention_layernorm.weight", (h,)))
        yield from (("mlp.gate_proj.weight", (f, h)), ("mlp.up_proj.weight", (f, h)))
        yield "mlp.down_proj.weight", (h, f)

    def _mixer(self, layer: int) -> Shapes:
        raise NotImplementedError

    def _numbers(self) -> dict[str, Any]:
        return {
            "dtype": "bfloat16", "hidden_size": self.hidden, "num_hidden_layers": self.layers,
            "intermediate_size": self.intermediate, "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads, "vocab_size": self.vocab, "hidden_act": "silu",
            "rms_norm_eps": 1e-6, "eos_token_id": 256, "tie_word_embeddings": self.tied,
        }  # fmt: skip


@dataclass(frozen=True)
class Qwen35(Size):
    """A dense Qwen3.5: three layers of linear attention, then one of full attention."""

    prefix = "model.language_model."
    norms = "linear_attn.norm.weight"  # all others are stored less 1
    wide = ("A_log", "linear_attn.norm.weight")

    head_dim: int = 256
    vocab: int = 248320
    value_heads: int = 16
    key_heads: int = 16
    linear_dim: int = 128

    @property
    def kinds(self) -> list[str]:
        """Of each layer, as config.json names them."""
        return ["full_attention" if n % 4 == 3 else "linear_attention" for n in range(self.layers)]

    def _mixer(self, layer: int) -> Shapes:
        h = self.hidden
        if self.kinds[layer] == "full_attention":
            width, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
            yield "self_attn.q_proj.weight", (2 * width, h)
            yield from ((f"self_attn.{n}_proj.weight", (kv, h)) for n in "kv")
            yield "self_attn.o_proj.weight", (h, width)
            yield from ((f"self_attn.{n}_norm.weight", (self.head_dim,)) for n in "qk")
            return
        keys, values = self.key_heads * self.linear_dim, self.value_heads * self.linear_dim
        yield "linear_attn.in_proj_qkv.weight", (2 * keys + values, h)
        yield "linear_attn.in_proj_z.weight", (values, h)
        yield from ((f"linear_attn.in_proj_{n}.weight", (self.value_heads, h)) for n in "ab")
        yield "linear_attn.conv1d.weight", (2 * keys + values, 1, 4)
        yield from ((f"linear_attn.{n}", (self.value_heads,)) for n in ("A_log", "dt_bias"))
        yield "linear_attn.norm.weight", (self.linear_dim,)
        yield "linear_attn.out_proj.weight", (h, values)

    def config(self) -> dict[str, Any]:
        """See Size."""
        rope = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
                "mrope_section": [11, 11, 10], "mrope_interleaved": True}  # fmt: skip
        text = self._numbers() | {
            "model_type": "qwen3_5_text", "head_dim": self.head_dim, "attention_bias": False,
            "max_position_embeddings": 262144, "attn_output_gate": True, "layer_types": self.kinds,
            "full_attention_interval": 4, "linear_conv_kernel_dim": 4,
            "linear_num_key_heads": self.key_heads, "linear_num_value_heads": self.value_heads,
            "linear_key_head_dim": self.linear_dim, "linear_value_head_dim": self.linear_dim,
            "rope_parameters": rope,
        }  # fmt: skip
        return {
            "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
            "text_config": text, "tie_word_embeddings": self.tied,
            "vision_config": {"model_type": "qwen3_5", "depth": 1},
        }  # fmt: skip


@dataclass(frozen=True)
class Qwen35Moe(Qwen35):
    """Qwen3.5 with experts of `intermediate` rows, the `top` of them for a token."""

    tied: bool = False
    experts: int = 256
    top: int = 8

    def _mlp(self) -> Shapes:
        h, f = self.hidden, self.intermediate
        yield from ((n, s) for n, s in super()._mlp() if "norm" in n)
        yield "mlp.gate.weight", (self.experts, h)
        yield "mlp.experts.gate_up_proj", (self.experts, 2 * f, h)
        yield "mlp.experts.down_proj", (self.experts, h, f)
        yield "mlp.shared_expert_gate.weight", (1, h)
        yield from ((f"mlp.shared_expert.{n}_proj.weight", (f, h)) for n in ("gate", "up"))
        yield "mlp.shared_expert.down_proj.weight", (h, f)

    def config(self) -> dict[str, Any]:
        """See Size."""
        dense = super().config()
        text = dense["text_config"] | {
            "model_type": "qwen3_5_moe_text", "moe_intermediate_size": self.intermediate,
            "num_experts": self.experts, "num_experts_per_tok": self.top,
            "shared_expert_intermediate_size": self.intermediate,
        }  # fmt: skip
        architectures = ["Qwen3_5MoeForConditionalGeneration"]
        named = {"architectures": architectures, "model_type": "qwen3_5_moe"}
        return dense | named | {"text_config": text}


@dataclass(frozen=True)
class Qwen2(Size):
    """A dense Qwen2 or Qwen2.5: full attention with biases on q, k and v."""

    prefix = "model."
    norms = "norm.weight"

    def _mixer(self, layer: int) -> Shapes:
        widths = {"q": self.heads * self.head_dim}
        widths |= dict.fromkeys("kv", self.kv_heads * self.head_dim)
        for n, width in widths.items():
            yield f"self_attn.{n}_proj.weight", (width, self.hidden)
            yield f"self_attn.{n}_proj.bias", (width,)
        yield "self_attn.o_proj.weight", (self.hidden, widths["q"])

    def config(self) -> dict[str, Any]:
        """See Size."""
        return self._numbers() | {
            "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_theta": 1e6,
            "max_position_embeddings": 32768, "use_sliding_window": False,
        }  # fmt: skip


QWEN3_5 = {
    "0.8b": Qwen35(1024, 24, 3584, 8, 2),
    "2b": Qwen35(2048, 24, 6144, 8, 2),
    "4b": Qwen35(2560, 32, 9216, 16, 4, value_heads=32),
    "9b": Qwen35(4096, 32, 12288, 16, 4, value_heads=32, tied=False),
}
QWEN3_5_MOE = {"35b-a3b-tenth": Qwen35Moe(2048, 4, 512, 16, 2, value_heads=32)}  # 4 of 40 layers
QWEN2 = {
    "qwen2-135m": Qwen2(576, 30, 1536, 9, 3, 64, 49152),  # a Qwen2 of the shape of SmolLM2-135M
    "qwen2-0.5b": Qwen2(896, 24, 4864, 14, 2, 64, 151936),
    "qwen2-1.5b": Qwen2(1536, 28, 8960, 12, 2, 128, 151936),
}
SIZES: dict[str, Size] = {**QWEN3_5, **QWEN3_5_MOE, **QWEN2}


def _values(
    name: str, size: Size, count: int, rng: np.random.Generator
) -> Iterator[NDArray[np.float32]]:
    for start in range(0, count, BLOCK):
        values = rng.standard_normal(min(BLOCK, count - start), np.float32) * np.float32(0.02)
        if name.endswith(size.norms):
            values += np.float32(1)
        yield values


def write(size: str, out: Path) -> Path:
    """The checkpoint in `out`, unless it is there already."""
    s = SIZES[size]
    if (out / "config.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, shape in s.shapes():
        wide = bool(s.wide) and name.endswith(s.wide)
        nbytes = int(np.prod(shape)) * (4 if wide else 2)
        dtype = "F32" if wide else "BF16"
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + nbytes]}
        at += nbytes
    raw = json.dumps(header).encode()
    rng = np.random.default_rng(0)
    with (out / "model.safetensors").open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for name, shape in s.shapes():
            for values in _values(name, s, int(np.prod(shape)), rng):
                bits = values.view(np.uint32)
                wide = header[name]["dtype"] == "F32"
                file.write(values.tobytes() if wide else (bits >> 16).astype(np.uint16).tobytes())
    write_tokenizer(out)
    (out / "config.json").write_text(json.dumps(s.config()))
    return out
