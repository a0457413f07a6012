"""torch as the references call it, where its names or arguments differ from NumPy's.

torch itself understands NumPy's `axis` and `keepdims`, so few names are left.
"""

from __future__ import annotations

from typing import Any

import torch

Tensor = torch.Tensor


class Namespace:
    """The array namespace of torch. Names that are not here are torch's own."""

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def take(self, x: Tensor, indices: Tensor, axis: int) -> Tensor:
        """Return slices of x at `indices` along an axis; torch's own flattens."""
        return torch.index_select(x, axis, indices)

    def repeat(self, x: Tensor, repeats: int, axis: int) -> Tensor:
        """Return each slice `repeats` times, side by side."""
        return torch.repeat_interleave(x, repeats, dim=axis)

    def max(self, x: Tensor, axis: int, keepdims: bool = False) -> Tensor:
        """Return the largest values, without their indices."""
        return torch.amax(x, dim=axis, keepdim=keepdims)

    def maximum(self, x: Tensor, other: Tensor | float) -> Tensor:
        """Return the larger of each pair; `other` may be a number."""
        return torch.maximum(x, torch.as_tensor(other, dtype=x.dtype))

    def matmul(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the matrix product in the wider dtype: queries meet keys in half precision."""
        dtype = torch.promote_types(x.dtype, y.dtype)
        return torch.matmul(x.to(dtype), y.to(dtype))
