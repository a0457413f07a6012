"""Packs a checkpoint's tokenizer files into metadata, exactly, and unpacks them again.

Other readers find `tokenizer.vocabulary` and `tokenizer.merges`. Ours rebuilds the original
tokenizer.json from them and `apr.tokenizer_json`, which is that file without those two lists:
both together would not fit into 16 MiB for a vocabulary of 248,000.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apr_core.errors import ContractError, FormatError, NotFound

REBUILT = "apr.tokenizer_json"
WHOLE = "apr.tokenizer_json_zlib"
MAX_UNPACKED = 256 << 20


def read_json(path: Path) -> Any:
    """A JSON file. Raises NotFound or FormatError naming it."""
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise NotFound(f"{path.parent}: {path.name} is missing") from None
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON: {error}") from None


def tokenizer_metadata(
    directory: Path, vocab_size: int, pre_type: str | None = None, stop_ids: tuple[int, ...] = ()
) -> dict[str, Any]:
    """What goes into a file's metadata for the tokenizer in `directory`.

    `vocab_size` is the embedding's rows. Raises NotFound without tokenizer.json, FormatError for a
    damaged one, ContractError for ids the embedding has no row for.
    """
    if not (directory / "tokenizer.json").exists():
        raise NotFound(
            f"{directory}: tokenizer.json is missing",
            "apr takes the tokenizers format. With transformers installed:\n"
            "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes it.",
        )
    original = read_json(directory / "tokenizer.json")
    config_path = directory / "tokenizer_config.json"
    config = read_json(config_path) if config_path.exists() else {}
    content = with_added_tokens(original, config, directory)
    vocab, added = _vocabulary(content, directory)
    _check_ids({**vocab, **added}, vocab_size)
    by_id = {i: token for token, i in {**vocab, **added}.items()}
    listed = [by_id.get(i, f"<|pad_{i}|>") for i in range(vocab_size)]
    merges = content["model"].get("merges") or []
    metadata: dict[str, Any] = {
        "tokenizer.vocabulary": listed,
        "tokenizer.merges": [m if isinstance(m, str) else " ".join(m) for m in merges],
        "tokenizer.vocab_size": vocab_size,
        "tokenizer.model_type": str(content["model"].get("type") or "BPE"),
        "tokenizer.add_bos_token": bool(config.get("add_bos_token", False)),
        **_packed(content, listed),
        **_special(config, {**vocab, **added}, stop_ids),
    }
    if pre_type:
        metadata["tokenizer.pre_type"] = pre_type
    template = chat_template(directory, config)
    if template:
        metadata["chat_template"] = metadata["tokenizer.chat_template"] = template
    return metadata


def with_added_tokens(
    original: Mapping[str, Any], config: Mapping[str, Any], origin: Path
) -> dict[str, Any]:
    """tokenizer.json plus the added tokens that only tokenizer_config.json knows."""
    if not isinstance(original, dict) or not isinstance(original.get("model"), dict):
        raise FormatError(f"{origin}: tokenizer.json has no model")
    content = {**original, "added_tokens": list(original.get("added_tokens") or [])}
    known = {t["id"] for t in content["added_tokens"]}
    decoder = config.get("added_tokens_decoder") or {}
    for key, token in sorted(decoder.items(), key=lambda item: int(item[0])):
        if int(key) not in known and isinstance(token, dict):
            flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
            row = {"id": int(key), "content": token["content"]}
            content["added_tokens"].append(row | {f: bool(token.get(f, False)) for f in flags})
    return content


def _vocabulary(content: Mapping[str, Any], origin: Path) -> tuple[dict[str, int], dict[str, int]]:
    """(base vocabulary, added tokens), token -> id."""
    vocab = content["model"].get("vocab")
    if not isinstance(vocab, dict) or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise FormatError(
            f"{origin}: tokenizer.json: model.vocab must map tokens to ids",
            "Byte-level BPE tokenizers are supported.",
        )
    try:
        return vocab, {t["content"]: t["id"] for t in content["added_tokens"]}
    except (KeyError, TypeError):
        raise FormatError(f"{origin}: tokenizer.json: added_tokens without id or content") from None


def _check_ids(tokens: Mapping[str, int], vocab_size: int) -> None:
    token, highest = max(tokens.items(), key=lambda item: item[1], default=("", -1))
    if highest >= vocab_size:
        raise ContractError(
            f"tokenizer: token {token!r} has id {highest}, the embedding has {vocab_size} rows",
            "The tokenizer belongs to another model: take the files the checkpoint came with.",
        )


def _packed(content: dict[str, Any], listed: list[str]) -> dict[str, Any]:
    """The original, without vocabulary and merges if they can be rebuilt, else compressed whole."""
    model = content["model"]
    merges = model.get("merges")
    pairs = bool(merges) and not isinstance(merges[0], str)
    rest = {**content, "model": {**model, "vocab": len(model["vocab"]), "merges": None}}
    packed = {REBUILT: json.dumps({"tokenizer": rest, "pairs": pairs}, ensure_ascii=False)}
    rebuilt = unpack(packed | {
        "tokenizer.vocabulary": listed,
        "tokenizer.merges": [m if isinstance(m, str) else " ".join(m) for m in merges or []],
    })  # fmt: skip
    if rebuilt == content:
        return packed
    raw = zlib.compress(json.dumps(content, ensure_ascii=False).encode(), 9)
    return {WHOLE: base64.b85encode(raw).decode()}


def unpack(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """The original tokenizer.json of a file's metadata; None if it holds none."""
    if isinstance(metadata.get(WHOLE), str):
        return _decompressed(metadata[WHOLE])
    if not isinstance(metadata.get(REBUILT), str):
        return None
    try:
        packed = json.loads(metadata[REBUILT])
        content, model = packed["tokenizer"], packed["tokenizer"]["model"]
        listed, merges = metadata["tokenizer.vocabulary"], metadata["tokenizer.merges"]
        model["vocab"] = {token: i for i, token in enumerate(listed[: model["vocab"]])}
        model["merges"] = [m.split(" ", 1) for m in merges] if packed["pairs"] else list(merges)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise FormatError(f"the tokenizer in the file is damaged: {error!r}") from None
    rebuilt: dict[str, Any] = content
    return rebuilt


