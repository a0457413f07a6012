"""Every kernel of the CPU backend against the reference body of its op."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from apr_backend_cpu import attention, delta, elementwise
from apr_backend_cpu.exponential import exp32, sigmoid32
from apr_core.model.state import KVState, RecurrentState
from apr_core.model.step import make_step
from apr_core.ops import reference as core

qwen = pytest.importorskip("apr_qwen3_5.ops", reason="the delta ops come with apr-qwen3-5")


def zeros(shape, dtype="f32"):
    return np.zeros(shape, np.float16 if dtype == "f16" else np.float32)


def normal(rng, *shape):
    return rng.standard_normal(shape).astype(np.float32)


def assert_close(actual, expected, tolerance=1e-6):
    """Normalised mean square error, as ggml compares backends."""
    expected = np.asarray(expected, np.float64)
    error = np.mean((actual - expected) ** 2) / max(np.mean(expected**2), 1e-30)
    assert error < tolerance**2, f"normalised error {error**0.5:.2e}"


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def test_exp_and_sigmoid_to_two_ulp():
    x = np.linspace(-87, 88, 40001).astype(np.float32)
    got = np.array([exp32(v) for v in x])
    np.testing.assert_allclose(got, np.exp(x.astype(np.float64)), rtol=2.5e-7)
    got = np.array([sigmoid32(v) for v in x])
    np.testing.assert_allclose(got, 1 / (1 + np.exp(-x.astype(np.float64))), rtol=5e-7, atol=1e-38)
    assert exp32(np.float32(-1000)) == 0
    assert np.isnan(exp32(np.float32(np.nan))) and np.isnan(sigmoid32(np.float32(np.nan)))


@pytest.mark.parametrize("rows", [1, 3, 300])
def test_norms(rng, rows):
    x, y, w = normal(rng, rows, 200), normal(rng, rows, 200), normal(rng, 200)
    assert_close(elementwise.rms_norm(x, w, 1e-6, 1.0), core.rms_norm(np, x, w, 1e-6, 1.0))
    total, out = elementwise.add_rms_norm(x, y, w, 1e-6, 0.0)
    np.testing.assert_array_equal(total, x + y)
    assert_close(out, core.rms_norm(np, x + y, w, 1e-6, 0.0))
    heads, z = normal(rng, rows, 4, 32), normal(rng, rows, 4, 32)
    assert_close(
        elementwise.gated_rms_norm(heads, w[:32], z, 1e-6),
        qwen.gated_rms_norm(np, heads, w[:32], z, 1e-6),
    )


@pytest.mark.parametrize("rows", [1, 200])
def test_gates(rng, rows):
    gate, up = 4 * normal(rng, rows, 333), normal(rng, rows, 333)
    assert_close(elementwise.swiglu(gate, up), core.swiglu(np, gate, up))
    x = normal(rng, rows, 3, 16)
    interleaved = normal(rng, rows, 3, 32)
    assert_close(
        elementwise.sigmoid_gate(x, interleaved[..., 16:]),
        core.sigmoid_gate(np, x, interleaved[..., 16:]),
    )
    a, b, A_log, dt = normal(rng, rows, 5), normal(rng, rows, 5), normal(rng, 5), normal(rng, 5)
    for got, expected in zip(
        elementwise.delta_gates(a, b, A_log, dt),
        qwen.delta_gates(np, a, b, A_log, dt),
        strict=True,
    ):
        assert_close(got, expected)


def test_rope_leaves_the_other_dims_alone(rng):
    x, positions = normal(rng, 6, 2, 32), np.array([0, 1, 2, 500, 70000, 262143])
    inv_freq = (1e7 ** -(np.arange(0, 8, 2) / 8)).astype(np.float32)
    got = elementwise.rope(x, positions, inv_freq)
    assert_close(got, core.rope(np, x, positions, inv_freq))
    np.testing.assert_array_equal(got[..., 8:], x[..., 8:])


def kv_pair(kv_heads, dim, slots):
    states = KVState(zeros, kv_heads, dim), KVState(zeros, kv_heads, dim)
    for state in states:
        for slot in range(slots):
            state.open(slot)
    return states


def test_attention_ragged_and_grown(rng):
    ours, theirs = kv_pair(2, 16, 3)
    lengths = [0, 0, 0]
    for counts in ([5, 1, 300], [1, 1, 1], [70, 2, 1]):
        step = make_step([(s, n, lengths[s]) for s, n in enumerate(counts)])
        total = sum(counts)
        q, k, v = normal(rng, total, 8, 16), normal(rng, total, 2, 16), normal(rng, total, 2, 16)
        assert_close(
            attention.attention(q, k, v, ours, step, 0.25),
            core.attention(np, q, k, v, theirs, step, 0.25),
        )
        lengths = [a + b for a, b in zip(lengths, counts, strict=True)]


def test_attention_ignores_what_is_beyond_the_sequence(rng):
    ours, theirs = kv_pair(2, 16, 1)
    ours.keys[0][:], ours.values[0][:] = np.nan, np.nan
    step = make_step([(0, 9, 0)])
    q, k, v = normal(rng, 9, 4, 16), normal(rng, 9, 2, 16), normal(rng, 9, 2, 16)
    assert_close(
        attention.attention(q, k, v, ours, step, 0.25),
        core.attention(np, q, k, v, theirs, step, 0.25),
    )


def delta_states(slots, **shapes):
    states = RecurrentState(zeros, shapes), RecurrentState(zeros, shapes)
    for state in states:
        for slot in range(slots):
            state.open(slot)
    return states


@pytest.mark.parametrize("counts", [[1], [2], [3], [4], [9, 1, 2, 3], [64, 65]])
def test_convolution_carries_its_state(rng, counts):
    w = normal(rng, 300, 1, 4)
    ours, theirs = delta_states(len(counts), conv=(3, 300))
    position = 0
    for repeat in (1, 1, 3):
        parts = [(s, n * repeat, position) for s, n in enumerate(counts)]
        step = make_step(parts)
        x = normal(rng, step.n_rows, 300)
        assert_close(
            delta.causal_conv1d(x, w, ours, step), qwen.causal_conv1d(np, x, w, theirs, step)
        )
        for slot in range(len(counts)):
            np.testing.assert_array_equal(ours.get("conv", slot), theirs.get("conv", slot))


def delta_inputs(rng, tokens, k_heads, v_heads, dk, dv):
    decay = -np.exp(rng.uniform(-8, 2, (tokens, v_heads))).astype(np.float32)
    beta = rng.uniform(0, 1, (tokens, v_heads)).astype(np.float32)
    return (
        normal(rng, tokens, k_heads, dk), normal(rng, tokens, k_heads, dk),
        normal(rng, tokens, v_heads, dv), decay, beta,
    )  # fmt: skip


@pytest.mark.parametrize("ratio", [1, 2, 3])
@pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 200])
def test_delta_rule_equals_recurrence_and_chunked_form(rng, ratio, tokens):
    inputs = delta_inputs(rng, tokens, 2, 2 * ratio, 32, 24)
    chunked, by_token = delta_states(1, delta=(2 * ratio, 32, 24))
    ours, _ = delta_states(1, delta=(2 * ratio, 32, 24))
    step = make_step([(0, tokens, 0)])
    expected = qwen.gated_delta_by_token(np, *inputs, by_token, step)
    assert_close(delta.gated_delta(*inputs, ours, step), expected, 2e-6)
    assert_close(qwen.gated_delta(np, *inputs, chunked, step), expected, 5e-6)
    for state in (ours, chunked):
        assert_close(state.get("delta", 0), by_token.get("delta", 0), 5e-6)


def test_delta_rule_is_the_same_bits_however_a_prompt_is_cut(rng):
    inputs = delta_inputs(rng, 150, 2, 4, 32, 32)
    whole, cut = delta_states(1, delta=(4, 32, 32))
    expected = delta.gated_delta(*inputs, whole, make_step([(0, 150, 0)]))
    parts, at = [], 0
    for n in (1, 2, 61, 36, 50):
        piece = tuple(x[at : at + n] for x in inputs)
        parts.append(delta.gated_delta(*piece, cut, make_step([(0, n, at)])))
        at += n
    np.testing.assert_array_equal(np.concatenate(parts), expected)
    np.testing.assert_array_equal(cut.get("delta", 0), whole.get("delta", 0))


def test_extreme_decay_gives_no_nan(rng):
    q, k, v, _, beta = delta_inputs(rng, 130, 1, 1, 16, 16)
    decay = np.full((130, 1), -200.0, np.float32)
    for run in (lambda s, t: delta.gated_delta(q, k, v, decay, beta, s, t),
                lambda s, t: qwen.gated_delta(np, q, k, v, decay, beta, s, t)):  # fmt: skip
        state, _ = delta_states(1, delta=(1, 16, 16))
        assert np.isfinite(run(state, make_step([(0, 130, 0)]))).all()


def test_embed_decodes_only_the_rows_asked_for(rng):
    from apr_backend_cpu.linear import embed

    data = rng.integers(0, 255, (50, 8), dtype=np.uint8)
    asked = []

    def decode(raw, cols):
        asked.append(raw.shape)
        return raw.astype(np.float32)[:, :cols]

    w = SimpleNamespace(data=data, decode=decode, cols=7, row_bytes=8)
    out = embed(np.array([3, 3, 49]), w)
    np.testing.assert_array_equal(out, data[[3, 3, 49], :7])
    assert asked == [(3, 8)]
