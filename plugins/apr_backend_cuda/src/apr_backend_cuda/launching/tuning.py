"""The tile sizes a kernel runs fastest with on this device. They never change a result.

Sources, in order: what this process found, what an earlier one found and kept in the cache, the
table shipped with the package (`tables.py`). If none has a choice, the candidates are timed when
first needed, and the result is kept. $APR_CUDA_TUNE: `off` times nothing and takes the first
candidate, `again` times everything anew.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
import triton

from apr_backend_cuda.launching.tables import TABLES
from apr_backend_cuda.probe import interpreted
from apr_core.plugin import cache_dir, usable_folder

SETTING = "APR_CUDA_TUNE"
Candidate = Mapping[str, int]  # sizes of tiles, num_warps, num_stages
Timer = Callable[[Callable[[], None]], float]


class Tuning:
    """Choices for one device. `timer` returns the milliseconds of a call."""

    def __init__(
        self, table: Mapping[str, Candidate], file: Path | None, timer: Timer, mode: str = ""
    ) -> None:
        self._file, self._timer, self._mode = file, timer, mode
        self._timed: dict[str, Candidate] = {}
        self._known: dict[str, Candidate] = {}
        if mode != "again":
            self._known = {**table, **_read(file)}

    def choice(
        self, key: str, candidates: Sequence[Candidate], run: Callable[[Candidate], None]
    ) -> Candidate:
        """Return the fastest candidate for a key; `run` launches the kernel with one."""
        if key not in self._known:
            if len(candidates) == 1 or self._mode == "off":
                return candidates[0]
            self._known[key] = self._timed[key] = self._fastest(candidates, run)
            self._keep()
        return self._known[key]

    def _fastest(
        self, candidates: Sequence[Candidate], run: Callable[[Candidate], None]
    ) -> Candidate:
        times: list[tuple[float, int]] = []
        for number, candidate in enumerate(candidates):
            try:
                times.append((self._timer(partial(run, candidate)), number))
            except triton.runtime.errors.OutOfResources:  # too large for this device
                continue
        return candidates[min(times)[1]] if times else candidates[-1]

    def _keep(self) -> None:
        """Save the choices by write and rename. What cannot be saved is found again next time."""
        if self._file is None:
            return
        beside = self._file.with_suffix(f".{os.getpid()}")
        try:
            beside.write_text(json.dumps({**_read(self._file), **self._timed}, indent=1))
            beside.replace(self._file)
        except OSError:
            beside.unlink(missing_ok=True)


def _read(file: Path | None) -> dict[str, Candidate]:
    """Return the saved choices; none if the file is damaged."""
    try:
        entries = json.loads(file.read_text()) if file else {}
    except (OSError, ValueError):
        return {}
    if not isinstance(entries, dict):
        return {}
    return {key: each for key, each in entries.items() if _is_candidate(each)}


def _is_candidate(entry: Any) -> bool:
    return isinstance(entry, dict) and all(type(size) is int for size in entry.values())


@cache
def tuning_of(device: int) -> Tuning:
    """Return the choices for a CUDA device of this process, by its number."""
    gpu = torch.cuda.get_device_properties(device)
    name = f"{gpu.name}-triton-{triton.__version__}.json".replace(" ", "-").replace("/", "-")
    folder = tuning_folder()
    table = TABLES.get((gpu.major, gpu.minor), {})
    mode = os.environ.get(SETTING, "")
    return Tuning(table, folder and folder / name, triton.testing.do_bench, mode)


def tuning_folder() -> Path | None:
    """Return the folder for saved choices; None if there is none."""
    return usable_folder(cache_dir(), "cuda-tuning", "what kernels run fastest with", "APR_CACHE")


def launch(
    kernel: Any,
    name: str,
    key: str,
    candidates: Sequence[Candidate],
    grid: Callable[[Candidate], tuple[int, ...]],
    *arguments: Any,
    **more: Any,
) -> None:
    """Launch a kernel with its fastest candidate; the kernel must change only its output."""

    def run(candidate: Candidate) -> None:
        kernel[grid(candidate)](*arguments, **more, **candidate)

    if interpreted():
        run(candidates[0])
        return
    device = torch.cuda.current_device()
    if torch.cuda.is_current_stream_capturing():  # timing would break the recording
        run(tuning_of(device).choice(f"{name} {key}", candidates[:1], run))
    else:
        run(tuning_of(device).choice(f"{name} {key}", candidates, run))
