"""What the device samples is what the host samples, row by row; interpreted without a GPU."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from apr_backend_cuda.backend import Cuda
from apr_backend_cuda.probe import interpreted, probe
from apr_backend_cuda.run import sampling
from apr_core import SamplingParams, load
from apr_core.generate.sampling import Sampler
from apr_core.generate.sampling import sample as sample_on_host
from apr_core.plugin import SamplingMetadata
from apr_devkit.tiny import tiny_apr

pytestmark = pytest.mark.skipif(not probe()[0], reason=probe()[1])

NEAR = 0.0 if interpreted() else 1e-6  # a device's exponentials round otherwise
KINDS = [
    {}, {"min_p": 0.07}, {"top_k": 1}, {"top_k": 7}, {"top_k": 60}, {"top_k": 10_000},
    {"top_p": 0.0}, {"top_p": 0.5}, {"top_p": 0.93}, {"top_p": 0.999}, {"top_k": 9, "top_p": 0.6},
    {"top_p": 0.8, "min_p": 0.1}, {"top_k": 20, "top_p": 0.95, "min_p": 0.02}, {"min_p": 1.0},
]  # fmt: skip
TEMPERATURES = [0.0, 1e-310, 0.05, 0.7, 1.0, 3.0, 100.0]


@pytest.fixture(scope="module")
def device():
    return Cuda()


def sample(device, logits, batch):
    return device.sample(device.upload(logits), batch)


def host(row, metadata):
    """The tokens that the host takes for this random number, and for those next to it."""
    near = {max(metadata.uniform + by, 0.0) for by in (-NEAR, 0.0, NEAR)}
    return {sample_on_host(row, replace(metadata, uniform=uniform)) for uniform in near}


def assert_as_the_host(device, logits, batch):
    choices = sample(device, logits, batch)
    expected = [host(row, metadata) for row, metadata in zip(logits, batch, strict=True)]
    wrong = [
        (token, tokens, metadata)
        for token, tokens, metadata in zip(choices, expected, batch, strict=True)
        if token not in tokens
    ]
    assert not wrong, f"{len(wrong)} of {len(batch)}: {wrong[:3]}"


def random_sampling(rng, count, vocab):
    for _ in range(count):
        yield SamplingMetadata(
            int(rng.integers(1, vocab + 1)) if rng.random() < 0.3 else vocab - 3,
            float(rng.choice(TEMPERATURES)),
            uniform=rng.random(),
            **rng.choice(KINDS),
        )


@pytest.mark.parametrize("spread", [0.3, 3.0, 20.0])
def test_random_sampling_is_those_of_the_host(device, spread):
    rng = np.random.default_rng(int(10 * spread))
    logits = (rng.standard_normal((1000, 300)) * spread).astype(np.float32)
    assert_as_the_host(device, logits, list(random_sampling(rng, 1000, 300)))


@pytest.mark.parametrize("levels", [1, 2, 5])
def test_of_equal_scores_the_lowest_id_comes_first(device, levels):
    rng = np.random.default_rng(levels)
    logits = rng.integers(0, levels, (400, 130)).astype(np.float32)
    logits[::2] *= -1.0  # has -0, which is as high as 0
    logits[0, 5:] = logits[0].max()
    batch = list(random_sampling(rng, 400, 130))
    assert_as_the_host(device, logits, batch)
    choices = sample(device, logits, [SamplingMetadata(130)] * 400)
    assert choices == logits.argmax(1).tolist()


def test_what_is_masked_is_never_sampled(device):
    rng = np.random.default_rng(4)
    logits = rng.standard_normal((300, 200)).astype(np.float32)
    logits[rng.random(logits.shape) < 0.9] = -np.inf
    logits[:, 17] = 0.5
    assert_as_the_host(
        device, logits, [replace(d, valid=200) for d in random_sampling(rng, 300, 200)]
    )


def test_padding_is_never_sampled_whatever_it_holds(device):
    logits = np.random.default_rng(5).standard_normal((60, 90)).astype(np.float32)
    logits[:, 70:] = [np.nan, np.inf, 1e9, 3e38, 0.0] * 4
    batch = [SamplingMetadata(70, t, uniform=0.999, **k) for t in (0.0, 1.0, 100.0) for k in KINDS]
    assert_as_the_host(device, logits[: len(batch)], batch)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rows_that_are_not_finite_are_left_to_the_host(device, bad):
    logits = np.random.default_rng(6).standard_normal((2 * len(KINDS), 90)).astype(np.float32)
    logits[::2, 33] = bad
    batch = [SamplingMetadata(90, t, uniform=0.5, **k) for k in KINDS for t in (1.0, 1.0)]
    assert [token is None for token in sample(device, logits, batch)] == [True, False] * len(KINDS)
    greedy = sample(device, logits, [SamplingMetadata(90)] * len(logits))
    assert [token is None for token in greedy] == [True, False] * len(KINDS)
    nothing = np.full((3, 90), -np.inf, np.float32)
    assert (
        sample(
            device,
            nothing,
            [SamplingMetadata(90), SamplingMetadata(90, 1.0), SamplingMetadata(90, 1.0, 5)],
        )
        == [None] * 3
    )


def test_rows_without_metadata_get_none_and_rows_may_be_apart(device):
    wide = np.random.default_rng(7).standard_normal((6, 400)).astype(np.float32)
    batch = [
        None,
        SamplingMetadata(300),
        SamplingMetadata(300, 1.0, uniform=0.4),
        None,
        SamplingMetadata(300, 1.0, 5, uniform=0.9),
        None,
    ]
    choices = device.sample(device.upload(wide)[:, :300], batch)
    expected = [None if d is None else sample_on_host(row[:300], d) for row, d in zip(wide, batch)]  # noqa: B905
    assert choices == expected
    assert sample(device, wide, [None] * 6) == [None] * 6


def test_rows_of_many_blocks(device):
    """Long enough for the table of columns; numbers near both ends, too."""
    rng = np.random.default_rng(8)
    logits = (rng.standard_normal((len(KINDS), 9001)) * 6).astype(np.float32)
    for uniform in (0.0, 0.37, 1 - 1e-13):
        batch = [
            SamplingMetadata(
                8990, 1.0, uniform=uniform, **{**kind, "top_k": kind.get("top_k", 0) % 9000}
            )
            for kind in KINDS
        ]
        choices = sample(device, logits, batch)
        for token, row, metadata in zip(choices, logits, batch, strict=True):
            listed = metadata.top_k or metadata.top_p < 1
            long = listed and _needs(row[:8990], metadata) > sampling.LONGEST
            assert token is None if long else token in host(row, metadata), metadata


@pytest.mark.parametrize("spread", [0.2, 4.0])
def test_a_list_that_does_not_hold_it_is_left_to_the_host(device, monkeypatch, spread):
    """Short lists: what goes on after them is not served, all the rest is."""
    for name, size in {"LONGEST": 16, "SHORTEST": 8, "CAPACITY": 64, "COLUMNS": 128}.items():
        monkeypatch.setattr(sampling, name, size)
    rng = np.random.default_rng(9)
    logits = (rng.standard_normal((300, 700)) * spread).astype(np.float32)
    batch = [
        SamplingMetadata(697, 1.0, uniform=rng.random(), **rng.choice(KINDS)) for _ in range(300)
    ]
    served = 0
    for token, row, metadata in zip(sample(device, logits, batch), logits, batch, strict=True):
        if token is None:
            assert _needs(row[:697], metadata) > 16, metadata
        else:
            assert token in host(row, metadata), metadata
            served += metadata.top_k > 0 or metadata.top_p < 1
    assert served > 50


def _needs(row, metadata):
    """How many of the likeliest sampling looks at."""
    if 0 < metadata.top_k < row.size:
        return metadata.top_k
    weights = np.exp(np.sort(row.astype(np.float64))[::-1] - row.max())
    by_top_p = 1 + np.count_nonzero(np.cumsum(weights) < metadata.top_p * weights.sum())
    return min(by_top_p, 1 + np.count_nonzero(weights >= metadata.min_p))


def test_more_equal_scores_than_there_is_room_for_are_left_to_the_host(device, monkeypatch):
    monkeypatch.setattr(sampling, "CAPACITY", 64)
    monkeypatch.setattr(sampling, "COLUMNS", 64)
    monkeypatch.setattr(sampling, "LONGEST", 32)
    monkeypatch.setattr(sampling, "SHORTEST", 8)
    logits = np.zeros((2, 200), np.float32)
    logits[1, 50:60] = 1.0
    assert sample(device, logits, [SamplingMetadata(200, 1.0, 4, uniform=0.5)] * 2) == [None, 52]


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_draws_the_same_tokens(device, kind):
    rng = np.random.default_rng(10)
    params = [SamplingParams(temperature=1.2, seed=seed, **kind) for seed in range(12)]
    ours, theirs = ([Sampler(p, 250) for p in params] for _ in range(2))
    for _ in range(12):
        logits = (rng.standard_normal((len(params), 256)) * 2).astype(np.float32)
        batch = [sampler.metadata() for sampler in ours]
        choices = sample(device, logits, batch)
        for sampler, token in zip(ours, choices, strict=True):
            sampler.accept(token)
        expected = [sampler(row) for sampler, row in zip(theirs, logits, strict=True)]
        if NEAR:
            expected = [
                c if c in host(r, d) else e
                for c, r, d, e in zip(choices, logits, batch, expected, strict=True)
            ]
        assert choices == expected


def test_what_a_row_gives_does_not_depend_on_the_batch(device):
    rng = np.random.default_rng(11)
    logits = (rng.standard_normal((30, 300)) * 2).astype(np.float32)
    batch = list(random_sampling(rng, 30, 300))
    together = sample(device, logits, batch)
    alone = [sample(device, logits[i : i + 1], batch[i : i + 1])[0] for i in range(30)]
    assert together == alone
    assert sample(device, logits[::-1], batch[::-1]) == together[::-1]


@pytest.mark.needs_plugins
@pytest.mark.parametrize("params", [{}, {"temperature": 1.5, "top_k": 20}, {"temperature": 1.0}])
def test_a_model_answers_the_same_with_and_without(tmp_path, monkeypatch, params):
    path = tiny_apr("qwen2", tmp_path, "f32")
    params = SamplingParams(**params, seed=3)
    with load(path, backend="cuda") as model:
        ids = list(range(40, 50))
        expected_ids = model.generate(ids, params=params, max_tokens=6).ids
    monkeypatch.delattr(Cuda, "sample")
    with load(path, backend="cuda") as model:
        assert model.generate(ids, params=params, max_tokens=6).ids == expected_ids


def test_logits_are_not_downloaded(device, monkeypatch):
    """The only thing that leaves the device is an array of as many tokens as there are rows."""
    left, tolist = [], torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: left.append(tuple(t.shape)) or tolist(t))
    monkeypatch.setattr(Cuda, "download", None)
    batch = [SamplingMetadata(64, float(t), **kind) for t in (0, 1) for kind in KINDS]
    logits = np.random.default_rng(12).standard_normal((len(batch), 64)).astype(np.float32)
    sample(device, logits, batch)
    assert left == [(len(batch),)]
