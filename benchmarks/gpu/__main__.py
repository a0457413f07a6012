"""`python -m benchmarks.gpu`: see the package."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

import benchmarks.gpu as package
from apr_core.errors import AprError, BackendUnavailable, UsageError
from apr_core.model.loading import make_backend
from apr_core.registry import get_registry
from benchmarks.gpu.shapes import NAMES, TINY, amounts
from benchmarks.gpu.table import Report, say

if TYPE_CHECKING:
    from benchmarks.gpu.bench import Bench

PHASES = {  # in this order; those from `load` on want the device for themselves
    "conformance": "conformance", "kernels": "kernels", "decode": "decode", "prefill": "prefill",
    "agreement": "agreement", "load": "load", "transformers": "transformers_peer",
}  # fmt: skip
ALONE = ("conformance", "load", "transformers")  # phases that need no model of ours beside them


def parsed(arguments: list[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.gpu",
        description=package.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--phase", default=",".join(PHASES), help="some of them, with commas")
    parser.add_argument("--shape", default="9b", choices=NAMES)
    parser.add_argument("--recipe", default="q4_k_m", help="of the random weights and of files")
    parser.add_argument("--file", type=Path, help="an .apr file for the phase `load`")
    parser.add_argument("--json", type=Path, help="write all that was found here as well")
    parser.add_argument("--checks", default="", help="only checks of the kit with this in the name")
    parser.add_argument("--debug", action="store_true", help="print tracebacks of failed rows")
    return parser.parse_args(arguments)


def phases_of(text: str) -> list[str]:
    """The phases asked for, in their order. Raises UsageError for one there is not."""
    asked = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in asked if name not in PHASES]
    if unknown or not asked:
        raise UsageError(
            f"no phase is called {', '.join(unknown) or 'nothing'!r}",
            f"There is: {', '.join(PHASES)}",
        )
    return [name for name in PHASES if name in asked]


def prepared(options: argparse.Namespace) -> Bench:
    """Everything that phases share. Raises BackendUnavailable where there is no GPU to use."""
    registry = get_registry()
    backend = make_backend(registry, "cuda", None)
    from benchmarks.gpu.bench import Bench
    from benchmarks.gpu.machine import Machine

    how_much = amounts(options.shape)
    machine = Machine(backend.device, how_much)  # type: ignore[attr-defined]
    if not machine.is_gpu and options.shape != TINY:
        raise BackendUnavailable(
            "TRITON_INTERPRET is set: kernels are interpreted on the processor, and nothing of "
            f"shape {options.shape} could be measured",
            "Unset it, or use --shape tiny to see whether everything runs.",
        )
    facts = machine.facts() | {"shape": options.shape, "recipe": options.recipe}
    facts |= {"copy_gb_s": machine.copy_rate / 1e9, "matmul_tflops": machine.matmul_rate / 1e12}
    return Bench(
        options.shape,
        options.recipe,
        options.file,
        options.checks,
        options.debug,
        how_much,
        registry,
        machine,
        Report(facts),
    )


def introduce(report: Report) -> None:
    """What was measured where."""
    f = report.facts
    say(f"## {f['device']}, {f['date']}\n")
    known = (("torch", "torch"), ("triton", "Triton"), ("cuda", "CUDA"), ("driver", "driver"))
    versions = [f"{name} {f[key]}" for key, name in known if key in f]
    say(f"{', '.join(versions)}; {f['shape']} shape, {f['recipe']}.")
    say(
        f"Measured here: copy on the device {f['copy_gb_s']:.0f} GB/s (read and written), "
        f"bfloat16 matmul {f['matmul_tflops']:.1f} TFLOP/s."
    )


def run_phase(bench: Bench, name: str) -> None:
    """One phase; what ends it early is a failure, and the next one begins."""
    started = time.perf_counter()
    say(f"\n## {name}")
    if name in ALONE:
        bench.drop_model()
    try:
        import_module(f"benchmarks.gpu.{PHASES[name]}").run(bench)
    except Exception as error:
        bench.report.fail(f"{name}: {type(error).__name__}: {error}")
        say(f"\n{name} ended early: {type(error).__name__}: {error}")
        if bench.debug:
            traceback.print_exc()
    say(f"\n{name} took {time.perf_counter() - started:.0f} s.")


def main(arguments: list[str]) -> int:
    """Run; the exit code."""
    options = parsed(arguments)
    try:
        phases = phases_of(options.phase)
        bench = prepared(options)
    except AprError as error:
        print(f"error: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return error.exit_code
    introduce(bench.report)
    try:
        for name in phases:
            run_phase(bench, name)
            if options.json:
                bench.report.write(options.json)
    finally:
        for failure in bench.report.failures:
            say(f"\nFAILED {failure}")
    return 1 if bench.report.failures else 0


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.exit(main(sys.argv[1:]))
