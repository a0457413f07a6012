"""Log probabilities of tokens: those of a float64 softmax, best first."""

from __future__ import annotations

import numpy as np
import pytest

from apr_serve.engine.sequence import token_logprob


@pytest.mark.parametrize("spread", [0.1, 3.0, 20.0])
def test_log_probabilities_of_a_long_row_are_exact_to_what_logits_are(spread):
    rng = np.random.default_rng(1)
    row = (rng.standard_normal(248_320) * spread).astype(np.float32)
    wide = row.astype(np.float64)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    entry = token_logprob(row, 77, 5)
    assert entry.logprob == pytest.approx(expected[77], abs=3e-7)
    best = np.argsort(-wide, kind="stable")[:5].tolist()
    assert [token for token, _ in entry.top] == best
    np.testing.assert_allclose([p for _, p in entry.top], expected[best], atol=3e-7)
