"""Trains the demo model's tokenizer: byte-level BPE, split as Qwen3.5 splits."""

from __future__ import annotations

import itertools

from data import TALK, dialogues, render
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers
from tokenizers import pre_tokenizers as pre
from tokenizers.trainers import BpeTrainer

PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>")
BASE = 503  # base entries; with the 9 added tokens the vocabulary is 512


def train_tokenizer(seed: int) -> Tokenizer:
    """Train a tokenizer of 512 ids: bytes, merges, then the added tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre.Sequence(
        [
            pre.Split(Regex(PATTERN), "isolated"),
            pre.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=BASE, initial_alphabet=sorted(pre.ByteLevel.alphabet()), show_progress=False
    )
    shown = itertools.islice(dialogues(seed), 3000)
    texts = ["".join(text for text, _ in render(*d)) for d in shown]
    for tag in (*SPECIAL, *TAGS):
        texts = [text.replace(tag, " ") for text in texts]
    texts += [*TALK, *itertools.chain(*TALK.values())] * 50
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in TAGS])
    return tokenizer
