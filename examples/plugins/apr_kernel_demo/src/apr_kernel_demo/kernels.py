"""The kernel. It takes the op's arguments without the leading `xp`: torch tensors, here."""

from __future__ import annotations

import torch
from torch.nn.functional import silu


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) * up: gate and up [T, inner] -> [T, inner]."""
    return silu(gate).mul_(up)  # silu's result is a new array, so it may be overwritten
