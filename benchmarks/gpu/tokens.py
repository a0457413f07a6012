"""The likeliest next tokens, sampled on the device."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from apr_core.plugin import SamplingMetadata
from benchmarks.gpu.weights import Built

Parts = Sequence[tuple[int, Sequence[int]]]


def greedy(vocabulary: int) -> SamplingMetadata:
    """Sampling of the likeliest token."""
    return SamplingMetadata(vocabulary)


def nucleus(vocabulary: int) -> SamplingMetadata:
    """Sampling by top-k and top-p, as chats use."""
    return SamplingMetadata(vocabulary, temperature=1.0, top_k=20, top_p=0.95, uniform=0.5)


def step(built: Built, parts: Parts) -> list[int]:
    """One forward; the likeliest next token of each part."""
    model = built.model
    sampling = [greedy(model.config.vocab_size)] * len(parts)
    choices = model.forward_last(parts).sample(sampling)
    return [each if isinstance(each, int) else int(np.argmax(each)) for each in choices]
