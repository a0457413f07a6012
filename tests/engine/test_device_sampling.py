"""A backend that samples tokens itself: the same answers, and logits that never leave it."""

from __future__ import annotations

import numpy as np
import pytest

from apr_core import load
from apr_core.errors import AprError
from apr_core.generate.sampling import Sampler, SamplingParams, sample
from apr_core.model.step import LastLogits
from apr_core.plugin import SamplingMetadata
from apr_core.registry import get_registry
from apr_core.runtime import ReferenceBackend
from apr_devkit.kits.rig import NAME, with_reference
from tests.engine.engine_rig import ENDLESS, FAMILIES, Client, imported, random_ids, running

VOCAB, STEPS = 512, 6


class Choosing(ReferenceBackend):
    """Chooses as the host does, but leaves every so many rows to it; keeps what was downloaded."""

    def __init__(self, leaves_every=10**9):
        super().__init__()
        self.asked, self.left, self.leaves_every, self.downloads = 0, 0, leaves_every, []

    def sample(self, logits, sampling):
        return [
            None if metadata is None else self._one(*pair)
            for *pair, metadata in zip(logits, sampling, sampling, strict=True)
        ]

    def _one(self, row, metadata):
        self.asked += 1
        if self.asked % self.leaves_every == 0 or not np.isfinite(row).all():
            self.left += 1
            return None
        return sample(row, metadata)

    def download(self, array):
        self.downloads.append(array.shape)
        return np.array(array)

    def rows(self):
        """How many rows of logits were downloaded."""
        return sum(shape[0] for shape in self.downloads if shape[1:] == (VOCAB,))


@pytest.fixture(scope="module", params=FAMILIES)
def model(request, tmp_path_factory):
    path = imported(request.param, tmp_path_factory.mktemp("choosing"))
    with load(path, NAME, registry=with_reference(get_registry())) as model:
        yield model


@pytest.fixture
def choosing(model, monkeypatch):
    backend = Choosing()
    monkeypatch.setattr(model, "backend", backend)
    return backend


class Even:
    """A constraint: every second id."""

    complete = False

    def mask(self, scores):
        scores[1::2] = -np.inf
        return scores

    def accept(self, token):
        assert token % 2 == 0


DRAWN = SamplingParams(temperature=1.3, seed=5)
KINDS = [
    {"temperature": 0.8}, {"temperature": 2.0, "top_k": 30}, {"temperature": 1.0, "top_p": 0.9},
    {"temperature": 1.0, "min_p": 0.01}, {"temperature": 1.5, "top_k": 50, "top_p": 0.8},
]  # fmt: skip
REQUESTS = [
    (SamplingParams(), {}),
    *((SamplingParams(seed=i, **kind), {}) for i, kind in enumerate(KINDS)),
    (DRAWN, {"n": 3}),
    (DRAWN, {"top_logprobs": 3}),
    (DRAWN, {"constraint": Even}),
    (SamplingParams(temperature=1.0, presence_penalty=1.0, seed=6), {}),
    (SamplingParams(logit_bias=((70, 5.0),)), {}),
]


def answers(model):
    """Ids, and those with log probabilities, of all requests, which run together."""
    with running(model, slots=16) as engine:
        clients = [
            Client(
                engine, random_ids(5 + 13 * i, seed=i), params, max_tokens=STEPS, **ENDLESS, **more
            )
            for i, (params, more) in enumerate(REQUESTS)
        ]
        return [
            (client.ids(index), [lp.id for d in client.answer(index) for lp in d.logprobs])
            for client in clients
            for index in range(client.request.n)
        ]


@pytest.fixture(scope="module")
def expected(model):
    return answers(model)


@pytest.mark.needs_plugins
@pytest.mark.parametrize("leaves_every", [10**9, 3, 1])
def test_answers_are_the_same_whoever_samples(model, expected, monkeypatch, leaves_every):
    backend = Choosing(leaves_every)
    monkeypatch.setattr(model, "backend", backend)
    assert answers(model) == expected
    assert backend.asked == 9 * STEPS
    assert backend.left == backend.asked // leaves_every


@pytest.mark.needs_plugins
def test_logits_that_nobody_needs_are_not_downloaded(model, choosing):
    with running(model, slots=8) as engine:
        plain = [
            Client(engine, random_ids(600), p, max_tokens=9, n=2, **ENDLESS)
            for p in (SamplingParams(), DRAWN)
        ]
        assert all(len(client.ids(1)) == 9 for client in plain)
    assert choosing.asked == 36 and choosing.rows() == 0
    assert {shape for shape in choosing.downloads if len(shape) == 2} == {(1, 1)}


