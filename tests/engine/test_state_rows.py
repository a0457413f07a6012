"""Snapshots that hold rows of a part of a sequence, and what states say they will take."""

from __future__ import annotations

import numpy as np
import pytest

from apr_core import load
from apr_core.model.state import KVState, RecurrentState, StateMakers, WindowState
from apr_core.plugin import State
from tests.engine.engine_rig import FAMILIES, imported, random_ids

pytestmark = pytest.mark.needs_plugins


@pytest.fixture(scope="module", params=FAMILIES)
def file(request, tmp_path_factory):
    return imported(request.param, tmp_path_factory.mktemp("rows"))


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8"])
def test_a_chain_of_snapshots_restores_what_one_whole_does(file, kv_type):
    with load(file, threads=2, kv_type=kv_type) as model:
        ids, slot, chain = random_ids(700), model.new_slot(), []
        for start, stop in ((0, 5), (5, 300), (300, 600)):
            model.forward([(slot, ids[start:stop])])
            chain.append(model.snapshot(slot, start))
        rows = [part[0].shape[1] for _, parts in chain for part, in_rows in
                zip(parts, model.states_in_rows, strict=True) if in_rows]  # fmt: skip
        assert set(rows) == {5, 295, 300}
        copy = model.new_slot()
        model.restore(copy, *chain)
        assert model.length(copy) == 600
        whole = model.forward([(slot, ids[600:])])
        np.testing.assert_array_equal(model.forward([(copy, ids[600:])]), whole)
        fork = model.fork(slot)
        expected = model.forward([(slot, [7])])
        np.testing.assert_array_equal(model.forward([(fork, [7])]), expected)
        for each in (slot, copy, fork):
            model.free_slot(each)
        assert model.state_bytes() == 0


def test_slices_give_the_bits_of_a_whole_forward_whatever_runs_between(file):
    with load(file, threads=2) as model:
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
    with load(file, threads=2) as model:
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
    with load(file, threads=2, kv_type=kv_type) as model:
        slot = model.new_slot()
        model.forward([(slot, random_ids(length))])
        assert model.state_bytes() == model.sequence_bytes(length)


def test_states_say_what_a_slot_takes():
    makers = StateMakers(lambda shape, dtype="f32": np.zeros(shape, np.float32))
    for state in (makers.window(2, 16, 8), makers.recurrent(a=(3, 4), b=(5,)), makers.kv(2, 16)):
        assert isinstance(state, KVState | RecurrentState | WindowState)
        state.open(3)
        assert state.bytes_at(1) == state.nbytes()
    grown = makers.kv(2, 16)
    grown.open(0)
    grown.reserve(0, 1000)
    assert grown.bytes_at(1000) == grown.nbytes() == grown.bytes_at(1024) < grown.bytes_at(1025)


def test_a_state_that_does_not_say_is_measured(file):
    with load(file, threads=2) as model:
        slot = model.new_slot()
        empty = model.state_bytes()
        model.free_slot(slot)

        class Silent(State):
            """A state of somebody's own, which has what has no default and no more."""

            def __init__(self, state):
                self.open, self.close, self.nbytes = state.open, state.close, state.nbytes

        said = model.sequence_bytes(256)
        model._states = [Silent(state) for state in model._states]
        assert model.sequence_bytes(256) == empty == said
        assert model.state_bytes() == 0
