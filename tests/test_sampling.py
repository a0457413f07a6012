"""Sampling: every step does what it says, and a seed decides the draw."""

from __future__ import annotations

import numpy as np
import pytest

from apr_core.engine.sampling import Sampler, SamplingParams
from apr_core.errors import AprError, UsageError


def draws(logits, n=4000, **params):
    sampler = Sampler(SamplingParams(temperature=1.0, seed=1, **params), len(logits))
    found = []
    for _ in range(n):
        sampler._counts = {}
        found.append(sampler(np.asarray(logits, np.float32)))
    return np.bincount(found, minlength=len(logits)) / n


def softmax(x):
    e = np.exp(np.asarray(x) - np.max(x))
    return e / e.sum()


def test_greedy_takes_the_best_and_masks_padding_rows():
    logits = np.array([0, 3, 1, 9], np.float32)
    assert Sampler(SamplingParams(), 4)(logits) == 3
    assert Sampler(SamplingParams(), 3)(logits) == 1


def test_frequencies_follow_softmax():
    logits = [0.0, 1.0, 2.0, -1.0]
    np.testing.assert_allclose(draws(logits), softmax(logits), atol=0.03)


def test_top_k_top_p_min_p():
    logits = [5.0, 4.0, 1.0, 0.0, -9.0]
    assert (draws(logits, top_k=2) > 0).tolist() == [True, True, False, False, False]
    p = softmax(logits)
    assert (draws(logits, top_p=float(p[0]) - 0.01) > 0).tolist() == [True] + [False] * 4
    assert (draws(logits, top_p=float(p[0]) + 0.01) > 0).tolist() == [True, True] + [False] * 3
    assert (draws(logits, min_p=float(p[1] / p[0]) * 0.99) > 0).tolist() == [True, True] + [
        False
    ] * 3
    assert draws(logits, top_p=0.0)[0] == 1.0


def test_temperature_sharpens():
    for temperature in (0.05, 1e-310):
        cold = Sampler(SamplingParams(temperature=temperature, seed=3), 3)
        assert {cold(np.array([1, 2, 1], np.float32)) for _ in range(50)} == {1}


def test_same_seed_same_draws():
    logits = np.random.default_rng(0).standard_normal((30, 500)).astype(np.float32)
    runs = []
    for seed in (7, 7, 8):
        sampler = Sampler(SamplingParams(temperature=1.5, top_k=100, seed=seed), 500)
        runs.append([sampler(row) for row in logits])
    assert runs[0] == runs[1] != runs[2]


def test_penalties():
    logits = np.array([2.0, 1.9, -1.0], np.float32)
    presence = Sampler(SamplingParams(presence_penalty=0.5), 3)
    assert [presence(logits), presence(logits), presence(logits)] == [0, 1, 0]
    frequency = Sampler(SamplingParams(frequency_penalty=0.06), 3)
    assert [frequency(logits) for _ in range(4)] == [0, 0, 1, 0]
    repetition = Sampler(SamplingParams(repetition_penalty=2.0), 3, prompt_ids=[0, 0])
    assert repetition(logits) == 1


def test_logits_that_are_not_finite():
    with pytest.raises(AprError, match="not finite"):
        Sampler(SamplingParams(), 3)(np.full(3, np.nan, np.float32))
    mixed = np.array([np.nan, 1.0, -np.inf, np.inf], np.float32)
    assert Sampler(SamplingParams(), 4)(mixed) == 1
    assert Sampler(SamplingParams(temperature=1, seed=0, presence_penalty=1), 4)(mixed) == 1


@pytest.mark.parametrize(
    "bad",
    [{"temperature": -1}, {"top_p": 1.5}, {"min_p": -0.1}, {"top_k": -1},
     {"temperature": float("nan")}, {"repetition_penalty": 0.0}, {"seed": -1}, {"seed": 0.5},
     {"temperature": "hot"}],
)  # fmt: skip
def test_limits(bad):
    with pytest.raises(UsageError, match=next(iter(bad))):
        SamplingParams(**bad)


def test_model_defaults_and_overrides():
    made = SamplingParams.from_defaults(
        {"temperature": 0.7, "top_k": 20, "unknown": 1}, top_k=None, top_p=0.5
    )
    assert (made.temperature, made.top_k, made.top_p) == (0.7, 20, 0.5)
