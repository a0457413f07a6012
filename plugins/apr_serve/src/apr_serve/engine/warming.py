"""Does before the first request what it would otherwise wait for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from apr_core.plugin import SamplingMetadata
from apr_core.runtime import GRID

if TYPE_CHECKING:
    from apr_core.runtime import Model

STEPS = (1, 2)  # sequences in a step: kernels may differ for one and for several
KINDS: tuple[dict[str, Any], ...] = ({}, {"min_p": 0.1}, {"top_k": 20}, {"top_p": 0.9})  # sampling


def warm_up(model: Model) -> None:
    """Read a prompt and take a step, so that kernels compiled at first use are compiled now."""
    valid = model.tokenizer.valid_size
    length = min(GRID + 6, model.max_len - len(STEPS))
    slots = [model.new_slot() for _ in range(max(STEPS))]
    try:
        model.forward_last([(slot, [0] * length) for slot in slots])
        for count in STEPS:
            logits = model.forward_last([(slot, [0]) for slot in slots[:count]])
            for sampling in (
                [SamplingMetadata(valid)],
                [SamplingMetadata(valid, 1.0, uniform=0.5, **kind) for kind in KINDS],
            ):
                logits.of(0, len(sampling)).sample(sampling)
    finally:
        for slot in slots:
            model.free_slot(slot)
