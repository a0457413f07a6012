"""How long a token's choice takes on a vocabulary of 248,320, by the steps that are switched on."""

from __future__ import annotations

import statistics
import time

import numpy as np

from apr_core.generate.sampling import Sampler, SamplingParams

VOCABULARY, DRAWS = 248_320, 300
CASES: dict[str, dict[str, float]] = {
    "greedy": {},
    "top_k 20, top_p 0.95, presence 1.5": {"top_k": 20, "top_p": 0.95, "presence_penalty": 1.5},
    "top_k 1000": {"top_k": 1000},
    "top_p 0.95": {"top_p": 0.95},
    "min_p 0.05": {"min_p": 0.05},
    "temperature alone": {"temperature": 1.0},
}


def logits() -> np.ndarray:
    """A row as a model makes it: many low scores, a few that stand out."""
    rng = np.random.default_rng(0)
    row = rng.standard_normal(VOCABULARY, dtype=np.float32) * 2
    row[rng.integers(0, VOCABULARY, 30)] += np.linspace(8, 16, 30, dtype=np.float32)
    return row


def main() -> None:
    """Print the median of 300 draws a case."""
    row = logits()
    print("| steps | median of a draw |\n|---|---|")
    for name, steps in CASES.items():
        values = {"temperature": 1.0 if steps else 0.0, "seed": 0, **steps}
        sampler = Sampler(SamplingParams(**values), VOCABULARY)
        times = []
        for _ in range(DRAWS):
            started = time.perf_counter()
            sampler(row)
            times.append(time.perf_counter() - started)
        print(f"| {name} | {1e6 * statistics.median(times):.0f} us |")


if __name__ == "__main__":
    main()
