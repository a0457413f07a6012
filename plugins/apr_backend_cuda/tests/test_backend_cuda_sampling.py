"""What the device chooses is what the host chooses, draw by draw; interpreted without a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from apr_backend_cuda.backend import Cuda
from apr_backend_cuda.probe import interpreted, probe
from apr_backend_cuda.run import sampling
from apr_core import SamplingParams, load
from apr_core.generate.sampling import Sampler, chosen
from apr_core.plugin import Draw
from apr_devkit.tiny import tiny_apr

pytestmark = pytest.mark.skipif(not probe()[0], reason=probe()[1])

NEAR = 0.0 if interpreted() else 1e-6  # of a share: a device's exponentials round otherwise
KINDS = [
    {}, {"min_p": 0.07}, {"top_k": 1}, {"top_k": 7}, {"top_k": 60}, {"top_k": 10_000},
    {"top_p": 0.0}, {"top_p": 0.5}, {"top_p": 0.93}, {"top_p": 0.999}, {"top_k": 9, "top_p": 0.6},
    {"top_p": 0.8, "min_p": 0.1}, {"top_k": 20, "top_p": 0.95, "min_p": 0.02}, {"min_p": 1.0},
]  # fmt: skip
TEMPERATURES = [0.0, 1e-310, 0.05, 0.7, 1.0, 3.0, 100.0]


@pytest.fixture(scope="module")
def device():
    return Cuda()


def choose(device, logits, draws):
    return device.choose(device.upload(logits), draws)


def host(row, draw):
    """The tokens that the host takes for this share, and for those next to it."""
    shares = {max(draw.share + by, 0.0) for by in (-NEAR, 0.0, NEAR)}
    return {chosen(row, replace(draw, share=share)) for share in shares}


def assert_as_the_host(device, logits, draws):
    choices = choose(device, logits, draws)
    expected = [host(row, draw) for row, draw in zip(logits, draws, strict=True)]
    wrong = [
        (token, tokens, draw)
        for token, tokens, draw in zip(choices, expected, draws, strict=True)
        if token not in tokens
    ]
    assert not wrong, f"{len(wrong)} of {len(draws)}: {wrong[:3]}"


def random_draws(rng, count, vocab):
    for _ in range(count):
        yield Draw(
            int(rng.integers(1, vocab + 1)) if rng.random() < 0.3 else vocab - 3,
            float(rng.choice(TEMPERATURES)),
            share=rng.random(),
            **rng.choice(KINDS),
        )


@pytest.mark.parametrize("spread", [0.3, 3.0, 20.0])
def test_random_draws_are_those_of_the_host(device, spread):
    rng = np.random.default_rng(int(10 * spread))
    logits = (rng.standard_normal((1000, 300)) * spread).astype(np.float32)
    assert_as_the_host(device, logits, list(random_draws(rng, 1000, 300)))


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_of_equal_scores_the_lowest_id_comes_first(device, levels):
    rng = np.random.default_rng(levels)
    logits = rng.integers(0, levels, (400, 130)).astype(np.float32)
    logits[::2] *= -1.0  # has -0, which is as high as 0
    logits[0, 5:] = logits[0].max()
    draws = list(random_draws(rng, 400, 130))
    assert_as_the_host(device, logits, draws)
    choices = choose(device, logits, [Draw(130)] * 400)
    assert choices == logits.argmax(1).tolist()


def test_what_is_masked_is_never_chosen(device):
    rng = np.random.default_rng(4)
    logits = rng.standard_normal((300, 200)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.9] = -np.inf
    logits[:, 17] = 0.5
    assert_as_the_host(device, logits, [replace(d, valid=200) for d in random_draws(rng, 300, 200)])


def test_padding_is_never_chosen_whatever_it_holds(device):
    logits = np.random.default_rng(5).standard_normal((60, 90)).astype(np.float32)
    logits[:, 70:] = [np.nan, np.inf, 1e9, 3e38, 0.0] * 4
    draws = [Draw(70, t, share=0.999, **k) for t in (0.0, 1.0, 100.0) for k in KINDS]
    assert_as_the_host(device, logits[: len(draws)], draws)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_left_to_the_host(device, bad):
    logits = np.random.default_rng(6).standard_normal((2 * len(KINDS), 90)).astype(np.float32)
    logits[::2, 33] = bad
    draws = [Draw(90, t, share=0.5, **k) for k in KINDS for t in (1.0, 1.0)]
    assert [token is None for token in choose(device, logits, draws)] == [True, False] * len(KINDS)
    greedy = choose(device, logits, [Draw(90)] * len(logits))
    assert [token is None for token in greedy] == [True, False] * len(KINDS)
    nothing = np.full((3, 90), -np.inf, np.float32)
    assert choose(device, nothing, [Draw(90), Draw(90, 1.0), Draw(90, 1.0, 5)]) == [None] * 3


def test_rows_without_a_draw_get_none_and_rows_may_be_apart(device):
    wide = np.random.default_rng(7).standard_normal((6, 400)).astype(np.float32)
    draws = [None, Draw(300), Draw(300, 1.0, share=0.4), None, Draw(300, 1.0, 5, share=0.9), None]
    choices = device.choose(device.upload(wide)[:, :300], draws)
    expected = [None if d is None else chosen(row[:300], d) for row, d in zip(wide, draws)]  # noqa: B905
    assert choices == expected
    assert choose(device, wide, [None] * 6) == [None] * 6


def test_rows_of_many_blocks(device):
    """Long enough for the table of columns; shares near both ends, too."""
    rng = np.random.default_rng(8)
    logits = (rng.standard_normal((len(KINDS), 9001)) * 6).astype(np.float32)
    for share in (0.0, 0.37, 1 - 1e-13):
        draws = [
            Draw(8990, 1.0, share=share, **{**kind, "top_k": kind.get("top_k", 0) % 9000})
            for kind in KINDS
        ]
        choices = choose(device, logits, draws)
        for token, row, draw in zip(choices, logits, draws, strict=True):
            listed = draw.top_k or draw.top_p < 1
            long = listed and _needs(row[:8990], draw) > sampling.LONGEST
            assert token is None if long else token in host(row, draw), draw


@pytest.mark.parametrize("spread", [0.2, 4.0])
def test_a_list_that_does_not_hold_it_is_left_to_the_host(device, monkeypatch, spread):
    """Short lists: what goes on after them is not served, all the rest is."""
    for name, size in {"LONGEST": 16, "SHORTEST": 8, "ROOM": 64, "COLUMNS": 128}.items():
        monkeypatch.setattr(sampling, name, size)
    rng = np.random.default_rng(9)
    logits = (rng.standard_normal((300, 700)) * spread).astype(np.float32)
    draws = [Draw(697, 1.0, share=rng.random(), **rng.choice(KINDS)) for _ in range(300)]
    served = 0
    for token, row, draw in zip(choose(device, logits, draws), logits, draws, strict=True):
        if token is None:
            assert _needs(row[:697], draw) > 16, draw
        else:
            assert token in host(row, draw), draw
            served += draw.top_k > 0 or draw.top_p < 1
    assert served > 50


def _needs(row, draw):
    """How many of the likeliest a draw looks at."""
    if 0 < draw.top_k < row.size:
        return draw.top_k
    weights = np.exp(np.sort(row.astype(np.float64))[::-1] - row.max())
    by_share = 1 + np.count_nonzero(np.cumsum(weights) < draw.top_p * weights.sum())
    return min(by_share, 1 + np.count_nonzero(weights >= draw.min_p))


def test_more_equal_scores_than_there_is_room_for_are_left_to_the_host(device, monkeypatch):
    monkeypatch.setattr(sampling, "ROOM", 64)
    monkeypatch.setattr(sampling, "COLUMNS", 64)
    monkeypatch.setattr(sampling, "LONGEST", 32)
    monkeypatch.setattr(sampling, "SHORTEST", 8)
    logits = np.zeros((2, 200), np.float32)
    logits[1, 50:60] = 1.0
    assert choose(device, logits, [Draw(200, 1.0, 4, share=0.5)] * 2) == [None, 52]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_the_same_tokens(device, kind):
    rng = np.random.default_rng(10)
    params = [SamplingParams(temperature=1.2, seed=seed, **kind) for seed in range(12)]
    ours, theirs = ([Sampler(p, 250) for p in params] for _ in range(2))
    for _ in range(12):
        logits = (rng.standard_normal((len(params), 256)) * 2).astype(np.float32)
        draws = [sampler.draw() for sampler in ours]
        choices = choose(device, logits, draws)
        for sampler, token in zip(ours, choices, strict=True):
            sampler.took(token)
        expected = [sampler(row) for sampler, row in zip(theirs, logits, strict=True)]
        if NEAR:
            expected = [
                c if c in host(r, d) else e
                for c, r, d, e in zip(choices, logits, draws, expected, strict=True)
            ]
        assert choices == expected


def test_what_a_row_gives_does_not_depend_on_the_batch(device):
    rng = np.random.default_rng(11)
    logits = (rng.standard_normal((30, 300)) * 2).astype(np.float32)
    draws = list(random_draws(rng, 30, 300))
    together = choose(device, logits, draws)
    alone = [choose(device, logits[i : i + 1], draws[i : i + 1])[0] for i in range(30)]
    assert together == alone
    assert choose(device, logits[::-1], draws[::-1]) == together[::-1]


@pytest.mark.needs_plugins
@pytest.mark.parametrize("params", [{}, {"temperature": 1.5, "top_k": 20}, {"temperature": 1.0}])
def test_a_model_answers_the_same_with_and_without(tmp_path, monkeypatch, params):
    path = tiny_apr("qwen2", tmp_path, "f32")
    params = SamplingParams(**params, seed=3)
    with load(path, backend="cuda") as model:
        ids = list(range(40, 50))
        chosen_there = model.generate(ids, params=params, max_tokens=6).ids
    monkeypatch.delattr(Cuda, "choose")
    with load(path, backend="cuda") as model:
        assert model.generate(ids, params=params, max_tokens=6).ids == chosen_there


def test_logits_are_not_downloaded(device, monkeypatch):
    """The only thing that leaves the device is an array of as many tokens as there are draws."""
    left, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: left.append(tuple(t.shape)) or tolist(t))
    monkeypatch.setattr(Cuda, "download", None)
    draws = [Draw(64, float(t), **kind) for t in (0, 1) for kind in KINDS]
    logits = np.random.default_rng(12).standard_normal((len(draws), 64)).astype(np.float32)
    choose(device, logits, draws)
    assert left == [(len(draws),)]
