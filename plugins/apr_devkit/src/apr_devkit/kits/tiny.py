"""Tiny checkpoints of any installed family: its own configuration, seeded random weights.

Names and shapes come from the family's contract. What this cannot know, it does not guess: a
family without `tiny_config()` needs a `config`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import UsageError
from apr_core.family.contract import Contract, TensorRule
from apr_core.family.modelspec import ModelConfig
from apr_core.registry import Registry, get_registry

NORM_SPREAD, BIAS_SPREAD = 0.1, 0.1
LAYER_GAIN = 0.5  # at 1 a random model amplifies rounding tens of times, which trained ones do not
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
ADDED = ("<think>", "</think>")
MERGES = (
    ("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("in", "g"), ("a", "n"), ("an", "d"),
    ("Ġ", "a"), ("e", "r"), ("o", "n"),
)  # fmt: skip
BYTES = 256
LEAST_VOCABULARY = BYTES + len(SPECIAL) + len(ADDED) + len(MERGES)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_checkpoint(
    family: str,
    directory: Path,
    *,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    dtype: str = "BF16",
    layout: str | None = None,
    registry: Registry | None = None,
) -> Path:
    """Write a complete checkpoint of an installed family into `directory`, and return it.

    `config` is the config.json, by default the family's `tiny_config()`. Weights are random and
    exact in bfloat16, and such that logits have a standard deviation of about 1; the same seed
    gives the same bytes. `dtype` is that of the stored tensors, BF16 or F32. `layout` is one of
    the contract's, by default the one with the shortest prefix: that of checkpoints with text
    only. Raises PluginError, ContractError or UsageError.
    """
    found = (registry or get_registry()).make("family", family)
    hf = dict(tiny_config(found, family) if config is None else config)
    read, contract = found.config(hf), found.contract()
    if read.vocab_size < LEAST_VOCABULARY:
        raise UsageError(
            f"a vocabulary of {read.vocab_size} is too small for a tiny tokenizer",
            f"Let vocab_size be {LEAST_VOCABULARY} or more.",
        )
    tensors = random_weights(contract, read, layout or text_layout(contract), seed)
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "config.json", json.dumps(hf, indent=1).encode())
    _write(directory / "generation_config.json", json.dumps(GENERATION, indent=1).encode())
    _write(directory / "model.safetensors", safetensors_bytes(tensors, dtype))
    _write_tokenizer(directory)
    return directory


GENERATION = {
    "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
    "eos_token_id": [BYTES + SPECIAL.index("<|im_end|>"), BYTES],
}  # fmt: skip


def tiny_config(family: Any, name: str) -> dict[str, Any]:
    """What the family object offers. Raises UsageError if it offers nothing."""
    offered = getattr(family, "tiny_config", None)
    if offered is None:
        raise UsageError(
            f"family {name!r} has no tiny_config()",
            "Give it one (see FamilyPlugin), or pass a config.json of a few layers as `config`.",
        )
    made: dict[str, Any] = offered()
    return made


def tiny_apr(
    family: str,
    directory: Path,
    recipe: str = "f32",
    *,
    config: Mapping[str, Any] | None = None,
    seed: int = 0,
    registry: Registry | None = None,
) -> Path:
    """`tiny_checkpoint`, imported by this process: the path of `directory/model.apr`.

    `recipe` is that of an installed plugin. `f32` and `source` (bfloat16) need none. Raises what
    `tiny_checkpoint` and the import raise.
    """
    registry = registry or get_registry()
    dtype, recipe = ("F32", "source") if recipe == "f32" else ("BF16", recipe)
    checkpoint = tiny_checkpoint(
        family, directory / "checkpoint", config=config, seed=seed, dtype=dtype, registry=registry
    )
    return import_checkpoint(checkpoint, directory / "model.apr", recipe, family, registry)


def import_checkpoint(
    checkpoint: Path, target: Path, recipe: str, family: str, registry: Registry
) -> Path:
    """Import without a command line, as the named family."""
    from apr_core.importing import find_source, plan_import, write_import

    source = find_source(str(checkpoint), registry)
    plan = plan_import(source, recipe=recipe, arch=family, registry=registry)
    write_import(plan, target, force=True, threads=1)
    return target


def random_weights(
    contract: Contract, config: ModelConfig, layout: str, seed: int
) -> dict[str, NDArray[np.float32]]:
    """A value for every tensor of the contract, carried ones included: {name: float32}."""
    rng = np.random.default_rng(seed)
    rules = [*contract.rules(config, layout), *contract.carried(config)]
    return {rule.name: random_tensor(rule, contract, rng) for rule in rules}


def random_tensor(
    rule: TensorRule, contract: Contract, rng: np.random.Generator
) -> NDArray[np.float32]:
    """Matrices keep the scale of what they multiply, norms are near 1, biases are not zero."""
    values = rng.standard_normal(rule.shape, np.float32)
    if len(rule.shape) > 1:
        gain = 1.0 if rule.layer is None else LAYER_GAIN
        return as_bfloat16(values * np.float32(gain * prod(rule.shape[1:]) ** -0.5))
    if not _is_norm(rule):
        return as_bfloat16(values * np.float32(BIAS_SPREAD))
    offset = 0.0 if rule.role in contract.plain_norms else contract.norm_offset
    return as_bfloat16(values * np.float32(NORM_SPREAD) + np.float32(1 - offset))


def _is_norm(rule: TensorRule) -> bool:
    return any("norm" in part.lower() for part in (rule.role, rule.name))


def as_bfloat16(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values with all that bfloat16 cannot hold cut off."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4") & np.uint32(0xFFFF0000)
    cut: NDArray[np.float32] = bits.view("<f4").reshape(values.shape)
    return cut


def safetensors_bytes(
    tensors: Mapping[str, NDArray[np.float32]], dtype: str = "BF16"
) -> bytes:  # fmt: skip
    """A safetensors file, in F32 or BF16; for BF16 the values must be exact in it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, at = [], 0
    for name, values in tensors.items():
        bits = np.ascontiguousarray(values, "<f4").view("<u4")
        raw = (bits if dtype == "F32" else (bits >> 16).astype("<u2")).tobytes()
        header[name] = {
            "dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + len(raw)],
        }  # fmt: skip
        parts.append(raw)
        at += len(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def text_layout(contract: Contract) -> str:
    """The layout with the shortest prefix: that of checkpoints with text only."""
    layouts = contract.content["layouts"]
    return str(min(layouts, key=lambda name: len(layouts[name]["prefix"])))


def _write(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_bytes(content)
    beside.replace(path)


def _write_tokenizer(directory: Path) -> None:
    """Byte-level BPE: ids 0 to 255 are bytes, then the special tokens, then a few merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *SPECIAL, *ADDED, *(a + b for a, b in MERGES)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(_added(SPECIAL, AddedToken, special=True))
    tokenizer.add_tokens(_added(ADDED, AddedToken, special=False))
    _write(directory / "tokenizer.json", tokenizer.to_str(pretty=True).encode())
    names = {
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None,
        "chat_template": TEMPLATE,
    }  # fmt: skip
    _write(directory / "tokenizer_config.json", json.dumps(names, indent=1).encode())


def _added(texts: Iterable[str], make: Any, special: bool) -> list[Any]:
    return [make(text, special=special) for text in texts]
