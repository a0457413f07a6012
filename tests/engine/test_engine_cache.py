"""Kept prefixes: what is found again, that it changes no bits, and what it may cost.

And the snapshots they are made of, which may hold the rows of a part of a sequence.
"""

from __future__ import annotations

import random

import numpy as np
import pytest

from apr_core import load
from apr_core.generate.boundaries import CHUNK, CLOSEST, ChunkBoundaries, Prefill, boundaries_of
from apr_core.model.state import KVState, RecurrentState, StateMakers
from apr_core.plugin import State
from apr_serve.engine.engine import Engine
from apr_serve.engine.prefix_cache import PrefixCache, snapshot_positions
from tests.engine.engine_rig import (
    ENDLESS,
    FAMILIES,
    Client,
    ask,
    by_hand,
    chat,
    imported,
    random_ids,
    running,
)

pytestmark = pytest.mark.needs_plugins


@pytest.fixture
def engine(model):
    with running(model, slots=2, memory_bytes=256 << 20, snapshot_every=128) as engine:
        yield engine
    assert engine.stats().cache_bytes == 0


def test_headers_come_from_the_template(model):
    boundaries, encode = boundaries_of(model), model.tokenizer.encode
    assert list(boundaries.answer) == encode("<|im_start|>assistant\n", allow_special=True)
    assert list(boundaries.question) == encode("<|im_start|>user\n", allow_special=True)


def test_a_model_without_a_template_is_cut_at_multiples_only(model):
    assert ChunkBoundaries(every=128)(random_ids(300)) == [128, 256]
    assert ChunkBoundaries(every=128)([]) == []


def boundaries_every(tokens, model):
    headers = boundaries_of(model)
    return ChunkBoundaries(headers.answer, headers.question, every=tokens)


def test_prompts_are_cut_after_headers(model):
    boundaries = ChunkBoundaries(
        boundaries_of(model).answer, boundaries_of(model).question, every=4096
    )
    messages = [{"role": "system", "content": "s" * 100}]
    for length in (5, 9, 600):
        messages.append({"role": "user", "content": "q" * length})
        messages.append({"role": "assistant", "content": "a" * length})
    ids = model.chat_ids([*messages, {"role": "user", "content": "q"}])

    def ends(header):
        return [i for i in range(len(ids)) if tuple(ids[i - len(header) : i]) == header]

    first, _, _, after_long = ends(boundaries.question)
    assert boundaries(ids) == sorted({*ends(boundaries.answer), len(ids), first, after_long})
    assert first > 100 and after_long - ends(boundaries.answer)[-1] >= CLOSEST
    assert boundaries(ids[110:])[0] == ends(boundaries.answer)[0] - 110, (
        "too little precedes the question"
    )


@pytest.mark.parametrize("seed", range(5))
def test_prompts_that_begin_alike_are_cut_alike(model, seed):
    rng = random.Random(seed)
    control = (
        list(boundaries_of(model).answer),
        list(boundaries_of(model).question),
        [65] * 9,
        [66] * 60,
    )
    ids = [i for _ in range(30) for i in rng.choice(control)]
    boundaries = ChunkBoundaries(
        boundaries_of(model).answer, boundaries_of(model).question, every=256
    )
    whole = boundaries(ids)
    assert whole == sorted(set(whole))
    for stop in range(1, len(ids), 7):
        assert boundaries(ids[:stop]) == [c for c in whole if c <= stop]


def test_of_a_long_new_chat_some_cuts_are_kept(model):
    """Its end, where it goes on, the system prompt, and enough between for who goes back."""
    boundaries = ChunkBoundaries(
        boundaries_of(model).answer, boundaries_of(model).question, every=1024
    )
    messages = [{"role": "system", "content": "s" * 100}]
    for i in range(60):
        messages += [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "a"}]
    all_ = boundaries(model.chat_ids([*messages, {"role": "user", "content": "last"}]))
    kept = snapshot_positions(all_, boundaries.every)
    assert set(kept) <= set(all_) and len(all_) > 60 > 5 * len(kept)
    assert (kept[0], kept[-1]) == (all_[0], all_[-1])
    assert max(np.diff(kept)) < 2 * CLOSEST
    assert snapshot_positions([], 1024) == []


