"""States of sequences on the device, where kernels find them by slot number alone.

Every state has a table of addresses with a row per slot. A step tells kernels the slots of its
rows; nothing else about a state changes from step to step, so a recorded step stays valid while
sequences come, grow and go. The row after the last slot is for padding rows: memory that any row
may write and none reads.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import torch

from apr_backend_cuda.states.pages import PagedKV, PagePool
from apr_backend_cuda.states.slots import NOBODY, SLOTS, Spare, check_slot
from apr_core.plugin import BackendError, KVType, RecurrentState, StateMakers, Zeros

CONTEXT = 1 << 18  # tokens that tables of pages have room for by default


class SlotArrays(RecurrentState):
    """Named arrays per slot, and tables i64 [SLOTS + 1] of their addresses."""

    def __init__(
        self,
        zeros: Zeros,
        shapes: Mapping[str, tuple[int, ...]],
        device: torch.device,
        spare: Spare,
        grid: int = 1,
    ) -> None:
        super().__init__(zeros, shapes, grid)
        self._spare = spare
        self.tables = {
            name: torch.zeros(SLOTS + 1, dtype=torch.int64, device=device) for name in shapes
        }

    def open(self, slot: int) -> None:
        """Start an empty sequence in the slot: all zeros. Raises BackendError past the last."""
        check_slot(slot)
        super().open(slot)
        for name, table in self.tables.items():
            table[slot] = self.arrays[name][slot].data_ptr()

    def provide_spare(self) -> None:
        """Allocate memory for padding rows."""
        for name, table in self.tables.items():
            table[NOBODY] = self._spare.address(4 * torch.Size(self._shapes[name]).numel())


class DeviceStates(StateMakers):
    """Makes the states of one model. `max_len` is the tokens of its longest sequence."""

    def __init__(
        self, zeros: Zeros, kv_type: KVType, device: torch.device, max_len: int | None
    ) -> None:
        super().__init__(zeros, kv_type)
        self._device, self._spare = device, Spare(device)
        self._pool = partial(PagePool, device, kv_type, max_len or CONTEXT, self._spare)
        self._pools: dict[int, PagePool] = {}  # by window

    def kv(self, kv_heads: int, head_dim: int, window: int = 0) -> PagedKV:
        """Return a state of keys and values, in pages that all layers of this window share."""
        pool = self._pools.get(window) or self._pools.setdefault(window, self._pool(window))
        return PagedKV(pool, kv_heads, head_dim)

    def recurrent(self, grid: int = 1, /, **shapes: tuple[int, ...]) -> SlotArrays:
        """Return a state of named float32 arrays of fixed shapes, zeros at first."""
        return SlotArrays(self.zeros, shapes, self._device, self._spare, grid)


def arrays_of(state: object) -> SlotArrays:
    """Return a state as recurrent arrays that kernels find. Raises BackendError on others."""
    if isinstance(state, SlotArrays):
        return state
    raise BackendError(
        f"the cuda backend finds recurrent state of its own only, not a {type(state).__name__}",
        "A mixer makes its state with `states.recurrent(...)` in `new_state`.",
    )


def pages_of(state: object) -> PagedKV:
    """Return a state as keys and values in pages. Raises BackendError on others."""
    if isinstance(state, PagedKV):
        return state
    raise BackendError(
        f"the cuda backend attends to pages of its own only, not to a {type(state).__name__}",
        "A mixer makes its state with `states.kv(...)` in `new_state`.",
    )
