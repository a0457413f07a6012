"""Choosing the next token from logits. NumPy on the host; seeded, one generator a request.

Steps in order: mask, bias, penalties, temperature, top-k, top-p, min-p, draw. Presence and
frequency penalties count generated tokens (as OpenAI defines them); the repetition penalty, prompt
and generated ones (Keskar et al., 2019). Of equal scores the lowest id comes first.

A vocabulary is long, so it is read a few times in float32 and neither copied without need nor
sorted; the few tokens that are left are weighed in float64. A draw walks them from the likeliest
down, or the whole vocabulary by id where neither top-k nor top-p chose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import AprError, UsageError

LARGEST = float(np.finfo(np.float32).max)
COLDEST = 1e-37  # the lowest temperature float32 divides by; no two logits are that close
FIRST_LOOK = 64  # tokens that hold a top-p share, at a first guess
BLOCK = 1024  # weights whose running sum is taken only if the draw falls among them


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to sample. temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 switch a step off."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, what is added to its logit)

    def __post_init__(self) -> None:
        limits = {
            "temperature": (0.0, 100.0), "top_p": (0.0, 1.0), "min_p": (0.0, 1.0),
            "presence_penalty": (-10.0, 10.0), "frequency_penalty": (-10.0, 10.0),
            "repetition_penalty": (0.01, 100.0), "top_k": (0, 2**31),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not (isinstance(value, int | float) and math.isfinite(value)):
                raise UsageError(f"{name} must be a number, found {value!r}")
            if not low <= value <= high:
                raise UsageError(f"{name} must be between {low:g} and {high:g}, found {value:g}")
        if self.seed is not None and not (type(self.seed) is int and self.seed >= 0):
            raise UsageError(f"seed must be a whole number from 0 up, found {self.seed!r}")
        for token, bias in self.logit_bias:
            if not -100.0 <= bias <= 100.0:  # also what is no number
                raise UsageError(f"logit_bias of {token} must be from -100 to 100, found {bias!r}")

    @classmethod
    def from_defaults(
        cls, defaults: Mapping[str, float], **overrides: float | int | None
    ) -> SamplingParams:
        """The model's own defaults, replaced by every override that is not None."""
        known = {f.name for f in fields(cls)} - {"logit_bias"}
        values: dict[str, Any] = {k: v for k, v in defaults.items() if k in known}
        values |= {k: v for k, v in overrides.items() if v is not None}
        if "top_k" in values:
            values["top_k"] = int(values["top_k"])
        return cls(**values)


class Sampler:
    """Draws tokens for one request and remembers what it drew."""

    def __init__(
        self, params: SamplingParams, valid_size: int, prompt_ids: Sequence[int] = ()
    ) -> None:
        self.params, self._valid = params, valid_size
        self._rng = np.random.Generator(np.random.PCG64(params.seed))
        self._prompt = np.unique(np.asarray(prompt_ids, dtype=np.int64))
        self._counts: dict[int, int] = {}
        biased = [(token, bias) for token, bias in params.logit_bias if 0 <= token < valid_size]
        self._biased = np.array([token for token, _ in biased], np.int64)
        self._bias = np.array([bias for _, bias in biased], np.float64)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """The next token for logits [vocab]. Raises AprError if none is finite."""
        scores, token = finite(np.asarray(logits[: self._valid], np.float32))
        if self._biased.size:
            scores = scores.copy()
            _store(scores, self._biased, scores[self._biased] + self._bias)
            token = int(scores.argmax())
        if self._penalizes():
            scores = self._penalized(scores)
            token = int(scores.argmax())
        if self.params.temperature > 0:
            token = self._draw(scores, scores[token])
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _penalizes(self) -> bool:
        p = self.params
        seen = bool(p.presence_penalty or p.frequency_penalty) and bool(self._counts)
        return seen or p.repetition_penalty != 1.0

    def _penalized(self, scores: NDArray[np.float32]) -> NDArray[np.float32]:
        """A copy in which the scores of seen tokens are changed."""
        p = self.params
        scores = scores.copy()
        seen = np.fromiter(self._counts, np.int64, len(self._counts))
        if p.repetition_penalty != 1.0:
            ids = np.concatenate([self._prompt[self._prompt < scores.size], seen])
            values = scores[ids].astype(np.float64)  # an id may come twice: read before written
            factor = p.repetition_penalty
            _store(scores, ids, np.where(values > 0, values / factor, values * factor))
        counts = np.fromiter(self._counts.values(), np.float64, seen.size)
        _store(scores, seen, scores[seen] - (p.presence_penalty + p.frequency_penalty * counts))
        return scores

    def _draw(self, scores: NDArray[np.float32], top: np.float32) -> int:
        p = self.params
        if 0 < p.top_k < scores.size:
            ids, total = largest(scores, p.top_k), None
        elif p.top_p < 1.0:
            ids, total = self._nucleus(scores, top)
        else:
            everything = self._weights(scores, top)
            if p.min_p > 0.0:
                everything[everything < p.min_p] = 0.0
            return pick(everything, self._rng.random())
        weights = self._weights(scores[ids].astype(np.float64), top)
        sums = np.cumsum(weights)
        before = np.concatenate([[0.0], sums[:-1]])
        keep = before < p.top_p * (sums[-1] if total is None else total)
        keep &= weights >= p.min_p  # of the likeliest, whose weight is 1
        count = max(1, np.count_nonzero(keep))  # both steps keep the first ones of a falling row
        return int(ids[pick(weights[:count], self._rng.random())])

    def _weights(self, scores: NDArray[Any], top: np.float32) -> NDArray[Any]:
        """The softmax without its denominator: 1 for the likeliest token."""
        with np.errstate(over="ignore"):  # a low temperature: all but the best become exp(-inf)
            weights: NDArray[Any] = np.exp((scores - top) / max(self.params.temperature, COLDEST))
        return weights

    def _nucleus(
        self, scores: NDArray[np.float32], top: np.float32
    ) -> tuple[NDArray[np.intp], float]:
        """At least the tokens that top-p and min-p keep, likeliest first; the weight of all.

        Looks at ever more of the likeliest until they hold the share.
        """
        total = float(self._weights(scores, top).sum(dtype=np.float64))
        count = FIRST_LOOK
        while True:
            ids = largest(scores, count)
            weights = self._weights(scores[ids].astype(np.float64), top)
            enough = weights.sum() >= self.params.top_p * total
            if enough or weights[-1] < self.params.min_p or count >= scores.size:
                return ids, total
            count *= 8


