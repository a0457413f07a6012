"""Chooses the next token from logits. NumPy on the host; seeded, one generator per request.

Steps in order: mask, bias, penalties, temperature, top-k, top-p, min-p, sample. Presence and
frequency penalties count generated tokens; the repetition penalty, prompt and generated ones
(Keskar et al., 2019). Of equal scores the lowest id comes first. Sampling walks the tokens that are
left from the likeliest down, or all by id where neither top-k nor top-p chose.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import AprError, UsageError
from apr_core.ops.binding import SamplingMetadata

LARGEST = float(np.finfo(np.float32).max)
COLDEST = 1e-37  # the lowest temperature float32 divides by; no two logits are that close
FIRST_LOOK = 64  # first guess of how many tokens hold a top-p mass
BLOCK = 1024  # weights; a running sum is taken only of the block the number falls in


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
            if not -100.0 <= bias <= 100.0:  # NaN fails too
                raise UsageError(f"logit_bias of {token} must be from -100 to 100, found {bias!r}")

    @classmethod
    def from_defaults(
        cls, defaults: Mapping[str, float], **overrides: float | int | None
    ) -> SamplingParams:
        """Make parameters from the model's defaults, replaced by overrides that are not None."""
        known = {f.name for f in fields(cls)} - {"logit_bias"}
        values: dict[str, Any] = {k: v for k, v in defaults.items() if k in known}
        values |= {k: v for k, v in overrides.items() if v is not None}
        if "top_k" in values:
            values["top_k"] = int(values["top_k"])
        return cls(**values)


class Seen:
    """Tokens and how often they came, as arrays [n] that grow."""

    def __init__(self, counts: Mapping[int, int] | None = None) -> None:
        self._places: dict[int, int] = {}
        self._ids, self._counts = np.empty(64, np.int64), np.empty(64, np.float64)
        for token, count in (counts or {}).items():
            self.add(token, count)

    def add(self, token: int, count: int = 1) -> None:
        """Count a token `count` more times."""
        place = self._places.get(token)
        if place is None:
            place = self._places[token] = len(self._places)
            if place == self._ids.size:
                self._ids = np.resize(self._ids, 2 * place)
                self._counts = np.resize(self._counts, 2 * place)
            self._ids[place], self._counts[place] = token, 0
        self._counts[place] += count

    @property
    def ids(self) -> NDArray[np.int64]:
        """Each token once, [n]."""
        return self._ids[: len(self._places)]

    @property
    def counts(self) -> NDArray[np.float64]:
        """How often each came, [n]."""
        return self._counts[: len(self._places)]


class Sampler:
    """Draws tokens for one request and remembers what it drew."""

    def __init__(
        self, params: SamplingParams, valid_size: int, prompt_ids: Sequence[int] = ()
    ) -> None:
        self.params, self._valid = params, valid_size
        self._rng = np.random.Generator(np.random.PCG64(params.seed))
        prompt = np.unique(np.asarray(prompt_ids, dtype=np.int64))
        self._prompt = prompt[prompt < valid_size]
        self._seen = Seen()
        biased = [(token, bias) for token, bias in params.logit_bias if 0 <= token < valid_size]
        self._biased = np.array([token for token, _ in biased], np.int64)
        self._bias = np.array([bias for _, bias in biased], np.float64)
        penalties = params.presence_penalty or params.frequency_penalty
        self._plain = not (biased or penalties or params.repetition_penalty != 1.0)
        self._uniform: float | None = None  # of the next token, once it is known

    def metadata(self) -> SamplingMetadata | None:
        """Return how to sample the next token; None if bias or penalties change the logits.

        It stays the same until a token is taken.
        """
        return self._metadata() if self._plain else None

    def _metadata(self) -> SamplingMetadata:
        p = self.params
        if self._uniform is None:
            self._uniform = self._rng.random() if p.temperature > 0 else 0.0
        return SamplingMetadata(
            self._valid, p.temperature, p.top_k, p.top_p, p.min_p, self._uniform
        )

    def accept(self, token: int) -> None:
        """Record a token that was sampled elsewhere, by `metadata`."""
        self._uniform = None
        self._seen.add(token)

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """Return the next token for logits [vocab]. Raises AprError if none is finite.

        Bias and penalties are written into the row and taken back: a copy takes longer.
        """
        scores = np.asarray(logits[: self._valid], np.float32)
        changed, metadata = self._changed(), self._metadata()
        if not changed.size:
            token = sample(scores, metadata)
        else:
            scores = scores if scores.flags.writeable else scores.copy()
            before = scores[changed]
            try:
                self._change(scores)
                token = sample(scores, metadata)
            finally:
                scores[changed] = before
        self.accept(token)
        return token

    def _changed(self) -> NDArray[np.int64]:
        """Return ids whose scores bias or penalties change; some may be repeated."""
        p, ids = self.params, [self._biased]
        if p.repetition_penalty != 1.0:
            ids.append(self._prompt)
        if p.presence_penalty or p.frequency_penalty or p.repetition_penalty != 1.0:
            ids.append(self._seen.ids)
        return np.concatenate(ids)

    def _change(self, scores: NDArray[np.float32]) -> None:
        """Add bias, then penalize what came before, in place."""
        p, seen = self.params, self._seen
        if self._biased.size:
            _store(scores, self._biased, scores[self._biased] + self._bias)
        if p.repetition_penalty != 1.0:
            ids = np.concatenate([self._prompt, seen.ids])
            values = scores[ids].astype(np.float64)  # an id may come twice: read before written
            factor = p.repetition_penalty
            _store(scores, ids, np.where(values > 0, values / factor, values * factor))
        if p.presence_penalty or p.frequency_penalty:
            penalties = p.presence_penalty + p.frequency_penalty * seen.counts
            _store(scores, seen.ids, scores[seen.ids] - penalties)


