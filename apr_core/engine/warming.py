"""What a first request would wait for, done before there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from apr_core.engine.cuts import GRID

if TYPE_CHECKING:
    from apr_core.model.model import Model

STEPS = (1, 2)  # sequences in a step: kernels may differ for one and for several


def warm_up(model: Model) -> None:
    """Read a prompt and take a step: kernels that are compiled at first use are compiled now."""
    length = min(GRID + 6, model.max_len - len(STEPS))
    slots = [model.new_slot() for _ in range(max(STEPS))]
    try:
        model.forward([(slot, [0] * length) for slot in slots])
        for count in STEPS:
            model.forward([(slot, [0]) for slot in slots[:count]])
    finally:
        for slot in slots:
            model.free_slot(slot)
