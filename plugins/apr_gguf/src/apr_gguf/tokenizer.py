"""From the tokenizer in a GGUF file's keys to the files of a Hugging Face tokenizer.

Patterns: llama.cpp's src/llama-vocab.cpp (`llm_tokenizer_bpe`), by `tokenizer.ggml.pre`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from apr_core.plugin import FormatError
from apr_gguf.reader import Keys
from apr_gguf.sentencepiece import (
    CONTROL,
    NORMAL,
    UNUSED,
    USER_DEFINED,
    added_tokens,
    sentencepiece,
)

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
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CJK = "[一-龥ࠀ-一가-퟿]+"
DIGITS = {"type": "Digits", "individual_digits": True}
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}


def _split(pattern: str) -> dict[str, Any]:
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip


def _regexes(*patterns: str) -> list[dict[str, Any]]:
    return [_split(pattern) for pattern in patterns]


PRE = {  # `tokenizer.ggml.pre` -> what cuts the text before its bytes are merged
    "gpt-2": _regexes(GPT2),
    "smollm": [DIGITS, *_regexes(GPT2)],
    "llama-bpe": _regexes(LLAMA3),
    "qwen2": _regexes(QWEN2),
    "qwen35": _regexes(QWEN35),
    "dbrx": _regexes(LLAMA3),
    "tekken": _regexes(TEKKEN),
    "deepseek-coder": [*_regexes(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", CJK), DIGITS],
    "default": _regexes(r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"),
}
SAME = {  # other names of these
    "gpt-2": ("phi-2", "mpt", "olmo", "exaone4", "mellum"),
    "smollm": ("starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b", "mellum2"),
    "llama-bpe": ("llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "qwen2": ("deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez", "kormo"),
    "dbrx": ("smaug-bpe", "chatglm-bpe"),
}
NORMALIZED = ("qwen2", "qwen35", "deepseek-r1-qwen")  # to NFC
WHOLE_WORDS = ("llama-bpe", "tekken")  # words that are tokens are not merged
BEGIN = ("llama-bpe", "tekken", *SAME["llama-bpe"])  # begin a text with a token, if not told
STOPS = ("eos", "eot", "eom")  # names in keys of tokens that end an answer
ENDS = {  # as llama.cpp knows them by their text
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>",
    "<|endoftext|>", "<|eom_id|>", "<EOT>", "<|end_of_text|>", "<end_of_utterance>",
    "<｜end▁of▁sentence｜>",
}  # fmt: skip
LONGEST = 4096  # characters of a token
OTHERS = {"bert": "WordPiece ('bert')", "t5": "of unigrams ('t5')", "rwkv": "RWKV's ('rwkv')"}


def pre_of(content: Mapping[str, Any]) -> str | None:
    """Return the name of what cuts the text in a tokenizer.json, or None if it has none."""
    pre = content.get("pre_tokenizer") or {}
    steps = []
    for step in pre.get("pretokenizers", [pre]):
        if step.get("type") != "ByteLevel":
            steps.append(step)
        elif step.get("add_prefix_space"):
            return None
        elif step.get("use_regex", True):
            steps += _regexes(GPT2)
    whole = bool(content.get("model", {}).get("ignore_merges"))
    known = (name for name in PRE if PRE[name] == steps and whole == (name in WHOLE_WORDS))
    return next(known, None)


def tokenizer_files(keys: Keys) -> dict[str, Any]:
    """Return tokenizer.json and tokenizer_config.json. Raises FormatError."""
    model = keys.get("tokenizer.ggml.model", str)
    if model not in ("gpt2", "llama"):
        kind = OTHERS.get(model, f"of kind {model!r}")
        raise _unsupported(keys, f"tokenizer is {kind}, read are 'gpt2' and 'llama'")
    tokens = keys.get("tokenizer.ggml.tokens", list)
    if len(set(tokens)) != len(tokens) or not all(0 < len(t) <= LONGEST for t in tokens):
        raise FormatError(f"{keys.path}: has tokens that are empty, very long, or there twice")
    types = keys.get("tokenizer.ggml.token_type", np.ndarray, None)
    kinds = [NORMAL] * len(tokens) if types is None else [int(kind) for kind in types]
    if len(kinds) != len(tokens):
        raise FormatError(f"{keys.path}: has {len(tokens)} tokens and {len(kinds)} types of them")
    used = next((i for i in range(len(kinds), 0, -1) if kinds[i - 1] != UNUSED), 0)
    tokens, kinds = tokens[:used], kinds[:used]  # behind are rows that no text gives
    if model == "llama":
        content = sentencepiece(keys, tokens, kinds)
    else:
        content = _byte_level(keys, tokens, kinds)
    return {"tokenizer.json": content, "tokenizer_config.json": _config(keys, tokens, model)}


def stop_ids(keys: Keys) -> list[int]:
    """Return the tokens that end an answer: those that keys name, then those named like one."""
    tokens = keys.get("tokenizer.ggml.tokens", list)
    named = [keys.get(f"tokenizer.ggml.{name}_token_id", int, None) for name in STOPS]
    return list(dict.fromkeys(
        [i for i in named if i is not None]
        + [i for i, token in enumerate(tokens) if token in ENDS]
    ))  # fmt: skip


def _unsupported(keys: Keys, what: str) -> FormatError:
    return FormatError(
        f"{keys.path}: its {what}", "Import the original checkpoint: it has its tokenizer.json."
    )


def _byte_level(keys: Keys, tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """Return the tokenizer.json of bytes that are merged."""
    given = keys.get("tokenizer.ggml.pre", str, "default")
    pre = next((name for name in PRE if given == name or given in SAME.get(name, ())), None)
    if pre is None:
        raise _unsupported(keys, f"pre-tokenizer {given!r} is not supported, only {', '.join(PRE)}")
    merges = keys.get("tokenizer.ggml.merges", list)
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added_tokens(tokens, kinds, (CONTROL, USER_DEFINED)),
        "normalizer": {"type": "NFC"} if given in NORMALIZED else None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [*PRE[pre], BYTES]},
        "post_processor": None,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True,
                    "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": pre in WHOLE_WORDS,
            "vocab": {token: i for i, token in enumerate(tokens)},
            "merges": [pair for pair in merges if pair],  # an empty one says that there are none
        },
    }  # fmt: skip


def _config(keys: Keys, tokens: list[str], model: str) -> dict[str, Any]:
    begins = model == "llama" or keys.values.get("tokenizer.ggml.pre") in BEGIN
    config: dict[str, Any] = {
        "add_bos_token": keys.get("tokenizer.ggml.add_bos_token", bool, begins),
        "chat_template": keys.get("tokenizer.chat_template", str, None),
    }
    defaults = {"bos": 1, "eos": 2, "unknown": 0} if model == "llama" else {}
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    for name, field in names.items():
        number = keys.get(f"tokenizer.ggml.{name}_token_id", int, defaults.get(name))
        if number is not None and 0 <= number < len(tokens):
            config[field] = tokens[number]
    return config
