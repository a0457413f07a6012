"""Rows of tables: one per slot, and one more for padding rows."""

from __future__ import annotations

import torch

from apr_core.plugin import BackendError

SLOTS = 1024  # sequences at once
NOBODY = SLOTS  # the slot of rows that only pad a recorded batch


def check_slot(slot: int) -> None:
    """Raise BackendError if tables have no row for a slot."""
    if slot >= SLOTS:
        raise BackendError(
            f"the cuda backend keeps {SLOTS} sequences at once, this would be one more",
            "Ask for fewer at a time, for instance with --slots.",
        )


class Spare:
    """Memory that padding rows write to. All states of a model may share it."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._kept: list[torch.Tensor] = []  # older ones too: tables may hold their addresses

    def address(self, nbytes: int) -> int:
        """Return the address of at least `nbytes`."""
        if not self._kept or self._kept[-1].nbytes < nbytes:
            self._kept.append(torch.zeros(nbytes, dtype=torch.uint8, device=self._device))
        return self._kept[-1].data_ptr()