@pytest.mark.needs_plugins
def test_only_rows_that_are_needed_are_downloaded(model, choosing):
    penalties = SamplingParams(frequency_penalty=0.5)
    with running(model, slots=8) as engine:
        clients = [
            Client(engine, random_ids(9), p, max_tokens=20, **ENDLESS)
            for p in (SamplingParams(), penalties, DRAWN)
        ]
        assert all(len(client.ids()) == 20 for client in clients)
    assert choosing.rows() == 20 and choosing.asked == 40


@pytest.mark.needs_plugins
def test_the_plain_loop_samples_too(model, monkeypatch):
    params = [SamplingParams(), DRAWN, *(SamplingParams(seed=9, **kind) for kind in KINDS)]
    alone = [model.generate(random_ids(70), params=p, max_tokens=8).ids for p in params]
    backend = Choosing()
    monkeypatch.setattr(model, "backend", backend)
    answers = [model.generate(random_ids(70), params=p, max_tokens=8).ids for p in params]
    assert answers == alone and backend.rows() == 0


@pytest.mark.needs_plugins
def test_logits_that_are_not_finite_are_the_same_error(model, choosing, monkeypatch):
    head = model._decoder.head
    monkeypatch.setattr(head, "data", np.full_like(head.data, np.nan))
    for params in (SamplingParams(), DRAWN):
        with pytest.raises(AprError, match="the model's logits are not finite"):
            model.generate(random_ids(9), params=params, max_tokens=2)
        with running(model) as engine:
            error = Client(engine, random_ids(9), params, max_tokens=2).last().error
        assert isinstance(error, AprError) and "not finite" in str(error)


@pytest.mark.needs_plugins
def test_a_choice_that_fails_ends_its_requests_and_the_engine_goes_on(model, choosing, monkeypatch):
    def fails(logits, sampling):
        raise MemoryError("no memory for weights")

    with running(model, slots=2) as engine:
        with monkeypatch.context() as patch:
            patch.setattr(choosing, "sample", fails)
            last = Client(engine, random_ids(9), max_tokens=4, n=2).last()
            assert last.finish_reason == "error" and "no memory for weights" in str(last.error)
        assert len(Client(engine, random_ids(9), max_tokens=4, **ENDLESS).ids()) == 4


@pytest.mark.needs_plugins
def test_nobody_is_asked_for_metadata_where_the_host_samples(model, monkeypatch):
    asked = []
    monkeypatch.setattr("apr_core.generate.sequence.GenerationSequence.metadata", asked.append)
    assert model.generate(random_ids(9), params=DRAWN, max_tokens=4).ids
    with running(model) as engine:
        assert Client(engine, random_ids(9), DRAWN, max_tokens=4, n=2).ids(1)
    assert not asked


def test_metadata_stays_the_same_until_a_token_is_taken():
    sampler, other = (Sampler(SamplingParams(temperature=1.0, seed=3), 40) for _ in range(2))
    first = sampler.metadata()
    assert first == sampler.metadata() and 0 <= first.uniform < 1
    rows = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    assert sampler(rows[0]) == sample(rows[0], first) == other(rows[0])
    second = sampler.metadata()
    assert second.uniform != first.uniform
    sampler.accept(other(rows[1]))
    assert sampler(rows[2]) == other(rows[2])


@pytest.mark.parametrize(
    "needs_the_row",
    [{"presence_penalty": 0.1}, {"frequency_penalty": 0.1}, {"repetition_penalty": 1.1},
     {"logit_bias": ((3, 1.0),)}],
)  # fmt: skip
def test_there_is_no_metadata_where_scores_are_changed(needs_the_row):
    assert Sampler(SamplingParams(temperature=1.0, **needs_the_row), 40).metadata() is None
    beyond = SamplingParams(top_k=4, temperature=0.5, seed=0, logit_bias=((40, 1.0),))
    metadata = Sampler(beyond, 40).metadata()
    assert (metadata.valid, metadata.temperature, metadata.top_k) == (40, 0.5, 4)
    assert Sampler(SamplingParams(), 40).metadata() == SamplingMetadata(40)


def test_one_row_serves_several_samples():
    backend, rows = Choosing(), np.eye(4, dtype=np.float32)
    logits = LastLogits(backend, rows)
    assert logits.of(2, 3).sample(
        [SamplingMetadata(4), SamplingMetadata(2), SamplingMetadata(4)]
    ) == [2, 0, 2]
    assert not backend.downloads
    token, row = logits.of(1, 2).sample([SamplingMetadata(4), None])
    assert token == 1 and row.tolist() == rows[1].tolist() and backend.downloads == [(1, 4)]
    plain = LastLogits(ReferenceBackend(), rows)
    assert [row.tolist() for row in plain.of(3, 2).sample([])] == [rows[3].tolist()] * 2
