"""Everything at random, turn by turn, and the books checked after each.

Requests come, are given up, fail in every place that can fail; memory is short. Whoever is not hurt
gets what it gets alone, everybody hears of their end once, and nothing is left behind.
"""

from __future__ import annotations

import os
import random
from collections import Counter

import numpy as np
import pytest

from apr_core.generate.sampling import SamplingParams
from apr_serve.engine.engine import Engine
from apr_serve.engine.interface import EngineRequest
from tests.engine.engine_rig import by_hand, chat, random_ids

pytestmark = pytest.mark.needs_plugins

TURNS = int(os.environ.get("APR_TORTURE_TURNS", "120"))
SEEDS = int(os.environ.get("APR_TORTURE_SEEDS", "3"))
PATIENCE = 3000  # turns in which all must have been served
SLOTS = 5


class Trouble:
    """Makes some of a model's calls fail, for a while."""

    PLACES = ("forward_last", "forward_slices", "snapshot", "restore_slices", "new_slot")

    def __init__(self, model, rng):
        self.model, self.rng, self.share, self.met = model, rng, 0.0, 0
        for name in self.PLACES:
            setattr(model, name, self._troubled(getattr(model, name)))

    def _troubled(self, call):
        def troubled(*args, **options):
            if self.rng.random() < self.share:
                self.met += 1
                raise self.rng.choice([MemoryError, RuntimeError, KeyboardInterrupt])("trouble")
            return call(*args, **options)

        return troubled

    def over(self):
        for name in self.PLACES:
            delattr(self.model, name)


class Panicking:
    """A constraint that fails at its third token."""

    complete = False

    def __init__(self):
        self.taken = 0

    def mask(self, scores):
        return scores

    def accept(self, token):
        self.taken += 1
        if self.taken == 3:
            raise SystemExit("a panic")


class Asked:
    """A request, and what was told of it."""

    def __init__(self, engine, rng, prompts):
        self.at, self.deltas = rng.randrange(len(prompts)), []
        self.deaf = rng.random() < 0.05
        drawn = rng.random() < 0.3
        params = SamplingParams(temperature=1.5, top_k=30, presence_penalty=1.0, seed=self.at)
        self.request = EngineRequest(
            prompts[self.at],
            params if drawn else SamplingParams(),
            max_tokens=rng.choice([1, 6, 12]),
            n=rng.choice([1, 1, 1, 2, 4]),
            use_cache=rng.random() < 0.9,
            tenant=rng.choice("abc"),
            top_logprobs=rng.choice([None, None, 3]),
            ignore_stop_tokens=True,
            constraint=Panicking if rng.random() < 0.05 else None,
        )
        self.group = engine.submit(self.request, self._deliver)

    def _deliver(self, deltas):
        assert not self.ended, "told after its end"
        self.deltas += deltas
        if self.deaf:
            raise SystemExit("the caller panics")

    @property
    def ended(self):
        return self.deaf or len(self.reasons()) == self.request.n

    def reasons(self):
        return [d.finish_reason for d in self.deltas if d.finish_reason]

    def ids(self, index):
        return [i for d in self.deltas if d.index == index for i in d.ids]


class Embedded:
    """A prompt to embed, and what came of it."""

    def __init__(self, engine, rng, prompts):
        self.at, self.results = rng.randrange(len(prompts)), []
        self.group = engine.embed(prompts[self.at], self.results.append, rng.choice("abc"))

    @property
    def ended(self):
        assert len(self.results) < 2
        return bool(self.results)


def check_books(engine, asked):
    """Slots, bytes, pins and counts are those of the groups under way."""
    loop, model, budget = engine._scheduler, engine.model, engine._budget
    answering = set(loop.decoding.values())
    under_way = {*loop.prefilling, *loop._left, *answering}
    assert budget.reserved == sum(group.slots_held * group.bytes_each for group in under_way)
    held = Counter()
    for group in under_way:
        held[group.tenant] += group.slots_held
    assert loop._held == held and held.total() <= loop.slots
    slots = [group.slot for group in [*loop.prefilling, *loop._left]]
    assert sorted([*slots, *(a.slot for a in loop.decoding)]) == sorted(model._lengths)
    assert model.state_bytes() <= budget.reserved <= budget.limit - engine._cache.nbytes
    check_cache(engine._cache, Counter(group.node for group in under_way if group.node), budget)
    alive = sum(not each.ended for each in asked)
    deaf = sum(isinstance(each, Asked) and each.deaf for each in asked)  # whose end is not seen
    assert alive <= engine._live <= alive + deaf


