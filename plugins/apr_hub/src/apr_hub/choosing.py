"""Chooses the files of a repository that a text model needs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from apr_core.plugin import FormatError, NotFound

INDEX = "model.safetensors.index.json"
SMALL = frozenset({
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json",
    "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template.jinja", "LICENSE",
    INDEX,
})  # fmt: skip


def small_files(names: Iterable[str]) -> list[str]:
    """Return the configuration, tokenizer and index files that the repository has."""
    return sorted(SMALL & set(names))


def weight_files(names: Iterable[str], index: Path | None) -> list[str]:
    """Return the shards of the index, or without one, the top-level safetensors files.

    Raises NotFound naming what the repository has instead, FormatError for a damaged index.
    """
    present = set(names)
    if index is not None:
        listed = _listed(index)
        missing = sorted(listed - present)
        if missing:
            raise NotFound(f"the index names {missing[0]!r}, which the repository does not have")
        return sorted(listed)
    weights = sorted(n for n in present if n.endswith(".safetensors") and "/" not in n)
    if "model.safetensors" in weights:
        return ["model.safetensors"]
    if not weights:
        kinds = sorted({Path(n).suffix for n in present} & {".bin", ".gguf", ".pt", ".pth", ".h5"})
        has = f"only {', '.join(kinds)} files" if kinds else "no weights at all"
        raise NotFound(
            f"the repository has no safetensors files, {has}",
            "Look for the original repository of the model in safetensors.",
        )
    return weights


def _listed(index: Path) -> set[str]:
    try:
        listed = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise FormatError(f"{INDEX} is damaged: {error!r}") from None
    if not all(isinstance(n, str) and n and "/" not in n for n in listed):
        raise FormatError(f"{INDEX} names files outside the repository's top folder")
    return listed
