"""The device: what it is, what it can do at most, and how long things take on it."""

from __future__ import annotations

import datetime
import gc
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any

import torch
import triton
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.shapes import Amounts

Run = Callable[[], Any]
GIB = 2**30
SPENT = 0.3  # seconds of measured runs of a kernel, about
FEWEST, MOST = 5, 50  # runs
EMPTIES, COPIES = "FillFunctor", "Mem"  # names of kernels: what empties the cache; copies, sets


def driver_version() -> str:
    """Of the NVIDIA driver, as nvidia-smi says it."""
    program = shutil.which("nvidia-smi")
    if not program:
        return "unknown"
    asked = [program, "--query-gpu=driver_version", "--format=csv,noheader"]
    reply = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=30)
    return reply.stdout.strip().splitlines()[0] if reply.stdout.strip() else "unknown"


def _event() -> Any:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


class Machine:
    """A GPU, or the processor where kernels are interpreted."""

    def __init__(self, device: torch.device, amounts: Amounts) -> None:
        self.device, self._amounts = device, amounts
        self.is_gpu = device.type == "cuda"
        self._flushed: torch.Tensor | None = None

    def facts(self) -> dict[str, Any]:
        """Name, date and versions."""
        facts = {
            "device": "processor, kernels interpreted", "date": datetime.date.today().isoformat(),
            "torch": torch.__version__, "triton": triton.__version__,
        }  # fmt: skip
        if self.is_gpu:
            properties = torch.cuda.get_device_properties(self.device)
            facts |= {
                "device": properties.name, "memory_gib": round(properties.total_memory / GIB, 1),
                "cuda": torch.version.cuda, "driver": driver_version(),
                "capability": ".".join(map(str, torch.cuda.get_device_capability(self.device))),
            }  # fmt: skip
        return facts

    def synchronize(self) -> None:
        """Wait for all that was started."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Run) -> float:
        """Of one run by the host's clock, to its end on the device."""
        self.synchronize()
        started = time.perf_counter()
        run()
        self.synchronize()
        return time.perf_counter() - started

    def kernel_seconds(self, run: Run) -> float:
        """A run's time on the device, launches left out, after runs that compile and tune.

        Before each run much memory is written, so that the cache holds nothing of the last one.
        """
        run()
        if not self.is_gpu:
            return self.seconds(run)
        once = min(self.seconds(run) for _ in range(3))
        count = max(FEWEST, min(MOST, int(SPENT / max(once, 1e-6))))
        return self._profiled(run, count) or self._between_events(run, count)

    def _profiled(self, run: Run, count: int) -> float | None:
        """Mean seconds of a run's kernels, as the driver records them; None if it does not.

        What the host does between them is not counted: steps do it while a graph is replayed.
        """
        if not self.has_profiler:
            return None
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            for _ in range(count):
                self._empty_cache()
                run()
            self.synchronize()
        return kernel_microseconds(recorded.key_averages()) / count / 1e6 or None

    @cached_property
    def has_profiler(self) -> bool:
        """Whether the driver records kernels for torch's profiler."""
        if not self.is_gpu:
            return False
        probe = torch.ones(1 << 20, device=self.device)
        try:
            with profile(activities=[ProfilerActivity.CUDA]) as recorded:
                probe.exp()
                self.synchronize()
            return kernel_microseconds(recorded.key_averages()) > 0
        except Exception:  # a profiler that cannot begin is none
            return False

    def _between_events(self, run: Run, count: int) -> float:
        """Median seconds between events before and after a run, launches included if they last."""
        pairs = [(_event(), _event()) for _ in range(count)]
        for start, end in pairs:
            self._empty_cache()
            start.record()
            run()
            end.record()
        self.synchronize()
        return float(statistics.median(start.elapsed_time(end) for start, end in pairs)) / 1e3

    def _empty_cache(self) -> None:
        if self._flushed is None:
            self._flushed = torch.empty(
                self._amounts.emptied, dtype=torch.uint8, device=self.device
            )
        self._flushed.zero_()

    @cached_property
    def copy_rate(self) -> float:
        """Bytes a second, read and written, of a copy on the device: what memory can do."""
        source = torch.zeros(self._amounts.copied, dtype=torch.uint8, device=self.device)
        target = torch.empty_like(source)
        took = self._rate_seconds(lambda: target.copy_(source))
        return 2 * source.nbytes / took

    @cached_property
    def matmul_rate(self) -> float:
        """Operations a second of torch's bfloat16 product of two square matrices."""
        n = self._amounts.multiplied
        a, b = (torch.randn(n, n, device=self.device).to(torch.bfloat16) for _ in range(2))
        return 2 * n**3 / self._rate_seconds(lambda: torch.matmul(a, b))

    def _rate_seconds(self, run: Run) -> float:
        """Median of runs that are far larger than any cache, by events."""
        self.seconds(run)
        once = min(self.seconds(run) for _ in range(3))
        if not self.is_gpu:
            return once
        return self._between_events(run, max(FEWEST, min(MOST, int(SPENT / once))))

    def free_bytes(self) -> int | None:
        """Memory that is free now; None where it is not the device's own."""
        self.clean()
        return torch.cuda.mem_get_info(self.device)[0] if self.is_gpu else None

    def clean(self) -> None:
        """Give back what nobody uses."""
        gc.collect()
        if self.is_gpu:
            self._flushed = None
            torch.cuda.empty_cache()

    def begin_peak(self) -> None:
        """From here on the peak counts, without the memory that empties the cache."""
        self._flushed = None
        if self.is_gpu:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gib(self) -> float | None:
        """The most memory of torch's since `begin_peak`."""
        return torch.cuda.max_memory_allocated(self.device) / GIB if self.is_gpu else None


def kernel_microseconds(events: Iterable[Any]) -> float:
    """Of all recorded kernels, without what empties the cache, copies and memory that is set."""
    return sum(
        float(event.self_device_time_total)
        for event in events
        if event.device_type.name == "CUDA"
        and EMPTIES not in event.key
        and not event.key.startswith(COPIES)
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the device's memory did not suffice."""
    return isinstance(error, torch.OutOfMemoryError)
