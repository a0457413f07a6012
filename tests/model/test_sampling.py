"""Sampling: every step does what it says, and a seed decides the token."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apr_core.errors import AprError, UsageError
from apr_core.generate.sampling import Sampler, SamplingParams, Seen, largest, pick


def draws(logits, n=4000, **params):
    sampler = Sampler(SamplingParams(temperature=1.0, seed=1, **params), len(logits))
    tokens = []
    for _ in range(n):
        sampler._seen = Seen()
        tokens.append(sampler(np.asarray(logits, np.float32)))
    return np.bincount(tokens, minlength=len(logits)) / n


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
    params = SamplingParams.from_defaults(
        {"temperature": 0.7, "top_k": 20, "unknown": 1}, top_k=None, top_p=0.5
    )
    assert (params.temperature, params.top_k, params.top_p) == (0.7, 20, 0.5)


def plain_scores(logits, params, counts, prompt):
    """Mask and penalties, token by token in float64."""
    scores = [float(x) if np.isfinite(x) else -np.inf for x in logits]
    for i in {*prompt, *counts}:
        factor = params.repetition_penalty
        scores[i] = scores[i] / factor if scores[i] > 0 else scores[i] * factor
    for i, count in counts.items():
        scores[i] -= params.presence_penalty + params.frequency_penalty * count
    return np.array(scores)


def plain_shares(scores, params):
    """The probability of each token among those kept, by sorting everything, in float64."""
    order = np.argsort(-scores, kind="stable")
    order = order[: params.top_k or None]
    weights = np.exp((scores[order] - scores.max()) / params.temperature)
    weights /= weights.sum()
    keep = np.cumsum(weights) - weights < params.top_p
    keep[0] = True
    keep &= weights >= params.min_p * weights[0]
    shares = np.zeros(scores.size)
    shares[order[keep]] = weights[keep] / weights[keep].sum()
    return shares


class Grid:
    """In place of a generator: the middles of `steps` equal parts of [0, 1)."""

    def __init__(self, steps):
        self.values = iter(((np.arange(steps) + 0.5) / steps).tolist())

    def random(self):
        return next(self.values)


def drawn_shares(logits, valid, params, counts=None, prompt=(), steps=400):
    """How often each token comes; a token's part of [0, 1) is known to 1 / steps."""
    sampler = Sampler(params, valid, prompt)
    sampler._rng = Grid(steps)
    tokens = []
    for _ in range(steps):
        sampler._seen = Seen(counts)
        tokens.append(sampler(logits))
    return np.bincount(tokens, minlength=valid) / steps


def check_against_plain(logits, valid, params, counts=None, prompt=(), steps=400):
    scores = plain_scores(logits[:valid], params, counts or {}, prompt)
    shares = plain_shares(scores, params)
    drawn = drawn_shares(logits, valid, params, counts, prompt, steps)
    assert not drawn[shares == 0].any()
    np.testing.assert_allclose(drawn, shares, atol=1.0001 / steps)


# Scores and penalties in eighths are exact in float32, so ties stay ties; the shares of top-p and
# min-p are chosen so that no sum of weights meets them.
BAD = [float("nan"), float("inf"), float("-inf")]
SCORES = st.integers(-80, 80).map(lambda i: i / 8)
ROWS = st.lists(st.one_of(SCORES, SCORES, SCORES, st.sampled_from(BAD)), min_size=1, max_size=30)
PARAMS = st.fixed_dictionaries({
    "temperature": st.sampled_from([0.25, 1.0, 1.7]),
    "top_k": st.sampled_from([0, 0, 1, 2, 5, 20, 1000]),
    "top_p": st.sampled_from([1.0, 1.0, 0.0, 0.1037, 0.5713, 0.9137]),
    "min_p": st.sampled_from([0.0, 0.0, 0.0613, 0.4719, 1.0]),
    "presence_penalty": st.sampled_from([0.0, 1.5, -1.5]),
    "frequency_penalty": st.sampled_from([0.0, 0.25]),
    "repetition_penalty": st.sampled_from([1.0, 2.0, 0.5]),
})  # fmt: skip
TOKENS = st.lists(st.integers(0, 29), max_size=8)


@settings(max_examples=150, deadline=None)
@given(ROWS, PARAMS, TOKENS, TOKENS)
def test_every_step_is_that_of_a_plain_sampler(row, params, seen, prompt):
    row = [*row, 0.5]  # at least one is finite
    logits = np.array([*row, 1e9, np.nan, np.inf], np.float32)  # then padding
    counts = {i: seen.count(i) for i in seen if i < len(row)}
    prompt = [i for i in prompt if i < len(row)]
    check_against_plain(logits, len(row), SamplingParams(**params), counts, prompt, steps=150)
    greedy = SamplingParams(**{**params, "temperature": 0.0})
    sampler = Sampler(greedy, len(row), prompt)
    sampler._seen = Seen(counts)
    best = plain_scores(logits[: len(row)], greedy, counts, prompt).argmax()
    assert sampler(logits) == best


