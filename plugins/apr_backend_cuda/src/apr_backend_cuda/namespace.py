"""torch as references call it, where it differs from NumPy in name or arguments.

torch itself understands NumPy's `axis` and `keepdims`, so few names are left.
"""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor


class Namespace:
    """torch, creating arrays on one device. Names not defined here are torch's own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def arange(self, *args: Any, **options: Any) -> Tensor:
        """Return a range on the device."""
        return torch.arange(*args, **{"device": self._device, **options})

    def eye(self, *args: Any, **options: Any) -> Tensor:
        """Return the identity on the device."""
        return torch.eye(*args, **{"device": self._device, **options})

    def take(self, x: Tensor, indices: Tensor, axis: int) -> Tensor:
        """Return slices of x at `indices` along an axis; torch's own flattens."""
        return torch.index_select(x, axis, indices)

    def repeat(self, x: Tensor, repeats: int, axis: int) -> Tensor:
        """Repeat each slice `repeats` times, side by side."""
        return torch.repeat_interleave(x, repeats, dim=axis)

    def max(self, x: Tensor, axis: int, keepdims: bool = False) -> Tensor:
        """Return the largest values, without their indices."""
        return torch.amax(x, dim=axis, keepdim=keepdims)

    def maximum(self, x: Tensor, other: Tensor | float) -> Tensor:
        """Return the larger of each pair; `other` may be a number."""
        return torch.maximum(x, torch.as_tensor(other, dtype=x.dtype, device=x.device))

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the matrix product in the wider dtype: queries meet keys in f16."""
        dtype = torch.promote_types(x.dtype, y.dtype)
        return torch.matmul(x.to(dtype), y.to(dtype))
