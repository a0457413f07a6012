"""Packs a checkpoint's tokenizer files into metadata, exactly, and unpacks them again.

Other readers use `tokenizer.vocabulary` and `tokenizer.merges`. apr rebuilds the original
tokenizer.json from them and `apr.tokenizer_json`, which is that file without those two lists:
both together would not fit into 16 MiB for a vocabulary of 248,000.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr_core.errors import ContractError, FormatError, reading

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend

REBUILT = "apr.tokenizer_json"
CONFIG = "apr.tokenizer_config"  # tokenizer_config.json without the chat template
WHOLE = "apr.tokenizer_json_zlib"
MAX_UNPACKED = 256 << 20
BPE_OPTIONS = (
    "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk",
    "byte_fallback", "ignore_merges",
)  # fmt: skip
VERSION_LINE = "#version:"  # begins a comment among merges that are lines
BPE_FIELDS = {"type", "vocab", "merges", *BPE_OPTIONS}


def read_json(path: Path, missing: str = "") -> dict[str, Any]:
    """Read a JSON object. `missing` is the hint for a file that is not there.

    Raises NotFound, InputOutputError or FormatError.
    """
    try:
        with reading(path, missing):
            content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise FormatError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def tokenizer_metadata(
    directory: Path, vocab_size: int, pre_type: str | None = None, stop_ids: tuple[int, ...] = ()
) -> dict[str, Any]:
    """Return a file's metadata for the tokenizer in `directory`.

    `vocab_size` is the embedding's rows. Raises NotFound without tokenizer.json, FormatError for a
    damaged one, ContractError for ids the embedding has no row for.
    """
    original = read_json(
        directory / "tokenizer.json",
        "apr takes the tokenizers format. With transformers installed:\n"
        "AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR) writes it.",
    )
    path = directory / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    content = with_added_tokens(original, config, directory)
    vocab, added = vocabulary(content, directory)
    _check_ids({**vocab, **added}, vocab_size)
    by_id = {i: token for token, i in {**vocab, **added}.items()}
    listed = [by_id.get(i, f"<|pad_{i}|>") for i in range(vocab_size)]
    metadata: dict[str, Any] = {
        "tokenizer.vocabulary": listed,
        "tokenizer.merges": joined_merges(content, directory),
        "tokenizer.token_type": _token_types(content, by_id, vocab_size),
        "tokenizer.vocab_size": vocab_size,
        "tokenizer.model_type": str(content["model"].get("type") or "BPE"),
        "tokenizer.add_bos_token": bool(config.get("add_bos_token", False)),
        CONFIG: {k: v for k, v in config.items() if k != "chat_template"},
        **special_metadata(config, {**vocab, **added}, stop_ids),
    }
    metadata |= _packed(content, metadata)
    if pre_type:
        metadata["tokenizer.pre_type"] = pre_type
    template = chat_template(directory, config)
    if template:
        metadata["chat_template"] = metadata["tokenizer.chat_template"] = template
    return metadata


def with_added_tokens(
    original: Mapping[str, Any], config: Mapping[str, Any], origin: Path
) -> dict[str, Any]:
    """Return tokenizer.json plus the added tokens that only tokenizer_config.json has."""
    if not isinstance(original.get("model"), dict):
        raise FormatError(f"{origin}: tokenizer.json has no model")
    added = original.get("added_tokens") or []
    if not (isinstance(added, list) and all(map(is_added_token, added))):
        raise FormatError(f"{origin}: tokenizer.json: added_tokens without id or content")
    content = {**original, "added_tokens": list(added)}
    known = {t["id"] for t in added}
    decoder = config.get("added_tokens_decoder") or {}
    try:
        extra = {int(key): token for key, token in decoder.items()}
        for key in sorted(extra.keys() - known):
            flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
            row = {"id": key, "content": extra[key]["content"]}
            row |= {f: bool(extra[key].get(f, False)) for f in flags}
            if not is_added_token(row):
                raise ValueError(f"token {key}")
            content["added_tokens"].append(row)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise FormatError(
            f"{origin}: tokenizer_config.json: added_tokens_decoder is damaged: {error}"
        ) from None
    return content


def is_added_token(value: Any) -> bool:
    """Return True for an object with an id and a text."""
    if not isinstance(value, dict):
        return False
    id_, content = value.get("id"), value.get("content")
    return type(id_) is int and id_ >= 0 and isinstance(content, str) and content != ""


def vocabulary(content: Mapping[str, Any], origin: Path) -> tuple[dict[str, int], dict[str, int]]:
    """Return (base vocabulary, added tokens), both {token: id}."""
    vocab = content["model"].get("vocab")
    if not isinstance(vocab, dict) or not all(type(i) is int and i >= 0 for i in vocab.values()):
        raise FormatError(
            f"{origin}: tokenizer.json: model.vocab must map tokens to ids",
            "Byte-level BPE tokenizers are supported.",
        )
    return vocab, {t["content"]: t["id"] for t in content["added_tokens"]}


def joined_merges(content: Mapping[str, Any], origin: Path) -> list[str]:
    """Return the merges as "left right", also if they are stored as pairs."""
    merges = content["model"].get("merges") or []
    try:
        return [m if isinstance(m, str) else " ".join(m) for m in merges]
    except TypeError:
        raise FormatError(f"{origin}: tokenizer.json: model.merges are not pairs") from None


def _token_types(content: Mapping[str, Any], by_id: Mapping[int, str], rows: int) -> list[int]:
    """Return the type of each vocabulary row, as in GGUF: 1 normal, 3 control, 4 user, 5 unused."""
    types = [1 if i in by_id else 5 for i in range(rows)]
    for token in content["added_tokens"]:
        types[token["id"]] = 3 if token.get("special") else 4
    return types


def _check_ids(tokens: Mapping[str, int], vocab_size: int) -> None:
    token, highest = max(tokens.items(), key=lambda item: item[1], default=("", -1))
    if highest >= vocab_size:
        raise ContractError(
            f"tokenizer: token {token!r} has id {highest}, the embedding has {vocab_size} rows",
            "The tokenizer belongs to another model: take the files the checkpoint came with.",
        )


def _packed(content: dict[str, Any], metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the original without vocabulary and merges if these rebuild it, else compressed."""
    build(content)
    model = content["model"]
    merges = model.get("merges")
    pairs = bool(merges) and not isinstance(merges[0], str)
    rest = {**content, "model": {**model, "vocab": len(model["vocab"]), "merges": None}}
    packed = {REBUILT: json.dumps({"tokenizer": rest, "pairs": pairs}, ensure_ascii=False)}
    if unpack({**metadata, **packed}) == content:
        return packed
    raw = zlib.compress(json.dumps(content, ensure_ascii=False).encode(), 9)
    return {WHOLE: base64.b85encode(raw).decode()}