def test_a_long_new_chat_goes_on_from_its_end(model, monkeypatch):
    monkeypatch.setattr(model, "max_len", 4096)
    engine = Engine(model, slots=1, memory_bytes=256 << 20)
    texts = [f"{i}" for i in range(61)]
    try:
        ask(engine, chat(model, *texts), max_tokens=1)
        entries = engine.stats().cache_entries
        client = ask(engine, chat(model, *texts, "a", "b"), max_tokens=8)
        assert client.last().usage.cached_tokens >= len(chat(model, *texts)) - 1
        assert client.ids() == model.generate(chat(model, *texts, "a", "b"), max_tokens=8).ids
        assert entries < 10
    finally:
        engine.close()


def stops(length, boundaries):
    """Where the forwards of a prompt end."""
    prefill, ends = Prefill(range(length), boundaries), []
    while not prefill.done:
        prefill.position = prefill.stop_within(CHUNK)
        ends.append(prefill.position)
    return ends


def test_forwards_of_a_prompt_end_at_cuts_and_on_the_grid():
    assert stops(1300, [70, 1024, 1300]) == [70, 576, 1024, 1300]
    assert stops(1300, []) == [512, 1024, 1300]
    assert stops(5, []) == [5]


def turns(model):
    """A chat that grows: each prompt but the first continues one before."""
    texts = [c * n for c, n in zip("abcdefghi", (40, 80, 30, 90, 20, 60, 50, 70, 40), strict=True)]
    return [chat(model, *texts[: 2 * i + 1]) for i in range(5)]


def test_a_growing_chat_is_read_from_its_last_header_on(model, engine):
    before = 0
    for ids in turns(model):
        client = ask(engine, ids, max_tokens=8)
        alone = model.generate(ids, max_tokens=8)
        assert client.ids() == alone.ids
        cached = client.last().usage.cached_tokens
        assert cached >= before, "from where the last prompt ended"
        before = len(ids)
    stats = engine.stats()
    assert stats.cached_tokens > stats.prompt_tokens / 2
    assert stats.cache_entries and stats.cache_bytes


def test_a_prompt_that_was_read_before_leaves_something_to_compute(model, engine):
    ids = chat(model, "x" * 200)
    first = ask(engine, ids, max_tokens=4)
    again = ask(engine, ids, max_tokens=4)
    assert again.ids() == first.ids()
    cached = again.last().usage.cached_tokens
    assert cached == (len(ids) - 1 if all(model.states_in_rows) else 128)


def test_prompts_that_share_a_beginning_share_its_state(model, engine):
    common = random_ids(300, seed=9)
    for tail in range(3):
        ids = common + random_ids(50, seed=tail)
        client = ask(engine, ids, max_tokens=4)
        assert client.ids() == model.generate(ids, max_tokens=4).ids
        assert (client.last().usage.cached_tokens >= 256) == (tail > 0)


def test_a_long_chat_is_put_back_between_the_steps_of_others(model):
    ids, original, steps = random_ids(900), model.restore_slices, []

    def slow(slot, *chain):
        for _ in original(slot, *chain):
            engine.clock.now += 1
            steps.append(engine.stats().steps)
            yield

    with running(model, by_hand, slots=2, memory_bytes=256 << 20, snapshot_every=64) as engine:
        first = ask(engine, ids, max_tokens=4)
        model.restore_slices = slow
        try:
            other = Client(engine, [5], max_tokens=1000, **ENDLESS)
            while not engine.stats().running:
                engine.turn()
            again = ask(engine, ids, max_tokens=4)
            other.ticket.cancel()
            other.wait()
        finally:
            del model.restore_slices
    assert again.ids() == first.ids() and again.last().usage.cached_tokens >= 896
    assert len(steps) >= 14 and len(set(steps)) == len(steps), "a step after each part"