def check_cache(cache, pinned, budget):
    """It has the bytes it says, room for them, and no node that nobody needs."""
    nbytes, todo = 0, [cache._root]
    while todo:
        node = todo.pop()
        todo += node.children.values()
        nbytes += node.row_bytes + node.copy_bytes
        assert node.pins == pinned.get(node, 0)
        assert node.copies is not None or node.children or node.pins or node is cache._root
        assert (node in cache._recent) == (node.copies is not None)
    assert cache.nbytes == nbytes <= budget.cache_limit


def prompts_of(model):
    system = "s" * 150
    common = random_ids(500, seed=1)
    return [
        chat(model, system, "a" * 30, "b" * 70), chat(model, system, "a" * 30, "c" * 7),
        chat(model, system), random_ids(2), random_ids(200, seed=2), common,
        [*common[:300], *random_ids(100, seed=3)], [*common, *random_ids(300, seed=4)],
    ]  # fmt: skip


def expected(model, prompts):
    """What each prompt gives alone: 12 tokens, for greedy and for each answer's seed."""
    answers = {}
    for at, ids in enumerate(prompts):
        answers[at, None] = plain(model, ids, SamplingParams())
        for index in range(4):
            params = SamplingParams(
                temperature=1.5, top_k=30, presence_penalty=1.0, seed=at + index
            )
            answers[at, index] = plain(model, ids, params)
    return answers


def plain(model, ids, params):
    engine = Engine(model, slots=1, cache_bytes=0)
    deltas = []
    try:
        request = EngineRequest(ids, params, max_tokens=12, ignore_stop_tokens=True)
        engine.submit(request, deltas.extend)
        assert engine.drain(60)
    finally:
        engine.close()
    return [i for d in deltas for i in d.ids]


@pytest.fixture(scope="module")
def alone(model):
    return expected(model, prompts_of(model))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_books_are_right_whatever_happens(model, alone, seed):
    rng, prompts = random.Random(seed), prompts_of(model)
    memory = int(model.sequence_bytes(900) * rng.choice([4, 6, 20]))
    engine = by_hand(
        model,
        slots=SLOTS,
        memory_bytes=memory,
        snapshot_every=128,
        queue_limit=1000,
        cache_bytes=rng.choice([None, memory // 3]),
    )
    trouble, asked = Trouble(model, rng), []
    try:
        for turn in range(TURNS):
            trouble.share = 0.25 if turn // 10 % 4 == 2 else 0.0
            for _ in range(rng.choice([0, 0, 1, 3])):
                kind = Embedded if rng.random() < 0.15 else Asked
                asked.append(kind(engine, rng, prompts))
            if asked and rng.random() < 0.3:
                rng.choice(asked[-12:]).group.cancel()
            slices = iter([False] * rng.randrange(6))
            engine.turn(lambda slices=slices: next(slices, True))
            check_books(engine, asked)
        trouble.share = 0.0
        for _ in range(PATIENCE):
            if not engine._live:
                break
            engine.turn()
            check_books(engine, asked)
        assert not engine._live, "somebody was never served"
    finally:
        trouble.over()
        engine.close()
    assert trouble.met and model.state_bytes() == 0 and engine._cache.nbytes == 0
    served = check_answers(model, asked, alone)
    stats = engine.stats()
    assert served > 10
    assert stats.finished + stats.failed + stats.cancelled == len(asked)


def check_answers(model, asked, alone):
    """Whoever came to an end of its own got what it gets alone; how many did."""
    served = 0
    for each in asked:
        assert each.ended
        if isinstance(each, Embedded) or each.deaf:
            continue
        drawn = each.request.params.temperature > 0
        for index in range(each.request.n):
            (end,) = [d for d in each.deltas if d.index == index and d.finish_reason]
            ids = each.ids(index)
            whole = alone[each.at, index if drawn else None]
            assert ids == whole[: len(ids)], "what was told before it ended counts as well"
            assert end.usage.completion_tokens == len(ids)
            probabilities = [p for d in each.deltas if d.index == index for p in d.logprobs]
            wanted = ids if each.request.top_logprobs is not None else []
            assert [p.id for p in probabilities] == wanted
            assert all(np.isfinite(p.logprob) for p in probabilities)
            if end.finish_reason == "length":
                assert len(ids) == each.request.max_tokens
                served += 1
    return served
