"""Quality of the demo model in each recipe: `python benchmarks/demo_quality.py [RECIPE...]`.

Accuracy on the sums that training never showed, and the mean KL divergence of the next-token
distribution from the f32 file's, over the answers' positions of the same prompts.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib.resources import files
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apr_core import Model, load
from apr_core.cli import run
from apr_core.text.chat import ChatTemplate, encode_chat

RECIPES = ("f32", "bf16", "q8_0", "q6k", "q4k", "q4_k_m")


def prompts(model: Model) -> list[tuple[list[int], str]]:
    """(prompt ids, answer) of every held-out sum."""
    rows = json.loads(files("apr_demo").joinpath("heldout.json").read_text("utf-8"))
    template = ChatTemplate(model.metadata["chat_template"])
    return [
        (
            encode_chat(model.tokenizer, template, [{"role": "user", "content": r["prompt"]}]),
            r["answer"],
        )
        for r in rows
    ]


def log_softmax(x: NDArray[np.float32]) -> NDArray[np.float64]:
    """Over the last axis."""
    x = x.astype(np.float64)
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def measure(path: Path) -> tuple[float, list[NDArray[np.float64]]]:
    """(accuracy, log-probabilities at each answer position) of a file."""
    right, rows = 0, []
    with load(path) as model:
        for ids, answer in prompts(model):
            right += model.generate(ids, max_tokens=8).text == answer
            full = [*ids, *model.tokenizer.encode(answer)]
            rows.append(log_softmax(model.logits(full)[len(ids) - 1 :]))
    return right / len(rows), rows


def main(recipes: tuple[str, ...]) -> None:
    """Print a Markdown table."""
    print("| recipe | file | held-out sums right | mean KL to f32 |\n|---|---|---|---|")
    reference: list[NDArray[np.float64]] = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe in dict.fromkeys(("f32", *recipes)):
            path = Path(folder) / f"{recipe}.apr"
            sys.stdout.flush()
            with open("/dev/null", "w") as nowhere:  # noqa: PTH123
                saved, sys.stdout = sys.stdout, nowhere
                code = run(["import", "demo://sums", "--quantize", recipe, "-o", str(path)])
                sys.stdout = saved
            if code:
                raise SystemExit(code)
            accuracy, rows = measure(path)
            reference = reference or rows
            kl = np.mean(
                [(np.exp(p) * (p - q)).sum(-1).mean() for p, q in zip(reference, rows, strict=True)]
            )
            size = path.stat().st_size / 2**20
            print(f"| {recipe} | {size:.1f} MiB | {accuracy:.1%} of {len(rows)} | {kl:.2e} |")


if __name__ == "__main__":
    main(tuple(sys.argv[1:]) or RECIPES)
