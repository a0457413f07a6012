"""Random models made by transformers, saved as checkpoints: the oracle of the parity tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3_5ForCausalLM,
    Qwen3_5MoeForCausalLM,
    Qwen3_5MoeTextConfig,
    Qwen3_5TextConfig,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB = 2048
VECTORS_F32 = ("linear_attn.A_log", "linear_attn.norm.weight")


@dataclass(frozen=True)
class Case:
    """One checkpoint: family, layout, head ratio, tied or not, scaling of rotary positions."""

    family: str
    layout: str = "flat"
    ratio: int = 2
    tied: bool = True
    rope: str = "default"

    def __str__(self) -> str:
        ends = "tied" if self.tied else "untied"
        scaled = "" if self.rope == "default" else f"-{self.rope}"
        return f"{self.family}-{self.layout}-r{self.ratio}-{ends}{scaled}"


def build(case: Case, seed: int = 0) -> torch.nn.Module:
    """A random model in BF16 whose norms and biases are not trivial."""
    torch.manual_seed(seed)
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = MODELS[case.family](case)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(("norm.weight", "bias")) and "dt_bias" not in name:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval()


ROPES = {  # the tests' prompts are longer than the old context
    "default": {"rope_type": "default"},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64},
    "llama3": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}  # fmt: skip


def _common(case: Case, theta: float, **more: Any) -> dict[str, Any]:
    """What the configurations of dense decoders share; `more` goes before it."""
    return {
        "hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 512,
        "num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": case.tied,
        "vocab_size": VOCAB, "max_position_embeddings": 512, "eos_token_id": 0,
        "bos_token_id": None, "rope_parameters": {"rope_theta": theta, **ROPES[case.rope]}, **more,
    }  # fmt: skip


def _qwen2(case: Case) -> torch.nn.Module:
    return Qwen2ForCausalLM(Qwen2Config(**_common(case, 1e6)))


def _llama(case: Case) -> torch.nn.Module:
    sizes = {"hidden_size": 288, "num_attention_heads": 9, "num_key_value_heads": 3}
    return LlamaForCausalLM(LlamaConfig(**_common(case, 1e4, **sizes)))


def _mistral(case: Case) -> torch.nn.Module:
    more = {"sliding_window": 40, "head_dim": 32}
    return MistralForCausalLM(MistralConfig(**_common(case, 1e4, **more)))


def _qwen3(case: Case) -> torch.nn.Module:
    return Qwen3ForCausalLM(Qwen3Config(**_common(case, 1e6, head_dim=96)))


def _gemma3(case: Case) -> torch.nn.Module:
    rope = {
        "full_attention": {"rope_theta": 1e6, **ROPES[case.rope]},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    }
    more = {
        "head_dim": 32, "sliding_window": 40, "sliding_window_pattern": 3,
        "query_pre_attn_scalar": 24, "rope_parameters": rope, "eos_token_id": [0, 1],
        "pad_token_id": None,
    }  # fmt: skip
    if not case.tied:  # no published model has this, but configurations can say it
        more["final_logit_softcapping"] = 5.0
    return Gemma3ForCausalLM(Gemma3TextConfig(**_common(case, 1e6, **more)))


def _qwen3_5(case: Case) -> torch.nn.Module:
    config = Qwen3_5TextConfig(num_hidden_layers=8, intermediate_size=512, **_hybrid(case))
    return Qwen3_5ForCausalLM(config)


def _qwen3_5_moe(case: Case) -> torch.nn.Module:
    experts = {
        "num_hidden_layers": 4, "num_experts": 12, "num_experts_per_tok": 3,
        "moe_intermediate_size": 256, "shared_expert_intermediate_size": 192,
    }  # fmt: skip
    model = Qwen3_5MoeForCausalLM(Qwen3_5MoeTextConfig(**experts, **_hybrid(case)))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if ".mlp." in name:
                p.mul_(3)  # else what experts add, and which are chosen, would hardly show
    return model


def _hybrid(case: Case) -> dict[str, object]:
    rope = {
        "rope_theta": 1e7, "partial_rotary_factor": 0.25, "mrope_section": [4, 2, 2],
        "mrope_interleaved": True, **ROPES[case.rope],
    }  # fmt: skip
    return {
        "hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2,
        "linear_num_key_heads": 2, "linear_num_value_heads": 2 * case.ratio,
        "linear_key_head_dim": 32, "linear_value_head_dim": 32, "head_dim": 64,
        "tie_word_embeddings": case.tied, "vocab_size": VOCAB, "max_position_embeddings": 262144,
        "eos_token_id": 0, "rope_parameters": rope,
    }  # fmt: skip


MODELS = {
    "gemma3": _gemma3, "llama": _llama, "mistral": _mistral, "qwen2": _qwen2, "qwen3": _qwen3,
    "qwen3_5": _qwen3_5, "qwen3_5_moe": _qwen3_5_moe,
}  # fmt: skip


def save(model: torch.nn.Module, case: Case, out: Path) -> None:
    """Write the checkpoint in its layout, with a byte tokenizer.

    Of a layer's experts, `published` has one tensor, and `flat` one for each expert.
    """
    out.mkdir(parents=True, exist_ok=True)
    if case.layout == "flat":
        model.save_pretrained(out)
    else:
        _save_published(model, out)
    _byte_tokenizer(out)


def _save_published(model: torch.nn.Module, out: Path) -> None:
    """As on the hub: nested config, long names, two F32 tensors, MTP, vision, two shards."""
    tied = model.config.tie_word_embeddings
    tensors = {}
    for name, t in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        long = name.replace("model.", "model.language_model.", 1)
        tensors[long if name.startswith("model.") else name] = (
            t.float() if name.endswith(VECTORS_F32) else t
        ).contiguous()
    tensors |= _mtp_and_vision(model)
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2]), 1):
        file = f"model.safetensors-{i:05d}-of-00002.safetensors"
        save_file({n: tensors[n] for n in part}, out / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    text = model.config.to_dict()
    text.pop("architectures", None)
    text |= {"full_attention_interval": 4, "attn_output_gate": True, "mtp_num_hidden_layers": 1}
    config = {
        "architectures": [type(model).__name__.replace("CausalLM", "ConditionalGeneration")],
        "model_type": model.config.model_type.removesuffix("_text"), "text_config": text,
        "tie_word_embeddings": tied,
        "vision_config": {"depth": 1, "hidden_size": 32},
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config))


def _mtp_and_vision(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    hidden = model.config.hidden_size
    full = model.config.layer_types.index("full_attention")
    prefix = f"model.layers.{full}."
    extra = {
        name.replace(prefix, "mtp.layers.0."): t.contiguous().clone()
        for name, t in model.state_dict().items()
        if name.startswith(prefix)
    }
    extra["mtp.fc.weight"] = 0.02 * torch.randn(hidden, 2 * hidden)
    for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm"):
        extra[f"mtp.{name}.weight"] = torch.zeros(hidden)
    extra["model.visual.patch_embed.proj.weight"] = torch.randn(32, 3, 2, 16, 16)
    extra["model.visual.patch_embed.proj.bias"] = torch.zeros(32)
    return extra


def _byte_tokenizer(out: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    tokenizer.add_special_tokens([AddedToken(x, special=True) for x in specials])
    tokenizer.add_tokens([AddedToken(x, special=False) for x in ("<think>", "</think>")])
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "Qwen2Tokenizer",
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "bos_token": None,
            }
        )
    )
