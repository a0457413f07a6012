"""The ops the gated delta net brings along, as references.

`gated_delta` is the chunked form (chunks of 64 on the grid of absolute positions): matrix products,
so fast on any array library. `gated_delta_by_token` is the same recurrence, token by token.
Both follow Yang et al., "Gated Delta Networks" (2024); state and decays are float32 throughout.
"""

from __future__ import annotations

from typing import Any

from apr_core.plugin import op, sigmoid, silu, softplus

Array = Any
CHUNK = 64
NORM_EPS = 1e-6


@op
def causal_conv1d(xp: Any, x: Array, w: Array, state: Any, step: Any) -> Array:
    """Convolve depthwise and causally, then apply silu. x [T, C], w [C, 1, K]; last tap is now.

    State `conv` [K - 1, C] holds the inputs before the segment, oldest first.
    """
    taps = w.shape[-1]
    outs = []
    for seg in step.segments:
        past = state.get("conv", seg.slot)
        rows = xp.concatenate([past, x[seg.start : seg.stop]], axis=0)  # [K - 1 + n, C]
        n = seg.stop - seg.start
        outs.append(sum(rows[j : j + n] * w[:, 0, j] for j in range(taps)))
        past[...] = rows[n:]
    return silu(xp, xp.concatenate(outs, axis=0))


@op
def delta_gates(xp: Any, a: Array, b: Array, A_log: Array, dt_bias: Array) -> tuple[Array, Array]:
    """Return the log decay -exp(A_log) * softplus(a + dt_bias), <= 0, and beta = sigmoid(b)."""
    return -xp.exp(A_log) * softplus(xp, a + dt_bias), sigmoid(xp, b)


@op
def gated_rms_norm(xp: Any, x: Array, w: Array, z: Array, eps: float) -> Array:
    """Return w * x / sqrt(mean(x^2) + eps) * silu(z): norm over the last axis, then the gate."""
    scale = 1.0 / xp.sqrt(xp.mean(x * x, axis=-1, keepdims=True) + eps)
    return x * scale * w * silu(xp, z)


def _unit(xp: Any, x: Array) -> Array:
    """Return each vector of the last axis divided by its length."""
    return x / xp.sqrt(xp.sum(x * x, axis=-1, keepdims=True) + NORM_EPS)


def _prepare(xp: Any, q: Array, k: Array, value_heads: int) -> tuple[Array, Array]:
    """Normalise, scale q, and give every value head its key head: [T, Hk, D] -> [T, Hv, D]."""
    repeats = value_heads // q.shape[1]
    q = _unit(xp, q) * q.shape[-1] ** -0.5
    return xp.repeat(q, repeats, axis=1), xp.repeat(_unit(xp, k), repeats, axis=1)


@op
def gated_delta(
    xp: Any, q: Array, k: Array, v: Array, log_decay: Array, beta: Array, state: Any, step: Any
) -> Array:
    """Apply the gated delta rule.

    q, k [T, Hk, Dk]; v [T, Hv, Dv]; log_decay, beta [T, Hv] -> [T, Hv, Dv]. Value head h reads key
    head h // (Hv / Hk). q and k are normalised here; q is scaled by Dk^-0.5. State `delta` [Hv, Dk,
    Dv] is decayed, then read, then written, then queried.
    """
    q, k = _prepare(xp, q, k, v.shape[1])
    outs = []
    for seg in step.segments:
        start, position = seg.start, seg.position
        while start < seg.stop:
            stop = min(seg.stop, start + CHUNK - position % CHUNK)
            rows = slice(start, stop)
            outs.append(
                _chunk(
                    xp,
                    q[rows],
                    k[rows],
                    v[rows],
                    log_decay[rows],
                    beta[rows],
                    state.get("delta", seg.slot),
                )
            )
            position += stop - start
            start = stop
    return xp.concatenate(outs, axis=0)


def _chunk(xp: Any, q: Array, k: Array, v: Array, log_decay: Array, beta: Array, S: Array) -> Array:
    """Compute one chunk of one sequence, all heads at once; updates S [H, Dk, Dv] in place."""
    q, k, v = (xp.swapaxes(x, 0, 1) for x in (q, k, v))  # [H, C, D]
    c = xp.cumsum(log_decay.T, axis=-1)  # [H, C]
    n = c.shape[-1]
    row, column = xp.arange(n)[:, None], xp.arange(n)[None, :]
    # the exponent is masked, not the result: exp of a masked positive exponent may overflow
    D = xp.exp(xp.where(column <= row, c[:, :, None] - c[:, None, :], -xp.inf))  # [H, C, C]
    b = beta.T[:, :, None]
    A = xp.where(column < row, xp.matmul(b * k, xp.swapaxes(k, -1, -2)) * D, 0.0)
    right = xp.concatenate([b * v, b * k * xp.exp(c)[:, :, None]], axis=-1)
    solved = xp.linalg.solve(A + xp.eye(n, dtype=A.dtype), right)  # [H, C, Dv + Dk]
    U, W = solved[..., : v.shape[-1]], solved[..., v.shape[-1] :]
    V = U - xp.matmul(W, S)
    out = xp.matmul(q * xp.exp(c)[:, :, None], S)
    out = out + xp.matmul(xp.matmul(q, xp.swapaxes(k, -1, -2)) * D, V)
    last = c[:, -1:]
    S[...] = S * xp.exp(last)[:, :, None] + xp.matmul(
        xp.swapaxes(k * xp.exp(last - c)[:, :, None], -1, -2), V
    )
    return xp.swapaxes(out, 0, 1)


def gated_delta_by_token(
    xp: Any, q: Array, k: Array, v: Array, log_decay: Array, beta: Array, state: Any, step: Any
) -> Array:
    """Apply the rule of `gated_delta` token by token: its plain statement, slow."""
    q, k = _prepare(xp, q, k, v.shape[1])
    outs = []
    for seg in step.segments:
        S = state.get("delta", seg.slot)
        for t in range(seg.start, seg.stop):
            S *= xp.exp(log_decay[t])[:, None, None]
            read = xp.sum(S * k[t][:, :, None], axis=1)  # [H, Dv]
            delta = (v[t] - read) * beta[t][:, None]
            S += k[t][:, :, None] * delta[:, None, :]
            outs.append(xp.sum(S * q[t][:, :, None], axis=1))
    return xp.stack(outs, axis=0)