def test_without_a_cache_nothing_is_kept(model, engine):
    ids = chat(model, "y" * 200)
    for _ in range(2):
        assert ask(engine, ids, max_tokens=2, use_cache=False).last().usage.cached_tokens == 0
    assert engine.stats().cache_bytes == 0
    none = Engine(model, cache_bytes=0)
    try:
        for _ in range(2):
            assert ask(none, ids, max_tokens=2).last().usage.cached_tokens == 0
        assert none.stats().cache_bytes == 0
    finally:
        none.close()


@pytest.mark.parametrize("copies", [0.5, 1.5, 4])
def test_a_small_budget_is_kept_and_changes_no_answer(model, copies):
    budget = int(copies * model.sequence_bytes(256))
    engine = Engine(model, slots=2, memory_bytes=256 << 20, cache_bytes=budget, snapshot_every=64)
    rng = random.Random(1)
    asked = [*turns(model), *[random_ids(rng.randrange(1, 500), seed=s) for s in range(6)]]
    alone = [model.generate(ids, max_tokens=3).ids for ids in asked]
    try:
        for _ in range(25):
            i = rng.randrange(len(asked))
            assert ask(engine, asked[i], max_tokens=3).ids() == alone[i]
            assert engine.stats().cache_bytes <= budget
    finally:
        engine.close()
    assert model.state_bytes() == 0


def counted(cache):
    """Bytes of all nodes, walked."""
    nbytes, todo = 0, list(cache._root.children.values())
    while todo:
        node = todo.pop()
        nbytes += node.row_bytes + node.copy_bytes
        assert node.copies is not None or node.children or node.pins, "a node of no use"
        todo += node.children.values()
    return nbytes


def test_bytes_are_counted_exactly_and_least_recently_used_goes_first(model):
    cache = PrefixCache(model, lambda: 1 << 30)
    prompts = [random_ids(n, seed=n) for n in (60, 120, 200)]
    for ids in prompts:
        slot = model.new_slot()
        node = cache.restore(ids, slot)
        for stop in range(40, len(ids), 40):
            model.forward([(slot, ids[stop - 40 : stop])])
            node = cache.keep(node, ids, slot)
        cache.unpin(node)
        model.free_slot(slot)
        assert cache.nbytes == counted(cache)
    slot = model.new_slot()
    cache.unpin(cache.restore(prompts[0], slot))
    model.free_slot(slot)
    kept = [cache.nbytes]
    while cache.entries:
        assert cache.shrink(cache.nbytes - 1)
        assert cache.nbytes == counted(cache)
        kept.append(cache.nbytes)
        if cache.entries == 1:
            slot = model.new_slot()
            assert cache.restore(prompts[0], slot).position == 40, "it was used last"
            cache.unpin(next(iter(cache._recent)))
            model.free_slot(slot)
    assert kept == sorted(kept, reverse=True) and kept[-1] == 0


def test_rows_below_which_a_prompt_is_being_read_stay(model):
    cache = PrefixCache(model, lambda: 1 << 30)
    ids = random_ids(200)
    slot = model.new_slot()
    node = cache.restore(ids, slot)
    model.forward([(slot, ids[:100])])
    node = cache.keep(node, ids, slot)
    assert not cache.shrink(0)
    assert cache.nbytes == node.row_bytes or all(model.states_in_rows)
    model.forward([(slot, ids[100:180])])
    node = cache.keep(node, ids, slot)
    cache.unpin(node)
    model.free_slot(slot)
    assert cache.nbytes == counted(cache)
    slot = model.new_slot()
    cache.unpin(cache.restore(ids, slot))
    assert model.length(slot) == 180
    model.free_slot(slot)
    assert cache.shrink(0) and cache.nbytes == 0 and not cache._root.children