def sample(logits: NDArray[np.float32], metadata: SamplingMetadata) -> int:
    """Sample a token from logits [vocab]. Raises AprError if none is finite."""
    scores = logits[: metadata.valid]
    if metadata.temperature > 0 and 0 < metadata.top_k < scores.size:
        ids = largest(scores, metadata.top_k)
        return _among(
            ids, _weights(scores[ids].astype(np.float64), scores[ids[0]], metadata), metadata
        )
    scores, token = finite(scores)
    top = scores[token]
    if metadata.temperature <= 0:
        return token
    if metadata.top_p < 1.0:
        ids, total = _nucleus(scores, top, metadata)
        return _among(ids, _weights(scores[ids].astype(np.float64), top, metadata), metadata, total)
    everything = _weights(scores, top, metadata)
    if metadata.min_p > 0.0:
        everything[everything < metadata.min_p] = 0.0
    return pick(everything, metadata.uniform)


def _among(
    ids: NDArray[np.intp],
    weights: NDArray[np.float64],
    metadata: SamplingMetadata,
    total: float | None = None,
) -> int:
    """Sample by top-p and min-p from ids, likeliest first; `total` is the weight of all tokens."""
    sums = np.cumsum(weights)
    before = np.concatenate([[0.0], sums[:-1]])
    keep = before < metadata.top_p * (sums[-1] if total is None else total)
    keep &= weights >= metadata.min_p  # of the likeliest, whose weight is 1
    count = max(1, np.count_nonzero(keep))  # both steps keep the first ones of a falling row
    return int(ids[pick(weights[:count], metadata.uniform)])


def _weights(scores: NDArray[Any], top: np.float32, metadata: SamplingMetadata) -> NDArray[Any]:
    """Return the softmax without its denominator: 1 for the likeliest token."""
    weights: NDArray[Any] = scores - top
    with np.errstate(over="ignore"):  # a low temperature: all but the best become exp(-inf)
        weights /= max(metadata.temperature, COLDEST)
        np.exp(weights, out=weights)
    return weights


def _nucleus(
    scores: NDArray[np.float32], top: np.float32, metadata: SamplingMetadata
) -> tuple[NDArray[np.intp], float]:
    """Return at least the tokens top-p and min-p keep, likeliest first, and the weight of all.

    Looks at ever more of the likeliest until they hold the mass of top-p.
    """
    total = float(_weights(scores, top, metadata).sum(dtype=np.float64))
    count = FIRST_LOOK
    while True:
        ids = largest(scores, count)
        weights = _weights(scores[ids].astype(np.float64), top, metadata)
        enough = weights.sum() >= metadata.top_p * total
        if enough or weights[-1] < metadata.min_p or count >= scores.size:
            return ids, total
        count *= 8


def finite(scores: NDArray[np.float32]) -> tuple[NDArray[np.float32], int]:
    """Return the row with values that are not finite at -inf, and its best id.

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
    """Write penalized scores. Masked ones stay masked, and no others become infinite."""
    usable = np.isfinite(values)
    scores[ids[usable]] = np.clip(values[usable], -LARGEST, LARGEST)


def largest(scores: NDArray[np.float32], count: int) -> NDArray[np.intp]:
    """Return ids of the `count` highest finite scores, highest first, equal ones by id.

    Raises AprError if there is none. The row is folded into a rectangle whose column maxima take
    one pass; scores as high as the count-th of these are in few columns.
    """
    width = max(1024, 8 * count)
    rows = scores.size // width if scores.size >= 4 * width else 0
    table, rest = scores[: rows * width].reshape(rows, width), scores[rows * width :]
    maxima = table.max(axis=0) if rows else scores
    if not np.isfinite(np.maximum(maxima.max(), rest.max(initial=-np.inf))):
        return largest(finite(scores)[0], count)
    bound = _bound(maxima, count)
    ids = rows * width + np.flatnonzero(rest >= bound)
    if rows:
        columns = np.flatnonzero(maxima >= bound)
        places = np.flatnonzero(table.take(columns, axis=1).ravel() >= bound)
        row, place = np.divmod(places, columns.size)
        ids = np.concatenate([row * width + columns[place], ids])
    return ids[np.argsort(-scores[ids], kind="stable")[:count]]


def _bound(scores: NDArray[np.float32], count: int) -> np.float32:
    """Return a score reached by at least `count` tokens, if that many are not -inf."""
    count = min(count, scores.size)
    return max(np.float32(np.partition(scores, -count)[-count]), np.float32(-LARGEST))


def pick(weights: NDArray[Any], uniform: float) -> int:
    """Return where the running sum passes `uniform` of the whole sum, never at a weight of 0."""
    if weights.size <= BLOCK:
        return _passing(weights, uniform * float(weights.sum(dtype=np.float64)))[0]
    blocks = np.add.reduceat(weights, np.arange(0, weights.size, BLOCK), dtype=np.float64)
    block, rest = _passing(blocks, uniform * float(blocks.sum()))
    start = block * BLOCK
    return start + _passing(weights[start : start + BLOCK], rest)[0]


def _passing(weights: NDArray[Any], amount: float) -> tuple[int, float]:
    """Return the first index whose running sum exceeds the amount, and the amount left there."""
    sums = np.cumsum(weights, dtype=np.float64)
    # by rounding the amount may be the whole sum or more: then the last that weighs anything
    at = int(np.searchsorted(sums, min(amount, np.nextafter(sums[-1], 0.0)), "right"))
    return at, amount - float(sums[at - 1] if at else 0.0)