@pytest.mark.parametrize("spread", [0.5, 3.0])
@pytest.mark.parametrize(
    "steps",
    [{}, {"top_k": 3}, {"top_k": 300}, {"top_k": 5000}, {"top_p": 0.3}, {"top_p": 0.9},
     {"min_p": 0.01}, {"top_p": 0.9, "min_p": 0.2}, {"top_k": 50, "top_p": 0.7, "min_p": 0.05}],
)  # fmt: skip
def test_long_rows(steps, spread):
    """Long enough for groups, several looks and blocks; a few scores stand out."""
    rng = np.random.default_rng(5)
    logits = (rng.standard_normal(20_011) * spread).astype(np.float32)
    logits[rng.integers(0, 20_000, 40)] += 4
    logits[rng.integers(0, 20_000, 40)] = np.nan
    params = SamplingParams(temperature=1.0, **steps)
    check_against_plain(logits, 20_003, params)
    sampler = Sampler(params, 20_003)
    sampler._rng = SimpleNamespace(random=lambda: 1 - 1e-15)
    kept = np.flatnonzero(plain_shares(plain_scores(logits[:20_003], params, {}, ()), params))
    falling = steps.get("top_k") or steps.get("top_p")
    last = min(kept, key=lambda i: (logits[i], -i)) if falling else kept[-1]
    assert sampler(logits) == last


@pytest.mark.parametrize("levels", [1, 3, 40, 10**6])
def test_the_largest_are_found_with_ties_by_id(levels):
    rng = np.random.default_rng(levels)
    scores = rng.integers(0, levels, 9000).astype(np.float32)
    scores[rng.integers(0, 9000, 3000)] = -np.inf
    order = np.lexsort((np.arange(9000), -scores))
    usable = np.count_nonzero(np.isfinite(scores))
    for count in (1, 20, 64, 300, 2500, 6500, 9000, 10_000):
        assert largest(scores, count).tolist() == order[: min(count, usable)].tolist()


@pytest.mark.parametrize("at", [0, 4000, 8999])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_the_largest_are_finite_wherever_one_is_not(at, bad):
    scores = np.arange(9000, dtype=np.float32)
    scores[at] = bad
    expected = [i for i in range(8999, 8900, -1) if i != at][:20]
    assert largest(scores, 20).tolist() == expected
    with pytest.raises(AprError, match="not finite"):
        largest(np.full(9000, -np.inf, np.float32), 20)


def test_what_was_seen_is_counted_however_much_it_is():
    drawn = np.random.default_rng(0).integers(0, 500, 5000).tolist()
    seen = Seen()
    for token in drawn:
        seen.add(token)
    counts = dict(zip(seen.ids.tolist(), seen.counts.tolist(), strict=True))
    assert counts == Counter(drawn)


@pytest.mark.parametrize("steps", [{}, {"top_k": 3}, {"top_p": 0.9}, {"top_k": 2, "top_p": 0.9}])
def test_min_p_of_one_keeps_all_that_are_the_best(steps):
    shares = draws([1.0, 2.0, 2.0, 0.0], 300, min_p=1.0, **steps)
    assert (shares > 0).tolist() == [False, True, True, False]


def test_a_share_picks_where_the_running_sum_passes_it():
    weights = np.zeros(5000, np.float32)
    weights[[7, 2000, 2001, 4000]] = [1, 2, 4, 1]
    picks = [pick(weights, uniform) for uniform in (0, 0.124, 0.126, 0.374, 0.376, 0.874, 0.876, 1)]
    assert picks == [7, 7, 2000, 2000, 2001, 2001, 4000, 4000]
    rng = np.random.default_rng(0)
    for uniform in (np.nextafter(1, 0), 1.0, 1.0000001):
        weights = rng.random(3000) ** 9
        weights[-700:] = 0  # the last block and part of the one before
        assert pick(weights, float(uniform)) == 2299


@pytest.mark.parametrize(
    "steps", [{}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.01}, {"presence_penalty": 1.5}]
)
def test_same_seed_same_token_whichever_steps(steps):
    rows = np.random.default_rng(0).standard_normal((40, 6000)).astype(np.float32) * 3
    runs = []
    for seed in (7, 7, 8):
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed, **steps), 6000)
        runs.append([sampler(row) for row in rows])
    assert runs[0] == runs[1] != runs[2]


def test_the_row_is_left_alone():
    logits = np.array([3, np.nan, 2, 1], np.float32)
    before = logits.copy()
    sampler = Sampler(SamplingParams(temperature=1, presence_penalty=2, seed=0), 4, [0, 1])
    for _ in range(5):
        sampler(logits)
    np.testing.assert_array_equal(logits, before)
    logits.setflags(write=False)
    sampler(logits)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_scores_that_penalties_make_too_large(temperature):
    logits = np.array([-3e38, -3.2e38, np.nan], np.float32)
    params = SamplingParams(temperature=temperature, repetition_penalty=100.0, seed=0)
    assert Sampler(params, 3, [0])(logits) == 1
    assert Sampler(params, 3, [0, 1])(logits) in (0, 1)


def test_a_bias_is_added_before_anything_else_and_unmasks_nothing():
    logits = np.array([1.0, 2.0, 3.0, -np.inf], np.float32)
    biased = SamplingParams(logit_bias=((0, 2.5), (3, 100.0), (900, 5.0)))
    assert Sampler(biased, 4)(logits) == 0
    assert logits[0] == 1.0  # the caller's row is its own
    banned = SamplingParams(logit_bias=((2, -100.0),))
    assert Sampler(banned, 4)(logits) == 1
    with pytest.raises(UsageError, match="logit_bias of 7"):
        SamplingParams(logit_bias=((7, float("nan")),))
