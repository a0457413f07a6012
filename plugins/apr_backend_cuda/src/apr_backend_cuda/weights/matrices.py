"""A weight on the device: its planes as tensors, and what kernels need to know of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from apr_backend_cuda.weights.declared import declared_form
from apr_backend_cuda.weights.planes import (
    FLOATS,
    FORMATS,
    SUPERBLOCK,
    Form,
    float_form,
    packed_form,
)
from apr_backend_cuda.weights.upload import Uploader
from apr_core.plugin import BackendError, BlockLayout, HostMatrix


@dataclass(slots=True)
class Matrix:
    """A matrix [rows, cols] in planes, all on one device."""

    kind: str
    rows: int
    cols: int
    codes: torch.Tensor
    group: int = 32
    zero: int = 0
    extra: dict[str, torch.Tensor] = field(default_factory=dict)
    together: dict[tuple[int, ...], tuple[torch.Tensor, tuple[Matrix, ...]]] = field(
        default_factory=dict, repr=False
    )  # see `kernels/together.py`

    @property
    def blocks(self) -> int:
        """Superblocks in a row."""
        return -(-self.cols // SUPERBLOCK)

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return self.codes.nbytes + sum(t.nbytes for t in self.extra.values())

    def arguments(self) -> dict[str, Any]:
        """Return arguments for `tiles.tile` by name, with the codes for absent planes."""
        extra = self.extra
        scales = extra.get("scales", self.codes)
        return {
            "codes": self.codes, "upper": extra.get("upper", self.codes), "scales": scales,
            "minima": extra.get("minima", self.codes), "supers": extra.get("super", self.codes),
            "codebook": extra.get("codebook", self.codes), "blocks": self.blocks,
            "cols": self.cols, "groups": scales.shape[1], "KIND": self.kind, "GROUP": self.group,
            "ZERO": self.zero, "MINIMA": "minima" in extra,
        }  # fmt: skip


def form_of(format: str, cols: int, layout: BlockLayout | None) -> Form:
    """Return how rows of a format are stored: floats unchanged, blocks in planes."""
    if format in FLOATS:
        return float_form(format, cols)
    if format in FORMATS:
        return packed_form(format, cols)
    if layout is None:
        raise BackendError(
            f"no kernel here reads weights in {format}, and the format declares no layout",
            "Upgrade the distribution that brings the format, or this backend.",
        )
    return declared_form(layout, cols)


def uploaded(matrix: HostMatrix, device: torch.device, sent_by: Uploader) -> Matrix:
    """Return the matrix in planes on the device, repacked there piece by piece."""
    rows, cols = len(matrix.raw), matrix.shape[-1]
    form = form_of(matrix.format, cols, matrix.layout)
    planes = form.empty(rows, device)

    def repack(piece: torch.Tensor, first: int) -> None:
        part = {name: plane[first : first + len(piece)] for name, plane in planes.items()}
        form.fill(piece, part)

    sent_by.rows(matrix.raw, repack)
    return in_planes(form, (rows, cols), planes)


def in_planes(form: Form, shape: tuple[int, int], planes: dict[str, torch.Tensor]) -> Matrix:
    """Return a matrix of planes, given by name, that are on a device."""
    codes = planes["codes"]
    extra = {name: plane for name, plane in planes.items() if name != "codes"}
    if form.codebook:
        levels = torch.tensor(form.codebook, dtype=torch.float32, device=codes.device)
        extra["codebook"] = levels
    return Matrix(form.kind, *shape, codes, form.group, form.zero, extra)


def uploaded_array(array: NDArray[Any], sent_by: Uploader) -> torch.Tensor:
    """Upload a large array unchanged, [R, ...]."""
    dtype = torch.from_numpy(np.empty(0, array.dtype)).dtype
    tensor = torch.empty(array.shape, dtype=dtype, device=sent_by.device)
    flat = tensor.view(len(array), -1).view(torch.uint8)  # [R, row bytes]

    def put(piece: torch.Tensor, first: int) -> None:
        flat[first : first + len(piece)].copy_(piece)

    sent_by.rows(array, put)
    return tensor


def as_matrix(data: torch.Tensor | Matrix) -> Matrix:
    """Return a weight's data as a matrix; dense data are tensors, as references need."""
    if isinstance(data, Matrix):
        return data
    rows, cols = data.shape
    return Matrix("f32", rows, cols, data)
