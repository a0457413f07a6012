"""Tokenizers in GGUF files: the ids of llama.cpp, there and back."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pytest

from apr_core.cli.import_ import run_import
from apr_core.errors import FormatError
from apr_core.format import AprFile
from apr_core.registry import get_registry
from apr_core.text.tokenizer import Tokenizer
from apr_devkit.tiny import tiny_checkpoint
from apr_gguf.export import export
from apr_gguf.reader import Keys, read_header
from apr_gguf.sentencepiece import BYTE, CONTROL, NORMAL, UNKNOWN, UNUSED, USER_DEFINED
from apr_gguf.tokenizer import PRE, pre_of, stop_ids, tokenizer_files

pytestmark = pytest.mark.needs_plugins

WORDS = [
    "▁the", "▁t", "th", "he", "in", "ing", "an", "▁a", "nd", "and", "er", "re", "on", "es", "▁▁",
    "▁▁▁▁", "▁▁▁", "th▁", "aa", "aaa", "aaaa", "aaaaa", "สว", "สวัส", "==", "====", "--", "▁=",
    "ab", "abc", "bcd", "cd",
]  # fmt: skip
LETTERS = "▁abcdefghinorst=-สวัส\n"


def sentencepiece_keys(prefix: bool) -> Keys:
    """A vocabulary with scores: three special tokens, bytes, letters, words, and fillers."""
    rng = random.Random(0)
    rows = [("<unk>", 0.0, UNKNOWN), ("<s>", 0.0, CONTROL), ("</s>", 0.0, CONTROL)]
    rows += [(f"<0x{i:02X}>", 0.0, BYTE) for i in range(256)]
    words = rng.sample(WORDS, len(WORDS))
    rows += [(word, -float(i), NORMAL) for i, word in enumerate(words)]
    rows += [(c, -1e3 - i, NORMAL) for i, c in enumerate(dict.fromkeys(LETTERS))]
    rows += [(t, -1e3, USER_DEFINED) for t in ("\n\n", "\n\n\n", "      ", "<table>")]
    rows += [(f"[PAD{i}]", -1e4, UNUSED) for i in range(3)]
    tokens, scores, kinds = zip(*rows, strict=True)
    return Keys("m.gguf", {
        "general.architecture": "llama", "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": list(tokens), "tokenizer.ggml.scores": np.array(scores, "f4"),
        "tokenizer.ggml.token_type": np.array(kinds, "i4"), "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.add_space_prefix": prefix,
    })  # fmt: skip


def as_llama_cpp(text: str, keys: Keys) -> Iterator[int]:
    """What llama.cpp makes of a text without control tokens, as its code says, plainly.

    `tokenizer_st_partition` takes tokens of users out, the longest first; `llm_tokenizer_spm` joins
    the two neighbours of the highest score, the leftmost first, and spells the rest in bytes.
    """
    tokens, kinds = (keys.values[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type"))
    ids, scores = {t: i for i, t in enumerate(tokens)}, keys.values["tokenizer.ggml.scores"]
    prefix, pieces = keys.values["tokenizer.ggml.add_space_prefix"], [text] if text else []
    users = [t for t, kind in zip(tokens, kinds, strict=True) if kind == USER_DEFINED]
    for user in sorted(users, key=len, reverse=True):
        split = [part.split(user) if part not in users else [part] for part in pieces]
        pieces = [
            x for parts in split for i, p in enumerate(parts) for x in ([user] * (i > 0) + [p]) if x
        ]
    after = True
    for piece in pieces:
        if piece in users:
            yield ids[piece]
            after = True
            continue
        parts = list((" " * (prefix and after) + piece).replace(" ", "▁"))
        after = False
        while True:
            found = [(scores[ids[a + b]], -i) for i, (a, b) in
                     enumerate(pairwise(parts)) if a + b in ids]  # fmt: skip
            if not found:
                break
            i = -max(found)[1]
            parts[i : i + 2] = [parts[i] + parts[i + 1]]
        for part in parts:
            yield from [ids[part]] if part in ids else [ids[f"<0x{b:02X}>"] for b in part.encode()]


def random_texts(count: int) -> Iterator[str]:
    rng = random.Random(1)
    parts = [
        *"abcdefghinorst=-",
        " ",
        "  ",
        "\n",
        "\n\n",
        "<table>",
        "สวัสดี",
        "😀",
        "é",
        "the ",
        "ing",
    ]
    for _ in range(count):
        yield "".join(rng.choice(parts) * rng.randint(1, 5) for _ in range(rng.randint(0, 9)))


@pytest.mark.parametrize("prefix", [True, False])
def test_scores_give_the_ids_of_llama_cpp(prefix):
    keys = sentencepiece_keys(prefix)
    content = tokenizer_files(keys)["tokenizer.json"]
    tokenizer = Tokenizer(content, len(content["model"]["vocab"]))
    for text in ["", " ", " " * 40, "\n" * 9, "the thing\n\n\n\nand\n", *random_texts(300)]:
        ids = tokenizer.encode(text, allow_special=prefix)  # tokens of users are added ones then
        assert ids == list(as_llama_cpp(text, keys)), text
        if not prefix:
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("prefix", [True, False])
def test_a_users_text_never_becomes_a_control_token(prefix):
    content = tokenizer_files(sentencepiece_keys(prefix))["tokenizer.json"]
    tokenizer = Tokenizer(content, len(content["model"]["vocab"]))
    for text in ("</s>", "<s>", "a</s>b", "<0x0A>", "\n\n</s>\n\n"):
        assert not {0, 1, 2, 13} & set(tokenizer.encode(text)), text
    assert tokenizer.encode("</s>", allow_special=True) == [2]


@pytest.mark.parametrize("prefix", [True, False])
def test_scores_come_back(tmp_path, prefix):
    files = tokenizer_files(sentencepiece_keys(prefix))
    config = get_registry().make("family", "llama").tiny_config()
    rows = len(files["tokenizer.json"]["model"]["vocab"]) + 3
    source = tiny_checkpoint("llama", tmp_path / "source", config=config | {"vocab_size": rows})
    for name, content in files.items():
        (source / name).write_text(json.dumps(content))
    run_import(str(source), tmp_path / "m.apr")
    with AprFile.open(tmp_path / "m.apr") as file:
        assert not export(file, tmp_path / "m.gguf")["warnings"]
    again = Keys("m.gguf", read_header(tmp_path / "m.gguf").keys)
    first = sentencepiece_keys(prefix)
    for key in ("tokens", "token_type", "add_space_prefix"):
        mine, other = (k.values[f"tokenizer.ggml.{key}"] for k in (again, first))
        assert list(mine)[:-3] == list(other)[:-3] if key != "add_space_prefix" else mine == other
    assert tokenizer_files(again) == files


def test_scores_that_say_nothing_are_refused():
    keys = sentencepiece_keys(True)
    scores = "tokenizer.ggml.scores"
    with pytest.raises(FormatError, match="scores of its tokens say no order"):
        tokenizer_files(Keys("m", keys.values | {scores: np.zeros_like(keys.values[scores])}))
    kinds = keys.values["tokenizer.ggml.token_type"].copy()
    kinds[5] = NORMAL
    with pytest.raises(FormatError, match="has 255 tokens of bytes"):
        tokenizer_files(Keys("m", keys.values | {"tokenizer.ggml.token_type": kinds}))


def test_what_ends_an_answer():
    tokens = ["a", "<|im_end|>", "<end_of_turn>", "b"]
    keys = {"general.architecture": "x", "tokenizer.ggml.tokens": tokens}
    assert stop_ids(Keys("m", keys)) == [1, 2]
    assert stop_ids(Keys("m", keys | {"tokenizer.ggml.eot_token_id": 3})) == [3, 1, 2]


@pytest.mark.parametrize("name", PRE)
def test_what_cuts_a_text_is_recognized(name):
    keys = Keys("m", {
        "general.architecture": "x", "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": name,
        "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.merges": [],
    })  # fmt: skip
    assert pre_of(tokenizer_files(keys)["tokenizer.json"]) == name


def test_the_splitting_of_gpt2_is_recognized_in_its_own_spelling():
    plain = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    digits = {"type": "Digits", "individual_digits": True}
    both = {"type": "Sequence", "pretokenizers": [digits, plain]}
    assert pre_of({"pre_tokenizer": plain}) == "gpt-2"
    assert pre_of({"pre_tokenizer": both}) == "smollm"
    assert pre_of({"pre_tokenizer": plain | {"add_prefix_space": True}}) is None
    assert pre_of({"pre_tokenizer": {"type": "Whitespace"}}) is None