def build(content: Mapping[str, Any]) -> Backend:
    """Build the tokenizers object of a tokenizer.json. Raises FormatError."""
    from tokenizers import Tokenizer

    try:
        model = None if content.get("added_tokens") else pair_model(content.get("model"))
        if model is None:
            return Tokenizer.from_str(json.dumps(content, ensure_ascii=False))
        empty = {**content, "model": {"type": "BPE", "vocab": {}, "merges": []}}
        tokenizer = Tokenizer.from_str(json.dumps(empty, ensure_ascii=False))
        tokenizer.model = model
        return tokenizer
    except Exception as error:  # the package raises bare Exception
        raise FormatError(f"the tokenizer cannot be built: {error}") from None


def pair_model(model: Any) -> Any:
    """Build a BPE model from its parts, in half the time of a detour through JSON.

    Returns None for other models and unknown fields.
    """
    from tokenizers.models import BPE

    if not isinstance(model, dict) or model.get("type") != "BPE" or model.keys() - BPE_FIELDS:
        return None
    vocab, merges = model.get("vocab"), model.get("merges")
    if not (isinstance(vocab, dict) and isinstance(merges, list)):
        return None
    pairs = [tuple(m.split(" ") if isinstance(m, str) else m) for m in merges]
    if any(len(pair) != 2 or pair[0] == VERSION_LINE for pair in pairs):
        return None
    given = {k: model[k] for k in BPE_OPTIONS if model.get(k) is not None}
    return BPE(vocab=vocab, merges=pairs, **given)


def unpack(metadata: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the original tokenizer.json of a file's metadata; None if it holds none."""
    if not any(isinstance(metadata.get(key), str) for key in (WHOLE, REBUILT)):
        return None
    content: dict[str, Any]
    try:
        if isinstance(metadata.get(WHOLE), str):
            raw = base64.b85decode(metadata[WHOLE])
            content = json.loads(zlib.decompressobj().decompress(raw, MAX_UNPACKED))
            return content
        packed = json.loads(metadata[REBUILT])
        content, model = packed["tokenizer"], packed["tokenizer"]["model"]
        listed, merges = metadata["tokenizer.vocabulary"], metadata["tokenizer.merges"]
        model["vocab"] = {token: i for i, token in enumerate(listed[: model["vocab"]])}
        model["merges"] = [m.split(" ", 1) for m in merges] if packed["pairs"] else list(merges)
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, zlib.error) as error:
        raise FormatError(f"the tokenizer in the file is damaged: {error!r}") from None
    return content


def special_metadata(
    config: Mapping[str, Any], tokens: Mapping[str, int], stop_ids: tuple[int, ...]
) -> dict[str, Any]:
    """Return bos, eos, unk and pad as tokens and ids, and the union of all stop ids."""
    special: dict[str, str | None] = {}
    for key in ("bos_token", "eos_token", "unk_token", "pad_token"):
        value = config.get(key)
        text = value.get("content") if isinstance(value, dict) else value
        special[key] = text if isinstance(text, str) else None
    for key, token in (("im_start_token", "<|im_start|>"), ("im_end_token", "<|im_end|>")):
        special[key] = token if token in tokens else None
    metadata: dict[str, Any] = {"special_tokens": special}
    names = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    for key, name in names.items():
        if special[key] in tokens:
            metadata[f"tokenizer.{name}_token_id"] = tokens[str(special[key])]
    eos = tokens.get(special["eos_token"] or "")
    union = dict.fromkeys([*([] if eos is None else [eos]), *stop_ids])
    metadata["apr.stop_ids"] = [i for i in union if i < 2**31]
    return metadata


def chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """Return chat_template.jinja if there is one, else the template in tokenizer_config.json."""
    path = directory / "chat_template.jinja"
    if path.exists():
        with reading(path):
            return path.read_text("utf-8")
    template = config.get("chat_template")
    if isinstance(template, list):  # several named ones: the default
        named = {t.get("name"): t.get("template") for t in template if isinstance(t, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
