"""Tiny models of any family: a checkpoint of random weights with a tokenizer, and its .apr file.

Names and shapes of a tiny model come from its family's contract. Nothing else is guessed: a family
without `tiny_config()` needs a `config`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import Contract, FamilyPlugin, ModelConfig, TensorRule, UsageError
from apr_core.runtime import Registry, find_source, get_registry, plan_import, write_import

Floats = NDArray[np.float32]

NORM_SPREAD, BIAS_SPREAD = 0.1, 0.1
LAYER_GAIN = 0.5  # at 1 a random model amplifies rounding tens of times, which trained ones do not


def random_values(
    name: str, shape: tuple[int, ...], rng: np.random.Generator, gain: float = 1.0, norm: float = 1
) -> Floats:
    """Return random values: matrices keep scale, norms are near `norm`, biases are not zero."""
    values: Floats = rng.standard_normal(shape, np.float32)
    if len(shape) > 1:
        return values * np.float32(gain * shape[-1] ** -0.5)
    if "norm" in name.lower():
        return values * np.float32(NORM_SPREAD) + np.float32(norm)
    return values * np.float32(BIAS_SPREAD)


def random_tensor(rule: TensorRule, contract: Contract, rng: np.random.Generator) -> Floats:
    """Return random values for a tensor of a model, exact in bfloat16."""
    gain = 1.0 if rule.layer is None else LAYER_GAIN
    norm = 1.0 if rule.role in contract.plain_norms else 1 - contract.norm_offset
    return as_bfloat16(random_values(f"{rule.role} {rule.name}", rule.shape, rng, gain, norm))


def random_weights(contract: Contract, config: ModelConfig) -> dict[str, Floats]:
    """Return a value for every tensor of the contract, carried ones included: {name: float32}."""
    rng = np.random.default_rng(0)
    rules = [*contract.rules(config, text_layout(contract)), *contract.carried(config)]
    return {rule.name: random_tensor(rule, contract, rng) for rule in rules}


def as_bfloat16(values: Floats) -> Floats:
    """Return the values, truncated to bfloat16."""
    bits = np.ascontiguousarray(values, "<f4").view("<u4") & np.uint32(0xFFFF0000)
    cut: Floats = bits.view("<f4").reshape(values.shape)
    return cut


def text_layout(contract: Contract) -> str:
    """Return the layout with the shortest prefix: that of checkpoints with text only."""
    layouts = contract.content["layouts"]
    return str(min(layouts, key=lambda name: len(layouts[name]["prefix"])))


# tiny checkpoints and .apr files

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
GENERATION = {
    "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8,
    "eos_token_id": [BYTES + SPECIAL.index("<|im_end|>"), BYTES],
}  # fmt: skip


def tiny_config(family: FamilyPlugin, name: str) -> dict[str, Any]:
    """Return the family object's tiny config.json. Raises UsageError if it has none."""
    try:
        return family.tiny_config()
    except NotImplementedError:
        raise UsageError(
            f"family {name!r} has no tiny_config()",
            "Give it one (see FamilyPlugin), or pass a config.json of a few layers as `config`.",
        ) from None


def tiny_checkpoint(
    family: str,
    directory: Path,
    dtype: str = "BF16",
    *,
    config: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> Path:
    """Write a checkpoint of an installed family in BF16 or F32; return its directory.

    `config` is the config.json, by default the family's `tiny_config()`. Weights are random and
    exact in bfloat16, and such that logits have a standard deviation of about 1. Raises
    PluginError, ContractError and UsageError.
    """
    plugin = (registry or get_registry()).make("family", family)
    hf = dict(tiny_config(plugin, family) if config is None else config)
    read = plugin.config(hf)
    if read.vocab_size < LEAST_VOCABULARY:
        raise UsageError(
            f"a vocabulary of {read.vocab_size} is too small for a tiny tokenizer",
            f"Let vocab_size be {LEAST_VOCABULARY} or more.",
        )
    weights = safetensors_bytes(random_weights(plugin.contract(), read), dtype)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(hf, indent=1))
    (directory / "generation_config.json").write_text(json.dumps(GENERATION, indent=1))
    (directory / "model.safetensors").write_bytes(weights)
    _write_tokenizer(directory)
    return directory


def tiny_apr(
    family: str,
    directory: Path,
    recipe: str = "f32",
    *,
    config: Mapping[str, Any] | None = None,
    registry: Registry | None = None,
) -> Path:
    """Import such a checkpoint; return `directory/model.apr`.

    `recipe` is that of an installed plugin; `f32` and `source` (bfloat16) need none. Raises what
    `tiny_checkpoint` and an import raise.
    """
    registry, target = registry or get_registry(), directory / "model.apr"
    dtype, recipe = ("F32", "source") if recipe == "f32" else ("BF16", recipe)
    checkpoint = tiny_checkpoint(
        family, directory / "checkpoint", dtype, config=config, registry=registry
    )
    source = find_source(str(checkpoint), registry)
    plan = plan_import(source, recipe=recipe, arch=family, registry=registry)
    write_import(plan, target, force=True, threads=1)
    return target


def safetensors_bytes(tensors: Mapping[str, Floats], dtype: str = "BF16") -> bytes:
    """Return a safetensors file, in F32 or BF16; for BF16 the values must be exact in it."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    parts, at = [], 0
    for name, values in tensors.items():
        bits = np.ascontiguousarray(values, "<f4").view("<u4")
        raw = (bits if dtype == "F32" else (bits >> 16).astype("<u2")).tobytes()
        place = [at, at := at + len(raw)]
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": place}
        parts.append(raw)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return b"".join([len(text).to_bytes(8, "little"), text, *parts])


def _write_tokenizer(directory: Path) -> None:
    """Write a byte-level BPE: ids 0 to 255 are bytes, then special tokens, then a few merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*alphabet, *SPECIAL, *ADDED, *(a + b for a, b in MERGES)]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ADDED])
    (directory / "tokenizer.json").write_text(tokenizer.to_str(pretty=True), "utf-8")
    names = {
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None,
        "chat_template": TEMPLATE,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(names, indent=1))
