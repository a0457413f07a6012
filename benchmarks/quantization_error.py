"""Error and speed of the quantizers, ours and llama.cpp's, on the same tensors in one run.

`pip install llama-cpp-python` (which builds it) fills the second column; without it that column
says so. Errors are relative RMSE; speeds in millions of values a second on two threads, where
llama.cpp's is its one-thread figure doubled (its quantizer splits rows over threads).
"""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from apr_core.registry import get_registry

ROWS, COLS = 512, 2048
IDS = {"q4_k": 12, "q5_k": 13, "q6_k": 14, "q8_0": 8}


def samples() -> dict[str, NDArray[np.float32]]:
    """Five distributions at the scale of weights."""
    rng = np.random.default_rng(0)
    normal = rng.standard_normal((ROWS, COLS))
    outliers = np.where(rng.random((ROWS, COLS)) < 0.002, 20 * normal, normal)
    values = {
        "gaussian": normal,
        "laplace": rng.laplace(size=(ROWS, COLS)),
        "outliers": outliers,
        "uniform": rng.uniform(-1, 1, (ROWS, COLS)),
        "sparse": normal * (rng.random((ROWS, COLS)) < 0.1),
    }
    return {name: (0.02 * x).astype(np.float32) for name, x in values.items()}


def llama_cpp_encoder() -> Callable[[str, NDArray[np.float32], NDArray[np.uint8]], None] | None:
    """llama.cpp's quantizer for one tensor, or None where it is not installed."""
    try:
        import llama_cpp
    except ImportError:
        return None
    folder = Path(llama_cpp.__file__).parent / "lib"
    library = ctypes.CDLL(str(next(iter(sorted(folder.glob("libggml-base.*"))))))
    pointer, count = ctypes.c_void_p, ctypes.c_int64
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int, pointer, pointer, count, count, count, pointer,
    ]  # fmt: skip
    library.ggml_quantize_chunk.restype = ctypes.c_size_t

    def encode(name: str, x: NDArray[np.float32], out: NDArray[np.uint8]) -> None:
        library.ggml_quantize_chunk(IDS[name], x.ctypes.data, out.ctypes.data, 0, *x.shape, None)

    return encode


def seconds(run: Callable[[], Any]) -> float:
    """Median of five runs after one to warm up."""
    run()
    times = []
    for _ in range(5):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def main() -> None:
    """Print a Markdown table."""
    numba.set_num_threads(min(2, numba.config.NUMBA_NUM_THREADS))
    theirs = llama_cpp_encoder()
    if theirs is None:
        print("llama.cpp: not installed (pip install llama-cpp-python), its columns are empty\n")
    print("| format | tensor | our error | llama.cpp | ratio | our M/s | llama.cpp x2 | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name in IDS:
        codec = get_registry().make("quantizer", name)
        for kind, x in samples().items():
            packed = codec.encode(x)
            ours = error(codec, packed, x)
            speed = x.size / seconds(lambda c=codec, x=x: c.encode(x)) / 1e6
            row = [name, kind, f"{ours:.5f}", "", "", f"{speed:.0f}", "", ""]
            if theirs:
                other = np.empty_like(packed)
                t = seconds(lambda n=name, x=x, o=other: theirs(n, x, o))
                their, their_speed = error(codec, other, x), 2 * x.size / t / 1e6
                row[3:5] = [f"{their:.5f}", f"{ours / their:.3f}"]
                row[6:8] = [f"{their_speed:.0f}", f"{speed / their_speed:.2f}"]
            print(f"| {' | '.join(row)} |")


def error(codec: Any, packed: NDArray[np.uint8], x: NDArray[np.float32]) -> float:
    """Relative RMSE of the decoded bytes."""
    decoded = codec.decode(packed, x.shape[1])
    return float(np.sqrt(np.mean((decoded - x) ** 2) / np.mean(x**2)))


if __name__ == "__main__":
    main()
