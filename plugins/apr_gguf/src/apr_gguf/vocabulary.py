"""Writes a tokenizer into the keys of a GGUF file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gguf import GGUFWriter

from apr_core.plugin import FormatError, unpack
from apr_gguf.sentencepiece import CONTROL, NORMAL, UNUSED, USER_DEFINED
from apr_gguf.tokenizer import STOPS, pre_of

EOS = "tokenizer.eos_token_id"


def write_tokenizer(w: GGUFWriter, metadata: Mapping[str, Any]) -> None:
    """Write tokens, their types, merges and the chat template. `metadata` is the .apr file's.

    Raises FormatError without a tokenizer, or for one that GGUF has no name for.
    """
    tokens = metadata.get("tokenizer.vocabulary")
    if not tokens:
        raise FormatError("the file carries no tokenizer, which a GGUF file needs")
    content = unpack(metadata) or {}
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre(_pre(content, metadata))
    w.add_token_list(tokens)
    types = metadata.get("tokenizer.token_type")
    w.add_token_types(types if types else _types(content, tokens))
    # llama.cpp wants the key even without merges; an empty pair never matches
    w.add_token_merges(metadata["tokenizer.merges"] or [""])
    for name in ("eos", "padding", "bos"):
        if (number := metadata.get(f"tokenizer.{name}_token_id")) is not None:
            w.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    stops = [i for i in metadata.get("apr.stop_ids", ()) if i != metadata.get(EOS)]
    for name, number in zip(STOPS[1:], stops, strict=False):
        w.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    w.add_add_bos_token(bool(metadata.get("tokenizer.add_bos_token")))
    if isinstance(metadata.get("chat_template"), str):
        w.add_chat_template(metadata["chat_template"])


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
    types = [UNUSED if token.startswith("[PAD") else NORMAL for token in tokens]
    for token in content.get("added_tokens", ()):
        types[token["id"]] = CONTROL if token.get("special") else USER_DEFINED
    return types
