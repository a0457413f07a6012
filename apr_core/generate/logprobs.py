"""Natural log probabilities of tokens, before any sampling parameter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apr_core.generate.requests import TokenLogprob
from apr_core.generate.sampling import finite, largest

IMPOSSIBLE = -9999.0  # of a token whose logit is not finite, as clients expect it


def token_logprob(logits: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Of a chosen token and the `top` likeliest, for logits [valid tokens]; to about 1e-7.

    Exponentials are in float32, as logits are: in float64 they would take ten times as long, for
    which all other answers would wait.
    """
    scores, best = finite(logits)
    weights = scores - scores[best]
    np.exp(weights, out=weights)
    total = float(scores[best]) + float(np.log(weights.sum(dtype=np.float64)))
    rivals = largest(scores, top).tolist() if top else []
    return TokenLogprob(
        token,
        _floor(float(scores[token]) - total if token < scores.size else -np.inf),
        tuple((rival, _floor(float(scores[rival]) - total)) for rival in rivals),
    )


def _floor(value: float) -> float:
    return max(value, IMPOSSIBLE)
