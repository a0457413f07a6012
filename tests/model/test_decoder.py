"""What a plan says about norms, the embedding and logits, against the formulas written out."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from apr_core.errors import ContractError
from apr_core.family.modelspec import NORMS, Block, Plan
from apr_core.model.decoder import Decoder, FeedForward, Layer, Mixer
from apr_core.model.step import make_step
from apr_core.model.trial import ReferenceBackend
from apr_core.ops.binding import Binder

ROWS, HIDDEN, VOCABULARY, EPS, OFFSET = 5, 8, 11, 1e-5, 1.0


class Turn(Mixer):
    """A mixer that is one product."""

    def __call__(self, o, w, x, step, state):
        return x @ w.turn


class Bend(FeedForward):
    """An mlp that is no linear map."""

    activation = "silu"

    def __call__(self, o, w, x):
        return np.tanh(x @ w.bend)


def norm(x, weight):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + EPS) * (OFFSET + weight)


def pre(h, w):
    h = h + norm(h, w.input_norm) @ w.turn
    return h + np.tanh(norm(h, w.post_attention_norm) @ w.bend)


def post(h, w):
    h = h + norm(h @ w.turn, w.post_attention_norm)
    return h + norm(np.tanh(h @ w.bend), w.post_feedforward_norm)


def sandwich(h, w):
    h = h + norm(norm(h, w.input_norm) @ w.turn, w.post_attention_norm)
    y = np.tanh(norm(h, w.pre_feedforward_norm) @ w.bend)
    return h + norm(y, w.post_feedforward_norm)


def parallel(h, w):
    x = norm(h, w.input_norm)
    return h + x @ w.turn + np.tanh(x @ w.bend)


FORMULAS = {"pre": pre, "post": post, "sandwich": sandwich, "parallel": parallel}


def decoder_of(*placements, **plan):
    """A decoder of random weights, a block for each placement, and what it starts from."""
    rng = np.random.default_rng(3)
    roles = {role for norms in NORMS.values() for role in norms if role}

    def weights():
        norms = {role: rng.standard_normal(HIDDEN) * 0.1 for role in sorted(roles)}
        matrices = {name: rng.standard_normal((HIDDEN, HIDDEN)) for name in ("turn", "bend")}
        return SimpleNamespace(**norms, **matrices)

    blocks = tuple(Block("turn", {}, "bend", norm=placement) for placement in placements)
    layers = [Layer(block, Turn(), Bend(), weights()) for block in blocks]
    table = SimpleNamespace(data=rng.standard_normal((VOCABULARY, HIDDEN)))
    table.embed = lambda ids, w: w.data[ids]
    table.linear = lambda x, w: x @ w.data.T
    outside = SimpleNamespace(embedding=table, final_norm=rng.standard_normal(HIDDEN) * 0.1)
    ops = Binder(ReferenceBackend(), {}).ops
    return Decoder(ops, Plan(blocks, EPS, OFFSET, **plan), layers, outside)


def logits_of(decoder):
    ids, step = np.arange(ROWS) % VOCABULARY, make_step([(0, ROWS, 0)])
    states = [None] * len(decoder.layers)
    slices = sum(1 for _ in decoder.slices(ids, step, states))
    return decoder.logits(decoder.hidden(ids, step, states)), slices


MIXED = ("parallel", "post", "post", "sandwich", "pre", "sandwich", "parallel", "pre", "post")


@pytest.mark.parametrize("placements", [*[(name, name) for name in NORMS], MIXED], ids="-".join)
@pytest.mark.parametrize(("scale", "cap"), [(1.0, None), (8**0.5, 3.0)])
def test_blocks_are_normed_where_they_say(placements, scale, cap):
    decoder = decoder_of(*placements, embedding_scale=scale, logit_softcap=cap)
    h = decoder.weights.embedding.data[np.arange(ROWS) % VOCABULARY] * scale
    for placement, layer in zip(placements, decoder.layers, strict=True):
        h = FORMULAS[placement](h, layer.weights)
    expected = norm(h, decoder.weights.final_norm) @ decoder.weights.embedding.data.T
    if cap:
        expected = cap * np.tanh(expected / cap)
    logits, slices = logits_of(decoder)
    np.testing.assert_allclose(logits, expected, rtol=1e-10)
    assert slices == sum(1 if p == "parallel" else 2 for p in placements)


def test_a_layer_needs_the_norms_of_its_placement():
    plan = decoder_of(*NORMS).plan
    needed = {p: Decoder.layer_vectors(plan, i) for i, p in enumerate(NORMS)}
    assert needed == {p: tuple(role for role in roles if role) for p, roles in NORMS.items()}


def test_another_placement_is_refused_by_name():
    with pytest.raises(ContractError, match="norm is 'middle', expected one of pre, post"):
        Block("turn", {}, norm="middle")
