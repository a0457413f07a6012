"""What calibration is worth: divergence from float32 with and without it, on text it did not see.

    python -m benchmarks.quality [--model demo://smollm2] [--recipes q4_k_m,q4k] [--tokens 8192]

The model is imported in float32. Its matrices' inputs are noted on the first part of
`data/alice.txt`; each recipe then encodes it with them and without, to files of the same size, and
both are compared with float32 on the last part. Figures are `apr diff --logits`'s, with standard
errors over pieces of 512 tokens.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from apr_core.importing.importer import plan_import, write_import
from apr_core.importing.source import find_source
from apr_core.registry import get_registry
from apr_eval.calibrate import run_calibrate
from apr_eval.calibration import Calibration
from apr_eval.diff import predictions
from benchmarks.files import imported
from benchmarks.real_model import DATA


def encoded(source: str, recipe: str, out: Path, calibration: Calibration | None) -> Path:
    """Write a file of a recipe, with or without a calibration."""
    registry = get_registry()
    plan = plan_import(find_source(source, registry), recipe=recipe, arch=None, registry=registry)
    write_import(plan, out, inputs_of=calibration.inputs_of if calibration else None)
    return out


def main() -> None:
    """Parse arguments, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="demo://smollm2")
    parser.add_argument("--recipes", default="q4_k_m,q4k,q6k")
    parser.add_argument("--tokens", type=int, default=8192, help="of each part of the text")
    options = parser.parse_args()
    text = (DATA / "alice.txt").read_text("utf-8")
    seen, unseen = text[: len(text) // 2], text[len(text) // 2 :]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        exact = imported(options.model, work / "f32.apr", "f32")
        run_calibrate(str(exact), [seen], work / "calibration", options.tokens, 512)
        calibration = Calibration.read(work / "calibration")
        print("| recipe | MiB | mean KL | with calibration | of it | same token | with |")
        print("|---|---|---|---|---|---|---|")
        for recipe in options.recipes.split(","):
            files = [
                encoded(options.model, recipe, work / f"{recipe}-{i}.apr", given)
                for i, given in enumerate((None, calibration))
            ]
            assert len({file.stat().st_size for file in files}) == 1, "sizes differ"
            plain, fitted = (
                predictions(str(exact), str(file), unseen, 512, options.tokens) for file in files
            )
            means = [f"{d.mean.value:.4f} ± {d.mean.error:.4f}" for d in (plain, fitted)]
            tops = [f"{d.same_top.value:.2%}" for d in (plain, fitted)]
            ratio = fitted.mean.value / plain.mean.value
            size = files[0].stat().st_size / 2**20
            cells = [recipe, f"{size:.1f}", *means, f"{ratio:.2f}", *tops]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
