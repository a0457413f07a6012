"""Choosing the next token from logits. NumPy on the host; seeded, one generator a request.

Steps in order: mask, penalties, temperature, top-k, top-p, min-p, draw. Presence and frequency
penalties count generated tokens (as OpenAI defines them); the repetition penalty, prompt and
generated ones (Keskar et al., 2019).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import AprError, UsageError


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

    @classmethod
    def from_defaults(
        cls, defaults: Mapping[str, float], **overrides: float | int | None
    ) -> SamplingParams:
        """The model's own defaults, replaced by every override that is not None."""
        known = {f.name for f in fields(cls)}
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

    def __call__(self, logits: NDArray[np.float32]) -> int:
        """The next token for logits [vocab]. Raises AprError if none is finite."""
        scores = logits[: self._valid].astype(np.float64)
        if not np.isfinite(scores).any():
            raise AprError(
                "the model's logits are not finite",
                "The file may be damaged: `apr validate` checks it.",
            )
        scores = np.where(np.isfinite(scores), scores, -np.inf)
        self._penalize(scores)
        token = int(scores.argmax()) if self.params.temperature == 0 else self._draw(scores)
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _penalize(self, scores: NDArray[np.float64]) -> None:
        p = self.params
        seen = np.fromiter(self._counts, np.int64, len(self._counts))
        if p.repetition_penalty != 1.0:
            ids = np.union1d(seen, self._prompt)
            ids = ids[ids < scores.size]
            values = scores[ids]
            factor = p.repetition_penalty
            scores[ids] = np.where(values > 0, values / factor, values * factor)
        if seen.size and (p.presence_penalty or p.frequency_penalty):
            counts = np.fromiter(self._counts.values(), np.float64, seen.size)
            scores[seen] -= p.presence_penalty + p.frequency_penalty * counts

    def _draw(self, scores: NDArray[np.float64]) -> int:
        p = self.params
        ids = np.arange(scores.size)
        if 0 < p.top_k < scores.size:  # a partial selection: the vocabulary is never sorted
            ids = np.argpartition(scores, -p.top_k)[-p.top_k :]
        chosen = scores[ids]
        with np.errstate(over="ignore"):  # a tiny temperature: all but the best become exp(-inf)
            weights = np.exp((chosen - chosen.max()) / p.temperature)
        weights /= weights.sum()
        order = np.argsort(-weights, kind="stable")
        ids, weights = ids[order], weights[order]
        keep = np.ones(ids.size, bool)
        if p.top_p < 1.0:  # the smallest set that reaches top_p; always the first
            keep &= np.concatenate([[True], np.cumsum(weights)[:-1] < p.top_p])
        if p.min_p > 0.0:
            keep &= weights >= p.min_p * weights[0]
        ids, weights = ids[keep], weights[keep]
        draw = self._rng.random() * weights.sum()
        return int(ids[min(int(np.searchsorted(np.cumsum(weights), draw, "right")), ids.size - 1)])
