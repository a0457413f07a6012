"""Tokenizers of checkpoints, as an import would put them into a file."""

from __future__ import annotations

import json

from apr_core.text.tokenizer import Tokenizer
from apr_core.text.tokenizer_files import tokenizer_metadata

TAGS = ("<think>", "</think>")


def tokenizer_of(directory):
    """The tokenizer in a directory, which has as many rows as its config.json says, if any."""
    config = directory / "config.json"
    content = json.loads(config.read_text("utf-8")) if config.exists() else {}
    rows = content.get("text_config", content).get("vocab_size", 640)
    return Tokenizer.from_metadata(tokenizer_metadata(directory, rows), TAGS)
