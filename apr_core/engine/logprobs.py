"""Natural log probabilities of tokens, before any sampling parameter."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from apr_core.engine.requests import TokenLogprob
from apr_core.engine.sampling import finite, largest

IMPOSSIBLE = -9999.0  # of a token whose logit is not finite, as OpenAI's API has it


def token_logprob(logits: NDArray[np.float32], token: int, top: int) -> TokenLogprob:
    """Of a chosen token and the `top` likeliest, for logits [valid tokens]; in float64."""
    scores, best = finite(logits)
    wide = scores.astype(np.float64)
    total = float(wide[best]) + float(np.log(np.exp(wide - wide[best]).sum()))
    rivals = largest(scores, top).tolist() if top else []
    return TokenLogprob(
        token,
        _floor(float(wide[token]) - total if token < wide.size else -np.inf),
        tuple((rival, _floor(float(wide[rival]) - total)) for rival in rivals),
    )


def _floor(value: float) -> float:
    return max(value, IMPOSSIBLE)