@pytest.fixture(scope="module", params=FAMILIES)
def file(request, tmp_path_factory):
    return imported(request.param, tmp_path_factory.mktemp("rows"))


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8"])
def test_a_chain_of_snapshots_restores_what_one_whole_does(file, kv_type):
    with load(file, threads=1, kv_type=kv_type) as model:
        ids, slot, chain = random_ids(700), model.new_slot(), []
        for start, stop in ((0, 5), (5, 300), (300, 600)):
            model.forward([(slot, ids[start:stop])])
            chain.append(model.snapshot(slot, start))
        rows = [
            part[1].shape[1]
            for _, parts in chain
            for part, in_rows in zip(parts, model.states_in_rows, strict=True)
            if in_rows
        ]
        assert set(rows) == {5, 295, 300}
        copy = model.new_slot()
        model.restore(copy, *chain)
        assert model.length(copy) == 600
        whole = model.forward([(slot, ids[600:])])
        np.testing.assert_array_equal(model.forward([(copy, ids[600:])]), whole)
        fork = model.new_slot()
        model.restore(fork, model.snapshot(slot))
        expected = model.forward([(slot, [7])])
        np.testing.assert_array_equal(model.forward([(fork, [7])]), expected)
        for each in (slot, copy, fork):
            model.free_slot(each)
        assert model.state_bytes() == 0


def test_slices_give_the_bits_of_a_whole_forward_whatever_runs_between(file):
    with load(file, threads=1) as model:
        ids = random_ids(200)
        slots = [model.new_slot() for _ in range(3)]
        whole = model.forward([(slots[0], ids)])
        model.forward([(slots[1], ids[:9])])
        slices, pauses = model.forward_slices([(slots[2], ids)]), 0
        while True:
            try:
                next(slices)
            except StopIteration as end:
                sliced = end.value.download()
                break
            pauses += 1
            model.forward([(slots[1], [pauses])])
            passing = model.new_slot()
            model.forward([(passing, [1, 2, 3])])
            model.free_slot(passing)
        assert pauses == 2 * len(model.states_in_rows)
        np.testing.assert_array_equal(sliced, whole)
        assert model.length(slots[2]) == 200 and model.length(slots[1]) == 9 + pauses
        for slot in slots:
            model.free_slot(slot)


def test_a_forward_that_is_dropped_leaves_slots_that_can_be_freed(file):
    with load(file, threads=1) as model:
        slot = model.new_slot()
        slices = model.forward_slices([(slot, random_ids(80))])
        next(slices)
        slices.close()
        assert model.length(slot) == 0
        model.free_slot(slot)
        assert model.state_bytes() == 0


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8"])
@pytest.mark.parametrize("length", [1, 256, 257, 700, 1024])
def test_a_model_says_what_a_sequence_will_take(file, kv_type, length):
    with load(file, threads=1, kv_type=kv_type) as model:
        slot = model.new_slot()
        model.forward([(slot, random_ids(length))])
        assert model.state_bytes() == model.sequence_bytes(length)


def test_states_say_what_a_slot_takes():
    makers = StateMakers(lambda shape, dtype="f32": np.zeros(shape, np.float32))
    for state in (makers.kv(2, 16, 8), makers.recurrent(a=(3, 4), b=(5,)), makers.kv(2, 16)):
        assert isinstance(state, KVState | RecurrentState)
        state.open(3)
        assert state.bytes_at(1) == state.nbytes()
    grown = makers.kv(2, 16)
    grown.open(0)
    grown.reserve(0, 1000)
    assert grown.bytes_at(1000) == grown.nbytes() == grown.bytes_at(1024) < grown.bytes_at(1025)


def test_a_state_that_does_not_say_is_measured(file):
    with load(file, threads=1) as model:
        slot = model.new_slot()
        empty = model.state_bytes()
        model.free_slot(slot)

        class Silent(State):
            """A state of somebody's own, which has what has no default and no more."""

            def __init__(self, state):
                self.open, self.close, self.nbytes = state.open, state.close, state.nbytes

        size = model.sequence_bytes(256)
        model._states = [Silent(state) for state in model._states]
        assert model.sequence_bytes(256) == empty == size
        assert model.state_bytes() == 0
