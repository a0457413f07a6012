"""Checks of a backend's arrays: zeros, uploads, downloads, and memory that comes back."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from apr_core.errors import BackendError
from apr_core.model.loading import make_backend
from apr_devkit.kits import memory_in_use
from apr_devkit.kits.checks import skip
from apr_devkit.kits.device import DeviceKit
from apr_devkit.kits.poison import poisoned, spoil_free_memory

SHAPES = ((1,), (0,), (7,), (3, 37), (2, 0, 4), (2, 257, 16))
DTYPES = {"f32": np.float32, "f16": np.float16}
MIB = 1 << 20
NO_DEVICE = 999983  # more than there will be
ROUND, ROUNDS = 64 * MIB, 5  # bytes of arrays that come and go, and how often


class ArrayChecks(DeviceKit):
    """The checks themselves."""

    def test_it_is_made_with_any_number_of_threads(self) -> None:
        """It takes `threads=`, says what it is, and is called what it is declared as."""
        for threads in (1, 2, None):
            made = self.make_device(threads)
            assert made.name == self.declaration.name, (
                f"name is {made.name!r}, declared as {self.declaration.name!r}"
            )
            line = made.describe()
            assert isinstance(line, str) and line.strip() and "\n" not in line, (
                f"describe() returns {line!r}, expected one line about the device"
            )

    def test_a_device_that_is_not_there_is_refused(self) -> None:
        """A number that no device has is refused, whether or not it lets its users choose one."""
        self.make_device()
        name = f"{self.name}:{NO_DEVICE}"
        try:
            found = make_backend(self.registry, name, None)
        except BackendError:
            return
        raise AssertionError(f"there is no {name}, and it was made: {found.describe()}")

    def test_zeros_are_zeros(self) -> None:
        """`zeros` gives new zeros of the shape and dtype asked for, whatever memory held."""
        sample = self.device.upload(np.zeros(4, np.float32))
        for dtype, expected in DTYPES.items():
            for shape in SHAPES:
                with poisoned(sample, xp=self.device.xp):
                    spoil_free_memory(int(np.prod(shape)) * np.dtype(expected).itemsize)
                    array = self.device.zeros(shape, dtype)
                found = self.device.download(array)
                where = f"zeros({shape}, {dtype!r})"
                assert tuple(array.shape) == shape, f"{where} has shape {tuple(array.shape)}"
                assert found.dtype == expected, f"{where} is {found.dtype}, expected {expected}"
                assert not found.any(), f"{where} is not zero: {found[found != 0][:3]}"

    def test_zeros_are_nobody_elses(self) -> None:
        """Two results of `zeros` share no memory, and f32 is what it makes by default."""
        one, other = self.device.zeros((3, 4)), self.device.zeros((3, 4))
        one[...] = 1.0
        assert self.device.download(one).all(), "writing to zeros in place has no effect"
        assert not self.device.download(other).any(), "two results of zeros share memory"
        assert self.device.download(other).dtype == np.float32, "zeros are not f32 by default"

    def test_nbytes_are_said(self) -> None:
        """Arrays have `shape` and `nbytes`: states count what they hold."""
        for dtype, kind in DTYPES.items():
            found = self.device.zeros((3, 5), dtype).nbytes
            expected = 15 * np.dtype(kind).itemsize
            assert found == expected, f"15 values of {dtype} have nbytes {found}, not {expected}"

    def test_uploads_come_back(self) -> None:
        """What is uploaded is downloaded again to the bit: floats, integers, views, nothing."""
        for label, array in _samples():
            kept = array.copy()
            found = self.device.download(self.device.upload(array))
            assert isinstance(found, np.ndarray), f"{label}: download gives {type(found).__name__}"
            assert found.shape == kept.shape, f"{label}: found {found.shape}, sent {kept.shape}"
            assert found.dtype == kept.dtype, f"{label}: found {found.dtype}, sent {kept.dtype}"
            assert found.tobytes() == kept.tobytes(), f"{label}: other values came back"
            assert array.tobytes() == kept.tobytes(), f"{label}: upload changed its argument"

    def test_matrices_keep_their_values(self) -> None:
        """`upload_matrix` may pad rows, and only that."""
        rng = np.random.default_rng(3)
        for rows, cols in ((1, 1), (5, 37), (64, 256)):
            values = rng.standard_normal((rows, cols)).astype(np.float32)
            kept = values.copy()
            self.device.upload_matrix(values)
            assert np.array_equal(values, kept), f"upload_matrix changed its {rows} by {cols} input"

    def test_slices_are_written_in_place(self) -> None:
        """States are written through slices, and `+ 0` copies: so are snapshots made."""
        array = self.device.zeros((2, 6, 3))
        rows = self.device.upload(np.arange(12, dtype=np.float32).reshape(2, 2, 3))
        array[:, 1:3] = rows
        copy = array[:, :3] + 0
        array[...] = self.device.upload(np.full((2, 6, 3), 5, np.float32))
        expected = np.concatenate([np.zeros((2, 1, 3)), np.arange(12).reshape(2, 2, 3)], axis=1)
        found = self.device.download(copy)
        assert np.array_equal(found, expected), "a slice that was written and copied has changed"
        assert (self.device.download(array) == 5).all(), "array[...] = other does not write"

    def test_memory_comes_back(self) -> None:
        """Arrays that nobody refers to any more give their memory back."""
        measure = self._measure()
        used = []
        for _ in range(ROUNDS + 1):  # after the first, what stays may stay
            self._come_and_go()
            gc.collect()
            used.append(measure())
        # The median: others in this process may take or return memory in one of the rounds.
        grown = median(after - before for before, after in pairwise(used))
        assert grown < ROUND / 4, (
            f"each time {ROUND // MIB} MiB of arrays came and went, {grown / MIB:.0f} MiB more "
            "are in use"
        )

    def _measure(self) -> Any:
        if self.device.has("memory"):
            return self.device.memory
        if not memory_in_use.known():
            skip("it has no memory(), and this system does not say what a process uses")
        return memory_in_use.own_bytes

    def _come_and_go(self) -> None:
        count = ROUND // MIB // 4
        arrays = [self.device.upload(np.ones(MIB // 2, np.float32)) for _ in range(count)]
        arrays += [self.device.upload_matrix(np.ones((2, MIB // 4), np.float32))]
        arrays += [self.device.zeros((MIB // 2,)) for _ in range(count)]
        for array in arrays[count:]:
            array[...] = 1.0
        for array in arrays:
            self.device.download(array)


def _samples() -> Iterator[tuple[str, NDArray[Any]]]:
    rng = np.random.default_rng(2)
    values = rng.standard_normal((5, 37)).astype(np.float32)
    special = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-45, 3.4e38, 1 + 2**-23], np.float32)
    yield "float32 [5, 37]", values
    yield "float32 with NaN, Inf and subnormals", special
    yield "every second column of float32", values[:, ::2]
    yield "float32, transposed", values.T
    yield "no rows of float32", values[:0]
    yield "one float32", values[:1, 0]
    yield "int64", np.array([0, -1, 2**62, -(2**62)])
    yield "every second int64", np.arange(9)[::2]
    yield "int32", np.arange(-3, 4, dtype=np.int32)
    yield "no int64", np.zeros(0, np.int64)
