"""apr and llama.cpp with the same q4_k_m weights of the demo model, on held-out text.

How often both put the same token first, and how far each is from the float32 model (KL divergence,
both ways). `python benchmarks/agreement.py`; needs llama-cpp-python.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from apr_core import load
from benchmarks.demo_quality import log_softmax, prompts
from benchmarks.engines import LlamaCpp
from benchmarks.files import exported, imported


def divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> float:
    """Mean KL(p, q) of log-probabilities [T, vocab]."""
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def main() -> None:
    """Print the comparison for the recipes llama.cpp has a name for."""
    print("| recipe | tokens | same first token | KL(f32, apr) | KL(f32, llama.cpp) "
          "| KL(apr, f32) | KL(llama.cpp, f32) |")  # fmt: skip
    print("|---" * 7 + "|")
    with tempfile.TemporaryDirectory() as folder:
        full = imported("demo://sums", Path(folder) / "f32.apr", "f32")
        with load(full) as model:
            texts = [[*ids, *model.tokenizer.encode(answer)] for ids, answer in prompts(model)]
            exact = [log_softmax(model.logits(ids)) for ids in texts]
        for recipe in ("q4_k_m", "q4k", "q6k", "q8_0"):
            file = imported("demo://sums", Path(folder) / f"{recipe}.apr", recipe)
            peer = LlamaCpp(str(exported(file, file.with_suffix(".gguf"))), 2)
            theirs_model = peer.make(True, max(map(len, texts)) + 16)
            same, kls = [], []
            with load(file) as model:
                for ids, reference in zip(texts, exact, strict=True):
                    ours = log_softmax(model.logits(ids))
                    theirs_model.reset()
                    theirs_model.eval(ids)
                    scores = np.array(theirs_model.scores[: len(ids)], np.float32)
                    theirs = log_softmax(scores[:, : ours.shape[1]])
                    same.append(ours.argmax(-1) == theirs.argmax(-1))
                    pairs = ((reference, ours), (reference, theirs), (ours, reference),
                             (theirs, reference))  # fmt: skip
                    kls.append([divergence(p, q) for p, q in pairs])
            agreed = np.concatenate(same)
            cells = [f"{value:.3e}" for value in np.mean(kls, axis=0)]
            print(f"| {recipe} | {agreed.size} | {agreed.mean():.2%} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
