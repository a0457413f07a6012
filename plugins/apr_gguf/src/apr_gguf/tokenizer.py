"""From the tokenizer in a GGUF file's keys to the files of a Hugging Face tokenizer.

Patterns: llama.cpp's src/llama-vocab.cpp (`llm_tokenizer_bpe`), by `tokenizer.ggml.pre`.
"""

from __future__ import annotations

from typing import Any

from apr_core.plugin import FormatError
from apr_gguf.architectures import Keys

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN35 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip


PRE = {  # `tokenizer.ggml.pre` -> what cuts the text before its bytes are merged
    "default": [_split(GPT2)],
    "gpt-2": [_split(GPT2)],
    "smollm": [DIGITS, _split(GPT2)],
    "llama-bpe": [_split(LLAMA3)],
    "llama3": [_split(LLAMA3)],
    "qwen2": [_split(QWEN2)],
    "qwen35": [_split(QWEN35)],
}
NORMALIZED = ("qwen2", "qwen35")  # to NFC
WHOLE_WORDS = ("llama-bpe", "llama3")  # words that are tokens are not merged
CONTROL, USER_DEFINED = 3, 4  # types of tokens


def tokenizer_files(keys: Keys) -> dict[str, Any]:
    """Return tokenizer.json and tokenizer_config.json. Raises FormatError."""
    model = keys.get("tokenizer.ggml.model", str)
    pre = keys.get("tokenizer.ggml.pre", str, "default")
    if model != "gpt2" or pre not in PRE:
        what = f"tokenizer {model!r}" if model != "gpt2" else f"pre-tokenizer {pre!r}"
        raise FormatError(
            f"{keys.path}: its {what} is not supported, only byte-level BPE of the kinds "
            f"{', '.join(PRE)}",
            "Import the original checkpoint: it has its tokenizer.json.",
        )
    tokens = keys.get("tokenizer.ggml.tokens", list)
    merges = [
        pair for pair in keys.get("tokenizer.ggml.merges", list) if pair
    ]  # "": there are none
    types = keys.get("tokenizer.ggml.token_type", object, None)
    kinds = [1] * len(tokens) if types is None else [int(kind) for kind in types]
    if len(kinds) != len(tokens):
        raise FormatError(f"{keys.path}: has {len(tokens)} tokens and {len(kinds)} types of them")
    added = [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": kind == CONTROL}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]  # fmt: skip
    content = {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": added,
        "normalizer": {"type": "NFC"} if pre in NORMALIZED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*PRE[pre], BYTES]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": pre in WHOLE_WORDS,
            "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges,
        },
    }  # fmt: skip
    return {"tokenizer.json": content, "tokenizer_config.json": _config(keys, tokens)}


def _config(keys: Keys, tokens: list[str]) -> dict[str, Any]:
    config: dict[str, Any] = {
        "add_bos_token": keys.get("tokenizer.ggml.add_bos_token", bool, False),
        "chat_template": keys.get("tokenizer.chat_template", str, None),
    }
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    for name, field in names.items():
        number = keys.get(f"tokenizer.ggml.{name}_token_id", int, None)
        if number is not None and 0 <= number < len(tokens):
            config[field] = tokens[number]
    return config
