"""Tokenizers of SentencePiece with scores, as GGUF has them (`llama`), as a tokenizer.json.

llama.cpp joins the neighbours whose token has the highest score, the leftmost first, until there
are none (src/llama-vocab.cpp, `llm_tokenizer_spm`). Merges in the order of scores do the same.
"""

from __future__ import annotations

import re
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from apr_core.plugin import FormatError
from apr_gguf.reader import Keys

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of tokens
SPACE = "\u2581"


def sentencepiece(keys: Keys, tokens: list[str], kinds: list[int]) -> dict[str, Any]:
    """Return the tokenizer.json. Raises FormatError without scores, and without bytes."""
    scores = keys.get("tokenizer.ggml.scores", np.ndarray).tolist()
    if len(scores) < len(tokens) or (len(tokens) > 2 and len(set(scores)) == 1):
        raise FormatError(
            f"{keys.path}: the scores of its tokens say no order",
            "Import the original checkpoint: it has its tokenizer.json.",
        )
    scores = scores[: len(tokens)]
    names = [t.replace(" ", SPACE) if kind == USER_DEFINED else t
             for t, kind in zip(tokens, kinds, strict=True)]  # fmt: skip
    normal = {t: s for t, s, kind in zip(names, scores, kinds, strict=True) if kind == NORMAL}
    whole = [t for t, kind in zip(names, kinds, strict=True) if kind == USER_DEFINED]
    prefix = keys.get("tokenizer.ggml.add_space_prefix", bool, True)
    unknown = next((t for t, kind in zip(names, kinds, strict=True) if kind == UNKNOWN), None)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added_tokens(names, kinds, (CONTROL, UNKNOWN)),
        "normalizer": {"type": "Sequence", "normalizers": [*steps, spaces]},
        "pre_tokenizer": _isolated(whole),
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": unknown,
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": bool(whole),
            "vocab": {token: i for i, token in enumerate(names)}, "merges": merges_of(normal),
        },
    }  # fmt: skip


def _isolated(tokens: list[str]) -> dict[str, Any] | None:
    """Return what cuts out tokens that stay whole wherever they stand, the longest first."""
    if not tokens:
        return None
    pattern = "|".join(map(re.escape, sorted(tokens, key=len, reverse=True)))
    return {
        "type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False,
    }  # fmt: skip


def merges_of(scores: dict[str, float]) -> list[list[str]]:
    """Return the merges [left, right] that make each token, of the highest score first."""
    found = [
        (-score, -len(token), cut, token)
        for token, score in scores.items()
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in scores and token[cut:] in scores
    ]
    found.sort(key=lambda merge: (merge[0], merge[1], -merge[2]))
    return [[token[:cut], token[cut:]] for _, _, cut, token in found]


def added_tokens(
    tokens: Sequence[str], kinds: Sequence[int], taken: Container[int]
) -> list[dict[str, Any]]:
    """Return a tokenizer.json's list of tokens that stand for themselves."""
    return [
        {"id": i, "content": token, "single_word": False, "lstrip": False, "rstrip": False,
         "normalized": False, "special": kind != USER_DEFINED}
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind in taken
    ]  # fmt: skip
