"""Every kernel of the CPU backend against the reference body of its op."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from kernel_calls import call, float_weight, random_bytes, run_tasks, weight

from apr_backend_cpu.ops import attention, delta, elementwise
from apr_backend_cpu.ops.linear import embed
from apr_core.model.state import KVState, RecurrentState
from apr_core.model.step import make_step
from apr_core.ops import reference as core
from apr_core.registry import get_registry

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


def sigmoids16(x):
    out = np.empty_like(x)
    call("sigmoids16", x, out, x.size // 16)
    return out


def weights(x):
    """exp(x) as attention computes it."""
    out = x.copy()
    call("softmax_weights", out, x.size // 16, 1.0, 0.0)
    return out


def exps(x):
    """One by one: the decays of tokens without heads of keys."""
    none, out = np.zeros(1, np.float32), np.empty_like(x)
    run_tasks("units_task", 1, none, 0, 0, none, 0, 0, 0, 1, x, x.size, none, none, out)
    return out


def sigmoids(x):
    """One by one: the betas of a token with as many heads."""
    none = np.zeros_like(x)
    return elementwise.delta_gates(none[None], x[None], none, none)[1][0]


@pytest.mark.parametrize(("exp", "sigmoid"), [(weights, sigmoids16), (exps, sigmoids)])
def test_exp_and_sigmoid_to_two_ulp(exp, sigmoid):
    x = np.linspace(-87, 88, 40000).astype(np.float32)
    np.testing.assert_allclose(exp(x), np.exp(x.astype(np.float64)), rtol=2.5e-7)
    expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    np.testing.assert_allclose(sigmoid(x), expected, rtol=5e-7, atol=1e-38)
    odd = np.full(16, -1000, np.float32)
    assert (exp(odd) == 0).all()
    odd[:] = np.nan
    assert np.isnan(exp(odd)).all() and np.isnan(sigmoid(odd)).all()


def test_exp_and_sigmoid_are_the_same_bits_alone_and_side_by_side(rng):
    x = np.concatenate([100 * normal(rng, 3992), [0, -0.0, 1e-42, np.inf, -np.inf, 89, -88, -87]])
    x = x.astype(np.float32)
    np.testing.assert_array_equal(exps(x).view(np.uint32), weights(x).view(np.uint32))
    np.testing.assert_array_equal(sigmoids(x).view(np.uint32), sigmoids16(x).view(np.uint32))


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
        elementwise.delta_gates(a, b, A_log, dt), qwen.delta_gates(np, a, b, A_log, dt), strict=True
    ):
        assert_close(got, expected)


def test_rope_leaves_the_other_dims_alone(rng):
    x, positions = normal(rng, 6, 2, 32), np.array([0, 1, 2, 500, 70000, 262143])
    inv_freq = (1e7 ** -(np.arange(0, 8, 2) / 8)).astype(np.float32)
    got = elementwise.rope(x, positions, inv_freq)
    assert_close(got, core.rope(np, x, positions, inv_freq))
    np.testing.assert_array_equal(got[..., 8:], x[..., 8:])


def kv_pair(kv_heads, dim, slots, window=0):
    states = [KVState(zeros, kv_heads, dim, window=window) for _ in range(2)]
    for state in states:
        for slot in range(slots):
            state.open(slot)
    return states


@pytest.mark.parametrize("window", [0, 7, 200])
def test_attention_ragged_and_grown(rng, window):
    ours, theirs = kv_pair(2, 16, 3, window)
    lengths = [0, 0, 0]
    for counts in ([5, 1, 300], [1, 1, 1], [70, 2, 1], [1, 1, 260]):
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
    """Of a format without kernels of its own."""
    data = rng.integers(0, 255, (50, 8), dtype=np.uint8)
    asked = []

    def decode(raw, cols):
        asked.append(raw.shape)
        return raw.astype(np.float32)[:, :cols]

    w = SimpleNamespace(format="own", data=data, decode=decode, cols=7, row_bytes=8)
    out = embed(np.array([3, 3, 49]), w)
    np.testing.assert_array_equal(out, data[[3, 3, 49], :7])
    assert asked == [(3, 8)]


@pytest.mark.parametrize("cols", [512, 288])
@pytest.mark.parametrize("name", ["q4_k", "q5_k", "q6_k", "q8_0"])
def test_embeddings_are_the_bits_of_the_formats_own_decoders(rng, name, cols):
    pytest.importorskip("apr_quant_q4k", reason="decodes the weights")
    codec = get_registry().make("quantizer", name)
    data = random_bytes(rng, name, 50, cols)
    ids = np.array([3, 49, 3, 0])
    expected = codec.decode(np.ascontiguousarray(data[ids]), cols)
    got = embed(ids, weight(name, 50, cols, data))
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("name", ["f32", "f16", "bf16"])
def test_embeddings_of_floats_are_their_values(rng, name):
    w, values = float_weight(rng, name, 50, 200)
    ids = np.array([3, 49, 3, 0])
    np.testing.assert_array_equal(embed(ids, w), values[ids])
