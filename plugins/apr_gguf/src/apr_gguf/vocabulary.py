"""Writes a tokenizer into the keys of a GGUF file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter

from apr_core.plugin import FormatError, unpack
from apr_gguf.sentencepiece import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    UNUSED,
    USER_DEFINED,
    merges_of,
    whole_tokens,
)
from apr_gguf.tokenizer import STOPS, pre_of

BYTES = re.compile("<0x[0-9A-F]{2}>")
APART = -1000.0  # llama.cpp's score of tokens that nothing is merged to


def write_tokenizer(w: GGUFWriter, metadata: Mapping[str, Any]) -> list[str]:
    """Write tokens, their types, merges or scores, and the chat template; return warnings.

    `metadata` is the .apr file's. Raises FormatError without a tokenizer, or for one that GGUF has
    no name for.
    """
    tokens = metadata.get("tokenizer.vocabulary")
    if not tokens:
        raise FormatError("the file carries no tokenizer, which a GGUF file needs")
    content = unpack(metadata) or {}
    notes = []
    if is_sentencepiece(content):
        notes = _write_scores(w, content, list(tokens))
    else:
        w.add_tokenizer_model("gpt2")
        w.add_tokenizer_pre(_pre(content, metadata))
        w.add_token_list(tokens)
        w.add_token_types(metadata.get("tokenizer.token_type") or _types(content, tokens))
        # llama.cpp wants the key even without merges; an empty pair never matches
        w.add_token_merges(metadata["tokenizer.merges"] or [""])
    for name in ("eos", "padding", "bos"):
        if (number := metadata.get(f"tokenizer.{name}_token_id")) is not None:
            w.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    unknown = (metadata.get("special_tokens") or {}).get("unk_token")
    if unknown in tokens:
        w.add_unk_token_id(tokens.index(unknown))
    eos = metadata.get("tokenizer.eos_token_id")
    others = [i for i in metadata.get("apr.stop_ids", ()) if i != eos]
    for name, number in zip(STOPS[1:], others, strict=False):
        w.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    w.add_add_bos_token(bool(metadata.get("tokenizer.add_bos_token")) or _begins(content))
    if isinstance(metadata.get("chat_template"), str):
        w.add_chat_template(metadata["chat_template"])
    return notes


def is_sentencepiece(content: Mapping[str, Any]) -> bool:
    """Return True for a tokenizer.json whose tokens are text, and bytes where that is missing."""
    model = content.get("model") or {}
    return model.get("type") == "BPE" and bool(model.get("byte_fallback"))


def _pre(content: Mapping[str, Any], metadata: Mapping[str, Any]) -> str:
    """Return the name of what cuts the text; without merges every cut gives the same tokens."""
    name = pre_of(content) or (not content and metadata.get("tokenizer.pre_type"))
    if not name and metadata["tokenizer.merges"]:
        raise FormatError(
            "the tokenizer splits text by a pattern that has no name in GGUF here",
            "Convert the checkpoint with llama.cpp's convert_hf_to_gguf.py.",
        )
    return str(name or "gpt-2")


def _types(content: Mapping[str, Any], tokens: list[str]) -> list[int]:
    """Return token types for a file without them: added tokens are control, fillers unused."""
    types = [UNUSED if token.startswith(("[PAD", "<|pad_")) else NORMAL for token in tokens]
    for token in content.get("added_tokens", ()):
        types[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    return types


def _write_scores(w: GGUFWriter, content: Mapping[str, Any], tokens: list[str]) -> list[str]:
    """Write a vocabulary whose order of merges is the order of scores; return warnings."""
    model, types = content["model"], _types(content, tokens)
    pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in model["merges"]]
    ranks: dict[str, int] = {}
    for rank, (left, right) in enumerate(pairs):
        ranks.setdefault(left + right, rank)
    whole = whole_tokens(content)
    for i, token in enumerate(tokens):
        if BYTES.fullmatch(token):
            types[i] = BYTE
        elif token == model.get("unk_token"):
            types[i] = UNKNOWN
        elif types[i] == NORMAL and whole.fullmatch(token.replace(SPACE, " ")):
            types[i] = USER_DEFINED
        if types[i] == USER_DEFINED:
            tokens[i] = token.replace(SPACE, " ")
    scores = [-float(ranks.get(t, 0)) if types[i] == NORMAL else 0.0 for i, t in enumerate(tokens)]
    scores = [APART if types[i] in (USER_DEFINED, UNUSED) else s for i, s in enumerate(scores)]
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list(tokens)
    w.add_token_scores(scores)
    w.add_token_types(types)
    w.add_add_space_prefix(_prefixed(content))
    normal = {t: s for t, s, kind in zip(tokens, scores, types, strict=True) if kind == NORMAL}
    if {tuple(m) for m in merges_of(normal)} - {tuple(p) for p in pairs}:
        return ["llama.cpp merges tokens that this tokenizer does not: some texts may be split "
                "otherwise"]  # fmt: skip
    return []


def _prefixed(content: Mapping[str, Any]) -> bool:
    """Return True if a space is put before a text."""
    normalizer, pre = content.get("normalizer") or {}, content.get("pre_tokenizer") or {}
    steps = [*normalizer.get("normalizers", [normalizer]), *pre.get("pretokenizers", [pre])]
    return any(
        s.get("type") == "Prepend"
        or (s.get("type") == "Metaspace" and s.get("prepend_scheme", "always") != "never")
        for s in steps
    )


def _begins(content: Mapping[str, Any]) -> bool:
    """Return True if a text of its own begins with a special token."""
    post = content.get("post_processor") or {}
    first = [p.get("single", [{}])[0] for p in post.get("processors", [post]) if p.get("single")]
    return any("SpecialToken" in part for part in first)
