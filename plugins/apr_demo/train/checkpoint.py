"""Writes a checkpoint as the hub has it: nested config, long names, one numbered shard, index."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from transformers import Qwen3_5ForCausalLM

KEEP_F32 = ("linear_attn.A_log", "linear_attn.norm.weight")
SHARD = "model.safetensors-00001-of-00001.safetensors"


def write(model: Qwen3_5ForCausalLM, tokenizer: Tokenizer, template: str, out: Path) -> None:
    """Write BF16 weights (two kinds of vectors in F32), config, tokenizer, chat template."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, value in model.state_dict().items():
        if name != "lm_head.weight":  # tied
            dtype = torch.float32 if name.endswith(KEEP_F32) else torch.bfloat16
            long = name.replace("model.", "model.language_model.", 1)
            tensors[long] = value.detach().to(dtype).contiguous()
    save_file(tensors, out / SHARD, metadata={"format": "pt"})
    total = sum(t.nbytes for t in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict.fromkeys(sorted(tensors), SHARD)}
    _write_json(out / "model.safetensors.index.json", index)
    _write_json(out / "config.json", _config(model))
    ids = [tokenizer.token_to_id(t) for t in ("<|im_end|>", "<|endoftext|>")]
    _write_json(out / "generation_config.json", {"do_sample": False, "eos_token_id": ids})
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "chat_template.jinja").write_text(template)
    _write_json(
        out / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "bos_token": None,
            "eos_token": "<|im_end|>",
            "pad_token": "<|endoftext|>",
            "add_bos_token": False,
            "add_prefix_space": False,
            "model_max_length": 2048,
            "chat_template": template,
        },
    )


def _config(model: Qwen3_5ForCausalLM) -> dict[str, object]:
    text = model.config.to_dict()
    for key in ("architectures", "transformers_version", "_name_or_path"):
        text.pop(key, None)
    text |= {
        "model_type": "qwen3_5_text", "dtype": "bfloat16", "full_attention_interval": 4,
        "attn_output_gate": True, "mtp_num_hidden_layers": 0, "mamba_ssm_dtype": "float32",
    }  # fmt: skip
    return {
        "architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5",
        "text_config": text, "tie_word_embeddings": True,
    }  # fmt: skip


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
