"""Tokenizers of SentencePiece with scores, as GGUF has them (`llama`), as a tokenizer.json.

llama.cpp joins the neighbours whose token has the highest score, the leftmost first, until there
are none (src/llama-vocab.cpp, `llm_tokenizer_spm`). Merges in the order of scores do the same.
"""

from __future__ import annotations

import re
from collections.abc import Container, Mapping, Sequence
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
    if kinds.count(BYTE) != 256:
        raise FormatError(f"{keys.path}: has {kinds.count(BYTE)} tokens of bytes, expected 256")
    scores = scores[: len(tokens)]
    prefix = keys.get("tokenizer.ggml.add_space_prefix", bool, True)
    names = [
        t.replace(" ", SPACE) if kind == USER_DEFINED and not prefix else t
        for t, kind in zip(tokens, kinds, strict=True)
    ]
    listed = list(zip(names, kinds, scores, strict=True))
    normal = {t: score for t, kind, score in listed if kind == NORMAL}
    # After a token that stands for itself comes the prefix again, where there is one: such tokens
    # are added ones. Without prefix they are cut out of the text, and the rest is as it was.
    whole = [
        t for t, kind in zip(tokens, kinds, strict=True) if kind == USER_DEFINED and not prefix
    ]
    never = [t for t, kind, _ in listed if kind in (CONTROL, UNKNOWN, BYTE)]
    taken = (CONTROL, UNKNOWN, USER_DEFINED) if prefix else (CONTROL, UNKNOWN)
    spaces = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    steps = [{"type": "Prepend", "prepend": SPACE}] if prefix else []
    strip = [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else []
    back = {"type": "Replace", "pattern": {"String": SPACE}, "content": " "}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": added_tokens(names, kinds, taken),
        "normalizer": None if whole else {"type": "Sequence", "normalizers": [*steps, spaces]},
        "pre_tokenizer": _isolated(whole, never) if whole else None,
        "post_processor": None,
        "decoder": {
            "type": "Sequence",
            "decoders": [back, {"type": "ByteFallback"}, {"type": "Fuse"}, *strip],
        },
        "model": {
            "type": "BPE", "dropout": None,
            "unk_token": next((t for t, kind, _ in listed if kind == UNKNOWN), None),
            "continuing_subword_prefix": None, "end_of_word_suffix": None, "fuse_unk": True,
            "byte_fallback": True, "ignore_merges": bool(whole),
            "vocab": {token: i for i, token in enumerate(names)}, "merges": merges_of(normal),
        },
    }  # fmt: skip


def _isolated(whole: list[str], never: list[str]) -> dict[str, Any]:
    """Return what cuts out tokens that stay whole wherever they stand, the longest first.

    Pieces that are tokens are not merged then, so a piece that spells one of `never` is cut in it.
    Spaces are replaced last: what was a space decides what is cut out.
    """
    kept = "|".join(re.escape(t) for t in sorted(whole, key=len, reverse=True))
    cut = "|".join(f"\\A{re.escape(t[0])}(?={re.escape(t[1:])}\\z)" for t in never)
    splits = [
        {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
        for pattern in (kept, cut)
    ]
    spaces = {
        "type": "Metaspace", "replacement": SPACE, "prepend_scheme": "never", "split": False,
    }  # fmt: skip
    return {"type": "Sequence", "pretokenizers": [*splits, spaces]}


def whole_tokens(content: Mapping[str, Any]) -> re.Pattern[str]:
    """Return the pattern of tokens that a tokenizer.json, made here, cuts out of the text."""
    made_here = content["model"].get("ignore_merges")
    steps = (content.get("pre_tokenizer") or {}).get("pretokenizers") if made_here else None
    return re.compile(steps[0]["pattern"]["Regex"] if steps else "(?!)")


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
