"""Greedy tokens: on the GPU as on the processor, and alone as in a batch or with a cut prompt.

The first is asked of the demo model, whose weights are trained: random ones have nearly equal
logits everywhere, and any rounding moves their tokens. The second is asked of both models, for
there the same bits are promised.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from apr_core import Model, load
from apr_core.generate.boundaries import CHUNK, GRID
from benchmarks.demo_quality import prompts
from benchmarks.engines import random_tokens
from benchmarks.files import imported
from benchmarks.gpu.bench import Bench
from benchmarks.gpu.shapes import Amounts
from benchmarks.gpu.table import Column, Table
from benchmarks.gpu.weights import BACKEND

DEMO, PEER = "demo://sums", "cpu"
COLUMNS = (
    Column("model", "model"), Column("what", "compared"), Column("sequences", "sequences"),
    Column("tokens", "tokens", "d"), Column("same", "same", "d"),
    Column("first", "first difference"), Column("note", ""),
)  # fmt: skip
Prompts = Sequence[Sequence[int]]
Answers = list[list[int]]


def run(bench: Bench) -> None:
    """Print the table; a difference makes the run fail."""
    table = bench.report.table("The same greedy tokens", COLUMNS)
    a = bench.amounts
    with tempfile.TemporaryDirectory() as folder:
        path = imported(DEMO, Path(folder) / "demo.apr", bench.recipe)
        with load(path, BACKEND) as model, load(path, PEER) as peer:
            asked = Asked(DEMO, model, _demo_prompts(model, a), a.agreed_tokens)
            keys = {"model": DEMO, "what": f"{BACKEND} and {PEER}"}
            bench.attempt(table, keys, partial(_against_peer, bench, asked, peer))
            _ways(bench, table, asked)
    own = bench.built().model
    texts = [random_tokens(n, own.config.vocab_size) for n in a.own_prompts]
    _ways(bench, table, Asked(f"{bench.shape}, random", own, texts, a.own_tokens))


class Asked:
    """Prompts for a model, and what it answers to each alone."""

    def __init__(self, name: str, model: Model, texts: Prompts, tokens: int) -> None:
        self.name, self.model, self.texts, self.tokens = name, model, texts, tokens
        self._alone: Answers | None = None

    def alone(self) -> Answers:
        """Asked once."""
        if self._alone is None:
            self._alone = one_by_one(self.model, self.texts, self.tokens, CHUNK)
        return self._alone


def _demo_prompts(model: Model, amounts: Amounts) -> list[list[int]]:
    """Some held-out sums; and a long prompt, many of them after each other."""
    asked = [ids for ids, _ in prompts(model)]
    long = [token for ids in asked for token in ids][: amounts.agreed_long]
    short = [ids[: amounts.agreed_short] for ids in asked[: amounts.agreed_prompts]]
    return [*short, *([long] if long else [])]


def _ways(bench: Bench, table: Table, asked: Asked) -> None:
    """Alone, against batched and against prompts that are cut."""
    for what, answer, chunk in (
        ("alone and batched", side_by_side, CHUNK),
        (f"alone and prompts cut at {GRID}s", one_by_one, GRID),
    ):
        keys = {"model": asked.name, "what": what}
        bench.attempt(table, keys, partial(_against_itself, bench, asked, answer, chunk))


def _against_itself(
    bench: Bench, asked: Asked, answer: Callable[..., Answers], chunk: int
) -> dict[str, Any]:
    other = answer(asked.model, asked.texts, asked.tokens, chunk)
    return _row(bench, asked.name, asked.alone(), other)


def _against_peer(bench: Bench, asked: Asked, peer: Model) -> dict[str, Any]:
    ours, theirs = asked.alone(), one_by_one(peer, asked.texts, asked.tokens, CHUNK)
    row = _row(bench, asked.name, ours, theirs)
    place = first_difference(ours, theirs)
    if place:
        sequence, token = place
        ids = [*asked.texts[sequence], *theirs[sequence][:token]]
        row["note"] = _gap(peer, ids, ours[sequence][token], theirs[sequence][token])
    return row


def _gap(peer: Model, ids: list[int], ours: int, theirs: int) -> str:
    """How near the two tokens were, by the peer's logits."""
    row = peer.logits(ids)[-1]
    spread = float(np.std(row))
    return (
        f"{PEER}'s logits there: {row[theirs]:.5f} and {row[ours]:.5f}, of a spread of {spread:.3f}"
    )


def _row(bench: Bench, name: str, a: Answers, b: Answers) -> dict[str, Any]:
    place = first_difference(a, b)
    if place:
        bench.report.fail(f"greedy tokens of {name} differ: {words(place, a, b)}")
    return {
        "sequences": len(a), "tokens": sum(map(len, a)), "same": same_tokens(a, b),
        "first": words(place, a, b) if place else "none",
    }  # fmt: skip


def first_difference(a: Answers, b: Answers) -> tuple[int, int] | None:
    """(sequence, token) of the first token that differs, the earliest of any sequence."""
    places = [
        (next((i for i, x, y in zip(count(), p, q, strict=False) if x != y), None), n)
        for n, (p, q) in enumerate(zip(a, b, strict=True))
    ]
    differences = [(token, n) for token, n in places if token is not None]
    return None if not differences else (min(differences)[1], min(differences)[0])


def same_tokens(a: Answers, b: Answers) -> int:
    """Tokens up to the first difference of each sequence."""
    total = 0
    for p, q in zip(a, b, strict=True):
        total += next((i for i, x, y in zip(count(), p, q, strict=False) if x != y), len(p))
    return total


def words(place: tuple[int, int], a: Answers, b: Answers) -> str:
    """A place as people count."""
    n, i = place
    return f"sequence {n + 1}, token {i + 1}: {a[n][i]} and {b[n][i]}"


def one_by_one(model: Model, texts: Prompts, tokens: int, chunk: int) -> Answers:
    """The greedy continuation of each prompt, one after the other, past any stop id."""
    return [side_by_side(model, [ids], tokens, chunk)[0] for ids in texts]


def side_by_side(model: Model, texts: Prompts, tokens: int, chunk: int) -> Answers:
    """The same, side by side: whole chunks of all prompts, then a token of each, in one step."""
    slots = [model.new_slot() for _ in texts]
    try:
        answers: Answers = [[_read(rows)] for rows in _prefilled(model, slots, texts, chunk)]
        for _ in range(tokens - 1):
            parts = [(slot, answer[-1:]) for slot, answer in zip(slots, answers, strict=True)]
            for answer, row in zip(answers, model.forward(parts), strict=True):
                answer.append(_read(row))
        return answers
    finally:
        for slot in slots:
            model.free_slot(slot)


def _read(row: Any) -> int:
    return int(np.argmax(row))


def _prefilled(model: Model, slots: list[int], texts: Prompts, chunk: int) -> list[Any]:
    """Logits of each prompt's last token."""
    last: dict[int, Any] = {}
    for start in range(0, max(map(len, texts)), chunk):
        parts = [
            (slot, ids[start : start + chunk])
            for slot, ids in zip(slots, texts, strict=True)
            if start < len(ids)
        ]
        for (slot, _), row in zip(parts, model.forward(parts), strict=True):
            last[slot] = row
    return [last[slot] for slot in slots]