def finite(scores: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """The row with what is not finite masked by -inf, and its best id.

    One value tells whether there is anything to mask: argmax takes a NaN or +inf before any number.
    """
    if scores.size:
        best = int(scores.argmax())
        if np.isfinite(scores[best]):
            return scores, best
    usable = np.isfinite(scores)
    if not usable.any():
        raise AprError(
            "the model's logits are not finite",
            "The file may be damaged: `apr validate` checks it.",
        )
    scores = np.where(usable, scores, np.float32(-np.inf))
    return scores, int(scores.argmax())


def _store(scores: NDArray[np.float32], ids: NDArray[np.intp], values: NDArray[np.float64]) -> None:
    """Write penalized scores. What is masked stays masked, and nothing else becomes infinite."""
    usable = np.isfinite(values)
    scores[ids[usable]] = np.clip(values[usable], -LARGEST, LARGEST)


def largest(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Ids of the `count` highest scores, highest first, equal ones by id; none that is -inf."""
    bound = max(_lower_bound(scores, count), np.float32(-LARGEST))
    ids = np.flatnonzero(scores >= bound)
    return ids[np.argsort(-scores[ids], kind="stable")[:count]]


def _lower_bound(scores: NDArray[np.float32], count: int) -> np.float32:
    """A score that at least `count` reach, and few more: the count-th highest of group maxima.

    Groups are columns of the row folded into a rectangle: their maxima take one pass.
    """
    width = max(1024, 8 * count)
    rows = scores.size // width
    if rows >= 4:
        scores = scores[: rows * width].reshape(rows, width).max(axis=0)
    count = min(count, scores.size)
    return np.float32(np.partition(scores, -count)[-count])


def pick(weights: NDArray[Any], share: float) -> int:
    """Where the running sum of the weights passes that share of their sum, never at a weight 0."""
    blocks = np.add.reduceat(weights, np.arange(0, weights.size, BLOCK), dtype=np.float64)
    block, rest = _passing(blocks, share * float(blocks.sum()))
    start = block * BLOCK
    return start + _passing(weights[start : start + BLOCK], rest)[0]


def _passing(weights: NDArray[Any], amount: float) -> tuple[int, float]:
    """The first index whose running sum is over the amount, and what of it was left there."""
    sums = np.cumsum(weights, dtype=np.float64)
    # by rounding the amount may be the whole sum or more: then the last that weighs anything
    at = int(np.searchsorted(sums, min(amount, np.nextafter(sums[-1], 0.0)), "right"))
    return at, amount - float(sums[at - 1] if at else 0.0)