def _decompressed(text: str) -> dict[str, Any]:
    try:
        raw = zlib.decompressobj().decompress(base64.b85decode(text), MAX_UNPACKED)
        content: dict[str, Any] = json.loads(raw)
    except (ValueError, zlib.error, RecursionError) as error:
        raise FormatError(f"the tokenizer in the file is damaged: {error}") from None
    return content


def _special(
    config: Mapping[str, Any], tokens: Mapping[str, int], stop_ids: tuple[int, ...]
) -> dict[str, Any]:
    """bos, eos, unk, pad as tokens and ids, and the union of all stop ids."""
    found: dict[str, str | None] = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(key)
        found[key] = value.get("content") if isinstance(value, dict) else value
    for key, token in (("im_start_token", "<|im_start|>"), ("im_end_token", "<|im_end|>")):
        found[key] = token if token in tokens else None
    metadata: dict[str, Any] = {"special_tokens": found}
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    for key, name in names.items():
        if found[key] in tokens:
            metadata[f"tokenizer.{name}_token_id"] = tokens[str(found[key])]
    eos = tokens.get(found["eos_token"] or "")
    union = dict.fromkeys([*([] if eos is None else [eos]), *stop_ids])
    metadata["apr.stop_ids"] = [i for i in union if i < 2**31]
    return metadata


def chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja if there is one, else the template in tokenizer_config.json."""
    path = directory / "chat_template.jinja"
    if path.exists():
        return path.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones: the default
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
