"""Memory of a device is planned before it is used: what does not fit is refused, with numbers."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import contextmanager
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("apr_qwen2", reason="a family to load")
pytest.importorskip("apr_qwen3_5", reason="a family whose state is not all in rows")
pytest.importorskip("apr_quant_q4k", reason="a format that some backends read packed")

from apr_core import load
from apr_core.model.planning import (
    GIB,
    RESERVE,
    STEP,
    Demand,
    LayerShapes,
    check_memory,
    largest_context,
    step_bytes,
)
from apr_core.plugin import Backend, BackendError
from apr_core.registry import Registry, get_registry
from apr_core.runtime import ReferenceBackend
from apr_devkit.tiny import tiny_apr
from apr_qwen2.family import Qwen2
from apr_serve.cli.command import _memory
from apr_serve.engine.engine import Engine
from apr_serve.engine.memory import default_limit

pytestmark = pytest.mark.needs_plugins

CONTEXT = 1 << 20  # tokens: of these models' 2 layers, in f32, they take a GiB
PLENTY = 1 << 40
PADDED = 2048  # bytes a value: a device so wasteful that a tiny model takes gigabytes


class Small(ReferenceBackend):
    """The references on a device with memory of its own. What it is asked for is kept."""

    name = "small"
    free, uploads, planned = PLENTY, (), ()

    def capacity(self):
        return type(self).free

    def matrix_bytes(self, format, shape, layout):
        type(self).planned += ((format, tuple(shape)),)
        return PADDED * prod(shape)

    def upload(self, array):
        type(self).uploads += (np.shape(array),)
        return super().upload(array)

    upload_matrix = upload


class Packing(Small):
    """Has a kernel for one packed format, and for `linear` only."""

    kernels = {("linear", "q4_k"): f"{__name__}:never"}

    def upload_packed(self, matrix):
        type(self).uploads += (matrix.shape,)
        return matrix.raw


def never(x, w):
    raise AssertionError("nothing is computed here")


@pytest.fixture
def registry():
    for backend in (Small, Packing):
        backend.free, backend.uploads, backend.planned = PLENTY, (), ()
    backends = [Backend(c.__name__.lower(), f"{__name__}:{c.__name__}") for c in (Small, Packing)]
    own = Registry.from_declarations({"apr-small": backends})
    return Registry([*get_registry().plugins, *own.plugins])


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory):
    """A tiny model with a context of a million tokens, in float32."""
    config = Qwen2().tiny_config() | {"max_position_embeddings": CONTEXT}
    return tiny_apr("qwen2", tmp_path_factory.mktemp("qwen2"), config=config)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """The same, in q4_k, with a head of its own."""
    config = Qwen2().tiny_config() | {"hidden_size": 256, "tie_word_embeddings": False}
    return tiny_apr("qwen2", tmp_path_factory.mktemp("packed"), "q4k", config=config)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """A model most of whose layers have a state of fixed size."""
    return tiny_apr("qwen3_5", tmp_path_factory.mktemp("hybrid"))


def taken(file, registry, **options):
    """(values of all weights, bytes of state at the whole context): by a load that fits."""
    Small.free = None
    with load(file, "small", registry=registry, **options) as model:
        shapes, state = Small.uploads, model.sequence_bytes(model.max_len)
    Small.free, Small.uploads = PLENTY, ()
    return sum(map(prod, shapes)), state


def refusal(file, registry, backend="small", **options):
    with pytest.raises(BackendError) as caught:
        load(file, backend, registry=registry, **options)
    return caught.value


WORKING = 512 * 4 * (4 * 128 + (256 + 256 + 128) + 256 + 320) + RESERVE


def test_a_model_that_does_not_fit_is_refused_with_all_numbers(qwen2, registry):
    values, state = taken(qwen2, registry)
    assert state == GIB
    Small.free = PADDED * values + WORKING + state - 1
    error = refusal(qwen2, registry)
    assert error.message == (
        f"{qwen2} does not fit on small: {gib(Small.free)} are free, and it takes "
        f"{gib(PADDED * values)} for weights, 1.00 GiB for the state of {CONTEXT} tokens and "
        f"{gib(WORKING)} of working memory"
    )
    assert Small.uploads == ()


def gib(nbytes):
    return f"{nbytes / GIB:.2f} GiB" if nbytes >= GIB else f"{nbytes / 2**20:.1f} MiB"


def test_what_fits_to_the_byte_is_loaded(qwen2, registry):
    values, state = taken(qwen2, registry)
    Small.free = PADDED * values + WORKING + state
    with load(qwen2, "small", registry=registry) as model:
        assert model.max_len == CONTEXT
    assert sum(map(prod, Small.uploads)) == values


def test_the_context_that_is_advised_fits_and_the_next_does_not(qwen2, registry):
    values, state = taken(qwen2, registry)
    Small.free = PADDED * values + WORKING + state // 4 + 5000
    advised = int(re.search(r"`max_len` (\d+)", refusal(qwen2, registry).hint)[1])
    assert advised % STEP == 0
    with load(qwen2, "small", registry=registry, max_len=advised) as model:
        assert model.max_len == advised
    assert "does not fit" in refusal(qwen2, registry, max_len=advised + STEP).message
    # keys and values double their room: a token more than a quarter takes a half
    assert advised == CONTEXT // 4


def test_weights_that_do_not_fit_alone_are_answered_by_a_recipe(qwen2, registry):
    values, _ = taken(qwen2, registry)
    Small.free = PADDED * values // 2 + WORKING
    error = refusal(qwen2, registry)
    now, then = re.search(r"have ([\d.]+) bits .* at most ([\d.]+) bits", error.hint).groups()
    assert "`max_len`" not in error.hint
    assert float(now) == pytest.approx(8 * PADDED, rel=0.01)  # vectors are weights, too
    assert float(then) == pytest.approx(8 * PADDED / 2, rel=0.01)
    assert Small.uploads == ()


def test_where_nothing_would_fit_no_recipe_is_advised(qwen2, registry):
    Small.free = RESERVE
    assert refusal(qwen2, registry).hint == (
        "No recipe makes it small enough: use a device with more memory, or choose another "
        "`backend`."
    )


def test_a_shorter_context_needs_less(qwen2, registry):
    values, _ = taken(qwen2, registry)
    Small.free = PADDED * values + WORKING + (1 << 20)
    assert f"the state of {CONTEXT} tokens" in refusal(qwen2, registry).message
    load(qwen2, "small", registry=registry, max_len=1024).close()


def test_keys_and_values_count_in_the_precision_they_are_kept_in(qwen2, registry):
    values, state = taken(qwen2, registry)
    Small.free = PADDED * values + WORKING + state // 2
    assert "1.00 GiB for the state" in refusal(qwen2, registry).message
    load(qwen2, "small", registry=registry, kv_type="f16").close()


def test_a_state_of_fixed_size_counts_once(hybrid, registry):
    values, state = taken(hybrid, registry)
    short = taken(hybrid, registry, max_len=STEP)[1]
    assert 0 < state - short < state
    Small.free = 0
    needs = refusal(hybrid, registry, max_len=STEP).message
    Small.free = PADDED * values + (1 << 40)
    load(hybrid, "small", registry=registry).close()
    assert gib(short) in needs


def test_what_no_kernel_reads_counts_as_float32(packed, registry):
    Packing.free = 0
    refusal(packed, registry, "packing")
    planned = Counter(Packing.planned)
    Packing.free = PLENTY
    with load(packed, "packing", registry=registry) as model:
        kept = Counter((w.format, (w.rows, w.cols)) for w in model.matrices())
    assert {format for format, _ in kept} == {"q4_k", "f32"}  # its head is in another format
    kept["f32", (320, 256)] += 1  # the embedding: there is no kernel for `embed`
    assert kept <= planned
    assert {shape[0] for _, shape in planned - kept} == {1}  # the rest are vectors


def test_a_device_without_memory_of_its_own_has_no_plan(qwen2, registry):
    Small.free = None
    load(qwen2, "small", registry=registry).close()
    assert Small.planned == ()


def test_an_impossible_precision_is_refused_before_memory_is_planned(qwen2, registry):
    Small.free = 0
    assert "q8" in refusal(qwen2, registry, kv_type="q8").message


def test_the_most_that_fits_is_a_multiple_of_256_below_the_context():
    def state(tokens):
        return 10 * tokens

    assert largest_context(10 * 1000, state, 4096) == 768
    assert largest_context(10 * 1024, state, 4096) == 1024
    assert largest_context(10**9, state, 4096) == 4096 - STEP
    assert largest_context(10**9, state, 4097) == 4096
    assert largest_context(10 * 255, state, 4096) == 0
    assert largest_context(10**9, state, STEP) == 0
    assert largest_context(-1, state, 4096) == 0


def test_working_memory_is_that_of_the_widest_layer():
    narrow = LayerShapes([(10, 8)], [(16, 8), (16, 8), (8, 16)], [])
    mixing = LayerShapes([(100, 8), (50, 8)], [(16, 8), (16, 8), (8, 16)], [])
    rows = 512 * 4
    assert step_bytes(8, 32, [narrow]) == rows * (4 * 8 + (16 + 16 + 8) + 16 + 32)
    assert step_bytes(8, 32, [narrow, mixing]) == rows * (4 * 8 + 2 * 150 + 32)


def test_bits_are_rounded_down():
    demand = Demand(10 * GIB, 0, lambda tokens: 0, 8 * GIB)
    with pytest.raises(BackendError) as caught:
        check_memory(Path("m.apr"), Small(), int(4.59 * GIB), demand, 1024)
    assert "which have 10.0 bits a value here" in caught.value.hint
    assert "a recipe of at most 4.5 bits" in caught.value.hint


def test_sequences_share_what_the_device_has_left(hybrid, registry):
    Small.free = 10 * GIB
    with load(hybrid, "small", registry=registry) as model:
        Small.free = 3 * GIB  # now that weights are there
        assert default_limit(model.backend, 2 * GIB, step=0) == int(0.9 * 3 * GIB)
        engine = Engine(model, slots=2)
        try:
            assert engine.stats().memory_limit == int(0.9 * 3 * GIB)
        finally:
            engine.close()


def test_a_step_keeps_its_memory_where_little_is_left(hybrid, qwen2, registry):
    with (
        load(hybrid, "small", registry=registry) as one,
        load(qwen2, "small", registry=registry) as other,
    ):
        steps = one.step_bytes() + other.step_bytes()
        Small.free = 2 * steps
        assert _memory([one, other]) == steps
        Small.free = steps - 1
        assert _memory([one, other]) == 0


def test_a_step_of_a_loaded_model_takes_what_was_planned(qwen2, registry):
    with load(qwen2, "small", registry=registry) as model:
        assert model.step_bytes() + RESERVE == WORKING


def test_models_that_are_served_together_share_the_device(hybrid, qwen2, registry):
    with (
        load(hybrid, "small", registry=registry) as one,
        load(qwen2, "small", registry=registry) as other,
    ):
        Small.free = 2 * GIB
        assert _memory([one, other]) == int(0.9 * 2 * GIB)


def test_all_uploads_happen_while_the_backend_is_loading(qwen2, registry, monkeypatch):
    seen = []

    @contextmanager
    def loading(self):
        seen.append(len(Small.uploads))
        yield
        seen.append(len(Small.uploads))

    monkeypatch.setattr(Small, "loading", loading, raising=False)
    load(qwen2, "small", registry=registry).close()
    assert seen == [0, len(Small.uploads)]
    assert seen[1] > 0


@pytest.mark.parametrize("tied", [True, False])
def test_progress_is_told_once_a_matrix(tied, qwen2, packed, registry):
    calls = []
    file = qwen2 if tied else packed
    with load(file, "small", registry=registry, progress=lambda *each: calls.append(each)) as model:
        names = {w.name for w in model.matrices()} | {"model.embed_tokens.weight"}
        sizes = [model.file.tensors[name].nbytes for name in names]
    assert calls[0] == (0, sum(sizes))
    assert calls[-1] == (sum(sizes), sum(sizes))
    steps = [b[0] - a[0] for a, b in pairwise(calls)]
    assert sorted(steps) == sorted(sizes)
