"""How far one model's predictions are from another's, on the same text.

For each token that counts: KL(P || Q) = sum p (log p - log q), in nats, of the first model's P and
the second one's Q; whether both have the same likeliest token; and both losses. A text is cut into
pieces, of which the second half counts, as llama.cpp has it. Errors are standard errors of 400
bootstrap samples of whole pieces, since neighbouring tokens are alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.plugin import UsageError
from apr_eval.layerwise import LayerWise, Progress

Floats = NDArray[np.float32]
PIECE = 512  # tokens
SAMPLES = 400


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and its standard error."""

    value: float
    error: float


@dataclass(frozen=True, slots=True)
class Divergence:
    """Of Q from P, over `tokens` tokens. KL in nats; `same_top` is a share of the tokens.

    `perplexity` is P's, and `perplexity_ratio` that of Q over it.
    """

    tokens: int
    mean: Estimate
    median: Estimate
    p99: Estimate
    p999: Estimate
    same_top: Estimate
    perplexity: Estimate
    perplexity_ratio: Estimate


def pieces_of(ids: Sequence[int], size: int = PIECE) -> list[list[int]]:
    """Return the whole pieces of a text's ids. Raises UsageError if there are not two."""
    pieces = [list(ids[i : i + size]) for i in range(0, len(ids) - size + 1, size)]
    if len(pieces) < 2:
        raise UsageError(
            f"the text has {len(ids)} tokens, expected {2 * size} or more: two pieces of {size}",
            "Take a longer text, or shorter pieces.",
        )
    return pieces


def measure(
    p: LayerWise, q: LayerWise, pieces: Sequence[Sequence[int]], progress: Progress | None = None
) -> Divergence:
    """Return the divergence of Q from P on pieces of ids that both models know."""
    counted = [len(piece) // 2 for piece in pieces]  # the first token whose prediction counts
    hidden = [
        [states[n - 1 : -1] for n, states in zip(counted, m.hidden(pieces, progress), strict=True)]
        for m in (p, q)
    ]
    told = np.concatenate([piece[n:] for n, piece in zip(counted, pieces, strict=True)])
    rows = _rows(p.logits(hidden[0]), q.logits(hidden[1]), told)
    parts = np.split(rows, np.cumsum([len(states) for states in hidden[0]])[:-1])
    return summary(parts)


def _rows(p: Iterator[Floats], q: Iterator[Floats], told: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (KL, same top token, loss of P, loss of Q) of each token: [tokens, 4]."""
    done, start = [], 0
    for a, b in zip(p, q, strict=True):
        done.append(compared(a, b, told[start : start + len(a)]))
        start += len(a)
    return np.concatenate(done)


def compared(p: Floats, q: Floats, told: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return (KL, same top token, loss of P, loss of Q) for rows of logits [rows, vocab]."""
    same, at = p.argmax(-1) == q.argmax(-1), np.arange(len(told))
    p, q = p - p.max(-1, keepdims=True), q - q.max(-1, keepdims=True)
    odds = np.exp(p)
    log_p, log_q = (np.log(np.sum(e, -1, dtype=np.float64)) for e in (odds, np.exp(q)))
    cross = np.einsum("rv,rv->r", odds, p - q, dtype=np.float64) / np.exp(log_p)
    losses = log_p - p[at, told], log_q - q[at, told]
    return np.stack([cross - log_p + log_q, same, *losses], axis=1)


def summary(parts: Sequence[NDArray[np.float64]]) -> Divergence:
    """Return the figures of rows (KL, same top token, loss of P, loss of Q), by piece."""
    rng, whole = np.random.default_rng(0), _figures(np.concatenate(parts))
    drawn = rng.integers(0, len(parts), (SAMPLES, len(parts)))
    samples = [_figures(np.concatenate([parts[i] for i in each])) for each in drawn]
    errors = np.std(samples, axis=0, ddof=1)
    figures = (Estimate(float(v), float(e)) for v, e in zip(whole, errors, strict=True))
    return Divergence(sum(map(len, parts)), *figures)


def _figures(rows: NDArray[np.float64]) -> list[Any]:
    kl, same, p, q = rows.T
    ratio = np.exp(q.mean() - p.mean())
    quantiles = np.quantile(kl, [0.5, 0.99, 0.999])
    return [kl.mean(), *quantiles, same.mean(), np.exp(p.mean()), ratio]
