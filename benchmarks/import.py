"""Import to q4_k_m against llama.cpp's quantizer, on the same weights, in alternation.

    python benchmarks/import.py [--size 0.8b] [--rounds 3] [--threads 2] [--peak-of 4b]

llama.cpp quantizes a BF16 GGUF that this project exported, so both read the same values. Each run
is a process of its own; parameters a second count the text model once. `--peak-of` also imports a
checkpoint of that size and prints the most memory the process held.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.checkpoints import SIZES, write
from benchmarks.files import exported, imported

QUANTIZE = """
import ctypes, sys
import llama_cpp
p = llama_cpp.llama_model_quantize_default_params()
p.ftype, p.nthread = 15, int(sys.argv[3])
files = [name.encode() for name in sys.argv[1:3]]
sys.exit(llama_cpp.llama_model_quantize(*files, ctypes.byref(p)))
"""


def run(command: list[str]) -> float:
    """Seconds of a process that must succeed."""
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def ours(checkpoint: Path, target: Path, threads: int) -> list[str]:
    """The command line of an import."""
    return [sys.executable, "-m", "apr_core.cli", "import", str(checkpoint), "-o", str(target),
            "--quantize", "q4_k_m", "--threads", str(threads), "--force"]  # fmt: skip


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--size", choices=SIZES, default="0.8b")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak-of", choices=SIZES)
    parser.add_argument("--work", type=Path, help="where checkpoints are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work, scratch = options.work or Path(folder), Path(folder)
        checkpoint = write(options.size, work / options.size)
        source = exported(imported(checkpoint, scratch / "bf16.apr", "bf16"), scratch / "bf16.gguf")
        theirs = [sys.executable, "-c", QUANTIZE, str(source), str(scratch / "theirs.gguf"),
                  str(options.threads)]  # fmt: skip
        commands = {"apr": ours(checkpoint, scratch / "ours.apr", options.threads)}
        commands["llama.cpp"] = theirs
        times: dict[str, list[float]] = {name: [] for name in commands}
        run(commands["apr"])  # compiles
        for _ in range(options.rounds):
            for name, command in commands.items():
                times[name].append(run(command))
        count = sum(int(np.prod(shape)) for _, shape in SIZES[options.size].shapes())
        size = (scratch / "ours.apr").stat().st_size / (scratch / "theirs.gguf").stat().st_size
        print("| | seconds | M parameters/s | ratio |\n|---|---|---|---|")
        base = statistics.median(times["llama.cpp"])
        for name, values in times.items():
            median = statistics.median(values)
            print(f"| {name} | {median:.1f} | {count / median / 1e6:.1f} | {base / median:.2f} |")
        print(f"\nOur file is {size:.3f} of theirs in size.")
        if options.peak_of:
            big = write(options.peak_of, work / options.peak_of)
            run(ours(big, scratch / "big.apr", options.threads))
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
            print(f"Peak memory of any import, {options.peak_of} included: {peak:.2f} GiB.")


if __name__ == "__main__":
    main()
